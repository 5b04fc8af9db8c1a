package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cardea/api"
	"cardea/handover"
	"cardea/ingress"
	"cardea/relay/datagram"
	"cardea/store"
	"cardea/upstream"
)

// An UpgradeRequest asks a process to let another one take its place.
type UpgradeRequest struct {
	Binary  string        `json:"binary,omitempty"` // absolute; "" is what the process itself was started from
	Timeout time.Duration `json:"timeout"`          // until the new process is ready
}

// Upgraded says what became of an UpgradeRequest.
type Upgraded struct {
	OldPID      int           `json:"oldPID"`
	OldVersion  string        `json:"oldVersion"`
	NewPID      int           `json:"newPID,omitempty"`
	NewVersion  string        `json:"newVersion,omitempty"`
	Connections int           `json:"connections"`        // that stay with the old process
	Drain       time.Duration `json:"drain"`              // for how long at most
	Failed      string        `json:"failed,omitempty"`   // why nothing was done
	Said        string        `json:"said,omitempty"`     // by the new process, on standard error, before it failed
	Unserved    bool          `json:"unserved,omitempty"` // it failed when the old one had closed its doors
}

// The names of what is handed over.
const (
	handListen  = "listen"
	handMetrics = "metrics"
	handLock    = "lock"
	handKin     = "kin"
	handPublic  = "public " // and an api.Bind, as JSON
	handTunnels = "wireguard"
	handTunnel  = handTunnels + " " // and a name of package wireguard
	handQUIC    = "quic"
	handQUIC1   = handQUIC + " " // and a name of package quic
)

const (
	// kinSocket is where the processes of a data directory talk.
	kinSocket = "up.sock"
	// mostUpgrade is how long an upgrade may take, whoever asks for it.
	mostUpgrade = 10 * time.Minute
	// holdTimeout is how long the routing table stands still for the new process to come up.
	holdTimeout = 5 * time.Second
	// goTimeout is how long a process that is ready may take to open its doors.
	goTimeout = 10 * time.Second
)

// Upgrade asks the process that serves from a data directory to let another one take
// its place, and returns when that has come to something.
func Upgrade(ctx context.Context, dataDir string, r UpgradeRequest) (done Upgraded, err error) {
	c, err := handover.Dial(ctx, filepath.Join(dataDir, kinSocket))
	if err != nil && inUse(dataDir) {
		e := api.Errorf(api.CodeUnavailable, "the cardea that serves from %s does not listen at %s there, which another program has removed, or this user may not open", dataDir, kinSocket)
		e.Hint = "run this as its user; if the file is gone, stop that cardea and start it again"
		return done, e
	}
	if err != nil {
		e := api.Errorf(api.CodeUnavailable, "no cardea serves from %s", dataDir)
		e.Hint = "name the --data-dir of cardea up; run this as its user"
		return done, e
	}
	l := handover.NewLink(c, func(context.Context, string, json.RawMessage) (any, error) {
		return nil, errors.New("only commands are given here")
	})
	talking, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		l.Run(talking)
	}()
	defer func() { cancel(); <-ended }()
	err = l.Ask(ctx, askUpgrade, r, &done)
	if errors.Is(err, handover.ErrLinkOver) {
		err = fmt.Errorf("the process that serves from %s has gone, or does not talk to this user", dataDir)
	}
	return done, err
}

// upgrade lets another process take the place of this one, which then only keeps its
// connections. What is due when whoever has asked has his answer is done by answered.
func (h *house) upgrade(ctx context.Context, r UpgradeRequest) (done Upgraded, answered func()) {
	done = Upgraded{OldPID: os.Getpid(), OldVersion: h.cfg.Version, Drain: h.cfg.Drain}
	answered = func() {}
	err := h.succession.begin()
	if err == nil && h.draining.Load() {
		h.succession.end(false)
		err = errors.New("this process is stopping")
	}
	if err != nil {
		done.Failed = err.Error()
		return done, answered
	}
	h.children.Lock()
	heir, err := h.raise(ctx, r)
	h.children.Unlock()
	if err != nil {
		h.succession.end(false)
		done.Failed = err.Error()
		if e, ok := errors.AsType[*handover.FailedError](err); ok {
			done.Said = e.Said
		}
		h.cfg.Log.Error("no other process took the place of this one, which goes on", "error", err)
		return done, answered
	}
	done.NewPID, done.NewVersion = heir.PID(), heir.Version()
	err = h.leave(context.WithoutCancel(ctx), heir)
	done.Connections = h.gate.Stats().Live
	if err != nil {
		done.Failed, done.Unserved = err.Error(), true
		h.cfg.Log.Error("nobody serves: the process that has taken the place of this one has ended", "pid", done.NewPID, "error", err)
	} else {
		h.cfg.Log.Info("another process has taken the place of this one, which keeps its connections", "pid", done.NewPID, "version", done.NewVersion, "connections", done.Connections, "drain", h.cfg.Drain)
	}
	h.succession.end(true)
	return done, func() { close(h.left) } // it may end this process
}

// raise starts the process that is to come, and returns when that serves, has answered,
// and this one has no public port any more. If it does not come that far, nothing is
// left of it, and this one is what it was.
func (h *house) raise(ctx context.Context, r UpgradeRequest) (_ *handover.Heir, err error) {
	p := h.cfg.Program
	if r.Binary != "" {
		p.Path, p.Args = r.Binary, append([]string{r.Binary}, p.Args[min(1, len(p.Args)):]...)
	}
	if !filepath.IsAbs(p.Path) {
		return nil, fmt.Errorf("it is not known what to start: name it with --binary")
	}
	soon, cancel := context.WithTimeout(ctx, min(r.Timeout, mostUpgrade))
	defer cancel()
	heir, err := handover.Start(soon, p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			heir.Kill()
			h.kin.become()
		}
	}()
	h.cfg.Log.Info("a process was started to take the place of this one", "pid", heir.PID(), "binary", p.Path, "version", heir.Version())
	files, err := h.files()
	if err == nil {
		err = heir.Give(soon, files, nil)
	}
	closeAll(files)
	if err != nil {
		return nil, err
	}
	if err := heir.Asks(soon); err != nil {
		return nil, err
	}
	// From here on no port is opened or closed, so that both have the same.
	release := h.routing.hold()
	defer release()
	held, cancel := context.WithTimeout(soon, holdTimeout)
	defer cancel()
	defer func() {
		if err != nil && h.network != nil {
			h.network.stay()
		}
	}()
	health, err := json.Marshal(h.upstreams.Memories())
	if err != nil {
		return nil, err
	}
	texts := map[string]string{"": string(health)}
	if files, err = h.publicFiles(); err == nil && h.network != nil {
		err = h.network.bequeath(files, texts)
	}
	if err == nil {
		err = heir.Give(held, files, texts)
	}
	closeAll(files)
	if err != nil {
		return nil, err
	}
	if err := heir.Ready(held); err != nil {
		return nil, err
	}
	// Not to be cut short: the new process may serve already.
	h.kin.move(relative{PID: heir.PID(), Version: heir.Version()})
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), goTimeout)
	defer cancel()
	if err := heir.Go(last); err != nil {
		return nil, err
	}
	if err := h.kin.depart(last, heir.Ended()); err != nil {
		return nil, err
	}
	h.router.Leave(func(b api.Bind) bool { return heir.Took(portName(b)) })
	return heir, nil
}

// files returns descriptors of what every process of a cluster has.
func (h *house) files() (all map[string]*os.File, err error) {
	all = map[string]*os.File{}
	for name, e := range map[string]*entrance{handListen: h.socket, handMetrics: h.metrics, handKin: h.kin.entry} {
		if e == nil {
			continue
		}
		if all[name], err = e.file(); err != nil {
			return all, err
		}
	}
	if all[handLock], err = handover.Duplicate(h.lock, h.lock.Name()); err != nil {
		return all, err
	}
	if h.cfg.Program.Stderr == nil { // who writes to nobody is killed for it
		all[handover.StderrName], err = os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	} else {
		all[handover.StderrName], err = handover.Duplicate(h.cfg.Program.Stderr, handover.StderrName)
	}
	return all, err
}

// publicFiles returns descriptors of the public ports.
func (h *house) publicFiles() (map[string]*os.File, error) {
	sockets, err := h.router.Sockets()
	all := map[string]*os.File{}
	for bind, f := range sockets {
		all[portName(bind)] = f
	}
	return all, err
}

// portName is what a public port is called among what is handed over.
func portName(b api.Bind) string {
	name, err := json.Marshal(b)
	if err != nil {
		panic(err) // it is strings and numbers
	}
	return handPublic + string(name)
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// leave closes the other doors of this process, and ends what only one process does. The
// error says that the other one has ended meanwhile.
func (h *house) leave(ctx context.Context, heir *handover.Heir) error {
	var telling sync.WaitGroup
	defer telling.Wait()
	telling.Go(func() { h.kin.moved(ctx) })
	for _, e := range []*entrance{h.socket, h.metrics, h.kin.entry} {
		if e != nil {
			e.leave()
		}
	}
	h.claim.stop()
	h.alone.stop()
	h.lock.Close() // a descriptor: the lock is the other's now
	h.tunnels.Leave()
	if h.network != nil {
		h.network.leave(heir.Took)
	}
	soon, cancel := context.WithTimeout(ctx, goTimeout)
	defer cancel()
	err := heir.Left(soon)
	heir.Release()
	h.notify(ctx, fmt.Sprint("MAINPID=", heir.PID()))
	select {
	case <-heir.Ended():
		return errors.New("the new process ended as soon as it served")
	default:
	}
	if err != nil {
		h.cfg.Log.Warn("the process that has taken the place of this one does not listen", "pid", heir.PID(), "error", err)
	}
	return nil
}

// notify tells the service manager.
func (h *house) notify(ctx context.Context, states ...string) {
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if err := handover.Notify(soon, h.cfg.Notify, states...); err != nil {
		h.cfg.Log.Warn("the service manager was not told", "error", err)
	}
}

// take takes the ports, the data directory, and the socket of its processes: of the
// process that this one is to replace, or anew.
func (h *house) take(ctx context.Context) (err error) {
	// The ports first: they are what most often fails.
	if h.socket, err = h.door(ctx, handListen, "--listen", h.cfg.Listen); err != nil {
		return err
	}
	if h.cfg.Metrics != "" {
		if h.metrics, err = h.door(ctx, handMetrics, "--metrics-listen", h.cfg.Metrics); err != nil {
			return err
		}
	}
	if h.lock = h.inheritedFile(handLock); h.lock == nil {
		if h.lock, err = openDataDir(h.cfg.DataDir); err != nil {
			return err
		}
	}
	l, err := h.inherited(handKin)
	if l == nil && err == nil {
		l, err = handover.Listen(ctx, filepath.Join(h.cfg.DataDir, kinSocket))
	}
	if err != nil {
		return fmt.Errorf("the socket by which processes of this data directory talk cannot be had: %w", err)
	}
	h.kin = newKin(filepath.Join(h.cfg.DataDir, kinSocket), newEntrance(l), relative{PID: os.Getpid(), Version: h.cfg.Version}, tasks{
		watch: h.watch, written: h.written, reach: h.reach, live: func() int { return h.gate.Stats().Live },
		busy: func(name string) bool { return busy(h.cfg.DataDir, name) },
		list: func() []api.Connection { return h.gate.List() }, kill: func(id, by string) bool { return h.gate.Kill(id, by) },
		stop: sync.OnceFunc(func() { close(h.told) }), upgrade: h.upgrade,
	}, h.cfg.Log)
	return nil
}

// door returns a listener of the cluster itself, which is not open yet.
func (h *house) door(ctx context.Context, name, flag, address string) (*entrance, error) {
	l, err := h.inherited(name)
	if l == nil && err == nil {
		l, err = listen(ctx, flag, address)
	}
	if err != nil {
		if inUse(h.cfg.DataDir) { // and that is why
			err = dataDirInUse(h.cfg.DataDir)
		}
		return nil, err
	}
	return newEntrance(l), nil
}

// reachNow returns when everything is of what the store says now.
func (h *house) reachNow(ctx context.Context) error {
	var now api.Revision
	err := h.store.View(ctx, func(r store.Reader) error { now = r.Revision(); return nil })
	if err != nil {
		return err
	}
	return h.reach(ctx, now)
}

// mayServe returns when this process may open its doors: if it is to replace another
// one, when that says so.
func (h *house) mayServe(ctx context.Context) error {
	if h.cfg.Estate == nil {
		return nil
	}
	return h.cfg.Estate.Ready(ctx)
}

// open opens the doors. Nothing in it may fail or block: from here on this process is the
// one.
func (h *house) open() {
	h.kin.become()
	for _, e := range []*entrance{h.socket, h.metrics, h.kin.entry} {
		if e != nil {
			e.open()
		}
	}
}

// serving says that the doors of this process are open, and returns when those of the
// one that it has replaced are closed.
func (h *house) serving(ctx context.Context) {
	defer close(h.mine)
	if h.cfg.Estate == nil {
		h.notify(ctx, "READY=1")
		return
	}
	if err := h.cfg.Estate.Serving(ctx); err != nil && ctx.Err() == nil {
		h.cfg.Log.Warn("the process that was replaced was not told that this one serves", "error", err)
	}
	soon, cancel := context.WithTimeout(ctx, goTimeout)
	defer cancel()
	if err := h.cfg.Estate.Left(soon); err != nil && ctx.Err() == nil {
		h.cfg.Log.Warn("the process that was replaced does not say that it has closed its doors", "error", err)
	}
	h.cfg.Estate.Close()
}

// holdClaim has what only one process may have, from when this one may until ctx is
// done.
func (h *house) holdClaim(ctx context.Context) error {
	select {
	case <-h.mine:
	case <-ctx.Done():
		return nil
	}
	if h.store.claim == nil {
		<-ctx.Done()
		return nil
	}
	// The process that was replaced may have it still, and hang: that does not end the
	// one that serves.
	for told := false; h.store.held == nil; {
		var err error
		if h.store.held, err = h.store.claim(ctx); err == nil {
			break
		}
		if !told && ctx.Err() == nil {
			h.cfg.Log.Warn("the right to serve from the store alone cannot be had yet, and is asked for again and again", "error", err)
			told = true
		}
		select {
		case <-time.After(claimAgain):
		case <-ctx.Done():
			return nil
		}
	}
	return h.store.held(ctx)
}

// claimAgain is the time between two attempts to have what only one process may have.
const claimAgain = time.Second

// reap buries processes that were left to this one, as they are to the first of a
// container: older ones are started by each other. While one is being raised, its end is
// for who raises it.
func (h *house) reap(ctx context.Context) error {
	if os.Getpid() != 1 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if !h.children.TryLock() {
			continue
		}
		for {
			if pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil); pid <= 0 && err != unix.EINTR {
				break
			}
		}
		h.children.Unlock()
	}
}

// outlive waits, when this process ends, for those that it has told to end too.
func (h *house) outlive(ctx context.Context) error {
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), h.cfg.Grace+goTimeout)
	defer cancel()
	h.kin.gone(last)
	return nil
}

// leaveWeb lets the connections of the API end, once another process has taken the
// place of this one.
func (h *house) leaveWeb(ctx context.Context) error {
	select {
	case <-h.left:
		h.web.leave()
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

// leaveFlows ends the flows of public ports, once another process has taken these over,
// when what was under way to their clients has had its time.
func (h *house) leaveFlows(ctx context.Context) error {
	select {
	case <-h.left:
		select {
		case <-time.After(flowsLast):
			h.gate.DrainFlows(ingress.TunnelPublic)
		case <-ctx.Done():
		}
	case <-ctx.Done():
	}
	<-ctx.Done()
	return nil
}

// flowsLast is how long upstreams may still answer flows that go on in another process.
const flowsLast = 2 * time.Second

// watch tells of each commit to the store.
func (h *house) watch(ctx context.Context, see func(api.Revision)) {
	for ctx.Err() == nil {
		var from api.Revision
		err := h.store.View(ctx, func(r store.Reader) error { from = r.Revision(); return nil })
		if err == nil {
			see(from)
			for c, e := range h.store.Watch(ctx, from) {
				if err = e; err != nil {
					break
				}
				see(c.Revision)
			}
		}
		if err == nil || errors.Is(err, store.ErrCompacted) {
			continue
		}
		select {
		case <-time.After(kinBeat): // others find the store in the same state, and say so
		case <-ctx.Done():
		}
	}
}

// written makes the store look what another process has written.
func (h *house) written(rev api.Revision) {
	if s, ok := h.store.Store.(interface{ Written(api.Revision) }); ok {
		s.Written(rev)
	}
}

// everywhere are the live connections of all processes of the data directory.
type everywhere struct{ *house }

// List implements control.Conns.
func (e everywhere) List() api.Connections {
	all := api.Connections{Items: e.kin.own()}
	all.Silent = ask(e.life, e.kin, askConns, nil, func(_ *other, list []api.Connection) { all.Items = append(all.Items, list...) })
	slices.SortStableFunc(all.Items, func(a, b api.Connection) int { return a.StartedAt.Compare(b.StartedAt) })
	return all
}

// Kill implements control.Conns.
func (e everywhere) Kill(id, by string) bool {
	found := e.gate.Kill(id, by)
	if !found {
		ask(e.life, e.kin, askKill, killing{id, by}, func(_ *other, killed bool) { found = found || killed })
	}
	return found
}

// recall takes over from the process before which ports are open, and how endpoints
// do. What of the latter is not understood is found out anew.
func (h *house) recall(ctx context.Context) error {
	e := h.cfg.Estate
	if e == nil {
		return nil
	}
	if err := e.Ask(ctx); err != nil {
		return err
	}
	var health []upstream.Memory
	if err := json.Unmarshal([]byte(e.Text("")), &health); err != nil {
		h.cfg.Log.Warn("what the process before knows of endpoints is not understood", "error", err)
		return nil
	}
	h.upstreams.Recall(health)
	return nil
}

// inherited returns the listener of that name that the process before has handed
// over, and nil if there is none.
func (h *house) inherited(name string) (net.Listener, error) {
	f := h.inheritedFile(name)
	if f == nil {
		return nil, nil
	}
	return handover.ListenerOf(f)
}

// inheritedListener returns the listener of a public port that the process before has
// handed over, and nil if there is none.
func (h *house) inheritedListener(b api.Bind) (net.Listener, error) {
	if !b.UDP {
		return h.inherited(portName(b))
	}
	c, err := h.inheritedSocket(portName(b))
	if c == nil || err != nil {
		return nil, err
	}
	return datagram.Inherit(c), nil
}

// inheritedSocket is inherited for one of UDP.
func (h *house) inheritedSocket(name string) (*net.UDPConn, error) {
	f := h.inheritedFile(name)
	if f == nil {
		return nil, nil
	}
	return handover.PacketConnOf(f)
}

// inheritedFile returns what the process before has handed over by that name, and nil if
// there is nothing.
func (h *house) inheritedFile(name string) *os.File {
	if h.cfg.Estate == nil {
		return nil
	}
	return h.cfg.Estate.Take(name)
}

// inheritedPort is the Inherit of the router.
func (h *house) inheritedPort(b api.Bind) net.Listener {
	l, err := h.inheritedListener(b)
	if err != nil {
		h.cfg.Log.Warn("a port that the process before has handed over cannot be used", "port", b.String(), "error", err)
		return nil
	}
	return l
}

// drain returns when the connections of this process, which another one has
// replaced, are over, or the time for it is, and those that are left were cut.
func (h *house) drain(ctx context.Context, failed <-chan error) error {
	begun := time.Now()
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	pace := pace{total: h.cfg.Drain}
	for empty := 0; empty < 2; { // twice in a row: who has come in may not be counted yet
		select {
		case <-ctx.Done():
			return nil
		case <-h.told:
			return nil
		case err := <-failed:
			return err
		case <-tick.C:
		}
		s := h.gate.Stats()
		if n := pace.cut(time.Since(begun), s.Live); n > 0 {
			h.gate.Drain(n)
		}
		empty++
		if s.Live+s.Waiting+h.entering()+h.web.calls() > 0 || h.isRoot() {
			empty = 0
		}
		if time.Since(begun) > h.cfg.Drain+drainLast && !h.isRoot() {
			break
		}
	}
	return nil
}

const (
	// drainLook is how often a process that was replaced looks what it still has.
	drainLook = 50 * time.Millisecond
	// drainLast is how long those may take that were cut.
	drainLast = time.Second
)

// isRoot reports whether the end of this process would be that of the newest: it is
// the first process of its container, which the kernel does not let the others
// outlive.
func (h *house) isRoot() bool { return os.Getpid() == 1 && h.kin.hasNewest() }

// entering returns how many connections have come in and are not the gate's yet.
func (h *house) entering() int {
	own, public := h.admission.Stats(), h.crowd.Stats()
	return own.Pending + own.Waiting + public.Pending + public.Waiting
}

// A pace spreads the end of connections over the last tenth of a time.
type pace struct {
	total time.Duration
	most  int // connections when it began to cut
}

// cut returns how many of the connections that live are to be cut now.
func (p *pace) cut(since time.Duration, live int) int {
	begin := p.total / 10 * 9
	if since < begin {
		return 0
	}
	if p.most == 0 {
		p.most = live
	}
	if since >= p.total {
		return live
	}
	// Of those that there were, so many may be left.
	left := int(float64(p.most) * float64(p.total-since) / float64(p.total-begin))
	return max(live-left, 0)
}

// succession sees that one process at a time is raised, and none before this one serves
// or when it has been replaced. The zero value is of one that does not serve yet.
type succession struct {
	mu  sync.Mutex
	now succeeding
}

// succeeding is how it stands with the place of a process; but for succeedMay it says why
// it is not to be had.
type succeeding string

const (
	succeedNot   succeeding = ""
	succeedMay   succeeding = "may"
	succeedUnder succeeding = "an upgrade is under way"
	succeedOver  succeeding = "this process was replaced already"
)

// begin begins a succession.
func (s *succession) begin() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch s.now {
	case succeedNot:
		return errors.New("this process is only starting")
	case succeedMay:
		s.now = succeedUnder
		return nil
	}
	return errors.New(string(s.now))
}

// end ends a succession, and lets the first one begin.
func (s *succession) end(replaced bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.now = succeedMay
	if replaced {
		s.now = succeedOver
	}
}
