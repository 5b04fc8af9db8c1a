// Package emissary makes Routes of Ambassador's (Emissary's) TCPMappings,
// TLSContexts, Hosts, Listeners, Modules and resolvers, and of the Secrets that they
// name. It does what their documentation promises; where the original does something
// else, docs/ambassador.md says so.
//
// It is one pure function: no I/O, no state, and the order of the input does not
// matter.
package emissary

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"cardea/api"
)

// An Input is all that Routes are made of. Nothing in it is written to.
type Input struct {
	TCPMappings []*api.TCPMapping
	TLSContexts []*api.TLSContext
	Hosts       []*api.Host
	Listeners   []*api.Listener
	Modules     []*api.Module
	Resolvers   []*api.Resolver
	// Secrets are those of Kubernetes, and Own those of ours. What their status tells
	// of their values is enough.
	Secrets []*api.KubernetesSecret
	Own     []*api.Secret
	// AmbassadorID is the installation that this is; "" is "default".
	AmbassadorID string
	// Namespace is that of the installation; "" is "default". Objects that name no
	// Namespace are of it.
	Namespace string
	// Verification is that of the ClusterConfig for all upstreams, "" if it says none.
	Verification api.Verification
	// Files reports whether a file may be used; nil is none.
	Files func(path string) bool
	Now   time.Time
}

// The reasons of the conditions that Compile sets.
const (
	ReasonAccepted    = "ACCEPTED"
	ReasonResolved    = "RESOLVED"
	ReasonOtherID     = "OTHER_AMBASSADOR_ID" // it is for another installation
	ReasonInvalid     = "INVALID"             // a field cannot be understood
	ReasonConflict    = "CONFLICT"            // another Object, which the message names, comes first
	ReasonNotYet      = "NOT_YET_AVAILABLE"
	ReasonNoResolver  = "NO_RESOLVER"  // the resolver that it names is not there
	ReasonNoContext   = "NO_CONTEXT"   // no TLSContext of that name, or none (and no Host) for the host
	ReasonContext     = "BAD_CONTEXT"  // the TLSContext or Host that it uses is not accepted
	ReasonNoSecret    = "NO_SECRET"    // the Secret that it names is not there
	ReasonBadSecret   = "BAD_SECRET"   // the Secret does not hold what it is named for
	ReasonFile        = "FILE_REFUSED" // a file that may not be used
	ReasonNoAgreement = "NO_COMMON_ALPN"
)

// Compile makes Routes of the input. Every Object of it but Secrets gets a status.
// One that is not accepted is in no Route; one that is accepted and lacks something
// makes a Route that refuses, so that nothing which is meant for it goes elsewhere.
//
// Where two Objects contradict each other the later one loses: by the time of its
// creation, then by Namespace and name.
func Compile(in Input) api.Routes {
	c := &compiler{
		Input: in, id: cmp.Or(in.AmbassadorID, api.DefaultAmbassadorID), ns: cmp.Or(in.Namespace, api.DefaultNamespace),
		out: api.Routes{
			Status: make(map[api.Key]*api.RouteStatus, len(in.TCPMappings)+len(in.TLSContexts)+len(in.Hosts)),
			Uses:   map[api.Key][]api.Key{},
		},
		connect: map[time.Duration]*api.Duration{}, terms: map[string]terms{}, unknown: map[string]string{},
	}
	c.readSecrets()
	c.readModules()
	c.readResolvers()
	c.readContexts()
	c.readHosts()
	c.readMappings()
	c.readListeners()
	c.noteUnused()
	return c.out
}

// A compiler is one run of Compile.
type compiler struct {
	Input
	id, ns string // as in Input, but never empty
	out    api.Routes

	secrets   map[place]*api.KubernetesSecret
	own       map[string]*api.Secret
	defaults  defaults
	resolvers index[*resolver]
	contexts  index[*tlsContext]
	elsewhere map[string]bool // names of contexts of other installations; nil until it is asked for
	providers providers
	hosts     []*host
	ports     map[int]*port
	// Answers that many Objects ask for.
	connect map[time.Duration]*api.Duration
	terms   map[string]terms
	unknown map[string]string // names of annotations that are not known: the question what was meant
}

// A place is the Namespace and name of an Object.
type place struct{ ns, name string }

// An object is one of the input, with its status.
type object struct {
	key    api.Key
	ns     string // where its references are looked up
	status *api.RouteStatus
	// created is when it was made.
	created time.Time
	now     time.Time
}

func (o *object) place() place { return place{o.ns, o.key.Name} }

// reject says that the Object is not accepted.
func (o *object) reject(p problem) {
	o.status.Set(api.ConditionAccepted, false, p.reason, p.words, o.now)
}

// resolved says whether what the Object refers to is there and good.
func (o *object) resolved(p problem) {
	reason := cmp.Or(p.reason, ReasonResolved)
	o.status.Set(api.ConditionResolved, p.ok(), reason, p.words, o.now)
}

func (o *object) accepted() bool { return o.status.Condition(api.ConditionAccepted).Status == "True" }

// maxNotes is how many notes one Object gets.
const maxNotes = 20

// note says once what a person should know.
func (o *object) note(format string, args ...any) {
	if len(o.status.Notes) == maxNotes {
		return
	}
	text := fmt.Sprintf(format, args...)
	if !slices.Contains(o.status.Notes, text) {
		o.status.Notes = append(o.status.Notes, text)
	}
}

// A problem is why something cannot be done. The zero problem is none.
type problem struct{ reason, words string }

func (p problem) ok() bool { return p.reason == "" }

func problemf(reason, format string, args ...any) problem {
	return problem{reason, fmt.Sprintf(format, args...)}
}

// first returns the first problem that is one.
func first(list ...problem) problem { return cmp.Or(list...) }

// invalid returns the problem that its words are about, none if there are no words.
func invalid(words []string) problem {
	if len(words) == 0 {
		return problem{}
	}
	return problem{ReasonInvalid, strings.Join(words, "; ")}
}

// pointer is the type of Objects.
type pointer interface {
	comparable
	api.Object
}

// namespaceOf returns where an Object is.
func (c *compiler) namespaceOf(o api.Object) string {
	return cmp.Or(o.Header().Metadata.Namespace, c.ns)
}

// ordered returns the Objects from the first to the last.
func ordered[T pointer](c *compiler, list []T) []T {
	var zero T
	out := slices.DeleteFunc(slices.Clone(list), func(o T) bool { return o == zero })
	slices.SortFunc(out, func(a, b T) int {
		m, n := &a.Header().Metadata, &b.Header().Metadata
		if d := m.CreatedAt.Compare(n.CreatedAt); d != 0 {
			return d
		}
		if d := strings.Compare(cmp.Or(m.Namespace, c.ns), cmp.Or(n.Namespace, c.ns)); d != 0 {
			return d
		}
		if d := strings.Compare(m.Name, n.Name); d != 0 {
			return d
		}
		return compareRest(a, b)
	})
	return out
}

// compareRest orders Objects of the same age and name, so that there is an order at
// all.
func compareRest[T pointer](a, b T) int {
	if a == b {
		return 0
	}
	k, l := a.Header().Key(), b.Header().Key()
	if d := cmp.Or(strings.Compare(k.Namespace, l.Namespace), strings.Compare(k.Kind, l.Kind), strings.Compare(k.Group, l.Group)); d != 0 {
		return d
	}
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return bytes.Compare(x, y)
}

// routable is the type of Objects that get a status.
type routable interface {
	comparable
	api.Routable
}

// take hands on the Objects that are for this installation, in order, and gives every
// one a status. Of several with one key the first counts.
func take[T routable](c *compiler, list []T, of func(T) *api.Installations, use func(T, *object)) {
	all := ordered(c, list)
	for i, x := range all {
		o := &object{key: x.Header().Key(), ns: c.namespaceOf(x), created: x.Header().Metadata.CreatedAt, now: c.Now}
		if before := c.out.Status[o.key]; before != nil {
			o.status = before
			if counts := slices.IndexFunc(all, func(y T) bool { return y.Header().Key() == o.key }); compareRest(all[counts], all[i]) != 0 {
				o.note("there is more than one %s of this name, and they differ: the first counts", o.key.Kind)
			}
			continue
		}
		o.status = &api.RouteStatus{Conditions: make([]api.StatusCondition, 0, 2)}
		c.out.Status[o.key] = o.status
		if ids := of(x); !ids.Include(c.id) {
			o.reject(problemf(ReasonOtherID, "it is for ambassador_id %s, and this is %q (--ambassador-id)", quoted(ids.IDs()), c.id))
			continue
		}
		o.status.Set(api.ConditionAccepted, true, ReasonAccepted, "", c.Now)
		use(x, o)
	}
}

// quoted lists texts for a person.
func quoted(list []string) string {
	var b strings.Builder
	for i, s := range list[:min(len(list), 5)] {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(&b, "%q", short(s))
	}
	if len(list) > 5 {
		fmt.Fprintf(&b, " and %d more", len(list)-5)
	}
	return b.String()
}

// short bounds what is repeated of the input.
func short(s string) string {
	if len(s) > 100 {
		return strings.ToValidUTF8(s[:100], "") + "…"
	}
	return s
}

// didYouMean returns a question, or "" if nothing is near.
func didYouMean(s string, names []string) string {
	if near := api.Nearest(s, names); near != "" && len(s) <= 253 {
		return fmt.Sprintf(" (did you mean %s?)", near)
	}
	return ""
}

// An index finds Objects by name: in one Namespace first, then in any.
type index[T interface{ place() place }] struct {
	byPlace map[place]T
	byName  map[string]T // the first of each name
	names   []string
	looks   int // for the nearest name
}

func (x *index[T]) add(o T) {
	if x.byPlace == nil {
		x.byPlace, x.byName = map[place]T{}, map[string]T{}
	}
	p := o.place()
	if _, there := x.byPlace[p]; !there {
		x.byPlace[p] = o
	}
	if _, there := x.byName[p.name]; !there {
		x.byName[p.name] = o
		x.names = append(x.names, p.name)
	}
}

// find looks in ns, then anywhere, then takes what follows the last dot for a
// Namespace.
func (x *index[T]) find(name, ns string) (T, bool) {
	if o, ok := x.byPlace[place{ns, name}]; ok {
		return o, true
	}
	if o, ok := x.byName[name]; ok {
		return o, true
	}
	if i := strings.LastIndexByte(name, '.'); i >= 0 {
		o, ok := x.byPlace[place{name[i+1:], name[:i]}]
		return o, ok
	}
	var none T
	return none, false
}

// near returns a question with the nearest name, of the index or of some more. As each
// look takes as long as there are names, it looks among the first of them, and only
// so often.
func (x *index[T]) near(name string, more ...string) string {
	const names, looks = 200, 50
	if x.looks++; x.looks > looks {
		return ""
	}
	return didYouMean(name, append(more, x.names[:min(len(x.names), names)]...))
}
