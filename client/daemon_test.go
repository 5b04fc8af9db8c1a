package client_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardea/client"
	"cardea/tunnel"
)

// background runs a Daemon in this process and returns its control, and a way to
// wait for its end.
func background(t *testing.T, home string, d tunnel.Dialer) (*client.Control, func() error) {
	t.Helper()
	log := newWords().log()
	daemon := &client.Daemon{Home: home, Ports: &client.Ports{Dialer: d, Log: log}, Log: log, Now: time.Now}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- daemon.Run(ctx, func() { close(ready) }) }()
	var err error
	done := false
	wait := func() error {
		if !done {
			err, done = <-ended, true
		}
		return err
	}
	t.Cleanup(func() { cancel(); wait() })
	select {
	case <-ready:
	case err = <-ended:
		done = true
		t.Fatal("the daemon did not start:", err)
	}
	c, err2 := client.Running(t.Context(), home)
	if err2 != nil {
		t.Fatal(err2)
	}
	return c, wait
}

func anyPort(service string) client.Port {
	return client.Port{Service: service, Network: "tcp", Address: "127.0.0.1:0"}
}

func TestDaemon(t *testing.T) {
	w := newWorld(t)
	alice := w.user("alice")
	if _, err := client.Running(t.Context(), alice.Home); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("before: %v", err)
	}
	c, wait := background(t, alice.Home, alice)
	first, err := c.Publish(t.Context(), anyPort("echo.default"))
	if err != nil {
		t.Fatal(err)
	}
	second, err := c.Publish(t.Context(), anyPort("echo.default"))
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, dial(t, first[0]))
	exchange(t, dial(t, second[0]))
	s, err := c.Status(t.Context())
	if err != nil || s.PID != os.Getpid() || len(s.Ports) != 2 {
		t.Errorf("status: %+v, %v", s, err)
	}

	another := &client.Daemon{Home: alice.Home, Ports: &client.Ports{Dialer: alice, Log: newWords().log()}, Log: newWords().log(), Now: time.Now}
	if err := another.Run(t.Context(), func() { t.Error("two run in one home") }); !errors.Is(err, client.ErrRunning) {
		t.Errorf("another: %v", err)
	}

	open := dial(t, first[0])
	hello(t, open)
	if err := c.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}
	wantReset(t, open)
	if _, err := client.Running(t.Context(), alice.Home); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("after: %v", err)
	}
	if _, err := os.Stat(filepath.Join(alice.Home, "connect.sock")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// TestDaemonAfterKill shows that what a killed daemon leaves is no hindrance.
func TestDaemonAfterKill(t *testing.T) {
	home := t.TempDir()
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(home, "connect.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	if _, err := client.Running(t.Context(), home); !errors.Is(err, client.ErrNotRunning) {
		t.Errorf("a stale socket: %v", err)
	}
	c, _ := background(t, home, noDialer{})
	if _, err := c.Status(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestDaemonWithoutPorts shows that a daemon ends if the first that it is asked
// for fails, and does not if a later one does.
func TestDaemonWithoutPorts(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := client.Port{Service: "echo.default", Network: "tcp", Address: taken.Addr().String()}

	home := t.TempDir()
	c, wait := background(t, home, noDialer{})
	if _, err := c.Publish(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
	if err := wait(); err != nil {
		t.Error(err)
	}

	c, _ = background(t, home, noDialer{})
	if _, err := c.Publish(t.Context(), anyPort("echo.default")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Publish(t.Context(), bad); err == nil {
		t.Error("a port that is taken was published")
	}
	if s, err := c.Status(t.Context()); err != nil || len(s.Ports) != 1 {
		t.Errorf("afterwards: %+v, %v", s, err)
	}
}

// TestDaemonKeepsItsPorts shows that ports stay published if a Network that is begun later
// is given up, because a port that was to come with it is taken.
func TestDaemonKeepsItsPorts(t *testing.T) {
	w := newWorld(t)
	alice := w.user("alice")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	d := &client.Daemon{Home: alice.Home, Client: alice, Ports: &client.Ports{Dialer: alice, Log: newWords().log()}, Log: newWords().log(), Now: time.Now}
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- d.Run(ctx, func() { close(ready) }) }()
	<-ready
	open, err := d.Connect(t.Context(), client.Wish{Ports: []client.Port{anyPort("echo.default")}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = d.Connect(t.Context(), client.Wish{
		Ports:   []client.Port{{Service: "echo.default", Network: "tcp", Address: taken.Addr().String()}},
		Network: client.NetworkOptions{ServeAll: true},
	})
	if err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
	exchange(t, dial(t, open[0]))
	if s := d.Status(); len(s.Ports) != 1 || s.Network != nil && (s.Network.Form != client.FormStreams || len(s.Network.Serves) > 0) {
		t.Errorf("afterwards: %+v", s)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestDaemonInDeepHome has a home whose path does not fit into the address of a
// Unix socket.
func TestDaemonInDeepHome(t *testing.T) {
	home := filepath.Join(t.TempDir(), strings.Repeat("deep/", 40))
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	c, _ := background(t, home, noDialer{})
	if err := c.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}
