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
func (c *call) selection(kind string, q map[string]string) (selection, error) {
	s := selection{namespace: q["namespace"], user: q["user"]}
	if s.namespace != "" && kind != api.KindService {
		return s, api.Errorf(api.CodeInvalid, "the query parameter namespace is for Services: a %s is in no Namespace", kind)
	}
	if s.user != "" && !slices.Contains([]string{api.KindSession, api.KindCredential, api.KindDevice, api.KindAuthenticator}, kind) {
		return s, api.Errorf(api.CodeInvalid, "the query parameter user is for what is a User's: a %s is nobody's", kind)
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
	return (s.namespace == "" || api.NamespaceOf(m.Name) == s.namespace) &&
		(s.user == "" || userOf(o) == s.user) &&
		!slices.ContainsFunc(s.labels, func(l [2]string) bool { v, ok := m.Labels[l[0]]; return !ok || v != l[1] })
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

// list answers GET /api/core/v1/{kind}: with those Objects that the caller may
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
	which, err := c.selection(k.Name, q)
	if err != nil {
		return nil, err
	}
	watch, err := boolean(q, "watch")
	if err != nil {
		return nil, err
	}
	if watch {
		return nil, c.watch(who, k.Name, which, q)
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
	after := api.CanonicalName(k.Name, q["after"])
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		for rec, err := range r.ListAfter(coreKey(k.Name, after)) {
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
			o, err := decode(rec)
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
			out.Items, last = append(out.Items, b), rec.Key.Name
		}
		return nil
	})
	if err != nil || seesAny {
		return out, err
	}
	_, err = c.may(verbList, coreKey(k.Name, ""))
	return out, err
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
