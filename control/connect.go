package control

import (
	"cmp"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"time"

	"cardea/address"
	"cardea/api"
	"cardea/rpc"
	"cardea/store"
)

// aliveInterval is how often a connected Session hears that nothing happened.
const aliveInterval = 10 * time.Second

// maxServe is how many Services one request can name.
const maxServe = 1000

// A Network is what is known of the tunnels of the cluster.
type Network interface {
	Gateways() []api.GatewayPlace
	// Changed returns what is closed when Gateways next returns something else.
	Changed() <-chan struct{}
}

// A stay is the place of a Session in the private network while its client listens.
type stay struct {
	*call
	who   api.Ref
	user  string
	want  api.ConnectRequest
	seat  *seat
	timed bool      // something was decided by the clock
	ends  time.Time // when the Session does
}

// connect answers POST /api/connect: the Session gets a place in the private network, and
// hears of what changes of that until it ends.
func (c *call) connect(claims *turns) (any, error) {
	who, err := c.mine()
	if err != nil {
		return nil, err
	}
	if c.Network == nil {
		return nil, noNetwork()
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxLogin)
	s := &stay{call: c, who: who}
	if err := rpc.Read(c.r, &s.want); err != nil {
		return nil, err
	}
	if err := c.checkRequest(&s.want); err != nil {
		return nil, err
	}
	if c.seats.now() == (api.Revision{}) {
		e := api.Errorf(api.CodeUnavailable, "the cluster is starting or ending")
		e.Hint = "try again"
		return nil, e
	}
	if err := s.enter(claims); err != nil {
		return nil, err
	}
	defer c.seats.leave(s.seat)
	rpc.Lines(c.w, s.events(c.r.Context()), c.Log)
	return nil, nil
}

// place answers GET /api/connect: what the caller would be told, so that he can look whether
// his machine can have that before he takes the place, which another may have. A Session
// that was never connected has no addresses yet.
func (c *call) place() (any, error) {
	who, err := c.mine()
	if err != nil {
		return nil, err
	}
	if c.Network == nil {
		return nil, noNetwork()
	}
	session, plan, err := c.readPlace(c.r.Context(), who)
	switch {
	case err != nil:
		return nil, err
	case session == nil:
		return nil, stranger() // it has ended since it was asked who this is
	case session.Status.Connection == nil:
		session.Status.Connection = new(api.SessionConnection)
	}
	return c.networkState(session, plan), nil
}

// networkState returns what a Session is told, but for what it serves.
func (c *call) networkState(session *api.Session, plan address.Plan) *api.NetworkState {
	ref := session.Ref()
	ref.ResourceVersion = "" // what is told changes when something of it does
	state := &api.NetworkState{
		Session: ref, Domain: c.Domain, Addresses: session.Status.Connection.Addresses, MTU: api.NetworkMTU,
		Gateways: c.Network.Gateways(), Services: []string{}, DNS: []string{},
	}
	if state.Gateways == nil {
		state.Gateways = []api.GatewayPlace{}
	}
	for _, p := range plan.Services() {
		state.Services = append(state.Services, p.String())
	}
	for _, a := range plan.DNS() {
		state.DNS = append(state.DNS, a.String())
	}
	return state
}

// disconnect answers POST /api/disconnect: the Session has no place any more, and keeps
// its addresses.
func (c *call) disconnect() (any, error) {
	who, err := c.mine()
	if err != nil {
		return nil, err
	}
	if c.Network == nil {
		return nil, noNetwork()
	}
	ctx := c.r.Context()
	rev, err := c.claim(ctx, who, verbDisconnect, func(tx store.Tx, s *api.Session) error {
		if s.Status.Connection == nil {
			return nil
		}
		if err := address.ReleaseKey(tx, s.Status.Connection.PublicKey, who.UID); err != nil {
			return err
		}
		s.Status.Connection.PublicKey, s.Status.Connection.Serves = "", nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.seats.giveUp(who.UID, disconnected())
	return api.Empty{}, c.await(ctx, rev)
}

func disconnected() *api.Error {
	return api.Errorf(api.CodeConflict, "the Session was disconnected")
}

func noNetwork() error {
	e := api.Errorf(api.CodeNotFound, "this cluster has no private network")
	e.Hint = "reach Services through published ports"
	return e
}

// mine returns the caller's Session, if it may be used. From there on it is decided by
// that: its certificate may expire while it is connected.
func (c *call) mine() (api.Ref, error) {
	who, err := c.who()
	if err != nil {
		return who, err
	}
	if _, err := c.query(); err != nil {
		return who, err
	}
	_, err = c.may(verbGet, coreKey(api.KindSession, who.Name))
	c.verified = who.UID
	return who, err
}

// checkRequest reports what is wrong with a request, and brings it into its form.
func (c *call) checkRequest(in *api.ConnectRequest) error {
	p := new(api.Problems)
	if in.PublicKey != "" {
		if why := badKey(in.PublicKey); why != "" {
			p.Add("/publicKey", why, "")
		}
		if slices.ContainsFunc(c.Network.Gateways(), func(g api.GatewayPlace) bool { return g.PublicKey == in.PublicKey }) {
			p.Add("/publicKey", "must not be that of a Gateway", "")
		}
	}
	if len(in.Serve) > maxServe {
		p.Add("/serve", fmt.Sprintf("must name at most %d Services", maxServe), "").Hint = "serveAll means all that name your User"
		in.Serve = nil
	}
	for i, name := range in.Serve {
		if name == "" || len(name) > maxName {
			p.Add(fmt.Sprintf("/serve/%d", i), "must name a Service", "")
		}
		in.Serve[i] = api.ServiceName(name)
	}
	slices.Sort(in.Serve)
	in.Serve = slices.Compact(in.Serve)
	return p.Err()
}

// badKey says what is wrong with a WireGuard key, "" if nothing is. A key has one
// spelling, and is none of those with which everybody agrees on the same secret (RFC 7748,
// section 6.1).
func badKey(s string) string {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 32 || strings.ContainsAny(s, "\r\n") {
		return "must be a WireGuard key: 32 bytes in base64"
	}
	key, err := ecdh.X25519().NewPublicKey(b)
	if err != nil || b[31]&0x80 != 0 {
		return "must be a public key of X25519"
	}
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err == nil {
		_, err = own.ECDH(key)
	}
	if err != nil {
		return "must be a public key that somebody can have"
	}
	return ""
}

// enter claims the place: it is stored, and whoever had it before hears of it. What was
// explicitly asked for and cannot be is an error.
func (s *stay) enter(claims *turns) error {
	ctx := s.r.Context()
	done, err := claims.take(ctx, s.who.UID)
	if err != nil {
		return err
	}
	defer done()
	o, err := s.load(coreKey(api.KindSession, s.who.Name))
	if err != nil {
		return err
	}
	s.user = o.(*api.Session).Status.UserRef.Name
	for _, name := range s.want.Serve {
		if err := s.mayServe(coreKey(api.KindService, name)); err != nil {
			return err
		}
	}
	served, err := s.serves(ctx, nil)
	if err != nil {
		return err
	}
	rev, err := s.claim(ctx, s.who, verbConnect, func(tx store.Tx, o *api.Session) error { return s.settleSession(tx, o, served) })
	if err != nil {
		return err
	}
	s.seat = s.seats.enter(s.who.UID)
	if err := s.await(ctx, rev); err != nil {
		s.seats.leave(s.seat)
		return err
	}
	return nil
}

// mayServe reports why the caller, who names a Service, cannot serve it.
func (s *stay) mayServe(k api.Key) error {
	if _, err := s.may(verbServe, k); err != nil {
		return err
	}
	o, err := s.load(k)
	if err != nil {
		return err
	}
	if len(servedOf(o.(*api.Service), s.user)) == 0 {
		e := api.Errorf(api.CodeConflict, "the upstream of Service %s is not User %s", k.Name, s.user)
		e.Hint = "who may write the Service says so: upstream: {user: " + s.user + ", url: …}"
		return e
	}
	return nil
}

// servedOf returns what the Sessions of a User serve of a Service.
func servedOf(o *api.Service, user string) (list []api.ServedService) {
	for _, c := range configs(o) {
		if url, ok := o.EffectiveConfig(c.Name).ServedBy(user); ok {
			list = append(list, api.ServedService{Service: o.Metadata.Name, Config: c.Name, URL: url})
		}
	}
	return list
}

// claim changes the caller's Session in the store, if there is anything to change.
func (c *call) claim(ctx context.Context, who api.Ref, verb string, change func(store.Tx, *api.Session) error) (api.Revision, error) {
	k := coreKey(api.KindSession, who.Name)
	d, err := c.decide(ctx, about(verbGet, k))
	if err != nil {
		return api.Revision{}, undecided()
	}
	return c.Store.Update(ctx, who.Name, func(tx store.Tx) error {
		s, err := store.Get[*api.Session](tx, k)
		if api.HasCode(err, api.CodeNotFound) || err == nil && s.Metadata.UID != who.UID {
			return stranger() // it has ended since it was asked who this is
		}
		if err != nil {
			return err
		}
		before := api.Clone(s)
		if err := change(tx, s); err != nil {
			return err
		}
		if same, err := equal(before, s); err != nil || same {
			return err
		}
		s.Metadata.ResourceVersion, s.Metadata.UpdatedAt, s.Metadata.ActorRef = newVersion(), c.Now().UTC(), &who
		if err := put(tx, s); err != nil {
			return err
		}
		return c.append(ctx, []*api.AccessLog{c.record(d, about(verb, k), before, s)})
	})
}

// settleSession gives a Session what it has to have to be connected as it wants.
func (s *stay) settleSession(tx store.Tx, o *api.Session, served []api.ServedService) error {
	had := o.Status.Connection
	if had == nil {
		had = new(api.SessionConnection)
	}
	is := *had
	if is.Addresses == (api.Addresses{}) {
		plan, err := addressPlan(tx)
		if err != nil {
			return err
		}
		if is.Addresses, err = address.Take(tx, plan, address.Sessions, s.Now()); err != nil {
			return err
		}
	}
	if is.PublicKey != s.want.PublicKey {
		if err := address.ReleaseKey(tx, is.PublicKey, s.who.UID); err != nil {
			return err
		}
		if is.PublicKey = s.want.PublicKey; is.PublicKey != "" {
			if err := address.TakeKey(tx, is.PublicKey, s.who.UID); err != nil {
				return err
			}
		}
	}
	is.Serves = namesOf(served)
	if !reflect.DeepEqual(&is, o.Status.Connection) {
		is.StartedAt = s.Now().UTC()
		o.Status.Connection = &is
	}
	return nil
}

// namesOf returns the Services that are served, each once.
func namesOf(served []api.ServedService) (names []string) {
	for _, x := range served {
		if x.Problem == "" && !slices.Contains(names, x.Service) {
			names = append(names, x.Service)
		}
	}
	return names
}

// serves returns what the Session serves, or is to serve and does not, ordered by name.
// What it was made from is added to keys, unless that is nil.
func (s *stay) serves(ctx context.Context, keys map[api.Key]struct{}) (list []api.ServedService, err error) {
	names := map[api.Key]bool{} // whether it was asked for by name
	if s.want.ServeAll {
		for _, k := range s.seats.servable(s.user) {
			names[k] = false
		}
		include(keys, servingKey(s.user))
	}
	for _, name := range s.want.Serve {
		names[coreKey(api.KindService, name)] = true
	}
	order := slices.SortedFunc(maps.Keys(names), func(a, b api.Key) int { return cmp.Compare(a.Name, b.Name) })
	for _, k := range order {
		d, err := s.sees(verbServe, k)
		if err != nil {
			return nil, err
		}
		s.timed = s.timed || d.TimeBound
		include(keys, k)
		include(keys, d.DependsOn...)
		if !d.Allowed() {
			list = append(list, api.ServedService{Service: k.Name, Problem: "you are not allowed to serve it"})
			continue
		}
		o, err := s.load(k)
		if err != nil && !api.HasCode(err, api.CodeNotFound) {
			return nil, err
		}
		var of []api.ServedService
		if err == nil {
			of = servedOf(o.(*api.Service), s.user)
		}
		switch {
		case len(of) > 0:
			list = append(list, of...)
		case err != nil && names[k]:
			list = append(list, api.ServedService{Service: k.Name, Problem: "it does not exist any more"})
		case names[k]:
			list = append(list, api.ServedService{Service: k.Name, Problem: "its upstream is not User " + s.user + " any more"})
		}
	}
	return list, nil
}

// include adds keys to a set, which may be nil.
func include(set map[api.Key]struct{}, keys ...api.Key) {
	if set == nil {
		return
	}
	for _, k := range keys {
		set[k] = struct{}{}
	}
}

// MayServe decides whether a Session, by its uid, may now serve a config of a Service: by
// the verb, and because the Service names its User. Whoever sends it connections asks
// before each, and again when something has changed of what the decision depends on. The
// Words of a DENY say why.
func (s *Server) MayServe(ctx context.Context, session, service, config string, atLeast api.Revision) (api.Decision, error) {
	k := coreKey(api.KindService, service)
	a := about(verbServe, k)
	d, err := s.Decider.Decide(ctx, api.Request{Service: api.APIService, Session: session, Facts: &api.Facts{API: &a}, Now: s.Now(), AtLeast: atLeast})
	if err != nil {
		return d, err
	}
	d.DependsOn = append(slices.Clip(d.DependsOn), k)
	if !d.Allowed() {
		d.Words = cmp.Or(d.Words, string(d.Reason))
		return d, nil
	}
	var of *api.Service
	err = s.Store.View(ctx, func(r store.Reader) (err error) {
		of, err = store.Get[*api.Service](r, k)
		return err
	})
	if err != nil && !api.HasCode(err, api.CodeNotFound) {
		return d, err
	}
	user := d.Subject.User.Name
	if err == nil {
		if c := of.EffectiveConfig(config); c != nil {
			if _, ok := c.ServedBy(user); ok {
				return d, nil
			}
		}
	}
	d.Effect, d.Reason, d.Rule, d.Words = api.Deny, api.ReasonConfig, nil, "its upstream is not User "+user+" any more"
	return d, nil
}

// events yields what there is to tell until the place ends or the caller has gone.
func (s *stay) events(ctx context.Context) iter.Seq2[api.ConnectEvent, error] {
	return func(yield func(api.ConnectEvent, error) bool) {
		var told *api.NetworkState
		alive, again := time.NewTicker(aliveInterval), time.NewTimer(0)
		defer alive.Stop()
		defer again.Stop()
		tell := func(e api.ConnectEvent) bool {
			alive.Reset(aliveInterval)
			return yield(e, nil)
		}
		for look := true; ; {
			changed := s.Network.Changed()
			if look {
				state, ended, err := s.look(ctx)
				switch {
				case ctx.Err() != nil:
					return
				case ended != nil:
					s.settle(ctx)
					tell(api.ConnectEvent{Type: api.ConnectEnded, Ended: ended})
					return
				case err != nil && told == nil:
					yield(api.ConnectEvent{}, err)
					return
				case err != nil: // what was told stands until more is known
					s.Log.Warn("what changes for a connected Session cannot be found out; it will be tried again", "session", s.who.Name, "error", err)
					again.Reset(lookInterval)
				default:
					if !reflect.DeepEqual(told, state) {
						told = state
						if !tell(api.ConnectEvent{Type: api.ConnectState, State: state}) {
							return
						}
					}
					again.Reset(s.next())
				}
			}
			look = true
			select {
			case <-ctx.Done():
				return
			case <-s.seat.over:
				tell(api.ConnectEvent{Type: api.ConnectEnded, Ended: s.seat.why})
				return
			case <-s.seat.wake:
			case <-changed:
			case <-again.C:
			case r := <-s.seat.refused:
				look = false
				if !tell(api.ConnectEvent{Type: api.ConnectRefused, Refused: &r}) {
					return
				}
			case <-alive.C:
				look = false
				if !yield(api.ConnectEvent{Type: api.ConnectAlive}, nil) {
					return
				}
			}
		}
	}
}

// settle returns when what is stored now has cut what it cuts, in all processes, or soon: a
// client that hears of its end resets what it has, and those ends would be told as its own.
func (s *stay) settle(ctx context.Context) {
	soon, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	var now api.Revision
	err := s.Store.View(soon, func(r store.Reader) error { now = r.Revision(); return nil })
	if err == nil {
		err = s.Await(soon, now)
	}
	if err != nil && ctx.Err() == nil {
		s.Log.Warn("a client hears of the end of its Session before all of its connections are known to be cut", "session", s.who.Name, "error", err)
	}
}

// settleTimeout bounds for how long a client does not hear of an end.
const settleTimeout = time.Second

// maxLook is how long a place is not looked at, at most: the clock may have been set.
const maxLook = time.Minute

// next returns for how long what was found out is good by the clock.
func (s *stay) next() time.Duration {
	if s.timed {
		return lookInterval
	}
	return max(min(s.ends.Sub(s.Now()), maxLook), time.Millisecond)
}

// look finds out what is now: the state, or why it has ended.
func (s *stay) look(ctx context.Context) (state *api.NetworkState, ended *api.Error, err error) {
	s.timed = false
	at := s.seats.now()
	k := coreKey(api.KindSession, s.who.Name)
	keys := map[api.Key]struct{}{}
	include(keys, k, coreKey(api.KindClusterConfig, api.ClusterConfigName))
	session, plan, err := s.readPlace(ctx, s.who)
	if err != nil {
		return nil, nil, err
	}
	if ended := s.ended(session); ended != nil {
		return nil, ended, nil
	}
	// Nothing is decided on less than woke it.
	awaiting, cancel := context.WithTimeout(ctx, awaitTimeout)
	defer cancel()
	if err := s.Await(awaiting, at); err != nil {
		return nil, nil, err
	}
	d, err := s.sees(verbGet, k)
	if err != nil {
		return nil, nil, err
	}
	if !d.Allowed() {
		return nil, s.lost(session, d), nil
	}
	include(keys, d.DependsOn...)
	s.timed = s.timed || d.TimeBound
	served, err := s.serves(ctx, keys)
	if err != nil {
		return nil, nil, err
	}
	if !slices.Equal(namesOf(served), session.Status.Connection.Serves) {
		_, err := s.claim(ctx, s.who, verbConnect, func(_ store.Tx, o *api.Session) error {
			if x := o.Status.Connection; x != nil && x.PublicKey == s.want.PublicKey {
				x.Serves = namesOf(served)
			}
			return nil
		})
		if err != nil {
			return nil, nil, err
		}
	}
	s.seats.listen(s.seat, keys, at)
	state = s.networkState(session, plan)
	state.Serves = served
	return state, nil, nil
}

// readPlace returns a Session, nil if it is not there any more, and the address plan.
func (c *call) readPlace(ctx context.Context, who api.Ref) (session *api.Session, plan address.Plan, err error) {
	err = c.Store.View(ctx, func(r store.Reader) error {
		o, err := store.Get[*api.Session](r, coreKey(api.KindSession, who.Name))
		switch {
		case api.HasCode(err, api.CodeNotFound):
			return nil
		case err != nil:
			return err
		case o.Metadata.UID == who.UID:
			session = o
		}
		plan, err = addressPlan(r)
		return err
	})
	return session, plan, err
}

// ended says why the place is gone, by what is stored; nil if it is not.
func (s *stay) ended(o *api.Session) *api.Error {
	var e *api.Error
	switch {
	case o == nil && (s.ends.IsZero() || s.Now().Before(s.ends)):
		e = api.Errorf(api.CodeUnauthenticated, "your Session %s was deleted", s.who.Name)
	case o == nil || !s.Now().Before(o.Spec.ExpiresAt):
		e = api.Errorf(api.CodeUnauthenticated, "your Session %s has expired", s.who.Name)
	case o.Spec.State != api.SessionActive:
		return asError(inactive(&s.who))
	case o.Status.Connection == nil || o.Status.Connection.PublicKey == "" && s.want.PublicKey != "":
		return disconnected()
	case o.Status.Connection.PublicKey != s.want.PublicKey:
		return takenOver()
	default:
		s.ends = o.Spec.ExpiresAt
		return nil
	}
	e.Hint = "log in again: cardea login"
	return e
}

// lost says why the caller may not even see his own Session any more.
func (s *stay) lost(o *api.Session, d api.Decision) *api.Error {
	switch {
	case d.Reason == api.ReasonUserDisabled || d.Reason == api.ReasonNoUser:
		return api.Errorf(api.CodeUnauthenticated, "your User %s is disabled or was deleted", o.Status.UserRef.Name)
	case d.Reason == api.ReasonDeviceNotActive && o.Status.DeviceRef != nil:
		device := o.Status.DeviceRef.Name
		e := api.Errorf(api.CodeUnauthenticated, "the Device %s of your Session is not active: it waits for approval, or was rejected or deleted", device)
		e.Hint = "ask an administrator: cardea update device " + device + " --approve"
		return e
	case isNobody(d.Reason):
		return asError(stranger())
	}
	return forbidden(d, asked(verbGet, o.Key()))
}

func asError(err error) *api.Error {
	e, _ := errors.AsType[*api.Error](err)
	return e
}
