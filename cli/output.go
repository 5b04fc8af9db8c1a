package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"cardea/api"
	"cardea/manifest"
)

// The formats of -o.
const (
	formatTable = "table"
	formatWide  = "wide"
	formatJSON  = "json"
	formatYAML  = "yaml"
	formatName  = "name"
)

// A table is printed with aligned columns.
type table struct {
	headings []string // may be empty
	rows     [][]string
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// print writes the table; an empty cell is a dash if there are headings.
func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	line := func(cells []string) {
		for i, c := range cells {
			if c = plain(c); c == "" && len(t.headings) > 0 {
				c = "-"
			}
			if i > 0 {
				io.WriteString(tw, "\t")
			}
			io.WriteString(tw, c)
		}
		io.WriteString(tw, "\n")
	}
	if len(t.headings) > 0 {
		line(t.headings)
	}
	for _, r := range t.rows {
		line(r)
	}
	return tw.Flush()
}

// plain makes text fit for a terminal: what holds anything but printable
// characters and single spaces between them is quoted.
func plain(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return strconv.Quote(s)
		}
	}
	return s
}

// quoted quotes what came from a peer unless it is a plain word.
func quoted(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r == '"' || r == '\'' || r == '\\' || r > unicode.MaxASCII }) {
		return strconv.Quote(s)
	}
	return plain(s)
}

// printJSON writes a value for programs.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// items is how a list of Objects is printed in JSON.
type items struct {
	Items []json.RawMessage `json:"items"`
}

// printObjects writes Objects of one kind, or of several if mixed is set. One
// that was asked for by its name is printed alone.
func printObjects(w io.Writer, format string, list []json.RawMessage, alone, mixed bool) error {
	switch format {
	case formatJSON:
		if alone {
			return printJSON(w, list[0])
		}
		if list == nil {
			list = []json.RawMessage{}
		}
		return printJSON(w, items{list})
	case formatYAML:
		return manifest.Encode(w, list...)
	}
	objects := make([]api.Object, len(list))
	for i, raw := range list {
		var err error
		if objects[i], err = decode(raw); err != nil {
			return err
		}
	}
	if format == formatName {
		for _, o := range objects {
			fmt.Fprintln(w, slashName(o.Header().Kind, o.Header().Metadata.Name))
		}
		return nil
	}
	return printTables(w, objects, format == formatWide, mixed)
}

// decode reads an Object as the API sends it.
func decode(raw json.RawMessage) (api.Object, error) {
	var h api.Head
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, fmt.Errorf("the cluster sent an Object that is not understood: %w", err)
	}
	k, ok := api.KindOf(h.Kind)
	if !ok {
		return nil, fmt.Errorf("the cluster sent a %s, which is not known here (is it of another version?)", quoted(h.Kind))
	}
	o := k.New()
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("the cluster sent a %s that is not understood: %w", k.Name, err)
	}
	return o, nil
}

// slashName returns KIND/NAME as people see it.
func slashName(kind, name string) string { return strings.ToLower(kind) + "/" + name }

// printTables writes a table for each run of Objects of one kind.
func printTables(w io.Writer, objects []api.Object, wide, mixed bool) error {
	for first := true; len(objects) > 0; first = false {
		k, _ := api.KindOf(objects[0].Header().Kind)
		n := 1
		for n < len(objects) && objects[n].Header().Kind == k.Name {
			n++
		}
		if !first {
			fmt.Fprintln(w)
		}
		if err := kindTable(k, objects[:n], wide, mixed).print(w); err != nil {
			return err
		}
		objects = objects[n:]
	}
	return nil
}

func kindTable(k api.Kind, objects []api.Object, wide, mixed bool) *table {
	t := &table{headings: []string{"NAME"}}
	for _, c := range k.Columns {
		if wide || !c.Wide {
			t.headings = append(t.headings, c.Heading)
		}
	}
	if wide {
		t.headings = append(t.headings, "CREATED", "UID")
	}
	for _, o := range objects {
		m := o.Header().Metadata
		row := []string{m.Name}
		if mixed {
			row[0] = slashName(k.Name, m.Name)
		}
		for _, c := range k.Columns {
			if wide || !c.Wide {
				row = append(row, c.Cell(o))
			}
		}
		if wide {
			row = append(row, stamp(m.CreatedAt), m.UID)
		}
		t.add(row...)
	}
	return t
}

// stamp returns a time as tables have it: UTC, in seconds.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// within indents text, but for its empty lines.
func within(text, indent string) string {
	text = indent + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n"+indent)
	return strings.ReplaceAll(text, indent+"\n", "\n")
}

// count returns "1 problem", "2 problems".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
