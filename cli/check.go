package cli

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
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
	c.Flags().StringArrayVar(tlsFiles, "tls-files", nil, "directory of files that they may name as certificates and keys; may be repeated (or CARDEA_TLS_FILES, with : between)")
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
		objects = append(objects, whole(d.Object))
	}
	return control.Diagnose(objects, control.DiagnoseOptions{
		AmbassadorID: o.id, AmbassadorNamespace: o.namespace, Domain: o.domain, Files: server.Below(dirs), Now: time.Now(),
	}).Table, nil
}

// isEmpty reports whether an Object is a Secret whose values are not in its document,
// as those are that the cluster prints.
func isEmpty(o api.Object) bool {
	switch s := o.(type) {
	case *api.Secret:
		return s.Data == nil
	case *api.KubernetesSecret:
		return !s.HasData()
	}
	return false
}

// whole returns an Object, but of a Secret whose values are elsewhere one that holds
// whatever it can be named for: what it holds cannot be known here.
func whole(o api.Object) api.Object {
	if !isEmpty(o) {
		return o
	}
	facts := &api.CertificateFacts{HasKey: true}
	switch s := o.(type) {
	case *api.Secret:
		full := *s
		full.Status.Certificate = facts
		return &full
	case *api.KubernetesSecret:
		full := *s
		full.Status = api.KubernetesSecretStatus{Sealed: []byte("elsewhere"), Keys: []string{"ca.crt", "crl.pem", "tls.crt", "tls.key"}, Certificate: facts}
		return &full
	}
	return o
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
			"cluster stand now. It fails if one is not valid or not accepted, or its port is not open. With\n" +
			"--strict it also fails because of any other condition that is False, such as ResolvedRefs, or\n" +
			"UpstreamVerified that is Unknown, and of a skipped document with a \"did you mean\"; not of notes.",
		Example: "  cardea check -f service.yaml\n  cat service.yaml | cardea check -f -\n  cardea check ./resources --strict\n  cardea check",
	}
	fileFlag(c, &files)
	opt.flags(c)
	c.Flags().BoolVar(&strict, "strict", false, "also fail because of conditions that are False, upstreams that are not verified, and kinds that are misspelt")
	c.RunE = func(c *cobra.Command, args []string) error {
		x := &examination{strict: strict}
		if paths := append(files, args...); len(paths) > 0 {
			docs, warnings, err := r.documents(paths)
			if err != nil {
				return r.problems(err, "the documents are not valid")
			}
			x.skipped(warnings)
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
		for _, f := range x.found {
			fmt.Fprintln(r.Out, plain(f.String()))
		}
		fmt.Fprintln(r.Out, x.summary())
		if x.docs > 0 && slices.ContainsFunc(x.found, func(f *finding) bool { return f.secret != "" }) {
			fmt.Fprintln(r.Err, "hint: "+onlyInCluster)
		}
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
	found                   []*finding
	errors, warnings, notes int
	kinds                   []*tally
}

// A finding is one thing that there is to say.
type finding struct {
	place, level string
	about        []string // Objects
	words        string
	secret       string // that is not there, if that is what there is to say
}

// String returns the line of a finding.
func (f *finding) String() string {
	if len(f.about) == 1 {
		return f.place + f.level + ": " + f.about[0] + ": " + f.words
	}
	last := len(f.about) - 1
	line := fmt.Sprintf("%s%s: Secret %s is not there, and %s and %s need it", f.place, f.level, f.secret, strings.Join(f.about[:last], ", "), f.about[last])
	if m := noSecret.FindStringSubmatch(f.words); m[2] != "" {
		line += ": " + m[2]
	}
	return line
}

// noSecret matches what is said of a Secret that is not there, and what to do.
var noSecret = regexp.MustCompile(`Secret (\S+?),? (?:which )?is not there(?:: ([^;]*))?`)

// onlyInCluster is said where a Secret is missing offline.
const onlyInCluster = "a Secret that is only in the cluster counts as missing here; without documents the cluster is asked"

// missingSecret returns the Secret that is not there, if that is all that words say.
func missingSecret(words string) string {
	name := ""
	for part := range strings.SplitSeq(words, "; ") {
		m := noSecret.FindStringSubmatch(part)
		if m == nil || name != "" && m[1] != name {
			return ""
		}
		name = m[1]
	}
	return name
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
		at := manifest.Locate(docs, api.Problem{Document: i, Pointer: "/metadata/name"})
		place := fmt.Sprintf("%s:%d:%d: ", at.File, at.Line, at.Column)
		if isRouted(d.Object) {
			x.object(place, d.Object, table.Status(d.Object.Header().Key()))
		}
		if isEmpty(d.Object) {
			x.say(place, "note", d.Object, "its values are not in the file: what it holds was not looked at")
		}
	}
}

// skipped looks at what there is to say of documents that are not used. Those that
// were probably misspelt count if that is strict.
func (x *examination) skipped(warnings manifest.Diagnostics) {
	for i, w := range warnings {
		if x.strict && strings.HasPrefix(w.Hint, "did you mean ") {
			warnings[i].Warning = false // is printed as an error
			x.errors++
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
	switch c := status.Condition(api.ConditionAccepted); {
	case c == nil || c.Status != "False":
		t.accepted++
	case c.Reason == otherInstallation:
		t.other++
		x.say(place, "note", o, c.Message)
		return
	}
	for _, c := range status.Conditions {
		if c.Status == "False" || c.Status == "Unknown" && c.Type == api.ConditionUpstreamVerified {
			x.condition(place, o, c)
		}
	}
	for _, n := range status.Notes {
		x.say(place, "note", o, n)
	}
}

// condition notes one that is not True. That a Secret is not there is said once, of
// all that need it.
func (x *examination) condition(place string, o api.Object, c api.StatusCondition) {
	level, secret := x.weigh(c.Type), missingSecret(c.Message)
	if i := slices.IndexFunc(x.found, func(f *finding) bool { return secret != "" && f.secret == secret && f.level == level }); i >= 0 {
		if about := titled(o.Header().Key()); !slices.Contains(x.found[i].about, about) {
			x.found[i].about = append(x.found[i].about, about)
		}
		return
	}
	x.say(place, level, o, c.Type+"="+c.Status+": "+c.Message).secret = secret
}

// say notes, and counts, what there is to say of an Object.
func (x *examination) say(place, level string, o api.Object, words string) *finding {
	f := &finding{place: place, level: level, about: []string{titled(o.Header().Key())}, words: words}
	x.found = append(x.found, f)
	switch level {
	case "error":
		x.errors++
	case "warning":
		x.warnings++
	default:
		x.notes++
	}
	return f
}

// weigh returns the word for how bad it is that a condition is not True.
func (x *examination) weigh(condition string) string {
	switch {
	case x.strict, condition == api.ConditionAccepted, condition == api.ConditionListening:
		return "error"
	case condition == api.ConditionUpstreamVerified:
		return "note"
	}
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
