// Package server is the whole house: it takes one of each room and joins them.
// It holds wiring only; what is decided, carried or recorded stands elsewhere.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit/journal"
	"cardea/audit/refusals"
	"cardea/cert"
	"cardea/control"
	"cardea/identity"
	"cardea/identity/certificate"
	"cardea/ingress"
	"cardea/mode"
	"cardea/policy/local"
	"cardea/proxy"
	relaycopy "cardea/relay/copy"
	"cardea/secret"
	"cardea/store/sqlite"
	"cardea/tunnel/tls"
	"cardea/upstream"
)

// DefaultDomain is the domain of a cluster that was given none. It is reserved
// for private use (ICANN, 2024-07-29).
const DefaultDomain = "cardea.internal"

// A Config says where a cluster lives.
type Config struct {
	DataDir string // made if it is not there; everything that survives a restart is in it
	Domain  string // "" is DefaultDomain; the first start decides
	Listen  string // HOST:PORT
	Log     *slog.Logger
}

// Ready says how to reach a cluster that serves.
type Ready struct {
	Address  string // HOST:PORT
	Domain   string
	CASHA256 string // of the cluster's CA certificate, hex: what clients pin
	Token    string // logs root in, once; "" when root has logged in before
}

// The places in a data directory.
const (
	lockFile  = "lock"
	keyFile   = "keys/seal.key"
	storeFile = "cardea.db"
	logDir    = "log"
)

// instance is whose journal a process of `up` writes.
const instance = "up"

// Up runs every role in this process until ctx is done, and then returns nil when
// all of it has ended. It calls ready once it serves.
func Up(ctx context.Context, cfg Config, ready func(Ready)) error {
	h, err := open(ctx, cfg)
	if err != nil {
		return err
	}
	return errors.Join(h.run(ctx, ready), h.close())
}

// A house is one of each room.
type house struct {
	cfg       Config
	lock      *os.File
	store     *sqlite.Store
	authority *cert.Authority
	decider   *local.Decider
	settings  *settings
	journal   *journal.Journal
	refusals  *refusals.Recorder
	gate      *proxy.Gate
	control   *control.Server
	expirer   *control.Expirer
	socket    net.Listener
}

// open takes everything that can fail before anything runs.
func open(ctx context.Context, cfg Config) (_ *house, err error) {
	if cfg.Domain == "" {
		cfg.Domain = DefaultDomain
	}
	h := &house{cfg: cfg}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.close())
		}
	}()
	// The port first: it is what most often fails.
	if h.socket, err = listen(ctx, cfg.Listen); err != nil {
		return nil, err
	}
	if h.lock, err = openDataDir(cfg.DataDir); err != nil {
		return nil, err
	}
	if err := checkWhole(cfg.DataDir); err != nil {
		return nil, err
	}
	keeper, err := secret.Open(filepath.Join(cfg.DataDir, keyFile))
	if err != nil {
		return nil, err
	}
	if h.store, err = sqlite.Open(ctx, filepath.Join(cfg.DataDir, storeFile), sqlite.Options{Log: cfg.Log}); err != nil {
		return nil, err
	}
	if h.authority, err = cert.Open(ctx, h.store, keeper, cfg.Domain, time.Now); err != nil {
		return nil, err
	}
	signer, err := h.authority.JournalSigner(ctx)
	if err != nil {
		return nil, err
	}
	if h.journal, err = journal.Open(ctx, journal.Config{Dir: filepath.Join(cfg.DataDir, logDir), Instance: instance, Signer: signer, Marks: h.store, Log: cfg.Log}); err != nil {
		return nil, err
	}
	sessions := &certificate.Verifier{Roots: h.authority.Pool}
	h.refusals = refusals.New(h.journal, time.Now, cfg.Log)
	h.decider = &local.Decider{Store: h.store, Identity: identity.Any{api.EvidenceCertificate: sessions}, Log: cfg.Log}
	h.settings = newSettings(h.store)
	upstreams := &upstream.Dialer{
		Hosts: h.settings.hosts, Allow: h.settings.allow, Own: h.listeners,
		Loopback: isLoopback(h.socket.Addr()), Log: cfg.Log,
	}
	h.gate = proxy.New(proxy.Rooms{
		Decider: h.decider, Dial: upstreams.Dial, Audit: h.journal, Refuse: h.refusals.Refuse, Engine: relaycopy.New(),
		Modes: mode.All(), Log: cfg.Log,
	})
	h.control = &control.Server{
		Domain: cfg.Domain, Store: h.store, Decider: h.decider, Explainer: h.decider, Await: h.await, Check: local.Check, Proposed: h.decider.Propose,
		Keeper: keeper, Authority: h.authority, Verifier: sessions,
		Conns: h.gate, Logs: h.journal, Audit: h.journal, Refuse: h.refusals.Refuse, Log: cfg.Log, Now: time.Now,
	}
	h.expirer = &control.Expirer{Store: h.store, Log: cfg.Log, Now: time.Now}
	return h, nil
}

// close releases what open took.
func (h *house) close() error {
	var errs []error
	if h.socket != nil {
		if err := h.socket.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	if h.store != nil {
		errs = append(errs, h.store.Close())
	}
	if h.lock != nil {
		errs = append(errs, h.lock.Close())
	}
	return errors.Join(errs...)
}

// run serves until ctx is done. What is needed longest is stopped last: first
// the door and the gate with what is live, then the API, then those that both
// ask, then the log.
func (h *house) run(ctx context.Context, ready func(Ready)) error {
	var floors []*floor
	defer func() {
		for i := len(floors) - 1; i >= 0; i-- {
			floors[i].stop()
		}
	}()
	failed := make(chan error, 16)
	start := func(runs ...func(context.Context) error) *floor {
		f := newFloor(ctx, failed, runs...)
		floors = append(floors, f)
		return f
	}

	start(h.journal.Run, func(ctx context.Context) error { h.store.Run(ctx); return nil })
	start(h.decider.Run, h.settings.run, h.refusals.Run)
	if err := h.decider.Ready(ctx); err != nil {
		return err
	}
	token, err := h.control.Bootstrap(ctx)
	if err != nil {
		return err
	}
	web := newWeb(h.control.Handler(), descriptors(), h.cfg.Log)
	start(web.run, h.expirer.Run)
	tunnels := &tls.Server{
		Handler: arrivals{h.gate, h.refusals}, Domain: h.cfg.Domain, Certificate: h.authority.ServerCertificate,
		ClientCAs: h.authority.Pool, API: web.take, Log: h.cfg.Log,
	}
	door := &ingress.Listener{Listener: h.socket, Handle: tunnels.Conn, Refused: h.refusals.Refuse, Log: h.cfg.Log}
	// Together: the door waits for its streams, and those are the gate's to end.
	start(h.gate.Run, door.Serve)
	ready(Ready{Address: h.socket.Addr().String(), Domain: h.cfg.Domain, CASHA256: h.authority.Fingerprint(), Token: token})

	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// await returns when every decision, and every dial, is made on that revision.
func (h *house) await(ctx context.Context, rev api.Revision) error {
	if err := h.settings.await(ctx, rev); err != nil {
		return err
	}
	return h.decider.Await(ctx, rev)
}

// listeners are our own addresses, which no upstream may have.
func (h *house) listeners() []netip.AddrPort {
	if a, ok := h.socket.Addr().(*net.TCPAddr); ok {
		return []netip.AddrPort{a.AddrPort()}
	}
	return nil
}

// arrivals joins the roads to the gate.
type arrivals struct {
	*proxy.Gate
	refusals *refusals.Recorder
}

// Refused implements tunnel.Handler.
func (a arrivals) Refused(r api.Refusal) { a.refusals.Refuse(r) }

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

// Recover returns a token that logs root in, once, for whoever owns the data
// directory of a cluster that does not run. reset is that of
// [control.Server.Recover].
func Recover(ctx context.Context, dataDir string, reset bool, log *slog.Logger) (token string, err error) {
	if _, err := os.Stat(filepath.Join(dataDir, storeFile)); err != nil {
		return "", fmt.Errorf("there is no cluster in %s: %w", dataDir, err)
	}
	lock, err := openDataDir(dataDir)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := checkWhole(dataDir); err != nil {
		return "", err
	}
	st, err := sqlite.Open(ctx, filepath.Join(dataDir, storeFile), sqlite.Options{Log: log})
	if err != nil {
		return "", err
	}
	defer st.Close()
	decider := &local.Decider{Store: st, Identity: identity.Any{}, Log: log}
	c := &control.Server{Store: st, Proposed: decider.Propose, Log: log, Now: time.Now}
	return c.Recover(ctx, reset)
}
