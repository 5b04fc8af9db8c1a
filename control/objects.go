package control

import (
	"encoding/json"
	"fmt"
	"strings"

	"cardea/api"
	"cardea/store"
)

// list answers GET /api/core/v1/{kind}. Whoever may list a kind sees all of it.
func (c *call) list() (any, error) {
	if _, err := c.query(); err != nil {
		return nil, err
	}
	if _, err := c.who(); err != nil { // strangers do not learn the kinds
		return nil, err
	}
	k, err := c.kind()
	if err != nil {
		return nil, err
	}
	if _, err := c.may(verbList, api.Key{Group: api.GroupCore, Kind: k.Name}); err != nil {
		return nil, err
	}
	out := api.List{Items: []json.RawMessage{}}
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		out.Revision = r.Revision()
		for o, err := range store.All[api.Object](r, k.Name) {
			if err != nil {
				return err
			}
			b, err := encode(o)
			if err != nil {
				return err
			}
			out.Items = append(out.Items, b)
		}
		return nil
	})
	return out, err
}

// get answers GET /api/core/v1/{kind}/{name}.
func (c *call) get() (any, error) {
	if _, err := c.query(); err != nil {
		return nil, err
	}
	if _, err := c.who(); err != nil {
		return nil, err
	}
	k, err := c.key()
	if err != nil {
		return nil, err
	}
	if _, err := c.may(verbGet, k); err != nil {
		return nil, err
	}
	o, err := c.load(k)
	if err != nil {
		return nil, err
	}
	return encode(o)
}

// load returns an Object as it is stored.
func (c *call) load(k api.Key) (o api.Object, err error) {
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		o, err = store.Get[api.Object](r, k)
		return err
	})
	return o, err
}

// delete answers DELETE /api/core/v1/{kind}/{name}.
func (c *call) delete() (any, error) {
	q, err := c.query("allowLockout")
	if err != nil {
		return nil, err
	}
	allowLockout, err := boolean(q, "allowLockout")
	if err != nil {
		return nil, err
	}
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	k, err := c.key()
	if err != nil {
		return nil, err
	}
	rev, err := c.remove(who, k, allowLockout)
	if err != nil {
		return nil, err
	}
	return api.WriteResponse{Result: api.Result{Kind: k.Kind, Name: k.Name, Action: api.ActionDeleted}, Revision: rev}, nil
}

// remove deletes an Object, and those that have no life without it, unless
// others still refer to it.
func (c *call) remove(who api.Ref, k api.Key, allowLockout bool) (api.Revision, error) {
	ctx := c.r.Context()
	d, err := c.may(verbDelete, k)
	if err != nil {
		return api.Revision{}, err
	}
	lockout := c.lockout(who, allowLockout)
	rev, err := c.Store.Update(ctx, who.Name, func(tx store.Tx) error {
		gone, err := deleteAll(tx, k)
		if err != nil {
			return err
		}
		var keys []api.Key
		for _, o := range gone {
			keys = append(keys, o.Header().Key())
		}
		if err := lockout(tx, keys); err != nil {
			return err
		}
		var recs []*api.AccessLog
		for _, o := range gone {
			recs = append(recs, c.record(d, about(verbDelete, o.Header().Key()), o, nil))
		}
		return c.append(ctx, recs)
	})
	if err != nil {
		return rev, err
	}
	return rev, c.await(ctx, rev)
}

// deleteAll deletes the Object of that key and what it owns, and returns them.
func deleteAll(tx store.Tx, k api.Key) ([]api.Object, error) {
	o, err := store.Get[api.Object](tx, k)
	if err != nil {
		return nil, err
	}
	if o.Header().Metadata.IsSystem {
		return nil, api.Errorf(api.CodeConflict, "%s %q was made by the system and cannot be deleted", k.Kind, k.Name)
	}
	owned, others, err := referrers(tx, k)
	if err != nil {
		return nil, err
	}
	if len(others) > 0 {
		e := api.Errorf(api.CodeConflict, "%s %q is in use by %s", k.Kind, k.Name, some(others))
		e.Hint = "take it out of them, or delete them, first"
		return nil, e
	}
	gone := append(owned, o)
	for _, o := range gone {
		if err := tx.Delete(o.Header().Key()); err != nil {
			return nil, err
		}
	}
	return gone, nil
}

// some names the first few of many.
func some(names []string) string {
	const few = 5
	if n := len(names) - few; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:few], ", "), n)
	}
	return strings.Join(names, ", ")
}

// self answers GET /api/self.
func (c *call) self() (any, error) {
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	k := api.Key{Group: api.GroupCore, Kind: api.KindSession, Name: who.Name}
	if _, err := c.may(verbGet, k); err != nil {
		return nil, err
	}
	out := api.Self{Domain: c.Domain, Now: c.Now().UTC()}
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		out.Revision = r.Revision()
		if out.Session, err = store.Get[*api.Session](r, k); err != nil {
			return err
		}
		out.User, err = store.Get[*api.User](r, api.Key{Group: api.GroupCore, Kind: api.KindUser, Name: out.Session.Status.UserRef.Name})
		return err
	})
	return out, err
}

// reachable answers GET /api/self/services: every Service is decided as if the
// caller connected to it now, from where he is.
func (c *call) reachable() (any, error) {
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	if _, err := c.may(verbGet, api.Key{Group: api.GroupCore, Kind: api.KindSession, Name: who.Name}); err != nil {
		return nil, err
	}
	ctx := c.r.Context()
	var all []*api.Service
	err = c.Store.View(ctx, func(r store.Reader) error {
		for s, err := range store.All[*api.Service](r, api.KindService) {
			if err != nil {
				return err
			}
			all = append(all, s)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	out := api.Reachable{Items: []api.ReachableService{}}
	for _, s := range all {
		if s.Spec.Mode == api.ModeAPI {
			continue // it is not connected to
		}
		d, err := c.Decider.Decide(ctx, api.Request{Service: s.Metadata.Name, Session: who.UID, Facts: &c.facts, Now: c.Now()})
		if err != nil {
			return nil, err
		}
		if d.Allowed() {
			out.Items = append(out.Items, api.ReachableService{Name: s.Metadata.Name, Mode: s.Spec.Mode, Port: s.Status.Port, Description: s.Metadata.Description})
		}
	}
	return out, nil
}

// logout answers POST /api/logout: the Session ends itself.
func (c *call) logout() (any, error) {
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	_, err = c.remove(who, api.Key{Group: api.GroupCore, Kind: api.KindSession, Name: who.Name}, true) // he knows what he does
	return api.Empty{}, err
}

// latestSession returns the Session of a User that was made last, and nil if there
// is none.
func (c *call) latestSession(user string) (latest *api.Session, err error) {
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		for s, err := range store.All[*api.Session](r, api.KindSession) {
			if err != nil {
				return err
			}
			if s.Status.UserRef.Name == user && (latest == nil || s.Metadata.CreatedAt.After(latest.Metadata.CreatedAt)) {
				latest = s
			}
		}
		return nil
	})
	return latest, err
}
