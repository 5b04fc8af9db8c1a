// Package server is the whole house: it takes one of each room and joins them.
// It holds wiring only; what is decided, carried or recorded stands elsewhere.
package server

import (
	"context"
	cryptotls "crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/api/gen"
	"cardea/audit/otlp"
	"cardea/audit/refusals"
	"cardea/cert"
	"cardea/control"
	"cardea/handover"
	"cardea/identity"
	"cardea/identity/certificate"
	throughTunnel "cardea/identity/tunnel"
	"cardea/ingress"
	"cardea/mode"
	"cardea/policy/local"
	"cardea/proxy"
	"cardea/relay"
	"cardea/relay/datagram"
	"cardea/secret"
	"cardea/store/backup"
	"cardea/tunnel"
	"cardea/tunnel/tls"
	"cardea/upstream"
)

// DefaultDomain is the domain of a cluster that was given none. It is reserved
// for private use (ICANN, 2024-07-29).
const DefaultDomain = "cardea.internal"

// A Config says where a cluster lives, and how.
type Config struct {
	DataDir string // made if it is not there; everything that survives a restart is in it
	Domain  string // "" is DefaultDomain; the first start decides
	Listen  string // HOST:PORT; public Services listen at HOST, too
	// Store is where resources are kept: postgres://…, or "" for the data directory.
	Store string
	// Metrics is where /metrics, /livez and /readyz are served to everyone, by
	// plain HTTP: HOST:PORT, or "" for nowhere.
	Metrics string
	// Network is the part of the private network that this process has.
	Network NetworkConfig
	// Engine carries the bytes: "loop", "copy", or "" for the best that there is.
	Engine string
	// Grace is how long live connections may go on when the cluster is stopped, and
	// Drain for how long they may when another process has taken the place of this one.
	Grace, Drain time.Duration
	// Documents are applied by the owner of the cluster, before it serves.
	Documents []json.RawMessage
	// AmbassadorID and AmbassadorNamespace say how Ambassador's resources are read:
	// those of which ambassador_id, in which namespace. "" is "default".
	AmbassadorID, AmbassadorNamespace string
	// TLSFiles are directories, absolute, of files that those resources may name.
	TLSFiles []string
	Version  string // of the program
	// Program is what an upgrade starts unless it names something else.
	Program handover.Program
	// Estate is what the process that this one is to replace has handed over; nil for
	// none.
	Estate *handover.Estate
	// Notify is the socket of the service manager: NOTIFY_SOCKET of sd_notify(3).
	Notify string
	// Prepare is called when all has come up but for the doors. Its error keeps this
	// process from serving. nil is nothing.
	Prepare func(Ready) error
	Log     *slog.Logger
}

// Ready says how to reach a cluster that serves.
type Ready struct {
	Address  string // HOST:PORT
	Domain   string
	CASHA256 string // of the cluster's CA certificate, hex: what clients pin
	Token    string // logs root in, once; "" when root has logged in before
	Metrics  string // HOST:PORT, or ""
	Network  string // what there is of the private network, in words
	// Connections is how many relayed connections the limit of descriptors allows.
	Connections int
	// Listeners are the public ports, each with how many routes it has: "*:2222 (3
	// routes)".
	Listeners []string
	// NotInForce is how many Objects were to be part of the routing table and are not.
	NotInForce int
}

// The places in a data directory.
const (
	lockFile  = "lock"
	keyFile   = "keys/seal.key"
	storeFile = "cardea.db"
	logDir    = "log"
)

// Up runs every role in this process until ctx is done, and then returns nil when
// all of it has ended. It calls ready once it serves.
func Up(ctx context.Context, cfg Config, ready func(Ready)) error {
	if cfg.Estate != nil {
		defer cfg.Estate.Close()
	}
	h, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(h.run(ctx, ready), h.close())
}

// A house is one of each room.
type house struct {
	cfg       Config
	limit     int // of descriptors
	lock      *os.File
	store     *runningStore
	keeper    *secret.Keeper
	authority *cert.Authority
	decider   *local.Decider
	settings  *settings
	journal   written
	sink      *otlp.Sink
	refusals  *refusals.Recorder
	doors     *doors
	admission *ingress.Admission // of the cluster's own port
	crowd     *ingress.Admission // of public ports
	sessions  *ingress.Admission // of what comes by a road: descriptors only
	router    *ingress.Router
	routing   *routing
	upstreams *upstream.Dialer
	engine    relay.Engine
	gate      *proxy.Gate
	tunnels   *tls.Server
	network   *network // nil if there is none
	control   *control.Server
	expirer   *control.Expirer
	socket    *entrance
	metrics   *entrance // nil for none
	kin       *kin
	draining  atomic.Bool
	web       *web
	succession
	children sync.Mutex      // held while one is raised, of which the end matters
	claim    *floor          // what only one process may have
	alone    *floor          // what only one process does
	mine     chan struct{}   // closed when this process may have that
	left     chan struct{}   // closed when another process has taken the place of this one
	told     chan struct{}   // closed when the newest process tells this one to end
	life     context.Context // of run, for what asks without one
}

// open takes everything that can fail before anything runs.
func open(ctx context.Context, cfg Config) (_ *house, err error) {
	if cfg.Domain == "" {
		cfg.Domain = DefaultDomain
	}
	h := &house{
		cfg: cfg, limit: descriptors(), life: context.WithoutCancel(ctx),
		mine: make(chan struct{}), left: make(chan struct{}), told: make(chan struct{}),
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	if err := h.take(ctx); err != nil {
		return nil, err
	}
	if err := checkWhole(cfg); err != nil {
		return nil, err
	}
	if h.keeper, err = secret.Open(filepath.Join(cfg.DataDir, keyFile)); err != nil {
		return nil, err
	}
	if h.store, err = openStore(ctx, cfg, cfg.Estate == nil); err != nil {
		return nil, err
	}
	if err := h.keeper.Reseal(ctx, h.store); err != nil {
		cfg.Log.Error("a rotation of the key of Secrets could not be finished; what it left is still readable", "error", err)
	}
	if h.authority, err = cert.Open(ctx, h.store, h.keeper, cfg.Domain, time.Now); err != nil {
		return nil, err
	}
	h.authority.Log = cfg.Log
	var older []string
	if h.journal, older, err = openJournal(ctx, cfg, h.authority, h.store); err != nil {
		return nil, err
	}
	h.kin.self.Journal = h.journal.name
	h.kin.expect(older)
	sessions := &certificate.Verifier{Roots: h.authority.Pool}
	h.refusals = refusals.New(h.journal.Journal, time.Now, cfg.Log)
	h.doors = &doors{record: h.refusals.Refuse, counts: map[api.ReasonType]int64{}}
	h.decider = &local.Decider{
		Store: h.store, Identity: identity.Any{api.EvidenceCertificate: sessions, api.EvidenceTunnel: throughTunnel.Verifier{}}, RouteNamespace: cfg.AmbassadorNamespace, Log: cfg.Log,
	}
	h.admission = &ingress.Admission{Descriptors: h.descriptors, Limits: ingress.AdmissionLimits{Share: strangerShare}}
	// Of one network Public limits the rate.
	h.crowd = &ingress.Admission{Descriptors: h.descriptors, Limits: ingress.AdmissionLimits{Rate: -1, Share: publicShare}}
	h.sessions = &ingress.Admission{Descriptors: h.descriptors, Limits: ingress.AdmissionLimits{Share: sessionShare}}
	h.settings = &settings{store: h.store, journal: h.journal.Journal}
	uses := &secret.Uses{Keeper: h.keeper, Store: h.store, Now: time.Now}
	if h.engine, err = engineOf(cfg); err != nil {
		return nil, err
	}
	h.router = h.publicPorts(uses)
	h.routing = newRouting(h.store, h.router, h.watched, h.routingOptions())
	h.upstreams = &upstream.Dialer{
		Hosts: h.settings.hosts, Allow: h.settings.allow, Own: h.listeners, ForbidInsecure: h.settings.forbidInsecure,
		RequireVerification: h.settings.requireVerification, Certificate: uses.Certificate, Material: uses.Material,
		Loopback: isLoopback(h.socket.Addr()), Changed: h.endpointChanged, Unhealthy: h.endpointLost, Log: cfg.Log,
	}
	h.sink = &otlp.Sink{
		Source: h.journal, Marks: h.store, Instance: h.journal.instance, Version: cfg.Version, Collector: h.settings.collector,
		Dial: h.upstreams.DialContext, Secret: uses.Text, Log: cfg.Log,
	}
	h.gate = proxy.New(proxy.Rooms{
		Decider: h.decider, Dial: h.upstreams.Dial, Audit: h.journal, Refuse: h.refusals.Refuse, Engine: h.engine,
		InLine: true, Plan: planOf(h.upstreams), Datagrams: datagram.New(), Modes: mode.All(), Log: cfg.Log, Grace: cfg.Grace,
		PerSession: perSession(h.limit),
	})
	h.control = &control.Server{
		Domain: cfg.Domain, AmbassadorNamespace: cfg.AmbassadorNamespace, Store: h.store, Decider: h.decider, Explainer: h.decider, Await: h.await, Check: local.NewChecker(), Proposed: h.decider.Propose,
		Keeper: h.keeper, Authority: h.authority, Verifier: sessions, Live: h.live,
		Conns: everywhere{h}, Logs: &logs{house: h}, Audit: h.journal, Refuse: h.refusals.Refuse, Log: cfg.Log, Now: time.Now,
		Route: h.ask, Health: h.health, Older: func() int { n, _ := h.kin.older(); return n }, Metrics: h.metricsHandler(), Backup: h.backup, Rotate: h.rotate, OpenAPI: []byte(gen.OpenAPI),
	}
	h.expirer = &control.Expirer{Store: h.store, Audit: h.journal, Log: cfg.Log, Now: time.Now}
	h.tunnels = &tls.Server{
		Handler: arrivals{h.gate, h.doors, h.sessions}, Domain: cfg.Domain, Certificate: h.serverCertificate,
		ClientCAs: h.authority.Pool, Public: h.router.PublicName, Admit: h.admission.Enter, Alive: h.alive, Log: cfg.Log,
	}
	if h.network, err = newNetwork(h); err != nil {
		return nil, err
	}
	if h.network != nil {
		h.control.Network, h.upstreams.Serving = h.network, h.network.serving
		h.tunnels.Session, h.tunnels.Pipe, h.tunnels.OnBacks = sessionOf, h.network.carry, h.network.serving.links
	}
	return h, nil
}

// close releases what open took.
func (h *house) close() error {
	var errs []error
	for _, l := range []*entrance{h.socket, h.metrics, h.kin.entrance()} {
		if l == nil {
			continue
		}
		if err := l.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if h.network != nil {
		errs = append(errs, h.network.close())
	}
	if h.store != nil {
		errs = append(errs, h.store.Close())
	}
	if h.lock != nil {
		if err := h.lock.Close(); !errors.Is(err, os.ErrClosed) { // left to another process
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// run serves until ctx is done. What is needed longest is stopped last: first
// the doors and the gate with what is live, then the API, then those that both
// ask, then the log and whoever follows it.
func (h *house) run(ctx context.Context, ready func(Ready)) error {
	var floors []*floor
	defer func() {
		h.draining.Store(true)
		h.kin.end(h.life)
		for i := len(floors) - 1; i >= 0; i-- {
			floors[i].stop()
		}
		h.engine.Wait() // its loops have run for as long as somebody accepted
	}()
	failed := make(chan error, 16)
	start := func(runs ...func(context.Context) error) {
		floors = append(floors, newFloor(ctx, failed, runs...))
	}

	start(append(h.store.run, h.journal.Run, h.authority.Run)...)
	h.claim = newFloor(ctx, failed, h.holdClaim)
	floors = append(floors, h.claim)
	start(h.sink.Run)
	if err := h.recall(ctx); err != nil {
		return err
	}
	start(h.decider.Run, h.settings.run, h.routing.run, h.refusals.Run)
	if err := h.decider.Ready(ctx); err != nil {
		return err
	}
	token, err := h.control.Bootstrap(ctx)
	if err != nil {
		return err
	}
	if err := h.control.Load(ctx, h.cfg.Documents); err != nil {
		return err
	}
	if h.network != nil {
		if err := h.network.prepare(ctx); err != nil {
			return err
		}
	}
	start(h.kin.run)
	start(h.outlive, h.reap)
	h.web = newWeb(h.control.Handler(), h.limit, h.cfg.Log)
	h.tunnels.API = h.web.take
	start(h.web.run, h.serveMetrics, h.leaveWeb, h.leaveFlows, h.control.Run)
	// The door is open until the gate has ended: also while it drains somebody may
	// have to be cut. What is not for the API the gate then refuses.
	door := &ingress.Listener{Listener: h.socket, Handle: h.tunnels.Conn, Refused: h.doors.refuse, Log: h.cfg.Log}
	start(door.Serve)
	start(h.upstreams.Run)
	if h.network != nil {
		start(h.network.run, h.network.serving.run)
	}
	start(h.gate.Run)
	// Or those who come at once are refused, if this machine has much to do.
	if err := allReady(ctx, failed, h.gate.Ready, h.control.Ready); err != nil {
		return err
	}
	if err := h.reachNow(ctx); err != nil {
		return err
	}
	r := Ready{Address: h.socket.Addr().String(), Domain: h.cfg.Domain, CASHA256: h.authority.Fingerprint(), Token: token, Connections: h.connections()}
	r.Listeners, r.NotInForce = h.router.Summary()
	r.Network, _ = h.network.standing()
	if h.metrics != nil {
		r.Metrics = h.metrics.Addr().String()
	}
	if h.cfg.Prepare != nil {
		if err := h.cfg.Prepare(r); err != nil {
			return err
		}
	}
	if err := h.mayServe(ctx); err != nil {
		return err
	}
	start(h.router.Run)
	h.open()
	h.serving(ctx)
	ready(r)
	h.alone = newFloor(ctx, failed, h.expirer.Run, h.tend)
	floors = append(floors, h.alone)
	h.succession.end(false)

	select {
	case <-ctx.Done():
		return nil
	case <-h.told:
		return nil
	case <-h.left:
		return h.drain(ctx, failed)
	case err := <-failed:
		return err
	}
}

// allReady returns when all are, or with the error of a part that fails meanwhile.
func allReady(ctx context.Context, failed <-chan error, ready ...func(context.Context) error) error {
	waiting, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() {
		for _, r := range ready {
			if err := r(waiting); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	select {
	case err := <-done:
		cancel()
		return err
	case err := <-failed:
		cancel()
		<-done
		return err
	}
}

// await returns when every decision, every dial and every public port is that of
// the revision, also in other processes of this data directory that have connections.
func (h *house) await(ctx context.Context, rev api.Revision) error {
	if err := h.reach(ctx, rev); err != nil {
		return err
	}
	h.kin.await(ctx, rev, nil)
	return ctx.Err()
}

// reach is await for this process alone.
func (h *house) reach(ctx context.Context, rev api.Revision) error {
	if err := h.settings.await(ctx, rev); err != nil {
		return err
	}
	if err := h.routing.await(ctx, rev); err != nil {
		return err
	}
	return h.decider.Await(ctx, rev)
}

// publicPorts returns what keeps the public ports.
func (h *house) publicPorts(uses *secret.Uses) *ingress.Router {
	terminator := new(tls.Terminator)
	return &ingress.Router{
		Handle: func(a api.Arrival) { h.gate.Arrive(a) }, Terminate: terminator.Accept,
		Material: func(ctx context.Context, m *api.Material) (*secret.Material, error) {
			return uses.Material(ctx, m, m.Service, "")
		},
		ClusterCertificate: h.authority.NameCertificate, ClusterCAs: h.authority.Pool, Settings: h.settings.routing,
		Inherit:   h.inheritedPort,
		Upstreams: func(listener string, source netip.Addr) []api.Arrival { return h.gate.Peers(listener, source) },
		Refused:   h.doors.refuse, Admission: h.crowd, Raw: acceptOf(h.engine), Log: h.cfg.Log,
	}
}

// routingOptions says where this process listens, and what its command line says
// of Objects of other systems.
func (h *house) routingOptions() control.RoutingOptions {
	host, _, err := net.SplitHostPort(h.socket.Addr().String())
	if err != nil {
		host = ""
	}
	if given, _, err := net.SplitHostPort(h.cfg.Listen); err == nil && given == "" {
		host = "" // every address of both families
	}
	return control.RoutingOptions{
		DiagnoseOptions: control.DiagnoseOptions{
			AmbassadorID: h.cfg.AmbassadorID, AmbassadorNamespace: h.cfg.AmbassadorNamespace, Domain: h.cfg.Domain, Files: Below(h.cfg.TLSFiles),
		},
		Host: host, Own: h.own(),
	}
}

// listeners are our own addresses, which no upstream may have.
func (h *house) listeners() []netip.AddrPort {
	return slices.Concat(h.router.Addresses(), h.own())
}

// own are the addresses of the cluster itself.
func (h *house) own() (own []netip.AddrPort) {
	for _, l := range []*entrance{h.socket, h.metrics} {
		if l == nil {
			continue
		}
		if a, ok := l.Addr().(*net.TCPAddr); ok {
			own = append(own, a.AddrPort())
		}
	}
	if h.network != nil {
		own = append(own, h.network.own()...)
	}
	return own
}

// serverCertificate returns the certificate of the cluster's own port for a hello:
// that of a public Service for a name of its own.
func (h *house) serverCertificate(hello *cryptotls.ClientHelloInfo) (*cryptotls.Certificate, error) {
	c, err := h.router.PublicCertificate(hello.ServerName)
	if c != nil || err != nil {
		return c, err
	}
	return h.authority.ServerCertificate(hello)
}

// alive reports whether the Session of a certificate may still be used, so that
// its network is taken for a known one.
func (h *house) alive(leaf *x509.Certificate) bool {
	d, err := h.decider.Decide(h.life, api.Request{
		Service: api.APIService, Evidence: api.Evidence{Kind: api.EvidenceCertificate, Data: leaf.Raw}, Now: time.Now(),
		Facts: &api.Facts{API: &api.APIFacts{Verb: "get", Kind: api.KindSession}},
	})
	switch d.Reason {
	case api.ReasonUnauthenticated, api.ReasonNoSession, api.ReasonSessionNotActive, api.ReasonSessionExpired, api.ReasonKeyMismatch, api.ReasonNoUser, api.ReasonUserDisabled, api.ReasonDeviceNotActive:
		return false
	}
	return err == nil && d.Subject.Session != nil
}

// live adds to an Object what is true of it in this process and not stored.
func (h *house) live(o api.Object) api.Object {
	if g, ok := o.(*api.Gateway); ok && h.network != nil {
		return h.network.describe(g)
	}
	svc, isService := o.(*api.Service)
	if _, ok := o.(api.Routable); !ok && !isService {
		return o
	}
	status := h.status(o.Header().Key())
	if isService {
		c := *svc
		c.Status.Conditions, c.Status.Endpoints = status.Conditions, status.Endpoints
		return &c
	}
	c := api.Clone(o).(api.Routable)
	*c.RouteStatus() = *status
	return c
}

// status is how it stands with an Object that the routing table may be made of.
func (h *house) status(key api.Key) *api.RouteStatus {
	status := h.router.Status(key)
	if status == nil {
		status = new(api.RouteStatus)
	}
	status.Endpoints = h.upstreams.Endpoints(key)
	for _, seen := range []*api.StatusCondition{h.upstreams.Verification(key), h.upstreams.Reachable(key), h.upstreams.Healthy(key)} {
		if seen != nil {
			status.Conditions = append(slices.DeleteFunc(status.Conditions, func(c api.StatusCondition) bool { return c.Type == seen.Type }), *seen)
		}
	}
	return status
}

// ask says where a connection would go, and how the endpoints there do.
func (h *house) ask(q api.RouteQuestion) api.RouteAnswer {
	a := h.router.Ask(q)
	serve, why := false, ""
	for i := range a.Members {
		m := &a.Members[i]
		m.Health = h.upstreams.Endpoints(m.Object)
		c := h.upstreams.Healthy(m.Object)
		if c == nil || c.Status != "False" {
			serve = serve || m.Weight > 0
		} else if why == "" {
			why = fmt.Sprintf("%v: %s", m.Object, c.Message)
		}
	}
	if a.Refused == "" && !serve && why != "" {
		a.Refused = why
	}
	return a
}

// backup writes all Objects to w.
func (h *house) backup(ctx context.Context, w io.Writer) error {
	_, err := backup.Write(ctx, h.store, w, backup.Options{Domain: h.cfg.Domain, Program: h.cfg.Version, Authenticator: h.keeper})
	return err
}

// rotate makes a new key.
func (h *house) rotate(ctx context.Context, what string) (api.RotateResponse, error) {
	switch what {
	case "ca":
		return h.authority.RotateCA(ctx)
	case "seal":
		return h.keeper.Rotate(ctx, h.store)
	}
	signer, done, err := h.authority.RotateAudit(ctx)
	if err != nil {
		return done, err
	}
	earlier, err := h.authority.JournalKeys(ctx)
	if err != nil {
		return done, err
	}
	return done, h.journal.SetSigner(signer, earlier...)
}

// arrivals joins the roads to the gate.
type arrivals struct {
	*proxy.Gate
	doors *doors
	room  *ingress.Admission
}

// Arrive implements tunnel.Handler.
func (a arrivals) Arrive(x api.Arrival) {
	if err := a.room.Admit(); err != nil {
		a.Refused(api.Refusal{Facts: x.Facts, Reason: api.ReasonOverload, Datagrams: relay.IsDatagram(x.Conn), Words: err.Error()})
		if t, ok := x.Conn.(tunnel.Teller); ok {
			t.Verdict(api.Verdict{Code: api.VerdictUnavailable, Words: "the cluster has too many connections; try again later"})
		}
		relay.Reset(x.Conn, relay.Limit)
		return
	}
	a.Gate.Arrive(x)
}

// Refused implements tunnel.Handler.
func (a arrivals) Refused(r api.Refusal) { a.doors.refuse(r) }

// doors counts and records who was refused before anything was decided.
type doors struct {
	record func(api.Refusal)

	mu     sync.Mutex
	counts map[api.ReasonType]int64
}

func (d *doors) refuse(r api.Refusal) {
	d.mu.Lock()
	d.counts[r.Reason]++
	d.mu.Unlock()
	d.record(r)
}

// refused returns how many were refused for each reason.
func (d *doors) refused() map[api.ReasonType]int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return maps.Clone(d.counts)
}

// A floor is a set of rooms that run together and are stopped together.
type floor struct {
	cancel context.CancelFunc
	group  *sync.WaitGroup
}

// newFloor runs each of runs; the first error goes to failed. They are stopped
// by stop and not by the end of ctx, so that floors end in their order.
func newFloor(ctx context.Context, failed chan<- error, runs ...func(context.Context) error) *floor {
	own, cancel := context.WithCancel(context.WithoutCancel(ctx))
	f := &floor{cancel: cancel, group: new(sync.WaitGroup)}
	for _, run := range runs {
		f.group.Go(func() {
			err := run(own)
			if err == nil && own.Err() == nil {
				err = errors.New("a part of the server ended by itself")
			}
			if err != nil {
				select {
				case failed <- err:
				default:
				}
			}
		})
	}
	return f
}

func (f *floor) stop() {
	f.cancel()
	f.group.Wait()
}
