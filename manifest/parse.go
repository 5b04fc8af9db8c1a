package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"cardea/api"
)

// parse reads the text of a file into the root node of each document that is not
// empty. If it ends in what cannot be read, the finding says so, and the roots
// are those before.
func parse(data []byte) ([]*yaml.Node, *finding) {
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	if bad := checkText(data); bad != nil {
		return nil, bad
	}
	// The same text may be YAML, which has no surrogate pairs (\ud83d\ude00).
	if text := bytes.TrimLeft(data, " \t\r\n"); len(text) > 0 && text[0] == '{' && json.Valid(data) {
		root, bad := parseJSON(data)
		if bad != nil {
			return nil, bad
		}
		return []*yaml.Node{root}, nil
	}

	loader, err := yaml.NewLoader(bytes.NewReader(data), yaml.WithPlugin(limits{}))
	if err != nil {
		return nil, syntaxError(data, err)
	}
	var roots []*yaml.Node
	for {
		var doc yaml.Node
		err := loader.Load(&doc)
		if errors.Is(err, io.EOF) {
			return roots, nil
		}
		if err != nil {
			return roots, syntaxError(data, err)
		}
		if len(doc.Content) != 1 {
			continue
		}
		root := doc.Content[0]
		if root.Kind == yaml.ScalarNode && root.Value == "" && root.ShortTag() == "!!null" {
			continue // nothing but comments
		}
		if deep := deeper(root, maxDepth); deep != nil {
			return roots, newFinding(deep.Line, deep.Column, errDepth.Error())
		}
		roots = append(roots, root)
	}
}

var (
	errDepth = fmt.Errorf("must be nested at most %d deep", maxDepth)
	errNodes = fmt.Errorf("must have at most %d values", maxNodes)
)

// limits bounds what the YAML loader does.
type limits struct{}

// CheckDepth implements yaml.LoaderLimitsPlugin. It counts the nesting of block
// and flow collections apart; deeper does the rest.
func (limits) CheckDepth(depth int, _ *yaml.DepthContext) error {
	if depth > maxDepth {
		return errDepth
	}
	return nil
}

// CheckAlias implements yaml.LoaderLimitsPlugin. Aliases stay nodes, and are
// refused by the walker.
func (limits) CheckAlias(int, int) error { return nil }

// deeper returns the first collection that is in more than max others.
func deeper(n *yaml.Node, max int) *yaml.Node {
	if n.Kind != yaml.MappingNode && n.Kind != yaml.SequenceNode {
		return nil
	}
	if max == 0 {
		return n
	}
	for _, c := range n.Content {
		if d := deeper(c, max-1); d != nil {
			return d
		}
	}
	return nil
}

// syntaxError says what the YAML loader could not read. A name that it repeats
// may be part of a Secret, and is left out.
func syntaxError(data []byte, err error) *finding {
	load, ok := errors.AsType[*yaml.LoadError](err)
	if !ok {
		return newFinding(1, 1, "must be YAML: "+printable(err.Error()))
	}
	f := newFinding(load.Mark.Line, load.Mark.Column, "must be YAML: "+printable(load.Message))
	switch {
	case strings.Contains(load.Message, errDepth.Error()):
		f.Rule = errDepth.Error()
	case strings.HasPrefix(load.Message, "unknown anchor"):
		f.Rule, f.Hint = ruleAlias, hintAlias
	case tabbed(lineOf(data, load.Mark.Line)):
		f.Rule, f.Hint = "must not be indented with a tab", "indent with spaces"
	case halfQuoted(lineOf(data, load.Mark.Line)):
		f.Hint = "a value that begins with a quote ends with the next one: put all of it in quotes of the other kind"
	}
	return f
}

// lineOf returns a line, from 1.
func lineOf(data []byte, line int) []byte {
	for l := range bytes.Lines(data) {
		if line--; line == 0 {
			return l
		}
	}
	return nil
}

// tabbed reports whether a line is indented with a tab.
func tabbed(l []byte) bool {
	return bytes.IndexByte(l[:len(l)-len(bytes.TrimLeft(l, " \t"))], '\t') >= 0
}

// halfQuoted reports whether a line has a value that begins with text in quotes
// and goes on: as expressions do, match: "a" in b.
func halfQuoted(l []byte) bool {
	_, value, ok := bytes.Cut(l, []byte(": "))
	value = bytes.TrimSpace(value)
	if !ok || len(value) < 2 || value[0] != '"' && value[0] != '\'' {
		return false
	}
	end := bytes.IndexByte(value[1:], value[0])
	return end >= 0 && end+2 < len(value)
}

func newFinding(line, column int, rule string) *finding {
	return &finding{api.Problem{Rule: rule}, &yaml.Node{Line: line, Column: column}}
}

// checkText reports input that is too large, or is not text.
func checkText(data []byte) *finding {
	if len(data) > maxSize {
		f := newFinding(0, 0, fmt.Sprintf("must be at most %d MiB", maxSize>>20))
		f.Found = fmt.Sprintf("%d bytes", len(data))
		return f
	}
	at := place{line: 1, column: 1}
	for rest := data; len(rest) > 0; {
		r, size := utf8.DecodeRune(rest)
		switch {
		case r == utf8.RuneError && size == 1:
			return newFinding(at.line, at.column, "must be text in UTF-8")
		case r < ' ' && r != '\t' && r != '\n' && r != '\r':
			return newFinding(at.line, at.column, fmt.Sprintf("must be text, without the control character %U", r))
		}
		at.pass(r)
		rest = rest[size:]
	}
	return nil
}

// A place is a line and a column, from 1, as one goes through a text.
type place struct{ line, column int }

// pass goes on by one character.
func (p *place) pass(r rune) {
	p.column++
	if r == '\n' {
		p.line, p.column = p.line+1, 1
	}
}

// parseJSON reads one JSON value into nodes, so that YAML and JSON are one thing
// from here on.
func parseJSON(data []byte) (*yaml.Node, *finding) {
	if bad := checkText(data); bad != nil {
		return nil, bad
	}
	r := jsonReader{dec: json.NewDecoder(bytes.NewReader(data)), rest: data, at: place{1, 1}}
	r.dec.UseNumber()
	var whole json.RawMessage
	err := json.Unmarshal(data, &whole) // the syntax, to the end
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		r.moveTo(int(syntax.Offset) - 1)
	}
	var root *yaml.Node
	if err == nil {
		root, err = r.value(maxDepth)
	}
	switch {
	case errors.Is(err, errDepth), errors.Is(err, errNodes):
		return nil, newFinding(r.at.line, r.at.column, err.Error())
	case err != nil:
		return nil, newFinding(r.at.line, r.at.column, "must be JSON: "+printable(err.Error()))
	}
	return root, nil
}

// A jsonReader makes nodes of the tokens of a JSON value.
type jsonReader struct {
	dec   *json.Decoder
	rest  []byte // from at on
	moved int    // bytes before rest
	at    place  // of the last token
	nodes int
}

// moveTo goes on to a byte of the input.
func (r *jsonReader) moveTo(offset int) {
	for r.moved < offset && len(r.rest) > 0 {
		c, size := utf8.DecodeRune(r.rest)
		r.at.pass(c)
		r.rest, r.moved = r.rest[size:], r.moved+size
	}
}

// value reads the next value, or the name of one, which may hold depth
// collections within each other.
func (r *jsonReader) value(depth int) (*yaml.Node, error) {
	r.moveTo(int(r.dec.InputOffset()))
	r.moveTo(r.moved + len(r.rest) - len(bytes.TrimLeft(r.rest, " \t\r\n,:")))
	n := &yaml.Node{Kind: yaml.ScalarNode, Line: r.at.line, Column: r.at.column}
	token, err := r.dec.Token()
	if err != nil {
		return nil, err
	}
	if r.nodes++; r.nodes > maxNodes {
		return nil, errNodes
	}
	switch t := token.(type) {
	case json.Delim:
		if depth == 0 {
			return nil, errDepth
		}
		n.Kind, n.Tag = yaml.SequenceNode, "!!seq"
		if t == '{' {
			n.Kind, n.Tag = yaml.MappingNode, "!!map"
		}
		for r.dec.More() {
			c, err := r.value(depth - 1)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, c)
		}
		_, err = r.dec.Token() // the closing one
		return n, err
	case string:
		n.Tag, n.Style, n.Value = "!!str", yaml.DoubleQuotedStyle, t
	case json.Number:
		n.Tag, n.Value = "!!int", t.String()
		if strings.ContainsAny(n.Value, ".eE") {
			n.Tag = "!!float"
		}
	case bool:
		n.Tag, n.Value = "!!bool", fmt.Sprint(t)
	case nil:
		n.Tag, n.Value = "!!null", "null"
	}
	return n, nil
}
