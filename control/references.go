package control

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"cardea/api"
	"cardea/store"
)

// A reference says that one Object names another.
type reference struct {
	to      api.Key
	pointer string // where it does
	// owned is set if the Object that refers has no life without the other and is
	// deleted with it.
	owned bool
}

// references returns all that o names and that must exist.
func references(o api.Object) []reference {
	var refs []reference
	add := func(kind, name, pointer string) *reference {
		refs = append(refs, reference{to: coreKey(kind, name), pointer: pointer})
		return &refs[len(refs)-1]
	}
	if a := api.AuthorizationOf(o); a != nil {
		for i, name := range a.Policies {
			add(api.KindPolicy, name, fmt.Sprintf("/spec/authorization/policies/%d", i))
		}
	}
	switch o := o.(type) {
	case *api.ClusterConfig:
		if o.Spec.Collector == nil {
			break
		}
		for i, h := range o.Spec.Collector.Headers {
			if h.FromSecret != "" {
				add(api.KindSecret, h.FromSecret, fmt.Sprintf("/spec/collector/headers/%d/fromSecret", i))
			}
		}
	case *api.User:
		for i, name := range o.Spec.Groups {
			add(api.KindGroup, name, fmt.Sprintf("/spec/groups/%d", i))
		}
	case *api.Service:
		add(api.KindNamespace, api.NamespaceOf(o.Metadata.Name), "/metadata/name")
		add(api.KindRegion, o.Spec.Region, "/spec/region")
		if name := certificateOf(o); name != "" {
			add(api.KindSecret, name, certificatePointer)
		}
		for at, c := range configs(o) {
			for name, pointer := range c.Secrets() {
				add(api.KindSecret, name, at+pointer)
			}
			for name, pointer := range c.Servers() {
				add(api.KindUser, name, at+pointer)
			}
		}
	case *api.Namespace:
		if o.Spec.Parent != "" {
			add(api.KindNamespace, o.Spec.Parent, "/spec/parent")
		}
	case *api.Credential:
		add(api.KindUser, o.Spec.User, "/spec/user").owned = true
	case *api.Device:
		add(api.KindUser, o.Status.UserRef.Name, "/status/userRef").owned = true
	case *api.Authenticator:
		add(api.KindUser, o.Status.UserRef.Name, "/status/userRef").owned = true
	case *api.Session:
		add(api.KindUser, o.Status.UserRef.Name, "/status/userRef").owned = true
		if d := o.Status.DeviceRef; d != nil {
			// Without its Device a Session would shed the policies of the Device.
			add(api.KindDevice, d.Name, "/status/deviceRef").owned = true
		}
	}
	return refs
}

// certificatePointer is where a Service names the Secret with the certificate of its
// public port.
const certificatePointer = "/spec/public/certificate/fromSecret"

// certificateOf returns the name of that Secret, "" if there is none.
func certificateOf(s *api.Service) string {
	if s.Spec.Public == nil || s.Spec.Public.Certificate == nil {
		return ""
	}
	return s.Spec.Public.Certificate.FromSecret
}

// configs yields the configs of a Service, each with the pointer of it.
func configs(s *api.Service) iter.Seq2[string, *api.ServiceConfig] {
	return func(yield func(string, *api.ServiceConfig) bool) {
		if s.Spec.Config != nil && !yield("/spec/config", s.Spec.Config) || s.Spec.DynamicConfig == nil {
			return
		}
		for i := range s.Spec.DynamicConfig.Configs {
			if !yield(fmt.Sprintf("/spec/dynamicConfig/configs/%d", i), &s.Spec.DynamicConfig.Configs[i]) {
				return
			}
		}
	}
}

// isReferred reports whether Objects of the kind of k are named by others that need
// them. Objects of other systems come and go on their own.
func isReferred(k api.Key) bool {
	if k.Group != api.GroupCore {
		return false
	}
	switch k.Kind {
	case api.KindService, api.KindCredential, api.KindSession, api.KindAuthenticator, api.KindGateway, api.KindClusterConfig:
		return false
	}
	return true
}

// checkReferences reports what o names and what does not exist. What is pending
// counts as existing: it is there in the same request and has problems of its own.
// meant answers as near does.
func checkReferences(r store.Reader, o api.Object, isPending func(api.Key) bool, meant func(api.Key) ([]string, bool, error), p *api.Problems) error {
	for _, ref := range references(o) {
		if len(p.List) >= maxProblems {
			return nil
		}
		if isPending(ref.to) {
			continue
		}
		rec, err := r.Get(ref.to)
		if api.HasCode(err, api.CodeNotFound) || err == nil && isOwn(rec) {
			names, any, err := meant(ref.to)
			if err != nil {
				return err
			}
			x := p.Add(ref.pointer, fmt.Sprintf("must name a %s that exists", ref.to.Kind), ref.to.Name)
			if x.Allowed = names; !any {
				x.Hint = fmt.Sprintf("there is no %s yet: create it first, or in the same apply", ref.to.Kind)
			}
			continue
		}
		if err != nil {
			return err
		}
	}
	if n, ok := o.(*api.Namespace); ok {
		return checkCycle(r, n, p)
	}
	return nil
}

// isOwn reports whether an Object is a Secret of the cluster's own, which nobody
// may name.
func isOwn(rec store.Record) bool {
	var h api.Head
	return rec.Key.Kind == api.KindSecret && json.Unmarshal(rec.JSON, &h) == nil && h.Metadata.IsSystem
}

// checkCycle reports a Namespace that is its own ancestor. A Namespace that is
// its own parent has been reported before.
func checkCycle(r store.Reader, n *api.Namespace, p *api.Problems) error {
	path := []string{n.Metadata.Name}
	for at := n; at.Spec.Parent != "" && n.Spec.Parent != n.Metadata.Name; {
		up := at.Spec.Parent
		if up == n.Metadata.Name {
			p.Add("/spec/parent", "must not be a Namespace below this one", n.Spec.Parent).Hint = "the circle is " + strings.Join(append(path, up), " → ")
			return nil
		}
		if slices.Contains(path, up) {
			return nil // a circle above, which is reported there
		}
		path = append(path, up)
		next, err := store.Get[*api.Namespace](r, coreKey(api.KindNamespace, up))
		if api.HasCode(err, api.CodeNotFound) {
			return nil // reported as missing
		}
		if err != nil {
			return err
		}
		at = next
	}
	return nil
}

// maxNear is how many names are suggested for one that does not exist.
const maxNear = 5

// near returns the names of the kind of k that are most like its own, of those
// that shows lets be shown, and whether there is any Object of the kind.
func near(r store.Reader, k api.Key, shows func(api.Key) bool) (names []string, any bool, err error) {
	type candidate struct {
		name     string
		distance int
	}
	var best []candidate
	for rec, err := range r.List(k.Group, k.Kind) {
		if err != nil {
			return nil, false, err
		}
		if isOwn(rec) {
			continue
		}
		any = true
		x := candidate{rec.Key.Name, api.Distance(k.Name, rec.Key.Name)}
		if len(best) == maxNear && best[maxNear-1].distance <= x.distance || !shows(rec.Key) {
			continue
		}
		i, _ := slices.BinarySearchFunc(best, x.distance+1, func(c candidate, d int) int { return cmp.Compare(c.distance, d) })
		best = slices.Insert(best, i, x)
		best = best[:min(len(best), maxNear)]
	}
	for _, c := range best {
		names = append(names, c.name)
	}
	return names, any, nil
}

// doomed returns the Objects of those keys and what they own: what goes if they
// are deleted. It fails if one is of the system, or if something that stays refers
// to one, which it names if shows says that it may; what somebody made stays if
// keepsMade is set, also if it is owned.
func doomed(r store.Reader, keys []api.Key, keepsMade bool, shows func(api.Key) bool) (gone []api.Object, err error) {
	going := map[api.Key]bool{}
	var users []use
	for _, k := range keys {
		o, err := store.Get[api.Object](r, k)
		if err != nil {
			return nil, err
		}
		if o.Header().Metadata.IsSystem {
			return nil, api.Errorf(api.CodeConflict, "%s %q was made by the system and cannot be deleted", k.Kind, k.Name)
		}
		going[k] = true
		gone = append(gone, o)
	}
	for next := gone; len(next) > 0; {
		owned, others, err := referrers(r, next, going, keepsMade)
		if err != nil {
			return nil, err
		}
		for _, o := range owned {
			going[o.Header().Key()] = true
		}
		gone, users, next = append(gone, owned...), append(users, others...), owned
	}
	for _, k := range keys {
		var names []string
		hidden := false
		for _, u := range users {
			switch {
			case u.of != k || going[u.by]:
			case shows(u.by):
				names = append(names, u.by.String())
			default:
				hidden = true
			}
		}
		if hidden {
			names = append(names, "what you may not see")
		}
		switch {
		case len(names) == 0:
		case !shows(k):
			return nil, api.Errorf(api.CodeConflict, "what you may not see is in use")
		default:
			e := api.Errorf(api.CodeConflict, "%s %q is in use by %s", k.Kind, k.Name, some(names))
			e.Hint = "take it out of them, or delete them, first"
			return nil, e
		}
	}
	return gone, nil
}

// deleteAll deletes Objects.
func deleteAll(tx store.Tx, gone []api.Object, now time.Time) error {
	for _, o := range gone {
		if err := discard(tx, o, now); err != nil {
			return err
		}
	}
	return nil
}

// A use is an Object that names another.
type use struct{ of, by api.Key }

// referrers returns what names one of those Objects and is not going already: the
// Objects that go with it, and the uses that stand in the way.
func referrers(r store.Reader, of []api.Object, going map[api.Key]bool, keepsMade bool) (owned []api.Object, others []use, err error) {
	wanted := map[api.Key]bool{}
	var names [][]byte
	for _, o := range of {
		if k := o.Header().Key(); isReferred(k) {
			wanted[k] = true
			names = append(names, []byte(k.Name))
		}
	}
	if len(wanted) == 0 {
		return nil, nil, nil
	}
	for rec, err := range r.List(api.GroupCore, "") {
		if err != nil {
			return nil, nil, err
		}
		if going[rec.Key] || !mayContain(rec.JSON, names) {
			continue
		}
		o, err := store.Decode(rec)
		if err != nil {
			return nil, nil, err
		}
		kind, _ := api.KindOf(rec.Key.Kind)
		isOwned := false
		for _, ref := range references(o) {
			switch {
			case !wanted[ref.to]:
			case ref.owned && !(keepsMade && kind.ByHand):
				isOwned = true
			default:
				others = append(others, use{of: ref.to, by: rec.Key})
			}
		}
		if isOwned {
			owned = append(owned, o)
		}
	}
	return owned, others, nil
}

// mayContain reports whether one of the names may be in b. It spares most Objects
// the decoding; where it would cost more than that, it does not look.
func mayContain(b []byte, names [][]byte) bool {
	const few = 64
	return len(names) > few || slices.ContainsFunc(names, func(n []byte) bool { return bytes.Contains(b, n) })
}

// some names the first few of many.
func some(names []string) string {
	const few = 5
	if n := len(names) - few; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), n)
	}
	return strings.Join(names, ", ")
}
