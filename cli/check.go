package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
	"cardea/control"
	"cardea/manifest"
	"cardea/server"
)

// A routeTable is the routing table that a set of documents makes.
type routeTable interface {
	Status(api.Key) *api.RouteStatus
	Ask(api.RouteQuestion) api.RouteAnswer
}

// offline is what the routing table depends on beside documents: how the cluster
// that they are for is started.
type offline struct {
	id, namespace, domain string
	tlsFiles              []string
}

func (o *offline) flags(c *cobra.Command) {
	ambassadorFlags(c, &o.id, &o.namespace, &o.tlsFiles)
	c.Flags().StringVar(&o.domain, "domain", server.DefaultDomain, "domain of the cluster (or CARDEA_DOMAIN)")
}

// ambassadorFlags adds how Ambassador's resources are read.
func ambassadorFlags(c *cobra.Command, id, namespace *string, tlsFiles *[]string) {
	c.Flags().StringVar(id, "ambassador-id", "default", "read Ambassador's resources of that ambassador_id (or CARDEA_AMBASSADOR_ID, AMBASSADOR_ID)")
	c.Flags().StringVar(namespace, "ambassador-namespace", "default", "the namespace that they are read in (or CARDEA_AMBASSADOR_NAMESPACE, AMBASSADOR_NAMESPACE)")
	c.Flags().StringArrayVar(tlsFiles, "tls-files", nil, "directory of files that they may name as certificates and keys; may be repeated (or CARDEA_TLS_FILES)")
}

// table returns the routing table of documents.
func (o *offline) table(docs []manifest.Document) (routeTable, error) {
	var dirs []string
	for _, dir := range o.tlsFiles {
		dir, err := filepath.Abs(dir)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	var objects []api.Object
	for _, d := range docs {
		objects = append(objects, d.Object)
	}
	return control.Diagnose(objects, control.DiagnoseOptions{
		AmbassadorID: o.id, AmbassadorNamespace: o.namespace, Domain: o.domain, Files: below(dirs), Now: time.Now(),
	}).Table, nil
}

// below returns what reports whether a file is in one of the directories.
func below(dirs []string) func(string) bool {
	return func(path string) bool {
		return slices.ContainsFunc(dirs, func(dir string) bool {
			rel, err := filepath.Rel(dir, path)
			return err == nil && filepath.IsLocal(rel)
		})
	}
}

func (r *run) check() *cobra.Command {
	var files []string
	var strict bool
	var opt offline
	c := &cobra.Command{
		Use:   "check [[-f] PATH…]",
		Short: "Say what is wrong with documents, or with the routes of the cluster",
		Long: "Reads documents as apply does, without a cluster, and says all that is wrong with them, and\n" +
			"how each would stand in the routing table that they make. Without documents, how those of the\n" +
			"cluster stand now. It fails if one is not accepted; with --strict also if one lacks something\n" +
			"that it refers to, or sends connections to an upstream that is not verified.",
		Example: "  cardea check -f service.yaml\n  cardea check ./resources --strict\n  cardea check",
	}
	fileFlag(c, &files)
	opt.flags(c)
	c.Flags().BoolVar(&strict, "strict", false, "also fail because of warnings and unverified upstreams")
	c.RunE = func(c *cobra.Command, args []string) error {
		x := &examination{strict: strict}
		if paths := append(files, args...); len(paths) > 0 {
			docs, warnings, err := r.documents(paths)
			if err != nil {
				return r.problems(err, "the documents are not valid")
			}
			r.tellAll(warnings)
			var table routeTable
			if slices.ContainsFunc(docs, func(d manifest.Document) bool { return isRouted(d.Object) }) {
				if table, err = opt.table(docs); err != nil {
					return err
				}
			}
			x.documents(docs, table)
		} else if err := x.cluster(c.Context(), r); err != nil {
			return err
		}
		for _, line := range x.lines {
			fmt.Fprintln(r.Out, plain(line))
		}
		fmt.Fprintln(r.Out, x.summary())
		if x.errors > 0 {
			return fmt.Errorf("check found %s", count(x.errors, "error"))
		}
		return nil
	}
	return c
}

// An examination looks at how Objects stand in the routing table.
type examination struct {
	strict                  bool
	docs                    int // 0 of a cluster
	lines                   []string
	errors, warnings, notes int
	kinds                   []*tally
}

// A tally counts the Objects of a kind.
type tally struct {
	noun                 string
	all, accepted, other int
}

// otherInstallation is the reason of a condition Accepted that is False because the
// Object is meant for another installation: that is no mistake.
const otherInstallation = "OTHER_AMBASSADOR_ID"

// documents looks at documents, which make a table.
func (x *examination) documents(docs []manifest.Document, table routeTable) {
	x.docs = len(docs)
	for i, d := range docs {
		if isRouted(d.Object) {
			at := manifest.Locate(docs, api.Problem{Document: i, Pointer: "/metadata/name"})
			x.object(fmt.Sprintf("%s:%d:%d: ", at.File, at.Line, at.Column), d.Object, table.Status(d.Object.Header().Key()))
		}
	}
}

// cluster looks at the Objects of a cluster.
func (x *examination) cluster(ctx context.Context, r *run) error {
	call, err := r.api(ctx)
	if err != nil {
		return err
	}
	for _, k := range api.Kinds() {
		if _, ok := k.New().(api.Routable); !ok && k.Name != api.KindService {
			continue
		}
		list, _, err := client.Objects{API: call, Kind: k}.List(ctx, client.Selection{})
		if err != nil {
			return err
		}
		for _, raw := range list {
			o, err := decode(raw)
			if err != nil {
				return err
			}
			if isRouted(o) {
				x.object("", o, standing(o))
			}
		}
	}
	return nil
}

// isRouted reports whether an Object is part of the routing table.
func isRouted(o api.Object) bool {
	if s, ok := o.(*api.Service); ok {
		return s.Spec.IsPublic
	}
	_, ok := o.(api.Routable)
	return ok
}

// standing returns how it stands with an Object of a cluster.
func standing(o api.Object) *api.RouteStatus {
	if s, ok := o.(*api.Service); ok {
		return &api.RouteStatus{Conditions: s.Status.Conditions}
	}
	return o.(api.Routable).RouteStatus()
}

// object notes how it stands with an Object. place is what its lines begin with;
// status is nil if nothing is known.
func (x *examination) object(place string, o api.Object, status *api.RouteStatus) {
	k := kindOfObject(o)
	noun := k.Name
	if !k.IsForeign() {
		noun = "public " + noun
	}
	i := slices.IndexFunc(x.kinds, func(t *tally) bool { return t.noun == noun })
	if i < 0 {
		i = len(x.kinds)
		x.kinds = append(x.kinds, &tally{noun: noun})
	}
	t := x.kinds[i]
	t.all++
	if status == nil {
		status = new(api.RouteStatus)
	}
	say := func(level, words string) {
		x.lines = append(x.lines, place+level+": "+titled(o.Header().Key())+": "+words)
	}
	switch c := status.Condition(api.ConditionAccepted); {
	case c == nil || c.Status != "False":
		t.accepted++
	case c.Reason == otherInstallation:
		t.other++
		x.notes++
		say("note", c.Message)
		return
	}
	for _, c := range status.Conditions {
		if c.Status == "False" || c.Status == "Unknown" && c.Type == api.ConditionUpstreamVerified {
			say(x.weigh(c.Type), c.Type+"="+c.Status+": "+c.Message)
		}
	}
	for _, n := range status.Notes {
		x.notes++
		say("note", n)
	}
}

// weigh counts a condition that is not True, and returns the word for how bad that
// is.
func (x *examination) weigh(condition string) string {
	switch {
	case x.strict, condition == api.ConditionAccepted, condition == api.ConditionListening:
		x.errors++
		return "error"
	case condition == api.ConditionUpstreamVerified:
		x.notes++
		return "note"
	}
	x.warnings++
	return "warning"
}

// summary returns the line that says how all of it stands.
func (x *examination) summary() string {
	if x.docs > 0 && len(x.kinds) == 0 {
		return count(x.docs, "document") + ": valid"
	}
	if len(x.kinds) == 0 {
		return "there is nothing in the routing table"
	}
	var parts []string
	for _, t := range x.kinds {
		words := fmt.Sprintf("%s: %d accepted", count(t.all, t.noun), t.accepted)
		if not := t.all - t.accepted - t.other; not > 0 {
			words += fmt.Sprintf(", %d not", not)
		}
		if t.other > 0 {
			words += fmt.Sprintf(", %d of another installation", t.other)
		}
		parts = append(parts, words)
	}
	var found []string
	for _, f := range []struct {
		n    int
		noun string
	}{{x.warnings, "warning"}, {x.notes, "note"}} {
		if f.n > 0 {
			found = append(found, count(f.n, f.noun))
		}
	}
	if len(found) > 0 {
		parts = append(parts, strings.Join(found, ", "))
	}
	return strings.Join(parts, "; ")
}
