// Package manifest turns YAML and JSON documents into the Objects of package
// api, and back.
//
// It is strict: an unknown field, a value of the wrong type, a name that is
// there twice or a field without effect is a problem, never something to guess
// about. All problems of an input are reported at once, each with its file, line
// and column and, where one is near, the name that was probably meant.
//
// The same walk over the same tree of nodes serves a person's files ([Decode])
// and the documents that come over the wire ([DecodeJSON]), so that client and
// server cannot disagree about what is valid.
package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"

	"go.yaml.in/yaml/v4"

	"cardea/api"
)

// Limits of an input. They bound the work and the memory that it costs.
const (
	maxSize     = 16 << 20 // bytes of one file, or of one document on the wire
	maxDepth    = 64       // mappings and lists within each other
	maxNodes    = 1 << 18  // values, names included, of one document in JSON
	maxProblems = 100      // problems reported for one file
	maxAttrs    = 20_000   // bytes of an api.Attrs, as JSON
	maxKey      = 512      // bytes of a name in a mapping
	maxFound    = 200      // bytes of a value that a problem repeats
)

// A Document is one document of a file.
type Document struct {
	// Object is what the document says, with defaults. It is nil if the document
	// is not an Object of a known kind, or is skipped, and incomplete if it has
	// problems.
	Object api.Object
	// JSON is the document as it was written, without defaults, for the wire. It
	// is nil if the document has problems or is skipped.
	JSON json.RawMessage

	source *source
	root   *yaml.Node
}

// A source is one input of Decode. Documents of one input share the pointer.
type source struct{ name string }

// Decode reads all documents of one file: a stream of YAML documents, or one
// JSON value. Empty documents are left out, and a List of Kubernetes is its items.
// The name is for messages.
//
// A file may be for other systems too. What is of a kind that there is no use for
// is skipped, and a warning says so; so is the second of two equal documents of
// one foreign Object.
//
// The diagnostics say all that is wrong, in the order of the file; if there is an
// error among them (see [Diagnostics.Err]), nothing of the file should be used.
// The Document of each is an index into the returned documents.
func Decode(name string, data []byte) ([]Document, Diagnostics) {
	src := &source{name: name}
	roots, syntax := parse(data)
	roots = flatten(roots)
	docs := make([]Document, 0, len(roots))
	known := structs{}
	var all Diagnostics
	for i, root := range roots {
		doc := Document{source: src, root: root}
		var found []finding
		doc.Object, doc.JSON, found = decode(walker{document: i, root: root, structs: known})
		docs = append(docs, doc)
		for _, f := range found {
			all = append(all, f.diagnostic(name))
		}
		if len(all) > maxProblems && all.Err() != nil {
			break // nobody reads further
		}
	}
	all = append(all, duplicates(docs, func(a, b *source) bool { return a == b })...)
	if syntax != nil {
		syntax.Problem.Document = len(roots)
		all = append(all, syntax.diagnostic(name))
	}
	slices.SortStableFunc(all, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return docs, cut(all)
}

// DecodeJSON reads one document that came over the wire. Like the documents of
// [Decode], the Object has its defaults and has been validated; it may be used
// only if no problem is an error. Each problem has the index as its Document.
// The Object is nil if its kind is not known.
func DecodeJSON(index int, raw []byte) (api.Object, []api.Problem) {
	root, bad := parseJSON(raw)
	if bad != nil {
		bad.Problem.Document = index
		return nil, []api.Problem{bad.Problem}
	}
	obj, _, found := decode(walker{document: index, root: root, structs: structs{}, isWire: true})
	var all Diagnostics
	for _, f := range found {
		all = append(all, f.diagnostic(""))
	}
	var problems []api.Problem
	for _, d := range cut(all) {
		problems = append(problems, d.Problem)
	}
	return obj, problems
}

// CheckDuplicates reports each Object that is in two different inputs: an Object
// may be given once. [Decode] reports those that are twice in one. Of equal
// documents of one foreign Object the second is skipped: it has no Object and no
// JSON afterwards.
func CheckDuplicates(docs []Document) Diagnostics {
	return duplicates(docs, func(a, b *source) bool { return a != b })
}

// duplicates reports each second document of one Object, at its name, if the two
// sources match, and skips it if it may.
func duplicates(docs []Document, match func(a, b *source) bool) Diagnostics {
	var all Diagnostics
	first := map[api.Key]Document{}
	for i, doc := range docs {
		if doc.Object == nil || doc.Object.Header().Metadata.Name == "" {
			continue
		}
		key := doc.Object.Header().Key()
		before, twice := first[key]
		if !twice {
			first[key] = doc
			continue
		}
		if !match(before.source, doc.source) {
			continue
		}
		place := fmt.Sprintf("line %d", locate(before.root, "/metadata/name").Line)
		if before.source != doc.source {
			place += " of " + before.source.name
		}
		p := api.Problem{Document: i, Pointer: "/metadata/name", Found: key.Name}
		if key.Group != api.GroupCore && before.JSON != nil && bytes.Equal(before.JSON, doc.JSON) {
			p.Rule, p.Warning = fmt.Sprintf("the document is skipped: it is equal to that of this %s on %s", key.Kind, place), true
			docs[i].Object, docs[i].JSON = nil, nil
		} else {
			p.Rule = fmt.Sprintf("must not be there twice: the %s is on %s already", key.Kind, place)
		}
		all = append(all, Locate(docs, p))
	}
	return all
}

// decode reads the one document of a walker.
func decode(w walker) (api.Object, json.RawMessage, []finding) {
	root := w.root
	kind, ok := w.kindOf()
	if !ok {
		return nil, nil, w.found
	}
	obj := kind.New()
	w.value(root, "", reflect.ValueOf(obj).Elem())
	var asWritten json.RawMessage
	if len(w.found) == 0 {
		var err error
		if asWritten, err = json.Marshal(obj); err != nil {
			w.add(root, "", "cannot be written as JSON: "+err.Error(), "")
		}
	}

	obj.Default()
	problems := api.Problems{Document: w.document}
	obj.Validate(&problems)
	for _, p := range problems.List {
		if !w.follows(p.Pointer) {
			p.Found = short(p.Found)
			w.found = append(w.found, finding{p, locate(root, p.Pointer)})
		}
	}
	for i := range w.found {
		f := &w.found[i]
		if w.secret(f.Pointer) {
			f.Found = ""
		}
		if !f.Warning {
			asWritten = nil
		}
	}
	// Validate goes through maps: make the order that of the document.
	slices.SortStableFunc(w.found, func(a, b finding) int {
		return cmp.Or(cmp.Compare(a.node.Line, b.node.Line), cmp.Compare(a.node.Column, b.node.Column),
			cmp.Compare(a.Pointer, b.Pointer), cmp.Compare(a.Rule, b.Rule))
	})
	return obj, asWritten, w.found
}
