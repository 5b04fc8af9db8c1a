package client

import (
	"context"
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
	"syscall"
	"time"

	"cardea/api"
	"cardea/rpc"
)

// A Daemon publishes ports in the background, for the Session of a home. There
// is at most one for each home; it is told what to do over a Unix socket in the
// home, see [Control].
type Daemon struct {
	Home  string
	Ports *Ports
	Log   *slog.Logger
	Now   func() time.Time
}

// A Status is what a Daemon does.
type Status struct {
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
	Ports     []Port    `json:"ports"`
	Log       string    `json:"log"` // see LogFile
	// Trouble is the last refusal, or the last connection that was cut, in words.
	Trouble string `json:"trouble,omitempty"`
}

// published is a request to publish ports, and the answer.
type published struct {
	Ports []Port `json:"ports"`
}

// ErrRunning says that a home has a Daemon already.
var ErrRunning = errors.New("connect runs already in the background")

// ErrNotRunning says that a home has no Daemon.
var ErrNotRunning = errors.New("nothing is connected in the background")

// Run does as it is told until ctx is done or it is told to stop, and returns
// when all has ended. It calls ready once it can be told something.
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
	// Whoever holds the lock is the only one: a socket that is there was left by
	// one who was killed.
	socket, release, err := socketPath(d.Home)
	if err != nil {
		return err
	}
	defer release()
	if err := os.Remove(socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := new(net.ListenConfig).Listen(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("listen for control: %w", err)
	}
	if err := os.Chmod(socket, 0o600); err != nil {
		l.Close()
		return err
	}

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	server := &http.Server{Handler: d.handler(ctx, stop), ReadHeaderTimeout: controlTimeout, ErrorLog: slog.NewLogLogger(d.Log.Handler(), slog.LevelWarn)}
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
	return err
}

const (
	// controlTimeout bounds a call to a Daemon, and its wait for calls when it
	// stops.
	controlTimeout = 5 * time.Second
	// lookTime is more than the time for which those hold the lock who only look
	// whether a Daemon does.
	lookTime = 250 * time.Millisecond
)

// handler answers calls. Ports are published until ctx is done.
func (d *Daemon) handler(ctx context.Context, stop func()) http.Handler {
	started := d.Now()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) {
		rpc.Answer(w, Status{PID: os.Getpid(), StartedAt: started.UTC(), Ports: d.Ports.List(), Log: LogFile(d.Home), Trouble: d.Ports.Trouble()})
	})
	mux.HandleFunc("POST /ports", func(w http.ResponseWriter, r *http.Request) {
		var in published
		err := rpc.Read(r, &in)
		if err == nil {
			in.Ports, err = d.Ports.Publish(ctx, in.Ports...)
		}
		if err != nil {
			rpc.Fail(w, err, d.Log)
			if len(d.Ports.List()) == 0 { // what it was started for has failed
				stop()
			}
			return
		}
		for _, p := range in.Ports {
			d.Log.Info("published", "service", p.Service, "address", p.Address)
		}
		rpc.Answer(w, in)
	})
	mux.HandleFunc("POST /stop", func(w http.ResponseWriter, _ *http.Request) {
		rpc.Answer(w, api.Empty{})
		stop()
	})
	return mux
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
		Timeout:   controlTimeout,
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
	return conn, err
}

// Status returns what the Daemon does.
func (c *Control) Status(ctx context.Context) (Status, error) {
	var s Status
	err := c.do(ctx, http.MethodGet, "/status", nil, &s)
	return s, err
}

// Publish adds ports, all or none, and returns them as they came to be.
func (c *Control) Publish(ctx context.Context, ports ...Port) ([]Port, error) {
	var out published
	err := c.do(ctx, http.MethodPost, "/ports", published{ports}, &out)
	return out.Ports, err
}

// Stop ends the Daemon and returns when it has ended.
func (c *Control) Stop(ctx context.Context) error {
	if err := c.do(ctx, http.MethodPost, "/stop", nil, nil); err != nil {
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

func (c *Control) do(ctx context.Context, method, path string, in, out any) error {
	err := c.call.Do(ctx, method, path, in, out)
	if errors.Is(err, ErrNotRunning) {
		return ErrNotRunning
	}
	return err
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
