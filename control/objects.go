package control

import (
	"cardea/api"
	"cardea/store"
)

// get answers GET /api/{group}/{version}/{kind}/{name}.
func (c *call) get() (any, error) {
	if _, err := c.query("namespace"); err != nil {
		return nil, err
	}
	if _, err := c.who(); err != nil { // strangers do not learn the kinds
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
	return encode(c.present(o))
}

// load returns an Object as it is stored.
func (c *call) load(k api.Key) (o api.Object, err error) {
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		o, err = store.Get[api.Object](r, k)
		return err
	})
	return o, err
}

// present returns an Object with what is known of it in this process.
func (s *Server) present(o api.Object) api.Object {
	if s.Live == nil {
		return o
	}
	return s.Live(o)
}

// delete answers DELETE /api/{group}/{version}/{kind}/{name}.
func (c *call) delete() (any, error) {
	q, err := c.query("namespace", "allowLockout", "dryRun")
	if err != nil {
		return nil, err
	}
	opt, err := writeOptions(q)
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
	warnings, rev, err := c.remove(who, k, opt)
	if err != nil {
		return nil, err
	}
	return api.WriteResponse{Result: resultOf(k, api.ActionDeleted), Warnings: warnings, Revision: rev}, nil
}

// remove deletes an Object, and those that have no life without it, unless
// others still refer to it. It warns of others that are harmed.
func (c *call) remove(who api.Ref, k api.Key, opt options) ([]api.Problem, api.Revision, error) {
	ctx := c.r.Context()
	decision, err := c.may(verbDelete, k)
	if err != nil {
		return nil, api.Revision{}, err
	}
	var changes []mutation
	lockout := c.lockout(who, opt.allowLockout)
	rev, err := c.Store.Update(ctx, who.Name, func(tx store.Tx) error {
		w, err := c.newWriter(tx, who)
		if err != nil {
			return err
		}
		names := func(x api.Key) bool { return x == k || c.shows(x) }
		gone, err := doomed(tx, []api.Key{k}, false, names)
		if err != nil {
			return err
		}
		if err := c.mayDelete(tx, w, who, gone, names); err != nil {
			return err
		}
		if err := deleteAll(tx, gone, c.Now()); err != nil {
			return err
		}
		var keys []api.Key
		changes = nil // the function may run again
		for _, o := range gone {
			keys = append(keys, o.Header().Key())
			changes = append(changes, mutation{0, o.Header().Key(), o})
		}
		if err := lockout(tx, keys); err != nil {
			return err
		}
		if opt.dryRun {
			return errDryRun
		}
		return c.append(ctx, c.deletions(decision, gone))
	})
	if err == errDryRun {
		return nil, rev, nil
	}
	if err != nil {
		return nil, rev, err
	}
	err = c.await(ctx, rev)
	return c.harm(changes), rev, err
}
