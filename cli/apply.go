package cli

import (
	"context"
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
	"cardea/client"
	"cardea/manifest"
	"cardea/policy/local"
)

// applyOptions are what apply and diff have in common.
type applyOptions struct {
	dryRun, diff, prune, allowLockout bool
	set                               string
}

func (o *applyOptions) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.set, "set", "", "stamp what is written as belonging to that set")
	c.Flags().BoolVar(&o.prune, "prune", false, "delete what bears the stamp of --set and is not in the documents")
	c.Flags().BoolVar(&o.allowLockout, "allow-lockout", false, "also if you could no longer write policies afterwards")
}

func (r *run) apply() *cobra.Command {
	var files []string
	var opt applyOptions
	c := &cobra.Command{
		Use:   "apply [-f] PATH…",
		Short: "Make resources as documents say, all of them or none",
		Long: "Reads YAML or JSON documents from files, directories (*.yaml, *.yml, *.json) or, for -,\n" +
			"standard input, and writes them in one transaction, if nothing is wrong with any.\n\n" +
			"With --set, what is written is stamped; --prune then deletes what bears the stamp and is no\n" +
			"longer in the documents. It says first what that is, and touches nothing else.",
		Example: "  cardea apply -f service.yaml\n  cardea apply ./resources --dry-run\n  cat service.yaml | cardea apply -\n" +
			"  cardea apply ./prod --set prod --prune",
	}
	fileFlag(c, &files)
	opt.flags(c)
	c.Flags().BoolVar(&opt.dryRun, "dry-run", false, "say what would be done, and do nothing")
	c.RunE = func(c *cobra.Command, args []string) error {
		paths := append(files, args...)
		if opt.prune && opt.set == "" {
			u := usagef("--prune needs --set: it deletes what bears the stamp of a set")
			u.hint = "cardea apply PATH --set NAME --prune"
			return u
		}
		if opt.prune && !opt.dryRun && !slices.Contains(paths, "-") { // what is read twice must be there twice
			if err := r.announce(c.Context(), paths, opt); err != nil {
				return err
			}
		}
		_, out, err := r.send(c.Context(), paths, opt)
		if err != nil {
			return err
		}
		r.tellAll(out.warnings)
		for _, x := range out.Results {
			r.printResult(x, opt.dryRun)
		}
		for _, x := range out.Results {
			if x.Kind == api.KindCredential && x.Action == api.ActionCreated && !opt.dryRun {
				fmt.Fprintf(r.Err, "hint: cardea create credential %s --rotate prints a token for it\n", x.Name)
			}
		}
		return nil
	}
	return c
}

// announce says what will be deleted.
func (r *run) announce(ctx context.Context, paths []string, opt applyOptions) error {
	opt.dryRun = true
	_, out, err := r.send(ctx, paths, opt)
	if err != nil {
		return err
	}
	for _, x := range out.Results {
		if x.Action == api.ActionDeleted {
			fmt.Fprintf(r.Err, "no longer in the documents, will be deleted: %s\n", resultName(&x))
		}
	}
	return nil
}

// An applied is the answer to an apply, with its warnings in their places.
type applied struct {
	api.ApplyResponse
	warnings manifest.Diagnostics
}

// send applies the documents of files.
func (r *run) send(ctx context.Context, paths []string, opt applyOptions) ([]manifest.Document, *applied, error) {
	docs, found, err := r.documents(paths)
	if err != nil {
		return nil, nil, r.unchanged(err)
	}
	call, err := r.api(ctx)
	if err != nil {
		return nil, nil, err
	}
	in := api.ApplyRequest{DryRun: opt.dryRun, Diff: opt.diff, Set: opt.set, Prune: opt.prune}
	for _, d := range docs {
		in.Documents = append(in.Documents, d.JSON)
	}
	path := "/api/apply"
	if opt.allowLockout {
		path += "?allowLockout=true"
	}
	out := new(applied)
	if err := call.Do(ctx, http.MethodPost, path, in, &out.ApplyResponse); err != nil {
		return nil, nil, r.unchanged(located(docs, err))
	}
	out.warnings = locate(docs, out.Warnings)
	for _, d := range slices.Backward(found) { // what was skipped the cluster has not seen
		same := func(w manifest.Diagnostic) bool { return w.String() == d.String() }
		if !slices.ContainsFunc(out.warnings, same) {
			out.warnings = slices.Insert(out.warnings, 0, d)
		}
	}
	return docs, out, nil
}

func fileFlag(c *cobra.Command, files *[]string) {
	c.Flags().StringArrayVarP(files, "filename", "f", nil, "file or directory to read; - is standard input")
}

func (r *run) printResult(x api.Result, dryRun bool) {
	line := resultName(&x) + " " + string(x.Action)
	if dryRun {
		line += " (dry run)"
	}
	fmt.Fprintln(r.Out, line)
}

// documents reads and checks all documents, and returns those that are to be used:
// not what is of others (see manifest.Decode), nor what is there twice. If anything
// is wrong with them, the error is manifest.Diagnostics.
func (r *run) documents(paths []string) (all []manifest.Document, found manifest.Diagnostics, err error) {
	files, err := expand(paths)
	if err != nil {
		return nil, nil, err
	}
	check := local.NewChecker()
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
			if k := kindOfObject(d.Object); !k.ByHand {
				p.Add("/kind", "must be a kind that people write: a "+k.Name+" is made by the cluster", k.Name)
			}
			check(&p, d.Object)
			found = append(found, locate(docs, p.List)...)
		}
		all = append(all, docs...)
	}
	found = append(found, manifest.CheckDuplicates(all)...)
	if err := found.Err(); err != nil {
		return nil, nil, err
	}
	all = slices.DeleteFunc(all, func(d manifest.Document) bool { return d.Object == nil }) // skipped
	if len(all) == 0 {
		r.tellAll(found)
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
	call, err := r.objects(c.Context(), kindOfObject(o))
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	out, err := call.Create(c.Context(), raw, client.WriteOptions{})
	if err != nil {
		return nil, r.unchanged(located(nil, err))
	}
	r.tellAll(locate(nil, out.Warnings))
	return &out, nil
}
