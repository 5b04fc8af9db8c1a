package client

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardea/api"
	"cardea/client/resolver"
	"cardea/rpc"
	"cardea/tunnel"
)

// A Daemon is what connect runs, for the Session of a home: published ports, and a Network.
// There is at most one for each home; it is told what to do over a Unix socket in the
// home, see [Control], or by its own process.
type Daemon struct {
	Home   string
	Client *Client // of the home; a Network needs it
	Ports  *Ports  // whose road is TLS
	Log    *slog.Logger
	File   string // in which Log writes; "" if it is none
	Now    func() time.Time

	started time.Time
	ctx     context.Context // of Run
	stop    context.CancelFunc
	work    sync.WaitGroup // the Network

	connecting sync.Mutex // held by who connects

	mu      sync.Mutex
	network *Network
	other   *Ports // those whose road is the Network's; nil if that is TLS
	ended   error  // how the Network has ended, if it was not told to
}

// A Wish is what connect is to do, beside what it does already.
type Wish struct {
	Ports   []Port         `json:"ports,omitempty"`
	Network NetworkOptions `json:"network,omitzero"`
}

// A Status is what a Daemon does.
type Status struct {
	PID       int            `json:"pid"`
	StartedAt time.Time      `json:"startedAt"`
	Ports     []Port         `json:"ports"`
	Network   *NetworkStatus `json:"network,omitempty"`
	Log       string         `json:"log,omitempty"` // the file of the log; absent if it is in none
	// Trouble is the last refusal, or the last connection that was cut, in words.
	Trouble string `json:"trouble,omitempty"`
}

// ErrRunning says that a home has a Daemon already.
var ErrRunning = errors.New("connect runs already for this home")

// ErrNotRunning says that a home has no Daemon.
var ErrNotRunning = errors.New("nothing is connected in the background")

// ErrOther says that a Daemon has another Network than is wanted.
var ErrOther = errors.New("connect runs already, with other options")

// Run does as it is told until ctx is done, it is told to stop, or its Network has ended,
// which is its error then. It returns when all has ended. It calls ready once it can be
// told something.
func (d *Daemon) Run(ctx context.Context, ready func()) error {
	brief, cancel := context.WithTimeout(ctx, lookTime)
	held, err := waitLock(brief, filepath.Join(d.Home, daemonLock))
	cancel()
	if errors.Is(err, errLocked) {
		return ErrRunning
	}
	if err != nil {
		return fmt.Errorf("lock %s: %w", d.Home, err)
	}
	defer held.Close()
	// Whoever holds the lock is the only one.
	if found, err := restore(d.Home); err != nil {
		d.Log.Error("what a connect that was killed had changed was not put back", "error", err)
	} else if found.Names {
		d.Log.Info("the name servers of this machine, which a connect that was killed had set, were put back")
	}
	socket, release, err := socketPath(d.Home)
	if err != nil {
		return err
	}
	defer release()
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listen for control: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return err
	}

	d.started = d.Now()
	d.ctx, d.stop = context.WithCancel(ctx)
	ctx, stop := d.ctx, d.stop
	defer stop()
	server := &http.Server{Handler: d.handler(), ReadHeaderTimeout: controlTimeout, ErrorLog: slog.NewLogLogger(d.Log.Handler(), slog.LevelWarn)}
	ended := make(chan error, 1)
	go func() {
		ended <- server.Serve(l)
		stop()
	}()
	ready()
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), controlTimeout)
	defer cancel()
	err = server.Shutdown(last)
	if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
		err = errors.Join(err, served)
	}
	d.Ports.Wait()
	d.work.Wait()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.other != nil {
		d.other.Wait()
	}
	return errors.Join(d.ended, err)
}

// Remains are what there was of a Daemon that was killed.
type Remains struct {
	Killed bool `json:"killed,omitempty"` // one was
	Names  bool `json:"names,omitempty"`  // it had set where this machine asks for names
}

// Left returns what Restore would put back of a home where no Daemon runs.
func Left(home string) (found Remains) {
	found.Names = resolver.Left(home)
	_, err := os.Lstat(filepath.Join(home, daemonSocket))
	found.Killed = err == nil || found.Names
	return found
}

// Restore puts back what a Daemon of a home that was killed has changed on this machine:
// the settings of names; an interface ends with its process. It fails with [ErrRunning] if
// one runs.
func Restore(ctx context.Context, home string) (Remains, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	held, err := waitLock(ctx, filepath.Join(home, daemonLock))
	switch {
	case errors.Is(err, errLocked):
		return Remains{}, ErrRunning
	case errors.Is(err, fs.ErrNotExist): // there is not even a home
		return Remains{}, nil
	case err != nil:
		return Remains{}, err
	}
	defer held.Close()
	return restore(home)
}

// restore is Restore for who holds the lock.
func restore(home string) (found Remains, err error) {
	found.Names, err = resolver.Recover(home)
	left := os.Remove(filepath.Join(home, daemonSocket)) // who is not killed removes it
	found.Killed = left == nil || found.Names
	if errors.Is(left, fs.ErrNotExist) {
		left = nil
	}
	return found, errors.Join(err, left, forgetEnd(home))
}

const (
	// controlTimeout bounds a call to a Daemon, and its wait for calls when it
	// stops.
	controlTimeout = 5 * time.Second
	// lookTime is more than the time for which those hold the lock who only look
	// whether a Daemon does.
	lookTime = 250 * time.Millisecond
)

// connectTime bounds a call to connect: the cluster has to answer, and the gateways.
const connectTime = 30 * time.Second

// handler answers calls.
func (d *Daemon) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { rpc.Answer(w, d.Status()) })
	mux.HandleFunc("POST /connect", func(w http.ResponseWriter, r *http.Request) {
		var in Wish
		err := rpc.Read(r, &in)
		var open []Port
		if err == nil {
			if open, err = d.Connect(r.Context(), in); err != nil {
				err = told(err)
			}
		}
		if err != nil {
			rpc.Fail(w, err, d.Log)
			if d.isIdle() { // what it was started for has failed
				d.stop()
			}
			return
		}
		s := d.Status()
		rpc.Answer(w, connected{open, s})
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		rpc.Answer(w, api.Empty{})
		d.stop()
	})
	return mux
}

// told returns an error as one that is told to the caller in its own words.
func told(err error) error {
	if _, ok := errors.AsType[*api.Error](err); ok {
		return err
	}
	return api.Errorf(api.CodeUnavailable, "%v", err)
}

// connected is the answer to a Wish.
type connected struct {
	Ports  []Port `json:"ports"`
	Status Status `json:"status"`
}

// Status returns what the Daemon, which must run, does.
func (d *Daemon) Status() Status {
	d.mu.Lock()
	n, other := d.network, d.other
	d.mu.Unlock()
	s := Status{PID: os.Getpid(), StartedAt: d.started.UTC(), Ports: d.Ports.List(), Log: d.File, Trouble: d.Ports.Trouble()}
	if other != nil {
		s.Ports = append(s.Ports, other.List()...)
		s.Trouble = cmp.Or(other.Trouble(), s.Trouble)
	}
	switch {
	case n != nil:
		status := n.Status()
		s.Network = &status
	case len(s.Ports) > 0 && d.Client != nil:
		status, err := d.Client.streams(d.ctx)
		if err != nil {
			return s // the home holds no Session any more
		}
		s.Network = &status
	}
	if s.Network == nil || s.Network.Form != FormStreams {
		return s
	}
	why := d.Ports.unreached()
	if other != nil {
		why = other.unreached()
	}
	if why != "" {
		for i := range s.Network.Gateways {
			g := &s.Network.Gateways[i]
			g.Transport, g.Why = "", why
		}
	}
	return s
}

// streams returns how it stands with published ports whose road is the Client: streams
// over TLS, without a Network.
func (c *Client) streams(ctx context.Context) (NetworkStatus, error) {
	l, err := c.current(ctx)
	if err != nil {
		return NetworkStatus{}, err
	}
	s := NetworkStatus{Session: l.Session, Form: FormStreams, Tunnel: TunnelAuto, Gateways: make([]GatewayStatus, 1)}
	tlsStreams(&s.Gateways[0], l.Address, s.Tunnel)
	return s, nil
}

// isIdle reports whether the Daemon does nothing.
func (d *Daemon) isIdle() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.network == nil && len(d.Ports.List()) == 0 // without a Network there are no others
}

// Connect does what is wished, all or none, and returns the ports as they came to be. The
// Daemon must run. What another program of this machine may have is taken first, and the
// place in the network, which another connect of the Session may have, last.
func (d *Daemon) Connect(ctx context.Context, w Wish) ([]Port, error) {
	d.connecting.Lock()
	defer d.connecting.Unlock()
	n, isNew, err := d.choose(w.Network)
	if err != nil {
		return nil, err
	}
	ports := d.portsOf(n)
	r, err := ports.reserve(ctx, w.Ports)
	if err != nil {
		return nil, err
	}
	if isNew {
		if err := d.begin(ctx, n); err != nil {
			r.giveUp()
			return nil, err
		}
	} else if n != nil && n.serve != nil {
		n.serve.Agree() // whoever asks for the same again agrees to how it is now
	}
	d.mu.Lock()
	if ports != d.Ports {
		d.other = ports
	}
	d.mu.Unlock()
	ports.serveAll(d.ctx, r)
	for _, p := range r.fresh {
		d.Log.Info("published", "service", cmp.Or(p.Service, "all, by the proxy"), "network", p.Network, "address", p.Address)
	}
	return r.all, nil
}

// choose returns the Network that does what is asked, nil if none is needed, and whether it
// has still to begin.
func (d *Daemon) choose(o NetworkOptions) (n *Network, isNew bool, err error) {
	if !o.IsNeeded() {
		return nil, false, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.network == nil {
		return &Network{Client: d.Client, Options: o, Log: d.Log}, true, nil
	}
	if !d.network.Options.same(o) {
		e := api.Errorf(api.CodeConflict, "%v: %s", ErrOther, d.network.Options.Words())
		e.Hint = "cardea disconnect first"
		if all, ok := d.network.Options.with(o); ok {
			e.Hint += ", and then ask for all of it, and for its ports, at once: cardea connect " + all.Words() + " --detach"
		}
		return nil, false, e
	}
	return d.network, false, nil
}

// portsOf returns the ports whose road is that of a Network, which may be nil.
func (d *Daemon) portsOf(n *Network) *Ports {
	if n == nil {
		return d.Ports
	}
	road := n.Dialer()
	if road == tunnel.Dialer(n.Client) {
		return d.Ports
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.other != nil {
		return d.other
	}
	return &Ports{Dialer: road, Names: d.Ports.Names, Log: d.Log}
}

// begin begins a Network and returns when it is there.
func (d *Daemon) begin(ctx context.Context, n *Network) error {
	ctx, cancel := context.WithTimeout(ctx, connectTime)
	defer cancel()
	own, giveUp := context.WithCancel(d.ctx)
	failed := make(chan error, 1)
	d.work.Go(func() {
		defer giveUp()
		err := n.Run(own)
		failed <- err
		select {
		case <-n.Up():
			d.lost(err)
		default: // begin says it
		}
	})
	select {
	case <-n.Up():
		d.mu.Lock()
		defer d.mu.Unlock()
		d.network = n
		return nil
	case err := <-failed:
		return cmp.Or(err, context.Cause(d.ctx))
	case <-ctx.Done():
		giveUp()
		<-failed
		return api.Errorf(api.CodeUnavailable, "the cluster did not say in time how to reach its private network")
	}
}

// lost ends the Daemon after its Network.
func (d *Daemon) lost(err error) {
	if err != nil {
		d.Log.Error(err.Error())
		if err := noteEnd(d.Home, d.Now(), err); err != nil {
			d.Log.Warn("the end could not be noted", "error", err)
		}
	}
	d.mu.Lock()
	d.ended = err
	d.mu.Unlock()
	d.stop()
}

// An End is how the last Daemon of a home has ended, if it was not told to.
type End struct {
	At    time.Time `json:"at"`
	Words string    `json:"words"`
}

func noteEnd(home string, at time.Time, why error) error {
	text, err := json.Marshal(End{at.UTC(), why.Error()})
	if err != nil {
		return err
	}
	return writeFile(home, endFile, append(text, '\n'))
}

func forgetEnd(home string) error {
	if err := os.Remove(filepath.Join(home, endFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// LastEnd returns how the last Daemon of a home has ended by itself; nil if it has not.
func LastEnd(home string) *End {
	text, err := os.ReadFile(filepath.Join(home, endFile))
	e := new(End)
	if err != nil || json.Unmarshal(text, e) != nil {
		return nil
	}
	return e
}

// A Control tells the Daemon of a home what to do.
type Control struct {
	home string
	call *rpc.Client
}

// Running returns the control of the Daemon of a home, or [ErrNotRunning]. For one
// that is just starting or ending it waits.
func Running(ctx context.Context, home string) (*Control, error) {
	c := &Control{home: home}
	c.call = &rpc.Client{Base: "http://connect", HTTP: &http.Client{
		Transport: &http.Transport{DialContext: c.dial, DisableKeepAlives: true},
	}}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	every := time.NewTicker(lockPoll)
	defer every.Stop()
	for {
		_, err := c.Status(ctx)
		if err == nil {
			return c, nil
		}
		if !errors.Is(err, ErrNotRunning) || !c.held() {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, errors.New("connect runs in the background and does not answer")
		case <-every.C:
		}
	}
}

// held reports whether a process has the lock of a Daemon.
func (c *Control) held() bool {
	f, err := tryLock(filepath.Join(c.home, daemonLock))
	if err == nil {
		f.Close()
	}
	return errors.Is(err, errLocked)
}

func (c *Control) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	path, release, err := socketPath(c.home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotRunning
	}
	if err != nil {
		return nil, err
	}
	defer release()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, ErrNotRunning
	}
	if errors.Is(err, fs.ErrPermission) {
		return nil, errAnotherUser
	}
	return conn, err
}

// errAnotherUser says that a Daemon is not the caller's.
var errAnotherUser = errors.New("connect runs as another user of this machine, most likely root, who alone may ask it: sudo -E cardea status, sudo -E cardea disconnect")

// Status returns what the Daemon does.
func (c *Control) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.do(ctx, controlTimeout, http.MethodGet, "/status", nil, &s)
	return s, err
}

// Publish adds ports, all or none, and returns them as they came to be.
func (c *Control) Publish(ctx context.Context, ports ...Port) ([]Port, error) {
	open, _, err := c.Connect(ctx, Wish{Ports: ports})
	return open, err
}

// Connect has the Daemon do what is wished, all or none. It returns the ports of the Wish
// as they came to be, and all that the Daemon does.
func (c *Control) Connect(ctx context.Context, w Wish) ([]Port, Status, error) {
	var out connected
	err := c.do(ctx, connectTime+controlTimeout, http.MethodPost, "/connect", w, &out)
	return out.Ports, out.Status, err
}

// Stop ends the Daemon and returns when it has ended.
func (c *Control) Stop(ctx context.Context) error {
	if err := c.do(ctx, controlTimeout, http.MethodPost, "/stop", nil, nil); err != nil {
		if errors.Is(err, ErrNotRunning) {
			return nil // it has ended by itself meanwhile
		}
		return err
	}
	f, err := waitLock(ctx, filepath.Join(c.home, daemonLock))
	if errors.Is(err, errLocked) {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// do calls the Daemon. One that is ending, and so does not do what it is told, is
// ErrNotRunning, once it has ended.
func (c *Control) do(ctx context.Context, within time.Duration, method, path string, in, out any) error {
	brief, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	err := c.call.Do(brief, method, path, in, out)
	if errors.Is(err, ErrNotRunning) {
		return ErrNotRunning
	}
	if _, isTold := errors.AsType[*api.Error](err); err == nil || isTold || brief.Err() != nil {
		return err
	}
	brief, cancel = context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	f, locked := waitLock(brief, filepath.Join(c.home, daemonLock))
	if locked != nil {
		return err
	}
	f.Close()
	return ErrNotRunning
}

// Detach starts a program in a session of its own, without a terminal, with its
// errors in connect.log of the home, and returns once it has said [ReadyLine].
func Detach(home, program string, args ...string) error {
	log, err := os.OpenFile(LogFile(home), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	said, stdout, err := os.Pipe()
	if err != nil {
		return err
	}
	defer said.Close()
	cmd := exec.Command(program, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = "/", stdout, log, ownSession()
	err = cmd.Start()
	stdout.Close()
	if err != nil {
		return err
	}
	line := make([]byte, len(ReadyLine))
	if _, err := io.ReadFull(said, line); err == nil && string(line) == ReadyLine {
		return cmd.Process.Release()
	}
	cmd.Wait()
	words := make([]byte, 4096)
	n, _ := log.ReadAt(words, before)
	return fmt.Errorf("connect ended in the background: %s", strings.TrimSpace(string(words[:n])))
}

// ReadyLine is what a program that Detach starts writes to its standard output,
// and nothing after it.
const ReadyLine = "ready\n"
