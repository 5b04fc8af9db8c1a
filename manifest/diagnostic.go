package manifest

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"cardea/api"
)

// A Diagnostic is a Problem with its place.
type Diagnostic struct {
	File         string // "" if not known
	Line, Column int    // from 1, Column in characters; 0 if not known
	api.Problem
}

// String returns one line: FILE:LINE:COLUMN: error: PROBLEM.
func (d Diagnostic) String() string {
	var b strings.Builder
	if d.File != "" {
		b.WriteString(d.File + ":")
		if d.Line > 0 {
			fmt.Fprintf(&b, "%d:%d:", d.Line, d.Column)
		}
		b.WriteByte(' ')
	}
	if d.Warning {
		b.WriteString("warning: ")
	} else {
		b.WriteString("error: ")
	}
	b.WriteString(d.Problem.String())
	return b.String()
}

// Diagnostics is what there is to say of some documents. As an error it is its
// lines.
type Diagnostics []Diagnostic

// Error returns all lines, warnings too.
func (ds Diagnostics) Error() string {
	lines := make([]string, len(ds))
	for i, d := range ds {
		lines[i] = d.String()
	}
	return strings.Join(lines, "\n")
}

// Err returns the Diagnostics as an error, and nil if all are warnings.
func (ds Diagnostics) Err() error {
	for _, d := range ds {
		if !d.Warning {
			return ds
		}
	}
	return nil
}

// cut shortens a list that nobody would read to its end. What it leaves out does
// not turn an error into a warning.
func cut(all Diagnostics) Diagnostics {
	if len(all) <= maxProblems {
		return all
	}
	last := all[maxProblems]
	last.Problem = api.Problem{Document: last.Document, Rule: "there are more problems than these " + strconv.Itoa(maxProblems),
		Warning: all[maxProblems:].Err() == nil}
	return append(all[:maxProblems:maxProblems], last)
}

// Locate gives a Problem that somebody else, such as the server, found in docs its
// place. The Document of the Problem is an index into docs; if there is no such
// document, the Diagnostic has no place.
func Locate(docs []Document, p api.Problem) Diagnostic {
	if p.Document < 0 || p.Document >= len(docs) || docs[p.Document].root == nil {
		return Diagnostic{Problem: p}
	}
	doc := docs[p.Document]
	return finding{p, locate(doc.root, p.Pointer)}.diagnostic(doc.source.name)
}

// A finding is a Problem and the node to point at.
type finding struct {
	api.Problem
	node *yaml.Node
}

func (f finding) diagnostic(file string) Diagnostic {
	return Diagnostic{File: file, Line: f.node.Line, Column: f.node.Column, Problem: f.Problem}
}

// locate returns the node to point at for what a JSON pointer (RFC 6901) names: a
// scalar itself; of a mapping or list, and of what is missing from one, the name
// that it stands under.
func locate(root *yaml.Node, pointer string) *yaml.Node {
	place, n := root, root
	if pointer == "" {
		return place
	}
	for step := range strings.SplitSeq(strings.TrimPrefix(pointer, "/"), "/") {
		name, value := child(n, strings.NewReplacer("~1", "/", "~0", "~").Replace(step))
		if value == nil {
			return place
		}
		place, n = name, value
	}
	if n.Kind == yaml.ScalarNode && n.Value != "" {
		return n
	}
	return place
}

// child returns the value of a name in a mapping, or of an index in a list, and
// the node that names it; nil if there is none.
func child(n *yaml.Node, step string) (name, value *yaml.Node) {
	switch n.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			if k := n.Content[i]; k.Kind == yaml.ScalarNode && k.Value == step {
				return k, n.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(n.Content) {
			return n.Content[i], n.Content[i]
		}
	}
	return nil, nil
}
