package control

import (
	"context"
	"encoding/json"
	"slices"
	"strings"

	"cardea/api"
	"cardea/store"
)

// A selection says which Objects of a kind are asked for. The zero selection is
// all of them.
type selection struct {
	namespace string
	user      string
	labels    [][2]string // key and value
}

// selection reads the parameters that select among the Objects of a kind.
func (c *call) selection(kind api.Kind, q map[string]string) (selection, error) {
	s := selection{namespace: q["namespace"], user: q["user"]}
	if s.namespace != "" && kind.Name != api.KindService && !kind.IsForeign() {
		return s, api.Errorf(api.CodeInvalid, "the query parameter namespace is for Services: a %s is in no Namespace", kind.Name)
	}
	if s.user != "" && !slices.Contains([]string{api.KindSession, api.KindCredential, api.KindDevice, api.KindAuthenticator}, kind.Name) {
		return s, api.Errorf(api.CodeInvalid, "the query parameter user is for what is a User's: a %s is nobody's", kind.Name)
	}
	for _, l := range c.r.URL.Query()["label"] {
		k, v, ok := strings.Cut(l, "=")
		if !ok || k == "" {
			return s, api.Errorf(api.CodeInvalid, "the query parameter label must be KEY=VALUE")
		}
		s.labels = append(s.labels, [2]string{k, v})
	}
	return s, nil
}

// has reports whether an Object is asked for.
func (s *selection) has(o api.Object) bool {
	m := &o.Header().Metadata
	return (s.namespace == "" || s.namespace == namespaceOf(o.Header().Key())) &&
		(s.user == "" || userOf(o) == s.user) &&
		!slices.ContainsFunc(s.labels, func(l [2]string) bool { v, ok := m.Labels[l[0]]; return !ok || v != l[1] })
}

// namespaceOf returns the Namespace of a Service, or the namespace of an Object of
// another system.
func namespaceOf(k api.Key) string {
	if k.Kind == api.KindService {
		return api.NamespaceOf(k.Name)
	}
	return k.Namespace
}

// userOf returns the name of the User whose an Object is, "" if it is nobody's.
func userOf(o api.Object) string {
	switch o := o.(type) {
	case *api.Session:
		return o.Status.UserRef.Name
	case *api.Credential:
		return o.Spec.User
	case *api.Device:
		return o.Status.UserRef.Name
	case *api.Authenticator:
		return o.Status.UserRef.Name
	}
	return ""
}

// list answers GET /api/{group}/{version}/{kind}: with those Objects that the caller may
// list, each decided by its name. Whoever may list none and not the kind either
// is told so.
func (c *call) list() (any, error) {
	q, err := c.query("limit", "after", "namespace", "user", "label", "watch", "revision")
	if err != nil {
		return nil, err
	}
	who, err := c.who() // strangers do not learn the kinds
	if err != nil {
		return nil, err
	}
	k, err := c.kind()
	if err != nil {
		return nil, err
	}
	which, err := c.selection(k, q)
	if err != nil {
		return nil, err
	}
	watch, err := boolean(q, "watch")
	if err != nil {
		return nil, err
	}
	if watch {
		return nil, c.watch(who, k, which, q)
	}
	if q["revision"] != "" {
		return nil, api.Errorf(api.CodeInvalid, "the query parameter revision needs watch=true")
	}
	limit, err := number(q, "limit")
	if err != nil {
		return nil, err
	}

	done, err := c.readers.take(c.r.Context(), who.UID)
	if err != nil {
		return nil, err
	}
	defer done()
	out := api.List{Items: []json.RawMessage{}}
	if out.Revision, err = c.settled(); err != nil {
		return nil, err
	}
	seesAny := false
	last := ""
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		for rec, err := range r.ListAfter(afterKey(k, q["after"])) {
			if err != nil {
				return err
			}
			d, err := c.sees(verbList, rec.Key)
			if err != nil {
				return err
			}
			if !d.Allowed() {
				continue
			}
			seesAny = true
			o, err := store.Decode(rec)
			if err != nil {
				return err
			}
			if !which.has(o) {
				continue
			}
			if limit > 0 && len(out.Items) == limit {
				out.Next = last
				return nil
			}
			b, err := encode(c.present(o))
			if err != nil {
				return err
			}
			out.Items, last = append(out.Items, b), position(k, rec.Key)
		}
		return nil
	})
	if err != nil || seesAny {
		return out, err
	}
	_, err = c.may(verbList, keyIn(k, "", ""))
	return out, err
}

// position returns where an Object is in a list of its kind.
func position(kind api.Kind, k api.Key) string {
	if kind.IsForeign() {
		return k.Namespace + "/" + k.Name
	}
	return k.Name
}

// afterKey returns the key of a position.
func afterKey(kind api.Kind, position string) api.Key {
	namespace, name, ok := strings.Cut(position, "/")
	if !kind.IsForeign() || !ok {
		return keyIn(kind, "", api.CanonicalName(kind.Name, position))
	}
	return keyIn(kind, namespace, name)
}

// settled returns the revision of the store once everything is decided on it, or a
// later one. What is then read may be later, too: whoever watches from there misses
// nothing.
func (c *call) settled() (rev api.Revision, err error) {
	err = c.Store.View(c.r.Context(), func(r store.Reader) error { rev = r.Revision(); return nil })
	if err != nil {
		return rev, err
	}
	ctx, cancel := context.WithTimeout(c.r.Context(), awaitTimeout)
	defer cancel()
	if err := c.Await(ctx, rev); err != nil {
		c.Log.Error("decisions are not made on the present state", "revision", rev, "error", err)
		return rev, undecided()
	}
	return rev, nil
}
