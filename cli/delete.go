package cli

import (
	"cmp"
	"context"
	"errors"
	"slices"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
	"cardea/manifest"
)

func (r *run) delete() *cobra.Command {
	var files []string
	var d deletion
	c := &cobra.Command{
		Use:     "delete KIND NAME… | KIND/NAME… | -f PATH…",
		Aliases: []string{"del", "rm"},
		Short:   "Delete resources",
		Long: "Deletes resources one after the other, unless others refer to them: those that are named, or\n" +
			"with -f those that documents name, whatever else these say. Live connections that lose their\n" +
			"right by it are cut; those of a TCPMapping are drained, unless it says otherwise.",
		Example: "  cardea delete session alice-x1y2z3\n  cardea delete service nats pg.prod\n  cardea delete tcpmapping/default/ssh\n" +
			"  cardea delete -f ./resources --ignore-not-found",
		ValidArgsFunction: completeKinds,
	}
	namespaceFlag(c, &d.namespace)
	fileFlag(c, &files)
	c.Flags().BoolVar(&d.AllowLockout, "allow-lockout", false, "also if you could no longer write policies afterwards")
	c.Flags().BoolVar(&d.ignoreMissing, "ignore-not-found", false, "say nothing of what is not there")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(files) > 0 && d.namespace != "" {
			return usagef("-f and -n cannot both be: documents say their namespaces")
		}
		if len(files) > 0 {
			docs, found, err := r.documents(append(files, args...))
			if err != nil {
				return r.problems(err, "nothing was deleted")
			}
			r.tellAll(found)
			return r.deleteDocuments(c.Context(), docs, d)
		}
		all, err := wantedOf(args)
		if err != nil {
			return err
		}
		return r.deleteNamed(c.Context(), all, d)
	}
	return c
}

// A deletion says how Objects are deleted.
type deletion struct {
	client.WriteOptions
	namespace     string // of those that are named
	ignoreMissing bool
}

// deleteNamed deletes the Objects of some names.
func (r *run) deleteNamed(ctx context.Context, all []wanted, d deletion) error {
	places, failure, err := r.find(ctx, all, d.namespace)
	if err != nil {
		return err
	}
	return errors.Join(failure, r.deleteAll(ctx, places, d))
}

// deleteDocuments deletes the Objects that documents name, those that refer to others
// before these.
func (r *run) deleteDocuments(ctx context.Context, docs []manifest.Document, d deletion) error {
	call, err := r.api(ctx)
	if err != nil {
		return err
	}
	order := api.Kinds()
	rank := func(f placed) int {
		return slices.IndexFunc(order, func(k api.Kind) bool { return k.Path("") == f.Kind.Path("") })
	}
	var places []placed
	for _, doc := range slices.Backward(docs) {
		m := doc.Object.Header().Metadata
		places = append(places, placed{client.Objects{API: call, Kind: kindOfObject(doc.Object)}, m.Namespace, m.Name})
	}
	slices.SortStableFunc(places, func(a, b placed) int { return cmp.Compare(rank(b), rank(a)) })
	return r.deleteAll(ctx, places, d)
}

// deleteAll deletes Objects and says so; it goes on with the next after a failure.
func (r *run) deleteAll(ctx context.Context, places []placed, d deletion) (failure error) {
	for _, f := range places {
		out, err := f.Delete(ctx, f.namespace, f.name, d.WriteOptions)
		switch {
		case d.ignoreMissing && api.HasCode(err, api.CodeNotFound):
		case err != nil:
			failure = errors.Join(failure, f.missing(ctx, err))
		default:
			r.tellAll(locate(nil, out.Warnings))
			r.printResult(out.Result, false)
		}
	}
	return failure
}
