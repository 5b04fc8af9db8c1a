package control

import (
	"fmt"
	"net/http"
	"slices"
	"strings"

	"cardea/api"
	"cardea/rpc"
	"cardea/store"
)

// deviceRandom is how many random characters the name of a Device ends with.
const deviceRandom = 8

// registerDevice answers POST /api/self/device: the machine that the caller speaks
// of becomes a Device of his User, unless it is one already, and his Session is
// bound to it. What he says of the machine is kept as what he says.
func (c *call) registerDevice() (any, error) {
	if _, err := c.query(); err != nil {
		return nil, err
	}
	who, err := c.who() // before reading what a stranger sends
	if err != nil {
		return nil, err
	}
	d, err := c.may(verbCreate, api.Key{Group: api.GroupCore, Kind: api.KindDevice})
	if err != nil {
		return nil, err
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxLogin)
	var in api.DeviceRequest
	if err := rpc.Read(c.r, &in); err != nil {
		return nil, err
	}
	if err := checkDevice(&in); err != nil {
		return nil, err
	}
	ctx := c.r.Context()
	var out api.DeviceResponse
	rev, err := c.Store.Update(ctx, who.Name, func(tx store.Tx) error {
		s, err := store.Get[*api.Session](tx, coreKey(api.KindSession, who.Name))
		if api.HasCode(err, api.CodeNotFound) || err == nil && s.Metadata.UID != who.UID {
			return stranger() // it has ended since it was asked who this is
		}
		if err != nil {
			return err
		}
		user, err := store.Get[*api.User](tx, coreKey(api.KindUser, s.Status.UserRef.Name))
		if err != nil {
			return err
		}
		var before api.Object
		out.Device, before, err = c.device(tx, user, &in)
		if err != nil {
			return err
		}
		out.Created = before == nil
		m := &out.Device.Metadata
		m.ResourceVersion, m.UpdatedAt, m.ActorRef = newVersion(), c.Now().UTC(), &who
		verb := verbUpdate
		if out.Created {
			verb = verbCreate
		}
		recs := []*api.AccessLog{c.record(d, about(verb, out.Device.Key()), before, out.Device)}
		bound, err := c.bind(tx, s, out.Device, who)
		if err != nil {
			return err
		}
		if bound != nil {
			recs = append(recs, c.record(d, about(verbUpdate, s.Key()), bound, s))
		}
		if err := put(tx, out.Device); err != nil {
			return err
		}
		return c.append(ctx, recs)
	})
	if err != nil {
		return nil, err
	}
	return out, c.await(ctx, rev)
}

// checkDevice reports what is wrong with a request.
func checkDevice(in *api.DeviceRequest) error {
	p := new(api.Problems)
	if !slices.Contains(in.OSType.Values(), string(in.OSType)) {
		p.Add("/osType", "must be one of those that are known", string(in.OSType)).Allowed = in.OSType.Values()
	}
	in.Report.Validate(p, "/report")
	return p.Err()
}

// device returns the Device of a User that a request speaks of, as it is now to
// be, and as it was: nil if it is new. A machine of two Users is two Devices: what
// it says of itself takes nothing from anybody else.
func (c *call) device(r store.Reader, user *api.User, in *api.DeviceRequest) (dev *api.Device, before api.Object, err error) {
	n := 0
	for old, err := range store.All[*api.Device](r, api.KindDevice) {
		if err != nil {
			return nil, nil, err
		}
		switch {
		case old.Status.UserRef.UID != user.Metadata.UID:
		case old.Status.Reported.ID == in.Report.ID:
			before = api.Clone(old)
			dev = old
		default:
			n++
		}
	}
	now := c.Now().UTC()
	if dev == nil {
		state, most, err := deviceTermsOf(r, user)
		if err != nil {
			return nil, nil, err
		}
		if n >= most {
			e := api.Errorf(api.CodeConflict, "User %s has %d Devices, which is as many as there may be", user.Metadata.Name, n)
			e.Hint = "an administrator deletes those that are not in use any more: cardea get devices, cardea delete device NAME"
			return nil, nil, e
		}
		dev = &api.Device{Spec: api.DeviceSpec{State: state}, Status: api.DeviceStatus{UserRef: user.Ref(), OSType: in.OSType}}
		dev.Default()
		dev.Metadata.UID, dev.Metadata.CreatedAt = newUID(), now
		if err := giveName(r, dev, strings.ToLower(string(in.OSType)), deviceRandom); err != nil {
			return nil, nil, err
		}
	}
	dev.Status.Reported, dev.Status.SeenAt = in.Report, now
	return dev, before, nil
}

// bind binds a Session to a Device and returns the Session as it was; nil if it
// was bound to it before. A Session stays on its machine: it cannot leave one
// Device, perhaps one that was rejected, for another.
func (c *call) bind(tx store.Tx, s *api.Session, dev *api.Device, who api.Ref) (before api.Object, err error) {
	if old := s.Status.DeviceRef; old != nil {
		if old.UID == dev.Metadata.UID {
			return nil, nil
		}
		e := api.Errorf(api.CodeConflict, "your Session is bound to the Device %s already", old.Name)
		e.Hint = fmt.Sprintf("log in on this machine, with a CARDEA_HOME of its own; Session %s stays where it is", s.Metadata.Name)
		return nil, e
	}
	was := api.Clone(s)
	ref := dev.Ref()
	s.Status.DeviceRef = &ref
	s.Metadata.ResourceVersion, s.Metadata.UpdatedAt, s.Metadata.ActorRef = newVersion(), c.Now().UTC(), &who
	return was, put(tx, s)
}
