package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// What the kinds of other systems have in common: the shapes that their fields
// can have there and nowhere in ours.

// Installations say for which installations of Ambassador an Object is.
type Installations struct {
	// AmbassadorID names the installations that it is for; _automatic_ is every one, and
	// default counts if it is left out.
	AmbassadorID      AmbassadorIDs `json:"ambassador_id,omitempty"`
	AmbassadorIDCamel AmbassadorIDs `json:"ambassadorId,omitempty"` // another spelling of ambassador_id
}

// DefaultAmbassadorID is the installation that an Object is for if it names none.
const DefaultAmbassadorID = "default"

// IDs returns the installations that are named, without the prefix by which the
// conversion of versions marks them; ["default"] if none is.
func (i *Installations) IDs() []string {
	var ids []string
	for _, id := range slices.Concat(i.AmbassadorID, i.AmbassadorIDCamel) {
		ids = append(ids, strings.TrimPrefix(id, "--apiVersion-v3alpha1-only--"))
	}
	if len(ids) == 0 {
		return []string{DefaultAmbassadorID}
	}
	return ids
}

// Include reports whether the Object is for an installation. "_automatic_" stands for
// every one.
func (i *Installations) Include(id string) bool {
	if len(i.AmbassadorID) == 0 && len(i.AmbassadorIDCamel) == 0 {
		return id == DefaultAmbassadorID
	}
	ids := i.IDs()
	return slices.Contains(ids, id) || slices.Contains(ids, "_automatic_")
}

// AmbassadorIDs is a list of names that may be written as one text.
type AmbassadorIDs []string

// SetLoose implements Loose.
func (a *AmbassadorIDs) SetLoose(v any) error {
	err := errors.New("text or a list of texts")
	switch v := v.(type) {
	case nil:
		*a = nil
	case string:
		*a = AmbassadorIDs{v}
	case []any:
		*a = nil
		for _, x := range v {
			s, ok := x.(string)
			if !ok {
				return err
			}
			*a = append(*a, s)
		}
	default:
		return err
	}
	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (a *AmbassadorIDs) UnmarshalJSON(b []byte) error { return unmarshalLoose(a, b) }

// A NameOrBool is the name of an Object, or true or false instead.
type NameOrBool struct {
	Name string
	Bool *bool
}

// IsZero reports whether nothing was written.
func (n NameOrBool) IsZero() bool { return n.Name == "" && n.Bool == nil }

// IsSet reports whether there is a name, or true.
func (n NameOrBool) IsSet() bool { return n.Name != "" || n.Bool != nil && *n.Bool }

// SetLoose implements Loose.
func (n *NameOrBool) SetLoose(v any) error {
	switch v := v.(type) {
	case nil:
		*n = NameOrBool{}
	case string:
		*n = NameOrBool{Name: v}
	case bool:
		*n = NameOrBool{Bool: &v}
	default:
		return errors.New("true, false or a name")
	}
	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (n *NameOrBool) UnmarshalJSON(b []byte) error { return unmarshalLoose(n, b) }

// MarshalJSON implements json.Marshaler.
func (n NameOrBool) MarshalJSON() ([]byte, error) {
	if n.Bool != nil {
		return json.Marshal(*n.Bool)
	}
	return json.Marshal(n.Name)
}

// Digits is a number that may be written as text of digits.
type Digits struct {
	Text string // as it was written
	Int  int64
	bare bool // it was written as a number
}

// SetLoose implements Loose.
func (d *Digits) SetLoose(v any) error {
	var text string
	switch v := v.(type) {
	case string:
		text = v
	case json.Number:
		text = v.String()
	default:
		return errors.New("a whole number, or text of digits")
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return errors.New("a whole number, or text of digits")
	}
	_, isNumber := v.(json.Number)
	*d = Digits{Text: text, Int: n, bare: isNumber}
	return nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (d *Digits) UnmarshalJSON(b []byte) error { return unmarshalLoose(d, b) }

// MarshalJSON implements json.Marshaler.
func (d Digits) MarshalJSON() ([]byte, error) {
	if d.bare {
		return []byte(d.Text), nil
	}
	return json.Marshal(d.Text)
}

// A Ported is data that is kept as it came and has no effect here.
type Ported struct{ Value any }

// IsZero reports whether nothing was written.
func (p Ported) IsZero() bool { return p.Value == nil }

// SetLoose implements Loose.
func (p *Ported) SetLoose(v any) error { p.Value = v; return nil }

// UnmarshalJSON implements json.Unmarshaler.
func (p *Ported) UnmarshalJSON(b []byte) error { return unmarshalLoose(p, b) }

// MarshalJSON implements json.Marshaler.
func (p Ported) MarshalJSON() ([]byte, error) { return json.Marshal(p.Value) }

// unmarshalLoose reads JSON as decoders read documents.
func unmarshalLoose(l Loose, b []byte) error {
	v, err := anyJSON(b)
	if err != nil {
		return err
	}
	if err := l.SetLoose(v); err != nil {
		return fmt.Errorf("must be %w", err)
	}
	return nil
}

// anyJSON reads any JSON value, numbers as json.Number.
func anyJSON(b []byte) (any, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	var v any
	err := d.Decode(&v)
	return v, err
}

// ambassadorVersions are the versions of Ambassador's kinds that are read.
func ambassadorVersions() []string { return []string{"v3alpha1", "v2", "v1"} }

// defaultForeign fills in the head of a foreign Object that names no version.
func (h *Head) defaultForeign(group, kind string) {
	h.Kind = kind
	if h.APIVersion == "" {
		k, _ := KindIn(group, kind)
		h.APIVersion = group + "/" + k.Versions[0]
		if group == GroupKubernetes {
			h.APIVersion = k.Versions[0]
		}
	}
}

// namespaceColumn is the column that tells the Namespace of foreign Objects.
func namespaceColumn() Column {
	return Column{Heading: "NAMESPACE", Cell: func(o Object) string { return o.Header().Metadata.Namespace }}
}

// stateColumn is the column that tells how it stands with a Routable.
func stateColumn() Column {
	return Column{Heading: "STATE", Cell: func(o Object) string { return o.(Routable).RouteStatus().Summary() }}
}
