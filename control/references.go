package control

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"

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
		refs = append(refs, reference{to: api.Key{Group: api.GroupCore, Kind: kind, Name: name}, pointer: pointer})
		return &refs[len(refs)-1]
	}
	if a := api.AuthorizationOf(o); a != nil {
		for i, name := range a.Policies {
			add(api.KindPolicy, name, fmt.Sprintf("/spec/authorization/policies/%d", i))
		}
	}
	switch o := o.(type) {
	case *api.User:
		for i, name := range o.Spec.Groups {
			add(api.KindGroup, name, fmt.Sprintf("/spec/groups/%d", i))
		}
	case *api.Service:
		add(api.KindNamespace, api.NamespaceOf(o.Metadata.Name), "/metadata/name")
	case *api.Namespace:
		if o.Spec.Parent != "" {
			add(api.KindNamespace, o.Spec.Parent, "/spec/parent")
		}
	case *api.Credential:
		add(api.KindUser, o.Spec.User, "/spec/user").owned = true
	case *api.Session:
		add(api.KindUser, o.Status.UserRef.Name, "/status/userRef").owned = true
	}
	return refs
}

// checkReferences reports what o names and what does not exist. What is in
// pending counts as existing: it is there in the same request and has problems
// of its own.
func checkReferences(r store.Reader, o api.Object, pending map[api.Key]bool, p *api.Problems) error {
	for _, ref := range references(o) {
		if len(p.List) >= maxProblems {
			return nil
		}
		if pending[ref.to] {
			continue
		}
		_, err := r.Get(ref.to)
		if api.HasCode(err, api.CodeNotFound) {
			names, err := near(r, ref.to)
			if err != nil {
				return err
			}
			x := p.Add(ref.pointer, fmt.Sprintf("must name a %s that exists", ref.to.Kind), ref.to.Name)
			if x.Allowed = names; len(names) == 0 {
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
		next, err := store.Get[*api.Namespace](r, api.Key{Group: api.GroupCore, Kind: api.KindNamespace, Name: up})
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

// near returns the names of the kind of k that are most like its own.
func near(r store.Reader, k api.Key) ([]string, error) {
	type candidate struct {
		name     string
		distance int
	}
	var best []candidate
	for rec, err := range r.List(k.Group, k.Kind) {
		if err != nil {
			return nil, err
		}
		best = append(best, candidate{rec.Key.Name, api.Distance(k.Name, rec.Key.Name)})
		if len(best) > maxNear {
			slices.SortStableFunc(best, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
			best = best[:maxNear]
		}
	}
	slices.SortStableFunc(best, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	var names []string
	for _, c := range best {
		names = append(names, c.name)
	}
	return names, nil
}

// referrers returns the Objects that name k: those that are deleted with it, and
// the names of those that stand in the way.
func referrers(r store.Reader, k api.Key) (owned []api.Object, others []string, err error) {
	name := []byte(k.Name)
	for rec, err := range r.List(api.GroupCore, "") {
		if err != nil {
			return nil, nil, err
		}
		if rec.Key == k || !bytes.Contains(rec.JSON, name) { // most Objects, without decoding them
			continue
		}
		o, err := decode(rec)
		if err != nil {
			return nil, nil, err
		}
		refs := references(o)
		i := slices.IndexFunc(refs, func(ref reference) bool { return ref.to == k })
		switch {
		case i < 0:
		case refs[i].owned:
			owned = append(owned, o)
		default:
			others = append(others, rec.Key.String())
		}
	}
	return owned, others, nil
}
