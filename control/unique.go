package control

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"cardea/api"
	"cardea/store"
)

// A claim is something that only one Object of a kind may have: a value, as it
// stands in the Object's JSON, in a scope.
type claim struct{ value, scope, pointer, rule string }

// claimOf returns what o claims, and the zero claim if that is nothing.
func claimOf(o api.Object) claim {
	switch o := o.(type) {
	case *api.Service:
		p := o.Spec.Public
		if p == nil {
			p = new(api.ServicePublic)
		}
		// Who takes a part of a port, the clients with TLS, shares it; whether the parts
		// differ its status says.
		if o.Spec.IsPublic && o.Status.Port != 0 && !o.Spec.IsTLS && len(p.Hosts) == 0 && len(p.Sources) == 0 {
			return claim{strconv.Itoa(o.Status.Port), p.Address, "/spec/port", "must be a port that no other public Service has"}
		}
	case *api.User:
		if o.Spec.Email != "" {
			return claim{o.Spec.Email, "", "/spec/email", "must be an address that no other User has"}
		}
	}
	return claim{}
}

// checkClaims reports what the Objects of a kind, in the given documents, claim
// and what another of the kind has. It names the other if shows says that it may.
func checkClaims(r store.Reader, kind string, docs []*document, report func(*document) *api.Problems, shows func(api.Key) bool) error {
	claimed := map[claim][]*document{}
	var values [][]byte // as they stand in JSON
	for _, d := range docs {
		if d.key.Kind != kind || d.action == api.ActionUnchanged {
			continue
		}
		x := claimOf(d.after)
		if x.value == "" || d.before != nil && claimOf(d.before) == x {
			continue
		}
		b, err := json.Marshal(x.value)
		if err != nil {
			return err
		}
		claimed[x] = append(claimed[x], d)
		values = append(values, b[1:len(b)-1])
	}
	if len(claimed) == 0 {
		return nil
	}
	for rec, err := range r.List(api.GroupCore, kind) {
		if err != nil {
			return err
		}
		if !mayContain(rec.JSON, values) {
			continue
		}
		o, err := store.Decode(rec)
		if err != nil {
			return err
		}
		for _, d := range claimed[claimOf(o)] {
			if d.key != rec.Key {
				x := claimOf(d.after)
				problem := report(d).Add(x.pointer, x.rule, x.value)
				if shows(rec.Key) {
					problem.Hint = fmt.Sprintf("it is that of %s %s", kind, rec.Key.Name)
				}
			}
		}
	}
	return nil
}

// checkNamesake reports a new Namespace that is called as a Service of the
// default Namespace is, or the other way round: NAME.DOMAIN would name both.
func checkNamesake(r store.Reader, d *document, p *api.Problems, shows func(api.Key) bool) error {
	if d.action != api.ActionCreated {
		return nil
	}
	var other api.Key
	name, isDefault := strings.CutSuffix(d.key.Name, "."+api.DefaultNamespace)
	switch {
	case d.key.Kind == api.KindNamespace:
		other = coreKey(api.KindService, api.ServiceName(name))
	case d.key.Kind == api.KindService && isDefault:
		other = coreKey(api.KindNamespace, name)
	default:
		return nil
	}
	_, err := r.Get(other)
	switch {
	case api.HasCode(err, api.CodeNotFound):
		return nil
	case err != nil:
		return err
	case shows(other):
		p.Add("/metadata/name", fmt.Sprintf("must not be that of the %s %s", other.Kind, other.Name), name)
	default:
		p.Add("/metadata/name", "must be another: this one is taken", name)
	}
	return nil
}
