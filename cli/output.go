package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/sys/unix"

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
	width    int // the last cell of a line is cut to fit into so many characters; 0 is whole
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// print writes the table; an empty cell is a dash if there are headings.
func (t *table) print(w io.Writer) error {
	lines := t.rows
	if len(t.headings) > 0 {
		lines = slices.Concat([][]string{t.headings}, t.rows)
	}
	tw := tabwriter.NewWriter(w, 0, 0, columnGap, ' ', 0)
	most := t.lastWidth(lines)
	for _, cells := range lines {
		for i, c := range cells {
			if c = plain(c); c == "" && len(t.headings) > 0 {
				c = "-"
			}
			if i == len(t.headings)-1 && most > 0 {
				c = short(c, most)
			}
			if i > 0 {
				io.WriteString(tw, "\t")
			}
			io.WriteString(tw, c)
		}
		io.WriteString(tw, "\n")
	}
	return tw.Flush()
}

// The gap between columns, and what a column is never cut below.
const (
	columnGap = 3
	leastCell = 20
)

// lastWidth returns how wide the last column may be, 0 for any width.
func (t *table) lastWidth(lines [][]string) int {
	if t.width == 0 || len(t.headings) < 2 {
		return 0
	}
	left := t.width
	for i := range len(t.headings) - 1 {
		widest := 1
		for _, cells := range lines {
			widest = max(widest, utf8.RuneCountInString(plain(cells[i])))
		}
		left -= widest + columnGap
	}
	return max(left, leastCell)
}

// terminalWidth returns how many characters a line of a terminal has, 0 for what is
// none.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0
	}
	return int(size.Col)
}

// short cuts what is longer than so many characters.
func short(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most-1]) + "…"
	}
	return s
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
			fmt.Fprintln(w, keyName(o.Header().Key()))
		}
		return nil
	}
	return printTables(w, objects, format == formatWide, mixed)
}

// head reads what every Object has of one that the API sent.
func head(raw json.RawMessage) (api.Head, error) {
	var h api.Head
	if err := json.Unmarshal(raw, &h); err != nil {
		return h, fmt.Errorf("the cluster sent an Object that is not understood: %w", err)
	}
	return h, nil
}

// decode reads an Object as the API sends it.
func decode(raw json.RawMessage) (api.Object, error) {
	h, err := head(raw)
	if err != nil {
		return nil, err
	}
	k, ok := api.KindIn(h.Key().Group, h.Kind)
	if !ok {
		return nil, fmt.Errorf("the cluster sent a %s, which is not known here (is it of another version?)", quoted(h.Kind))
	}
	o := k.New()
	if err := json.Unmarshal(raw, o); err != nil {
		return nil, fmt.Errorf("the cluster sent a %s that is not understood: %w", k.Name, err)
	}
	return o, nil
}

// printTables writes a table for each run of Objects of one kind.
func printTables(w io.Writer, objects []api.Object, wide, mixed bool) error {
	for first := true; len(objects) > 0; first = false {
		k := kindOfObject(objects[0])
		n := 1
		for n < len(objects) && objects[n].Header().Kind == k.Name && objects[n].Header().Key().Group == objects[0].Header().Key().Group {
			n++
		}
		if !first {
			fmt.Fprintln(w)
		}
		t := kindTable(k, objects[:n], wide, mixed)
		if !wide {
			t.width = terminalWidth(w)
		}
		if err := t.print(w); err != nil {
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
			row[0] = keyName(o.Header().Key())
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
