package gen

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A Doc says what a kind, or a field, is for.
type Doc struct {
	Path   string // Service.spec.port
	Type   string // "object", "list of text", …
	Text   string
	Values []string // of an enumeration
	Later  []string // values that are not yet to be had
	NotYet bool     // the field itself is not
	// Required is whether input must have it.
	Required bool
	Fields   []Doc // of an object or a list of them, in the order in which they are written
}

// A schema is the part of JSON Schema that the generator writes.
type schema struct {
	Ref         string `json:"$ref"`
	AllOf       []schema
	Type        string
	Format      string
	Description string
	Enum        []string
	NotYet      json.RawMessage `json:"x-not-yet"`
	Written     string          `json:"x-written"` // how a person writes what can be of several types
	Items       *schema
	Properties  map[string]schema
	Order       []string `json:"x-order"`
	Required    []string
	Additional  json.RawMessage `json:"additionalProperties"`
}

// Explain returns what is said of a field of a kind, named as in "spec.config";
// "" is the kind itself. The error names the fields that there are.
func Explain(kind, field string) (Doc, error) {
	var d struct {
		Components struct{ Schemas map[string]schema }
	}
	if err := json.Unmarshal([]byte(OpenAPI), &d); err != nil {
		return Doc{}, fmt.Errorf("the document of the API: %w", err)
	}
	all := book(d.Components.Schemas)
	at, ok := all[kind]
	if !ok {
		return Doc{}, fmt.Errorf("there is no kind %s", kind)
	}
	path, required := kind, false
	for step := range strings.SplitSeq(strings.Trim(field, "."), ".") {
		if step, _, _ = strings.Cut(step, "["); step == "" {
			continue // the kind itself
		}
		in := all.object(at)
		next, ok := in.Properties[step]
		if !ok {
			if len(in.Order) == 0 {
				return Doc{}, fmt.Errorf("%s has no fields", path)
			}
			return Doc{}, fmt.Errorf("%s has no field %q; it has %s", path, step, strings.Join(in.Order, ", "))
		}
		path, required, at = path+"."+step, slices.Contains(in.Required, step), next
	}
	doc := all.doc(path, at)
	doc.Required = required
	in := all.object(at)
	for _, name := range in.Order {
		f := all.doc(path+"."+name, in.Properties[name])
		f.Required = slices.Contains(in.Required, name)
		doc.Fields = append(doc.Fields, f)
	}
	return doc, nil
}

// A book is the schemas by name.
type book map[string]schema

// deref returns what a schema refers to; its own description stays.
func (b book) deref(s schema) schema {
	for range 8 {
		switch {
		case s.Ref != "":
			name := s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]
			text := s.Description
			if s = b[name]; text != "" {
				s.Description = text
			}
		case len(s.AllOf) > 0:
			text := s.Description
			if s = s.AllOf[0]; text != "" {
				s.Description = text
			}
		default:
			return s
		}
	}
	return s
}

// object returns the object whose fields stand below s: of a list, its item's.
func (b book) object(s schema) schema {
	s = b.deref(s)
	if s.Type == "array" && s.Items != nil {
		return b.deref(*s.Items)
	}
	return s
}

// doc describes one schema without its fields.
func (b book) doc(path string, s schema) Doc {
	s = b.deref(s)
	d := Doc{Path: path, Type: b.typeOf(s), Text: s.Description, Values: s.Enum}
	if len(s.NotYet) > 0 && json.Unmarshal(s.NotYet, &d.Later) != nil {
		d.NotYet = true
	}
	if s.Type == "array" && s.Items != nil {
		item := b.deref(*s.Items)
		d.Values = item.Enum
		if d.Text == "" {
			d.Text = item.Description
		}
	}
	return d
}

// typeOf names the type of a schema for people.
func (b book) typeOf(s schema) string {
	switch s = b.deref(s); s.Type {
	case "array":
		if s.Items != nil {
			return "list of " + b.typeOf(*s.Items)
		}
	case "string":
		if s.Format == "date-time" {
			return "time (RFC 3339)"
		}
		return "text"
	case "object":
		if len(s.Properties) > 0 {
			return "object"
		}
		var of schema
		if len(s.Additional) > 0 && json.Unmarshal(s.Additional, &of) == nil {
			return "map of " + b.typeOf(of)
		}
		return "free object"
	case "":
		return cmp.Or(s.Written, "–")
	}
	return s.Type
}
