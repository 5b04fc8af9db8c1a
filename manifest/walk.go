package manifest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"cardea/api"
)

// The words about what YAML has and we do not.
const (
	ruleAlias = "must not be an alias"
	ruleMerge = "must not be a merge key"
	ruleTag   = "must not have a tag"
	hintAlias = "write the value out; text that begins with * needs quotes"
)

// A walker carries the nodes of one document over to the fields of an Object.
type walker struct {
	document int
	root     *yaml.Node
	isWire   bool // the document came over the wire, and for us
	kind     api.Kind
	structs  structs
	found    []finding
	// meant has the pointer of each finding and, for a misspelt field, of the one
	// that was meant. What Validate says of these follows from the finding.
	meant []string
}

// add reports a problem of what stands at a pointer, and where: at n, or at the
// name of a mapping, a list or nothing. It does so unless there are more than
// anybody reads already.
func (w *walker) add(n *yaml.Node, at, rule, found string) *api.Problem {
	if len(w.found) > maxProblems {
		return &api.Problem{}
	}
	if n.Kind == yaml.MappingNode || n.Kind == yaml.SequenceNode || isNull(n) {
		n = locate(w.root, at)
	}
	w.found = append(w.found, finding{api.Problem{Document: w.document, Pointer: at, Rule: rule, Found: short(found)}, n})
	w.meant = append(w.meant, at)
	return &w.found[len(w.found)-1].Problem
}

// follows reports whether a problem that Validate found at a pointer follows from
// a finding: it is about the same field, one within it, or what holds it.
func (w *walker) follows(at string) bool {
	return slices.ContainsFunc(w.meant, func(m string) bool {
		return at == m || strings.HasPrefix(at, m+"/") || at == m[:max(strings.LastIndexByte(m, '/'), 0)]
	})
}

// under returns the pointer of a name in the mapping at a pointer. Within the
// values of a Secret a name may be the secret itself, and the mapping has to do.
func (w *walker) under(at string, key *yaml.Node) string {
	if w.secret(at) {
		return at
	}
	return at + "/" + api.Escape(key.Value)
}

// secret reports whether what stands at a pointer must not be repeated.
func (w *walker) secret(at string) bool {
	return w.kind.Name == api.KindSecret && slices.ContainsFunc([]string{"/data", "/stringData", "/metadata/annotations"},
		func(s string) bool { return at == s || strings.HasPrefix(at, s+"/") })
}

// value carries over one value. Null leaves v as it is, as if it were not there.
func (w *walker) value(n *yaml.Node, at string, v reflect.Value) {
	if v.Type() == reflect.TypeFor[api.NotYet]() {
		w.add(n, at, "is not yet available", "")
		return
	}
	if !w.plain(n, at) || isNull(n) {
		return
	}
	switch p := v.Addr().Interface().(type) {
	case api.Loose:
		w.loose(n, at, p)
		return
	case *time.Time:
		w.time(n, at, p)
		return
	case *[]byte:
		w.bytes(n, at, p)
		return
	case *api.Attrs:
		w.attrs(n, at, p)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		w.value(n, at, v.Elem())
	case reflect.Struct:
		w.fields(n, at, v)
	case reflect.Map:
		w.entries(n, at, v)
	case reflect.Slice:
		w.items(n, at, v)
	case reflect.String:
		if s, ok := w.text(n, at); ok && w.enum(n, at, s, v) {
			v.SetString(s)
		}
	case reflect.Bool:
		w.bool(n, at, v)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		w.int(n, at, v)
	default:
		panic("manifest: " + at + " has a type that cannot be written: " + v.Type().String())
	}
}

// plain reports whether a node is one of JSON's, and the problem if it is not.
func (w *walker) plain(n *yaml.Node, at string) bool {
	switch {
	case n.Kind == yaml.AliasNode:
		w.add(n, at, ruleAlias, "").Hint = hintAlias
	case n.Style&yaml.TaggedStyle != 0:
		w.add(n, at, ruleTag, "").Hint = "the type follows from the field"
	default:
		return true
	}
	return false
}

// fields carries a mapping over to a struct.
func (w *walker) fields(n *yaml.Node, at string, v reflect.Value) {
	all := w.structs.of(v.Type())
	w.mapping(n, at, func(key, value *yaml.Node) {
		if w.kind.IsForeign() && isTheirs(at, key.Value, value) {
			return
		}
		i := slices.IndexFunc(all, func(f field) bool { return f.name == key.Value })
		if i < 0 {
			if w.kind.IsForeign() && at == "/metadata" {
				return // what the other system keeps for itself
			}
			w.unknown(key, at, all)
			return
		}
		w.value(value, at+"/"+all[i].name, v.FieldByIndex(all[i].index))
	})
}

// unknown reports a field that does not exist.
func (w *walker) unknown(key *yaml.Node, at string, all []field) {
	var names []string
	for _, f := range all {
		if !f.notYet {
			names = append(names, f.name)
		}
	}
	p := w.add(key, w.under(at, key), "unknown field", key.Value)
	p.Allowed, p.Hint = names, didYouMean(key.Value, names)
	if name := api.Nearest(key.Value, names); name != "" {
		w.meant = append(w.meant, at+"/"+name)
	}
}

// entries carries a mapping over to a map of strings.
func (w *walker) entries(n *yaml.Node, at string, v reflect.Value) {
	m := reflect.MakeMap(v.Type())
	w.mapping(n, at, func(key, value *yaml.Node) {
		if w.kind.IsForeign() && (isNull(value) || isTheirs(at, key.Value, value)) {
			return
		}
		e := reflect.New(v.Type().Elem()).Elem()
		w.item(value, w.under(at, key), e)
		m.SetMapIndex(reflect.ValueOf(key.Value), e)
	})
	v.Set(m)
}

// items carries a list over to a slice.
func (w *walker) items(n *yaml.Node, at string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		w.mustBe(n, at, "a list")
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, c := range n.Content {
		w.item(c, at+"/"+strconv.Itoa(i), v.Index(i))
	}
}

// item carries over what is within a map or a list, where null stands for nothing.
func (w *walker) item(n *yaml.Node, at string, v reflect.Value) {
	if isNull(n) {
		w.add(n, at, "must not be empty", "")
		return
	}
	w.value(n, at, v)
}

// mapping calls do for each name that a mapping has once, and its value.
func (w *walker) mapping(n *yaml.Node, at string, do func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		w.mustBe(n, at, "a mapping")
		return
	}
	seen := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		if !w.key(key, at) {
			continue
		}
		if seen[key.Value] {
			w.add(key, w.under(at, key), "must not be there twice", "")
			continue
		}
		seen[key.Value] = true
		do(key, n.Content[i+1])
	}
}

// key reports whether a node can be a name in a mapping, and the problem, of the
// mapping, if it cannot.
func (w *walker) key(n *yaml.Node, at string) bool {
	switch {
	case !w.plain(n, at):
	case n.Kind != yaml.ScalarNode:
		w.mustBe(n, at, "a mapping with text as names")
	case n.ShortTag() == "!!merge":
		w.add(n, at, ruleMerge, "").Hint = "write the fields out"
	case n.Value == "" || len(n.Value) > maxKey || printable(n.Value) != n.Value:
		w.add(n, at, fmt.Sprintf("must have names of 1 to %d bytes of printable text", maxKey), "")
	default:
		return true
	}
	return false
}

// text returns a scalar as it was written.
func (w *walker) text(n *yaml.Node, at string) (string, bool) {
	switch {
	case !w.plain(n, at):
	case n.Kind != yaml.ScalarNode:
		w.mustBe(n, at, "text")
	case strings.ContainsRune(n.Value, 0) || !utf8.ValidString(n.Value):
		w.add(n, at, "must be text in UTF-8 without NUL", "")
	default:
		return n.Value, true
	}
	return "", false
}

// enum reports whether a text may be a value of v's type. The empty text is no
// value at all, as if the field were not there.
func (w *walker) enum(n *yaml.Node, at, s string, v reflect.Value) bool {
	e, ok := v.Interface().(api.Enum)
	if !ok || s == "" || slices.Contains(e.Values(), s) {
		return true
	}
	if v.Type() == reflect.TypeFor[api.Mode]() && s == string(api.ModeAPI) {
		return true // of one Service: Validate knows which
	}
	if l, ok := e.(api.LaterEnum); ok {
		if i := slices.IndexFunc(l.Later(), func(x string) bool { return strings.EqualFold(x, s) }); i >= 0 {
			w.add(n, at, l.Later()[i]+" is not yet available", "").Allowed = e.Values()
			return false
		}
	}
	p := w.add(n, at, "must be one of the allowed values", s)
	p.Allowed, p.Hint = e.Values(), didYouMean(s, e.Values())
	return false
}

func (w *walker) bool(n *yaml.Node, at string, v reflect.Value) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!bool" {
		v.SetBool(strings.EqualFold(n.Value, "true"))
		return
	}
	p := w.mustBe(n, at, "true or false")
	switch strings.ToLower(n.Value) {
	case "true", "false":
		p.Hint = "without quotes"
	case "yes", "on", "y":
		p.Hint = "write true"
	case "no", "off", "n":
		p.Hint = "write false"
	}
}

// int carries over a whole number in decimal: 0x1F, 010 and 1_000 mean different
// things to different readers.
func (w *walker) int(n *yaml.Node, at string, v reflect.Value) {
	i, err := strconv.ParseInt(n.Value, 10, v.Type().Bits())
	decimal := n.Kind == yaml.ScalarNode && (err != nil || strconv.FormatInt(i, 10) == n.Value)
	switch {
	case decimal && n.ShortTag() == "!!int" && err == nil:
		v.SetInt(i)
	case decimal && n.ShortTag() == "!!str" && err == nil:
		w.mustBe(n, at, "a whole number").Hint = "without quotes"
	case n.Kind == yaml.ScalarNode && errors.Is(err, strconv.ErrRange):
		w.add(n, at, fmt.Sprintf("must be a number of at most %d bits", v.Type().Bits()), n.Value)
	default:
		w.mustBe(n, at, "a whole number in decimal")
	}
}

func (w *walker) time(n *yaml.Node, at string, t *time.Time) {
	if n.Kind == yaml.ScalarNode && t.UnmarshalText([]byte(n.Value)) == nil {
		return
	}
	w.mustBe(n, at, "a time as in 2006-01-02T15:04:05Z (RFC 3339)")
}

func (w *walker) bytes(n *yaml.Node, at string, b *[]byte) {
	if n.Kind == yaml.ScalarNode {
		text := strings.Join(strings.Fields(n.Value), "")
		if raw, err := base64.StdEncoding.Strict().DecodeString(text); err == nil {
			*b = raw
			return
		}
	}
	w.mustBe(n, at, "bytes in base64 (RFC 4648)")
}

// attrs carries over free data, as encoding/json would read it.
func (w *walker) attrs(n *yaml.Node, at string, a *api.Attrs) {
	if n.Kind != yaml.MappingNode {
		w.mustBe(n, at, "a mapping")
		return
	}
	*a = w.free(n, at).(map[string]any)
	// An error is that of a value that has its problem already.
	if b, err := json.Marshal(a); err == nil && len(b) > maxAttrs {
		w.add(n, at, fmt.Sprintf("must be at most %d bytes as JSON", maxAttrs), strconv.Itoa(len(b))+" bytes")
	}
}

func (w *walker) free(n *yaml.Node, at string) any {
	return w.any(n, at, func(f float64, _ string) any { return f })
}

// loose carries over what can be written in more than one form.
func (w *walker) loose(n *yaml.Node, at string, l api.Loose) {
	before := len(w.found)
	v := w.any(n, at, func(_ float64, text string) any { return json.Number(text) })
	if len(w.found) > before {
		return
	}
	// An error is that of a value that has its problem already.
	if b, err := json.Marshal(v); err == nil && len(b) > maxAttrs {
		w.add(n, at, fmt.Sprintf("must be at most %d bytes as JSON", maxAttrs), strconv.Itoa(len(b))+" bytes")
	} else if err := l.SetLoose(v); err != nil {
		w.mustBe(n, at, err.Error())
	}
}

// any returns a value as encoding/json would read it, and numbers as asked for.
func (w *walker) any(n *yaml.Node, at string, number func(f float64, text string) any) any {
	if !w.plain(n, at) {
		return nil
	}
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		w.mapping(n, at, func(key, value *yaml.Node) {
			m[key.Value] = w.any(value, at+"/"+api.Escape(key.Value), number)
		})
		return m
	case yaml.SequenceNode:
		l := make([]any, len(n.Content))
		for i, c := range n.Content {
			l[i] = w.any(c, at+"/"+strconv.Itoa(i), number)
		}
		return l
	}
	switch n.ShortTag() {
	case "!!null":
		return nil
	case "!!bool":
		return strings.EqualFold(n.Value, "true")
	case "!!int", "!!float":
		f, ok := w.number(n, at)
		if !ok {
			return nil
		}
		return number(f, n.Value)
	}
	s, _ := w.text(n, at)
	return s
}

// number returns a number of JSON. Readers of JSON, ours among them, hold it in a
// float64, and a whole number must still be the same there.
func (w *walker) number(n *yaml.Node, at string) (f float64, ok bool) {
	if err := json.Unmarshal([]byte(n.Value), &f); err != nil {
		w.add(n, at, "must be a number as in JSON", n.Value).Hint = "or text, in quotes"
		return 0, false
	}
	if kept, err := json.Marshal(f); n.ShortTag() == "!!int" && (err != nil || string(kept) != n.Value) {
		w.add(n, at, "must be a number that a float64 holds: whole ones up to 2^53", n.Value).Hint = "or text, in quotes"
	}
	return f, true
}

// mustBe reports a value of the wrong type. It repeats scalars only.
func (w *walker) mustBe(n *yaml.Node, at, want string) *api.Problem {
	switch {
	case n.Kind == yaml.MappingNode:
		return w.add(n, at, "must be "+want+", not a mapping", "")
	case n.Kind == yaml.SequenceNode:
		return w.add(n, at, "must be "+want+", not a list", "")
	}
	return w.add(n, at, "must be "+want, n.Value)
}

// short returns as much of a value as a problem repeats.
func short(s string) string {
	if len(s) <= maxFound {
		return s
	}
	return strings.ToValidUTF8(s[:maxFound], "") + "…"
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// printable returns s with a '?' for each character that a terminal would not
// show as such.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}

// A field is one that can be written in a mapping.
type field struct {
	name   string
	index  []int
	notYet bool
}

// structs knows the fields of the structs that were met.
type structs map[reflect.Type][]field

// of returns the fields of a struct by the names that encoding/json gives them,
// those of embedded structs among them, without those that only programs set.
func (s structs) of(t reflect.Type) []field {
	if all, ok := s[t]; ok {
		return all
	}
	var all []field
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Tag.Get("cardea") == "internal" {
			continue
		}
		if f.Anonymous && name == "" {
			for _, e := range s.of(f.Type) {
				all = append(all, field{e.name, append(slices.Clone(f.Index), e.index...), e.notYet})
			}
			continue
		}
		all = append(all, field{name, f.Index, f.Type == reflect.TypeFor[api.NotYet]()})
	}
	s[t] = all
	return all
}
