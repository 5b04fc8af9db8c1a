package cli

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
	"cardea/manifest"
)

func (r *run) diff() *cobra.Command {
	var files []string
	var opt applyOptions
	var exitCode bool
	c := &cobra.Command{
		Use:   "diff [-f] PATH…",
		Short: "Show what apply would change",
		Long: "Reads documents as apply does and shows, for each resource that apply would change, how.\n" +
			"Nothing is changed. With --exit-code the exit status is 3 if there is a difference.",
		Example: "  cardea diff -f service.yaml\n  cardea diff ./resources --prune --set prod",
	}
	fileFlag(c, &files)
	opt.flags(c)
	c.Flags().BoolVar(&exitCode, "exit-code", false, "exit with status 3 if there is a difference, for scripts")
	c.RunE = func(c *cobra.Command, args []string) error {
		opt.dryRun, opt.diff = true, true
		_, out, err := r.send(c.Context(), append(files, args...), opt)
		if err != nil {
			return err
		}
		n := 0
		for _, x := range out.Results {
			if x.Action == api.ActionUnchanged {
				continue
			}
			n++
			text, err := difference(x)
			if err != nil {
				return err
			}
			fmt.Fprint(r.Out, text)
		}
		if n == 0 {
			fmt.Fprintln(r.Err, "apply would change nothing")
		} else if exitCode {
			return statusError{fmt.Errorf("apply would change %s", count(n, "resource")), ExitDiffers}
		}
		return nil
	}
	return c
}

// difference returns what a write would change of an Object, as a unified diff of
// its YAML.
func difference(x api.Result) (string, error) {
	before, err := shown(x.Before)
	if err != nil {
		return "", err
	}
	after, err := shown(x.After)
	if err != nil {
		return "", err
	}
	name := resultName(&x)
	text := string(diff.Diff(name+" (now)", []byte(before), name+" (after apply)", []byte(after)))
	if _, rest, ok := strings.Cut(text, "\n"); ok && strings.HasPrefix(text, "diff ") {
		text = rest // the line that repeats the names
	}
	if text == "" { // a Secret's value: its hash is in status, which is not shown
		text = fmt.Sprintf("%s: changed in what is not shown\n", name)
	}
	return plainLines(text), nil
}

// shown returns an Object as a person writes it, YAML; nothing for none.
func shown(raw json.RawMessage) (string, error) {
	if len(raw) == 0 {
		return "", nil
	}
	docs, err := asWritten([]json.RawMessage{raw})
	if err != nil {
		return "", err
	}
	var b strings.Builder
	err = manifest.Encode(&b, docs...)
	return b.String(), err
}

// plainLines makes text of several lines fit for a terminal.
func plainLines(text string) string {
	lines := strings.Split(text, "\n")
	for i, l := range lines {
		lines[i] = plain(l)
	}
	return strings.Join(lines, "\n")
}

// patch sends a merge patch (RFC 7386) for one Object of ours.
func (r *run) patch(c *cobra.Command, k api.Kind, name string, patch any) (*api.WriteResponse, error) {
	o, err := r.objects(c.Context(), k)
	if err != nil {
		return nil, err
	}
	out, err := o.Patch(c.Context(), "", name, patch, client.WriteOptions{})
	if err != nil {
		return nil, missing(k, r.unchanged(located(nil, err)))
	}
	r.tellAll(locate(nil, out.Warnings))
	return &out, nil
}
