package control

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"time"

	"cardea/address"
	"cardea/api"
	"cardea/store"
)

// addressPlan returns the address plan that is in force.
func addressPlan(r store.Reader) (address.Plan, error) {
	cc, err := clusterConfig(r)
	if err != nil {
		return address.Plan{}, err
	}
	return address.ParsePlan(cc.Status.Network)
}

// planned returns the plan that a ClusterConfig asks for: what it leaves out is as it is
// in force, and as a new cluster has it if nothing is.
func planned(cc *api.ClusterConfig) (address.Plan, error) {
	spec, now := cc.Spec.Network, cc.Status.Network
	n := api.ClusterNetwork{IPv4: cmp.Or(spec.IPv4, now.IPv4, api.DefaultIPv4Network), IPv6: cmp.Or(spec.IPv6, now.IPv6)}
	if n.IPv6 == "" {
		drawn, err := address.Draw(rand.Reader)
		if err != nil {
			return address.Plan{}, err
		}
		n.IPv6 = drawn.String()
	}
	return address.ParsePlan(n)
}

// layOut draws the address plan of a cluster that has none, and gives addresses to the
// Services that have none: an older version has made them.
func (s *Server) layOut(tx store.Tx) error {
	cc, err := clusterConfig(tx)
	if err != nil {
		return err
	}
	if cc.Status.Network == (api.ClusterNetwork{}) {
		plan, err := planned(cc)
		if err != nil {
			return err
		}
		cc.Status.Network = plan.Network()
		if err := s.rewrite(tx, cc); err != nil {
			return err
		}
	}
	plan, err := addressPlan(tx)
	if err != nil {
		return err
	}
	for rec, err := range tx.List(api.GroupCore, api.KindService) {
		if err != nil {
			return err
		}
		if bytes.Contains(rec.JSON, []byte(`"addresses":{"ipv4":`)) {
			continue // it has some; to decode all would take long
		}
		o, err := store.Decode(rec)
		if err != nil {
			return err
		}
		if err := settle(tx, plan, o, s.Now()); err != nil {
			return err
		}
		if err := s.rewrite(tx, o); err != nil {
			return err
		}
	}
	return nil
}

// settle gives addresses to a Service that has none. The API has none: it is where the
// cluster is.
func settle(tx store.Tx, plan address.Plan, o api.Object, now time.Time) (err error) {
	s, ok := o.(*api.Service)
	if ok && s.Spec.Mode != api.ModeAPI && s.Status.Addresses == (api.Addresses{}) {
		s.Status.Addresses, err = address.Take(tx, plan, address.Services, now)
	}
	return err
}

// settleAll does so for all that documents write, which have been put already.
func (c *call) settleAll(tx store.Tx, documents []*document) error {
	plan, err := addressPlan(tx)
	if err != nil {
		return err
	}
	for _, doc := range documents {
		if doc.action == api.ActionUnchanged || doc.key.Kind != api.KindService {
			continue
		}
		if err := settle(tx, plan, doc.after, c.Now()); err != nil {
			return err
		}
		if err := put(tx, doc.after); err != nil {
			return err
		}
	}
	return nil
}

// replan puts the address plan in force that a ClusterConfig asks for, if it can be, and
// reports otherwise why not.
func (c *call) replan(tx store.Tx, doc *document, p *api.Problems) error {
	cc, ok := doc.after.(*api.ClusterConfig)
	if !ok {
		return nil
	}
	was, err := address.ParsePlan(cc.Status.Network)
	if err != nil {
		return err
	}
	is, err := planned(cc)
	if err != nil {
		return err
	}
	why, err := address.Replan(tx, was, is, c.Now())
	if err != nil {
		return err
	}
	if why != "" {
		p.Add("/spec/network", "cannot be changed so: "+why, is.IPv4.String()+" and "+is.IPv6.String()).Hint =
			"in force is " + was.IPv4.String() + " and " + was.IPv6.String()
		return nil
	}
	cc.Status.Network = is.Network()
	return nil
}

// discard deletes an Object and gives back what it had of the private network.
func discard(tx store.Tx, o api.Object, now time.Time) error {
	var pool address.Pool
	var had api.Addresses
	switch o := o.(type) {
	case *api.Service:
		pool, had = address.Services, o.Status.Addresses
	case *api.Session:
		if place := o.Status.Connection; place != nil {
			pool, had = address.Sessions, place.Addresses
			if err := address.ReleaseKey(tx, place.PublicKey, o.Metadata.UID); err != nil {
				return err
			}
		}
	}
	if had != (api.Addresses{}) {
		plan, err := addressPlan(tx)
		if err != nil {
			return err
		}
		if err := address.Release(tx, plan, pool, had, now); err != nil {
			return err
		}
	}
	return tx.Delete(o.Header().Key())
}
