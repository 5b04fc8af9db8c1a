package proxytest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/proxy"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/relay/datagram"
	"cardea/relay/relaytest"
)

// A Decider is scripted: it answers what it is told to, counts the questions,
// and tells of changes when asked to.
type Decider struct {
	mu       sync.Mutex
	users    map[string]bool // uid of the Session → may
	err      error
	asked    int
	revision uint64
	speaks   api.Mode // of every Service but one
	config   string
	parent   string // of the config
	public   *bool  // whether a caller without a name may; nil: nobody is without one
	limits   api.Limits
	alter    func(*api.Decision) // changes an answer
	service  string              // the uid of every Service
	until    time.Time
	bound    bool
	deaf     bool // changes and heartbeats do not get through
	changes  []api.Change
	wake     chan struct{}
	removed  bool   // foreign Objects are, and their connections are cut
	onDecide func() // called before an answer, without the lock
}

// Decide implements policy.Decider.
func (d *Decider) Decide(_ context.Context, r api.Request) (api.Decision, error) {
	d.mu.Lock()
	hook := d.onDecide
	d.mu.Unlock()
	d.mu.Lock()
	d.asked++
	uid := r.Session
	if uid == "" {
		uid = string(r.Evidence.Data)
	}
	a := api.Decision{
		ID: "decision-" + uid, Revision: api.Revision{Epoch: 1, Number: d.revision}, Lease: 30 * time.Second,
		Effect: api.Deny, Reason: api.ReasonUnauthenticated, TimeBound: d.bound,
		DependsOn: []api.Key{{Kind: api.KindSession, Name: uid}, {Kind: api.KindService, Name: r.Service}},
		Subject:   api.Subject{Mode: d.mode(r.Service), Service: &api.Ref{Kind: api.KindService, Name: r.Service, UID: d.service}},
		Config:    &api.ServiceConfig{Name: d.config, Parent: d.parent, Upstream: api.Upstream{URL: "tcp://upstream:1"}},
	}
	may, known := d.users[uid]
	if r.Route != nil {
		may, known = d.public == nil || *d.public, false
		a.Subject = api.Subject{Mode: api.ModeTCP, IsAnonymous: true,
			Service: &api.Ref{APIVersion: "getambassador.io/v2", Kind: r.Route.Kind, Namespace: r.Route.Namespace, Name: r.Route.Name, UID: d.service}}
		a.Config, a.Reason, a.DependsOn = nil, api.ReasonAnonymous, []api.Key{*r.Route, anyone}
		switch {
		case d.removed:
			may, a.Reason, a.Words = false, api.ReasonRouteRemoved, "it was deleted"
		case r.Route.Name == "nothing":
			may, a.Reason, a.Subject.Service = false, api.ReasonNoRoute, nil
		}
	} else if r.Evidence.Kind == api.EvidenceAnonymous && d.public != nil {
		may, known = *d.public, false
		a.Subject.IsAnonymous, a.Reason, a.Message = true, api.ReasonAnonymous, "not you"
		a.DependsOn[0] = anyone
	}
	if known {
		a.Subject.Session = &api.Ref{Kind: api.KindSession, Name: uid, UID: uid}
		a.Subject.User = &api.Ref{Kind: api.KindUser, Name: "user-" + uid}
		a.Subject.Device = &api.Ref{Kind: api.KindDevice, Name: "device-" + uid}
		a.Reason = api.ReasonPolicyMatch
		a.Message = "ask the owner"
	}
	if may {
		a.Effect, a.Message, a.Limits = api.Allow, "", d.limits
		a.Until = d.until
		if r.Route != nil {
			a.Limits = api.Limits{} // which the table has
		}
		if !d.until.IsZero() && !r.Now.Before(d.until) {
			a.Effect, a.Reason = api.Deny, api.ReasonSessionExpired
		}
	}
	if d.alter != nil {
		d.alter(&a)
	}
	err := d.err
	d.mu.Unlock()
	if hook != nil {
		hook()
	}
	return a, err // an error beside an ALLOW must not count as one
}

func (d *Decider) mode(service string) api.Mode {
	if service == "other-mode.default" {
		return "NOT-SERVED-HERE"
	}
	return d.speaks
}

// Changes implements policy.Decider.
func (d *Decider) Changes(ctx context.Context, from api.Revision) iter.Seq2[api.Change, error] {
	return func(yield func(api.Change, error) bool) {
		next := 0
		beat := time.NewTicker(time.Second)
		defer beat.Stop()
		for {
			d.mu.Lock()
			wake, deaf := d.wake, d.deaf
			todo := slices.Clone(d.changes[next:])
			rev := api.Revision{Epoch: 1, Number: d.revision}
			d.mu.Unlock()
			if !deaf {
				next += len(todo)
				for _, c := range todo {
					if c.Revision.Compare(from) > 0 && !yield(c, nil) {
						return
					}
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-wake:
			case <-beat.C:
				if !deaf && !yield(api.Change{Revision: rev}, nil) {
					return
				}
			}
		}
	}
}

// Set changes what the Decider knows, by f, and tells of keys.
func (d *Decider) Set(f func(*Decider), keys ...api.Key) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f(d)
	d.revision++
	d.changes = append(d.changes, api.Change{Revision: api.Revision{Epoch: 1, Number: d.revision}, Keys: keys})
	close(d.wake)
	d.wake = make(chan struct{})
}

// Asked returns how often the Decider was asked.
func (d *Decider) Asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// anyone is the key of what callers without a name hang on here.
var anyone = api.Key{Kind: api.KindPolicy, Name: "anyone"}

// session is the key of what a Session of that uid hangs on here.
func session(uid string) api.Key { return api.Key{Kind: api.KindSession, Name: uid} }

// A Journal keeps records in memory. It can fail, and take its time.
type Journal struct {
	mu      sync.Mutex
	records []*api.AccessLog
	begun   []*api.AccessLog // by Mark, from 1; nil once it is kept
	owed    []*api.AccessLog
	err     error
	keepErr error
	slow    bool
	delay   time.Duration
}

var _ audit.Ledger = (*Journal)(nil)

// Append implements audit.Log.
func (j *Journal) Append(_ context.Context, recs ...*api.AccessLog) error {
	j.wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return j.err
	}
	for _, rec := range recs {
		j.records = append(j.records, copied(rec))
	}
	return nil
}

// copied returns a record that the caller may change, as an audit.Log does.
func copied(rec *api.AccessLog) *api.AccessLog {
	c := *rec
	if r := rec.Entry.Common.Reason; r != nil {
		c.Entry.Common.Reason = new(*r)
	}
	if f := rec.Entry.Common.Facts; f != nil {
		c.Entry.Common.Facts = new(*f)
	}
	info := &c.Entry.Info
	var counts []**int64
	if info.TCP != nil {
		info.TCP = new(*info.TCP)
		counts = []**int64{&info.TCP.ReceivedBytes, &info.TCP.SentBytes}
	}
	if info.UDP != nil {
		info.UDP = new(*info.UDP)
		counts = []**int64{&info.UDP.ReceivedBytes, &info.UDP.SentBytes, &info.UDP.ReceivedPackets, &info.UDP.SentPackets}
	}
	for _, n := range counts {
		if *n != nil {
			*n = new(**n)
		}
	}
	return &c
}

func (j *Journal) wait() {
	j.mu.Lock()
	delay := j.delay
	j.mu.Unlock()
	time.Sleep(delay)
}

// Begin implements audit.Ledger.
func (j *Journal) Begin(rec *api.AccessLog) (audit.Mark, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return 0, j.err
	}
	j.begun = append(j.begun, copied(rec))
	return audit.Mark(len(j.begun)), nil
}

// Keep implements audit.Ledger.
func (j *Journal) Keep(m audit.Mark) error {
	j.wait()
	j.mu.Lock()
	defer j.mu.Unlock()
	rec := j.begun[m-1]
	if rec == nil {
		panic("proxytest: Keep was called twice for one Begin")
	}
	j.begun[m-1] = nil
	if err := cmp.Or(j.keepErr, j.err); err != nil {
		return err
	}
	j.records = append(j.records, rec)
	return nil
}

// Begun returns how many records were begun and neither kept nor given up.
func (j *Journal) Begun() (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, rec := range j.begun {
		if rec != nil {
			n++
		}
	}
	return n
}

// Note implements audit.Ledger.
func (j *Journal) Note(rec *api.AccessLog) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.owed = append(j.owed, copied(rec))
	j.settle()
	return nil
}

// settle writes what is owed. j.mu is held.
func (j *Journal) settle() {
	if j.err == nil {
		j.records, j.owed = append(j.records, j.owed...), nil
	}
}

// Owes implements audit.Ledger.
func (j *Journal) Owes() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.owed)
}

// Slow implements audit.Ledger.
func (j *Journal) Slow() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.slow
}

// Fail makes everything fail with err, or nothing if it is nil.
func (j *Journal) Fail(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.err = err
	j.settle()
}

// FailKeep makes every Keep fail with err, or none if it is nil.
func (j *Journal) FailKeep(err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.keepErr = err
}

// SetSlow says whether the log is slow.
func (j *Journal) SetSlow(slow bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.slow = slow
}

// Delay makes every Append and Keep take that long.
func (j *Journal) Delay(d time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.delay = d
}

// Records returns what was appended.
func (j *Journal) Records() []*api.AccessLog {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.records)
}

// Connections returns the records of connections, without those of the units of
// work in them.
func (j *Journal) Connections() (recs []*api.AccessLog, types []api.LogType) {
	for _, r := range j.Records() {
		if flow := r.Entry.Info.Flow(); flow != nil {
			recs, types = append(recs, r), append(types, flow.Type)
		}
	}
	return recs, types
}

// A World is a Gate before an upstream that echoes, with Sessions "ann" who may
// and "bob" who may not.
type World struct {
	Gate    *proxy.Gate
	Decider *Decider
	Journal *Journal
	stop    context.CancelFunc
	stopped chan struct{}

	mu       sync.Mutex
	dials    int             // by Dial
	reached  int             // by the engine
	dialled  api.Destination // the last
	report   api.DialReport  // of every dial
	turned   []api.Refusal   // refusals without a record: nothing was asked
	dialErr  error
	dialGate chan struct{}  // a dial waits for it, if it is there
	ends     []error        // how upstream connections ended
	holds    []*place       // of every upstream connection
	limits   []relay.Limits // that the engine was given
	breaks   bool           // the upstream does what it is told
	serving  sync.WaitGroup

	datagrams bool // the upstream takes those

	// What follows is of connections that are carried in line.
	inLine, tells  bool // as of Subject
	plans          int  // that have not been told yet how they ended
	addresses      int  // of the upstream; 0 is one
	failing        int  // of them, the first that cannot be reached
	noPlan         bool // everything must be dialled
	refusesSockets bool // the engine takes none
	preface        string
}

// Start opens a World for a mode, and lets its Gate have grace when it is stopped.
// It must be called in a synctest bubble.
func Start(t *testing.T, m proxy.Mode, svc *api.Service, grace time.Duration) *World {
	return Subject{Mode: m, Service: svc}.start(t, grace)
}

func (s Subject) start(t *testing.T, grace time.Duration) *World {
	w := &World{
		Decider: &Decider{users: map[string]bool{"ann": true, "bob": false}, speaks: api.ModeTCP, config: api.DefaultConfig, wake: make(chan struct{})},
		Journal: new(Journal), stopped: make(chan struct{}), inLine: s.inLine, tells: s.tells, datagrams: s.Mode.Datagrams,
	}
	if s.Mode.Datagrams {
		w.Decider.speaks = s.Mode.Name
		w.Decider.limits.Idle = longIdle
	}
	rooms := proxy.Rooms{
		Decider: w.Decider, Dial: w.dial, Audit: w.Journal, Engine: carrier{relaycopy.New(), w.limited}, Datagrams: carrier{datagram.New(), w.limited},
		Refuse: func(r api.Refusal) { w.refuse(t.Context(), r) },
		Modes:  []proxy.Mode{s.Mode}, Log: slog.New(slog.DiscardHandler), Grace: grace,
		PerSession: perSession,
	}
	if s.inLine {
		rooms.InLine, rooms.Plan, rooms.Engine = true, w.plan, &connector{carrier: carrier{relaycopy.New(), w.limited}, world: w}
	}
	w.Gate = proxy.New(rooms)
	if err := w.Gate.Set(s.Service); err != nil {
		t.Fatal(err)
	}
	var ctx context.Context
	ctx, w.stop = context.WithCancel(t.Context())
	go func() {
		defer close(w.stopped)
		w.Gate.Run(ctx)
	}()
	t.Cleanup(func() {
		w.Stop()
		w.check(t)
	})
	if err := w.Gate.Ready(ctx); err != nil {
		t.Fatal(err)
	}
	synctest.Wait() // and what it started rests
	return w
}

// perSession is how many connections a Session may have in all: more than other tests
// make.
const perSession = 30

// longIdle is the limit of flows where a test does not say: they have one of their own
// else, which is shorter than some tests are.
const longIdle = 24 * time.Hour

// check reports what must not be left when the Gate has ended.
func (w *World) check(t *testing.T) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, p := range w.holds {
		if len(p.released) != 1 {
			t.Errorf("the place of upstream connection %d was given back %d times", i+1, len(p.released))
		}
	}
	if w.plans != 0 {
		t.Errorf("%d Plans were not told how they ended", w.plans)
	}
	if n := w.Journal.Begun(); n != 0 {
		t.Errorf("%d records were begun, and never kept", n)
	}
}

// limited notes limits that the engine was given.
func (w *World) limited(l relay.Limits) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.limits = append(w.limits, l)
}

// Stop ends the Gate and waits for all it started.
func (w *World) Stop() {
	w.stop()
	<-w.stopped
	w.serving.Wait()
}

// dial implements proxy.DialFunc.
func (w *World) dial(ctx context.Context, to api.Destination) (net.Conn, api.DialReport, error) {
	w.mu.Lock()
	w.dials++
	w.dialled = to
	report := w.report
	w.mu.Unlock()
	up, err := w.upstream(ctx)
	if err != nil {
		return nil, report, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	report.Hold = w.holdOne()
	return up, report, nil
}

// reach is dial for who connects by himself.
func (w *World) reach(ctx context.Context, to netip.AddrPort, within time.Duration) (net.Conn, error) {
	w.mu.Lock()
	w.reached++
	failing := w.failing
	w.mu.Unlock()
	for n := range failing {
		if to == upstreamAt(n) {
			return nil, syscall.ECONNREFUSED
		}
	}
	ctx, cancel := context.WithTimeoutCause(ctx, within, syscall.ETIMEDOUT)
	defer cancel()
	up, err := w.upstream(ctx)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	return up, err
}

// upstream echoes, and half-closes when its peer does.
func (w *World) upstream(ctx context.Context) (net.Conn, error) {
	w.mu.Lock()
	err, gate := w.dialErr, w.dialGate
	w.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	near, far := relaytest.Pipe()
	w.serving.Go(func() {
		err := w.echo(far)
		if err != nil {
			far.Close()
		} else {
			far.CloseWrite()
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ends = append(w.ends, err)
	})
	if w.datagrams {
		return relay.Messages(near), nil
	}
	return near, nil
}

// echo sends back what comes. When it is told to break it resets the connection, if
// it is of that kind.
func (w *World) echo(c *relaytest.PipeEnd) error {
	b := make([]byte, 32<<10)
	for {
		n, err := c.Read(b)
		w.mu.Lock()
		breaks := w.breaks && bytes.HasSuffix(b[:n], []byte("break\n"))
		w.mu.Unlock()
		switch {
		case breaks:
			return c.Reset("told to")
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if _, err := c.Write(b[:n]); err != nil {
			return err
		}
	}
}

// refuse writes the record of a refusal at once.
func (w *World) refuse(ctx context.Context, r api.Refusal) {
	if r.Record != nil {
		w.Journal.Append(ctx, r.Record)
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.turned = append(w.turned, r)
}

// figures returns those of a Service.
func (w *World) figures(service string) proxy.Figures {
	return w.Gate.Stats().Objects[proxy.Counted{Kind: api.KindService, Name: service}]
}

// failDials makes every dial fail with err, or none if it is nil.
func (w *World) failDials(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.dialErr = err
}

// open lets those through that wait for the dialGate.
func (w *World) open() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.dialGate != nil {
		close(w.dialGate)
		w.dialGate = nil
	}
}

// Dials returns how often the upstream was dialled, by whomever.
func (w *World) Dials() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.dials + w.reached
}

// A Client is the far end of a connection that arrived.
type Client struct {
	*relaytest.PipeEnd
	verdicts chan api.Verdict // nil if its road carries none
}

// told is the near end: it keeps the verdict for the Client.
type told struct {
	*relaytest.PipeEnd
	verdicts chan api.Verdict
}

// Verdict is what the Gate tells the client.
func (t told) Verdict(v api.Verdict) error {
	t.verdicts <- v
	return nil
}

// toldSocket is told over a socket.
type toldSocket struct{ told }

var _ relay.Transparent = toldSocket{}

// NetConn implements relay.Layered.
func (t toldSocket) NetConn() net.Conn { return socket{t.PipeEnd} }

// Unread implements relay.Transparent.
func (toldSocket) Unread() []byte { return nil }

// Connect lets a connection of the Session of that uid arrive; "" is nobody.
func (w *World) Connect(uid string) *Client { return w.ConnectTo(uid, "svc.default") }

// ConnectTo is Connect to another Service.
func (w *World) ConnectTo(uid, service string) *Client {
	a := api.Arrival{Service: service, Facts: api.Facts{IP: "192.0.2.1", Port: 4711, Tunnel: "memory"}}
	if uid != "" {
		a.Evidence = api.Evidence{Kind: api.EvidenceMemory, Data: []byte(uid)}
	}
	return w.arrive(a)
}

// ConnectFrom lets a connection without a name arrive at the public port.
func (w *World) ConnectFrom(ip string) *Client {
	return w.arrive(api.Arrival{
		Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceAnonymous}, Facts: api.Facts{IP: ip, Port: 4711, Tunnel: "public"},
	})
}

func (w *World) arrive(a api.Arrival) *Client {
	near, far := relaytest.Pipe()
	c := &Client{PipeEnd: far}
	if !w.inLine || w.tells {
		c.verdicts = make(chan api.Verdict, 1)
	}
	switch {
	case !w.inLine:
		a.Conn = told{near, c.verdicts}
	case w.tells:
		a.Conn = toldSocket{told{near, c.verdicts}}
	default:
		a.Conn = socket{near}
	}
	w.Gate.Arrive(a)
	return c
}

// mapping is the key of a foreign Object.
func mapping(name string) api.Key {
	return api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Namespace: "team", Name: name}
}

// routed is where the routing table sends connections to a foreign Object.
func routed(name string, limits api.Limits) *api.Routed {
	return &api.Routed{
		Object: mapping(name), Config: &api.ServiceConfig{Name: "default", Upstream: api.Upstream{URL: "tcp://" + name + ":1", StartTLS: api.StartTLSPostgres, ProxyProtocol: api.ProxyV2}, TLS: &api.UpstreamTLS{}},
		Limits: limits, Log: api.LogRoute{Listener: "*:5432", Match: "sni " + name, Version: "v1"},
	}
}

// ConnectBy lets a connection arrive that the routing table sent somewhere.
func (w *World) ConnectBy(r *api.Routed, ip string) *Client {
	return w.arrive(api.Arrival{Route: r, Facts: api.Facts{IP: ip, Port: 4711, Listener: "192.0.2.250:5432", Tunnel: "public"}})
}

// Turned returns the refusals of those about whom nothing was decided.
func (w *World) Turned() []api.Refusal {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.turned)
}

// Verdict waits for what the client is told; false if its road cannot tell it.
func (c *Client) Verdict() (api.Verdict, bool) {
	if c.verdicts == nil {
		return api.Verdict{}, false
	}
	select {
	case v := <-c.verdicts:
		return v, true
	case <-time.After(time.Minute):
		return api.Verdict{Words: "nothing was told"}, true
	}
}

// denied is what is counted when a rule refuses.
var denied = proxy.Decided{Effect: api.Deny, Reason: api.ReasonPolicyMatch}

var errBroken = errors.New("the decider is down")

var _ relay.Engine = (*relaycopy.Engine)(nil)
