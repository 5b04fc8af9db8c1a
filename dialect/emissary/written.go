package emissary

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strings"

	"cardea/api"
)

// A checked is what can say of itself what is wrong with it.
type checked interface {
	Validate(p *api.Problems, at string)
}

// readJSON reads a value of api that is written as JSON, strictly: a name that is not a
// field's is an error, as is a value that is not one of those allowed. The error
// completes "the annotation X …".
func readJSON(text string, into checked) error {
	var written any
	d := json.NewDecoder(strings.NewReader(text))
	if err := d.Decode(&written); err != nil {
		return fmt.Errorf("must be JSON: %s", short(err.Error()))
	}
	if _, isObject := written.(map[string]any); !isObject {
		return errors.New("must be an object of JSON: {…}")
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("must be one object of JSON, and nothing behind it")
	}
	wrong := misnamed("", written, reflect.TypeOf(into))
	if wrong == "" {
		var mistyped *json.UnmarshalTypeError
		switch err := json.Unmarshal([]byte(text), into); {
		case errors.As(err, &mistyped):
			wrong = fmt.Sprintf("%s must not be a %s", mistyped.Field, mistyped.Value)
		case err != nil:
			wrong = short(err.Error())
		}
	}
	if wrong != "" {
		return errors.New("is wrong: " + wrong)
	}
	var p api.Problems
	into.Validate(&p, "")
	var all []string
	for _, x := range p.List {
		words := strings.ReplaceAll(strings.Trim(x.Pointer, "/"), "/", ".")
		if words == "" {
			words = "it"
		}
		words += " " + x.Rule
		if x.Found != "" {
			words += fmt.Sprintf(", found %q", short(x.Found))
		}
		all = append(all, words)
	}
	if all != nil {
		return errors.New("is wrong: " + strings.Join(all, ", "))
	}
	return nil
}

// misnamed says what in a value of JSON has no place in a type: the first name that is
// not, in its very letters, that of a field, or the first value that an [api.Enum] does
// not have. It is "" if there is none. Other values are not looked at.
func misnamed(at string, written any, t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch x := written.(type) {
	case map[string]any:
		if t.Kind() != reflect.Struct {
			return ""
		}
		fields := map[string]reflect.Type{}
		for f := range t.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			fields[name] = f.Type
		}
		names := slices.Sorted(maps.Keys(fields))
		for _, name := range slices.Sorted(maps.Keys(x)) {
			field, known := fields[name]
			if !known {
				return fmt.Sprintf("%s is not known%s", short(at+name), didYouMean(name, names))
			}
			if wrong := misnamed(at+name+".", x[name], field); wrong != "" {
				return wrong
			}
		}
	case []any:
		if t.Kind() != reflect.Slice {
			return ""
		}
		for i, v := range x {
			if wrong := misnamed(fmt.Sprintf("%s%d.", at, i), v, t.Elem()); wrong != "" {
				return wrong
			}
		}
	case string:
		e, isEnum := reflect.Zero(t).Interface().(api.Enum)
		if isEnum && !slices.Contains(e.Values(), x) {
			return fmt.Sprintf("%s must be one of %s, not %q", strings.TrimSuffix(at, "."), strings.Join(e.Values(), ", "), short(x))
		}
	}
	return ""
}
