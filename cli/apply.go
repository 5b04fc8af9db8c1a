package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/manifest"
	"cardea/policy/local"
)

func (r *run) apply() *cobra.Command {
	var files []string
	var dryRun, allowLockout bool
	c := &cobra.Command{
		Use:   "apply [-f] PATH…",
		Short: "Make resources as documents say, all of them or none",
		Long: "Reads YAML or JSON documents from files, directories (*.yaml, *.yml, *.json) or, for -,\n" +
			"standard input, and writes them in one transaction, if nothing is wrong with any.",
		Example: "  cardea apply -f service.yaml\n  cardea apply ./resources --dry-run\n  cat service.yaml | cardea apply -",
	}
	fileFlag(c, &files)
	c.Flags().Bool("prune", false, "")
	later(c, "prune")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be done, and do nothing")
	c.Flags().BoolVar(&allowLockout, "allow-lockout", false, "also if you could no longer write policies afterwards")
	c.RunE = func(c *cobra.Command, args []string) error {
		docs, _, err := r.documents(append(files, args...)) // the cluster warns of more
		if err != nil {
			return r.unchanged(err)
		}
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		in := api.ApplyRequest{DryRun: dryRun}
		for _, d := range docs {
			in.Documents = append(in.Documents, d.JSON)
		}
		path := "/api/apply"
		if allowLockout {
			path += "?allowLockout=true"
		}
		var out api.ApplyResponse
		if err := call.Do(c.Context(), http.MethodPost, path, in, &out); err != nil {
			return r.unchanged(located(docs, err))
		}
		r.tellAll(locate(docs, out.Warnings))
		for _, x := range out.Results {
			r.printResult(x, dryRun)
		}
		for _, x := range out.Results {
			if x.Kind == api.KindCredential && x.Action == api.ActionCreated && !dryRun {
				fmt.Fprintf(r.Err, "hint: cardea create credential %s --rotate prints a token for it\n", x.Name)
			}
		}
		return nil
	}
	return c
}

func (r *run) check() *cobra.Command {
	var files []string
	c := &cobra.Command{
		Use:   "check [-f] PATH…",
		Short: "Say what is wrong with documents, without a cluster",
		Long: "Reads documents as apply does and says all that is wrong with them, conditions included.\n" +
			"Whether what they refer to exists is for apply to say.",
		Example: "  cardea check -f service.yaml\n  cardea check ./resources",
	}
	fileFlag(c, &files)
	c.RunE = func(_ *cobra.Command, args []string) error {
		docs, warnings, err := r.documents(append(files, args...))
		if err != nil {
			return r.problems(err, "the documents are not valid")
		}
		r.tellAll(warnings)
		fmt.Fprintf(r.Out, "%s: valid\n", count(len(docs), "document"))
		return nil
	}
	return c
}

func fileFlag(c *cobra.Command, files *[]string) {
	c.Flags().StringArrayVarP(files, "filename", "f", nil, "file or directory to read; - is standard input")
}

func (r *run) printResult(x api.Result, dryRun bool) {
	line := slashName(x.Kind, x.Name) + " " + string(x.Action)
	if dryRun {
		line += " (dry run)"
	}
	fmt.Fprintln(r.Out, line)
}

// documents reads and checks all documents. If anything is wrong with them, the
// error is manifest.Diagnostics.
func (r *run) documents(paths []string) (all []manifest.Document, found manifest.Diagnostics, err error) {
	files, err := expand(paths)
	if err != nil {
		return nil, nil, err
	}
	for _, file := range files {
		name, data, err := r.read(file)
		if err != nil {
			return nil, nil, err
		}
		docs, diagnostics := manifest.Decode(name, data)
		found = append(found, diagnostics...)
		for i, d := range docs {
			if d.Object == nil {
				continue
			}
			p := api.Problems{Document: i}
			local.Check(&p, d.Object)
			found = append(found, locate(docs, p.List)...)
		}
		all = append(all, docs...)
	}
	found = append(found, manifest.CheckDuplicates(all)...)
	if err := found.Err(); err != nil {
		return nil, nil, err
	}
	if len(all) == 0 {
		return nil, nil, fmt.Errorf("there are no documents in %s", strings.Join(paths, ", "))
	}
	return all, found, nil
}

// expand returns the files that paths name: those in a directory in the order of
// their names.
func expand(paths []string) ([]string, error) {
	if len(paths) == 0 {
		u := usagef("name a file, a directory, or - for standard input")
		u.hint = "cardea apply -f FILE"
		return nil, u
	}
	var files []string
	for _, p := range paths {
		if p == "-" {
			files = append(files, p)
			continue
		}
		i, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !i.IsDir() {
			files = append(files, p)
			continue
		}
		entries, err := os.ReadDir(p) // sorted
		if err != nil {
			return nil, err
		}
		before := len(files)
		for _, e := range entries {
			if !e.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(e.Name())) {
				files = append(files, filepath.Join(p, e.Name()))
			}
		}
		if len(files) == before {
			return nil, fmt.Errorf("there is no *.yaml, *.yml or *.json in the directory %s", p)
		}
	}
	return files, nil
}

// maxInput is one byte more than is accepted of a file: manifest says so.
const maxInput = 16<<20 + 1

// read returns the content of a file, and its name for messages.
func (r *run) read(file string) (string, []byte, error) {
	if file == "-" {
		b, err := io.ReadAll(io.LimitReader(r.In, maxInput))
		return "standard input", b, err
	}
	f, err := os.Open(file)
	if err != nil {
		return file, nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInput))
	return file, b, err
}

// locate gives Problems their places in documents.
func locate(docs []manifest.Document, problems []api.Problem) manifest.Diagnostics {
	var all manifest.Diagnostics
	for _, p := range problems {
		all = append(all, manifest.Locate(docs, p))
	}
	return all
}

// located gives the problems of an answer of the cluster their places.
func located(docs []manifest.Document, err error) error {
	if e, ok := errors.AsType[*api.Error](err); ok && len(e.Problems) > 0 {
		return locate(docs, e.Problems)
	}
	return err
}

// unchanged prints the problems that an error is made of, if it is.
func (r *run) unchanged(err error) error { return r.problems(err, "nothing was changed") }

func (r *run) problems(err error, what string) error {
	found, ok := errors.AsType[manifest.Diagnostics](err)
	if !ok {
		return err
	}
	r.tellAll(found)
	n := 0
	for _, d := range found {
		if !d.Warning {
			n++
		}
	}
	return fmt.Errorf("%s: %s", what, count(n, "problem"))
}

// tellAll prints diagnostics, one a line.
func (r *run) tellAll(found manifest.Diagnostics) {
	for _, d := range found {
		fmt.Fprintln(r.Err, plain(d.String()))
	}
}

// createObject sends an Object that must not exist.
func (r *run) createObject(c *cobra.Command, o api.Object) (*api.WriteResponse, error) {
	call, err := r.api(c.Context())
	if err != nil {
		return nil, err
	}
	k, _ := api.KindOf(o.Header().Kind)
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var out api.WriteResponse
	if err := call.Do(c.Context(), http.MethodPost, "/api/core/v1/"+k.Plural, json.RawMessage(raw), &out); err != nil {
		return nil, r.unchanged(located(nil, err))
	}
	r.tellAll(locate(nil, out.Warnings))
	return &out, nil
}
