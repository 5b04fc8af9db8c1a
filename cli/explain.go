package cli

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/api/gen"
)

func (r *run) explainKind() *cobra.Command {
	return &cobra.Command{
		Use:               "explain KIND[.FIELD]…",
		Short:             "Say what a kind, or a field of it, is for",
		Long:              "Says what a kind or a field is for, of which type it is, and what is in it. Needs no cluster.",
		Example:           "  cardea explain service\n  cardea explain service.spec.config.upstream\n  cardea explain policy.spec.rules.condition\n  cardea explain tcpmapping",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: completeKinds,
		RunE: func(_ *cobra.Command, args []string) error {
			name, field := kindAndField(args[0])
			k, ok := api.FindKind(name) // one that is not yet to be had, too
			if !ok {
				_, err := findKind(name)
				return err
			}
			schema := reflect.TypeOf(k.New()).Elem().Name() // of kinds that share a type it is one
			d, err := gen.Explain(schema, field)
			if err != nil {
				return hinted(errors.New(err.Error()), nearField(schema, field, "cardea explain "+typed(k, k.Name)))
			}
			printDoc(r.Out, &d)
			return nil
		},
	}
}

// kindAndField parts KIND.FIELD. The name of a kind may have a version behind it.
func kindAndField(word string) (kind, field string) {
	kind, field, _ = strings.Cut(word, ".")
	version, rest, _ := strings.Cut(field, ".")
	if _, ok := api.FindKind(kind + "." + version); ok {
		return kind + "." + version, rest
	}
	return kind, field
}

// nearField returns the hint to a field that there is not: which one was probably
// meant, or else where to look.
func nearField(schema, field, look string) string {
	steps := strings.Split(field, ".")
	for i, step := range steps {
		parent, err := gen.Explain(schema, strings.Join(steps[:i], "."))
		if err != nil {
			break
		}
		var names []string
		for _, f := range parent.Fields {
			names = append(names, f.Path[strings.LastIndexByte(f.Path, '.')+1:])
		}
		step, _, _ = strings.Cut(step, "[")
		if slices.Contains(names, step) {
			continue
		}
		if near := api.Nearest(step, names); near != "" {
			return "did you mean " + strings.Join(append(steps[:i:i], near), ".") + "?"
		}
		break
	}
	return look
}

// textWidth is how wide running text is printed.
const textWidth = 90

func printDoc(w io.Writer, d *gen.Doc) {
	fmt.Fprintf(w, "%s   %s\n", d.Path, docType(d))
	if d.Text != "" {
		fmt.Fprintf(w, "\n%s\n", within(wrap(d.Text, textWidth-2), "  "))
	}
	if len(d.Values) > 0 {
		fmt.Fprintf(w, "\n  one of: %s\n", strings.Join(d.Values, ", "))
	}
	if len(d.Later) > 0 {
		fmt.Fprintf(w, "  not yet: %s\n", wrap(strings.Join(d.Later, ", "), textWidth-2))
	}
	if len(d.Fields) > 0 {
		fmt.Fprint(w, "\nFields:\n")
	}
	for _, f := range d.Fields {
		fmt.Fprintf(w, "  %s   %s\n", f.Path[strings.LastIndexByte(f.Path, '.')+1:], docType(&f))
		if f.Text != "" {
			fmt.Fprintln(w, within(wrap(f.Text, textWidth-6), "      "))
		}
	}
}

func docType(d *gen.Doc) string {
	switch {
	case d.NotYet:
		return "(not yet available)"
	case d.Required:
		return d.Type + ", required"
	}
	return d.Type
}

// wrap breaks the lines of text into such of at most width characters, where it can.
// Those of an item of a list, "- …", stand below its words.
func wrap(text string, width int) string {
	var lines []string
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "- ") {
			line = strings.ReplaceAll(wrapLine(line, width-2), "\n", "\n  ")
		} else {
			line = wrapLine(line, width)
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func wrapLine(text string, width int) string {
	var b strings.Builder
	at := 0
	for w := range strings.FieldsSeq(text) {
		n := len([]rune(w))
		switch {
		case at == 0:
		case at+1+n > width:
			b.WriteByte('\n')
			at = 0
		default:
			b.WriteByte(' ')
			at++
		}
		b.WriteString(w)
		at += n
	}
	return b.String()
}
