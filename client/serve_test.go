package client_test

import (
	"bytes"
	"cardea/relay"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/client"
	"cardea/tunnel"
	"cardea/tunnel/memory"
)

// A served is a Server that runs, and the road by which the cluster asks it.
type served struct {
	t *testing.T
	*client.Server
	road *memory.Road
	log  syncBuffer
	stop func() // ends Run, and waits for it; may be called again
}

// syncBuffer is a buffer that several may write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

// took returns what was written since the last call.
func (s *syncBuffer) took() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer s.b.Reset()
	return s.b.String()
}

func (s *served) Refused(api.Refusal)  {}
func (s *served) Arrive(a api.Arrival) { s.Handle(a.Service, a.Conn) }

// serves runs a Server until the test is over.
func serves(t *testing.T, change func(*client.Server)) *served {
	s := &served{t: t, Server: new(client.Server)}
	s.Log = slog.New(slog.NewTextHandler(&s.log, nil))
	if change != nil {
		change(s.Server)
	}
	s.road = &memory.Road{Handler: s}
	ctx, cancel := context.WithCancel(context.Background())
	var run sync.WaitGroup
	run.Go(func() {
		if err := s.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	s.stop = func() {
		cancel()
		run.Wait()
	}
	t.Cleanup(s.stop)
	return s
}

// ask asks for a target, once Run has begun.
func (s *served) ask(target string) (tunnel.Conn, error) {
	for s.t.Context().Err() == nil {
		c, err := s.road.Dial(s.t.Context(), target)
		if err != nil && strings.Contains(err.Error(), "does not serve now") {
			runtime.Gosched() // Run is about to begin
			continue
		}
		if err != nil {
			return nil, err
		}
		return c.(tunnel.Conn), nil
	}
	return nil, s.t.Context().Err()
}

// must asks for a target that is served, and has it echo.
func (s *served) must(target string) tunnel.Conn {
	s.t.Helper()
	c, err := s.ask(target)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.WriteString(c, "hello"); err != nil {
		s.t.Fatal(err)
	}
	if b := make([]byte, 5); func() error { _, err := io.ReadFull(c, b); return err }() != nil || string(b) != "hello" {
		s.t.Fatalf("%s echoes %q", target, b)
	}
	return c
}

// refused asks for a target that is to be refused with words, and the log to say so.
func (s *served) refused(target, words string) {
	s.t.Helper()
	s.log.took()
	c, err := s.ask(target)
	if err == nil {
		c.Close()
		s.t.Fatalf("%s is served", target)
	}
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Code != api.CodeUnavailable || !strings.Contains(e.Message, words) {
		s.t.Errorf("%s: %v, want %q", target, err, words)
	}
	if log := s.log.took(); !strings.Contains(log, words) {
		s.t.Errorf("the log says %q, want %q", log, words)
	}
}

// problems returns the problem of each target.
func (s *served) problems() map[string]string {
	out := map[string]string{}
	for _, x := range s.Status() {
		out[api.ServeTarget(x.Service, x.Config)] = x.Problem
	}
	return out
}

func TestServePins(t *testing.T) {
	good, other := "tcp://"+echo(t), "tcp://"+echo(t)
	s := serves(t, nil)
	s.refused("db.default/default", "does not serve it") // not before it was told what
	s.Set([]api.ServedService{
		{Service: "db.default", Config: "default", URL: good},
		{Service: "web.prod", Config: "default", URL: good, Problem: "User bob may not serve it"},
	})
	s.must("db.default/default").Close()
	for _, target := range []string{"db.default/other", "db.default", "ssh.default/default", "db.default/default/", "../db.default/default", "", strings.Repeat("x", 300)} {
		s.refused(target, "does not serve it")
	}
	s.refused("web.prod/default", "User bob may not serve it")

	// What the cluster changes is not served until somebody agrees.
	s.log.took()
	s.Set([]api.ServedService{
		{Service: "db.default", Config: "default", URL: other},
		{Service: "web.prod", Config: "default", URL: good},
		{Service: "ssh.default", Config: "default", URL: other},
	})
	if log := s.log.took(); strings.Count(log, "not served") != 2 || !strings.Contains(log, "URL has changed from "+good+" to "+other) {
		t.Errorf("the log says %q", log)
	}
	s.refused("db.default/default", "its URL has changed from "+good+" to "+other)
	s.refused("ssh.default/default", "nobody has agreed to its URL, "+other)
	s.must("web.prod/default").Close() // it was there at the start, and may be served now
	p := s.problems()
	if !strings.Contains(p["db.default/default"], "changed") || !strings.Contains(p["ssh.default/default"], "agreed") || p["web.prod/default"] != "" || len(p) != 3 {
		t.Errorf("the status is %q", p)
	}
	// Back to what was agreed to is no change.
	s.Set([]api.ServedService{{Service: "db.default", Config: "default", URL: good}})
	s.must("db.default/default").Close()
	s.refused("web.prod/default", "the cluster does not have this device serve it any more")
	if p := s.problems(); len(p) != 2 || p["ssh.default/default"] != "" {
		t.Errorf("the status is %q", p)
	}
	s.Set([]api.ServedService{{Service: "db.default", Config: "default", URL: other}})
	s.Agree()
	s.must("db.default/default").Close()
	if p := s.problems()["db.default/default"]; p != "" {
		t.Error(p)
	}
}

func TestServeAnyURL(t *testing.T) {
	good, other := "tcp://"+echo(t), "tcp://"+echo(t)
	s := serves(t, func(s *client.Server) { s.AnyURL = true })
	s.Set([]api.ServedService{{Service: "db.default", Config: "default", URL: good}})
	s.must("db.default/default").Close()
	s.Set([]api.ServedService{{Service: "db.default", Config: "default", URL: other}, {Service: "web.prod", Config: "default", URL: good}})
	if log := s.log.took(); !strings.Contains(log, "serving another URL") {
		t.Errorf("the log says %q", log)
	}
	s.must("db.default/default").Close()
	s.must("web.prod/default").Close()
	s.Set(nil)
	s.refused("db.default/default", "does not") // and what is not served any more is not kept for ever
}

// Whatever the URL, no more is dialled than a host and a port.
func TestServeURLs(t *testing.T) {
	var mu sync.Mutex
	var dialled []string
	s := serves(t, func(s *client.Server) {
		s.Dial = func(_ context.Context, network, address string) (net.Conn, error) {
			mu.Lock()
			defer mu.Unlock()
			dialled = append(dialled, network+" "+address)
			return nil, syscall.ECONNREFUSED
		}
	})
	urls := map[string]string{ // and what the words have
		"tls://[::1]:443": "[::1]:443: nothing listens there", "postgres://db": "db:5432: nothing", "tcp://db.lan:1": "db.lan:1: nothing",
		"unix:///run/x": "the URL", "udp://db:53": "db:53: nothing", "tcp://_pg._tcp.db": "must say a port", "file:///etc/passwd": "the URL", "tcp://a b:1": "the URL", "": "is required",
	}
	var list []api.ServedService
	for url := range urls {
		list = append(list, api.ServedService{Service: "db.default", Config: url, URL: url})
	}
	s.Set(list)
	for url, words := range urls {
		s.refused("db.default/"+url, words)
	}
	slices.Sort(dialled)
	if want := []string{"tcp [::1]:443", "tcp db.lan:1", "tcp db:5432", "udp db:53"}; !slices.Equal(dialled, want) {
		t.Errorf("dialled %q", dialled)
	}
	for _, x := range s.Status() {
		if x.Config == "postgres://db" && !strings.Contains(x.Trouble, "nothing listens there") {
			t.Errorf("the status is %+v", x)
		}
	}
}

func TestServeCarries(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := serves(t, nil)
	s.Set([]api.ServedService{{Service: "db.default", Config: "default", URL: "tcp://" + l.Addr().String()}})
	pair := func() (tunnel.Conn, *net.TCPConn) {
		t.Helper()
		c, err := s.ask("db.default/default")
		if err != nil {
			t.Fatal(err)
		}
		up, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c, up.(*net.TCPConn)
	}
	// The end of one direction, and then of the other.
	c, up := pair()
	io.WriteString(c, "question")
	c.CloseWrite()
	if b, err := io.ReadAll(up); string(b) != "question" || err != nil {
		t.Errorf("the upstream read %q, %v", b, err)
	}
	if n := s.Status()[0].Connections; n != 1 {
		t.Errorf("%d connections", n)
	}
	io.WriteString(up, "answer")
	up.Close()
	if b, err := io.ReadAll(c); string(b) != "answer" || err != nil {
		t.Errorf("the cluster read %q, %v", b, err)
	}
	c.Close()
	// A reset, from either side.
	c, up = pair()
	c.Reset("REVOKED")
	if _, err := io.ReadAll(up); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the upstream read %v", err)
	}
	up.Close()
	c, up = pair()
	up.SetLinger(0)
	up.Close()
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the cluster read %v", err)
	}
	// The end of the Server is a reset for both.
	c, up = pair()
	s.stop()
	if _, err := io.ReadAll(c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the cluster read %v", err)
	}
	if _, err := io.ReadAll(up); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the upstream read %v", err)
	}
	up.Close()
	if _, err := s.road.Dial(t.Context(), "db.default/default"); err == nil {
		t.Error("it serves after its end")
	}
	if n := s.Status()[0].Connections; n != 0 {
		t.Errorf("%d connections", n)
	}
}

// A cluster that asks for ever other things fills no log.
func TestServeRefusalsAreCounted(t *testing.T) {
	s := serves(t, nil)
	s.Set(nil)
	s.refused("first.default/default", "does not serve it")
	s.log.took()
	for i := range 1000 {
		if _, err := s.ask(fmt.Sprintf("s%d.default/default", i)); err == nil {
			t.Fatal("it is served")
		}
	}
	if log := s.log.took(); strings.Count(log, "\n") > 21 || !strings.Contains(log, "again and again") {
		t.Errorf("the log says %q", log)
	}
}

// Datagrams arrive whole and apart, each flow at a socket of its own; and what becomes of
// that is told.
func TestServeDatagrams(t *testing.T) {
	up, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	s := serves(t, nil)
	s.Set([]api.ServedService{{Service: "dns.default", Config: "default", URL: "udp://" + up.LocalAddr().String()}})
	flow := func() net.Conn {
		t.Helper()
		c, err := s.ask("dns.default/default")
		if err != nil {
			t.Fatal(err)
		}
		return relay.Messages(c)
	}
	b := make([]byte, relay.MaxDatagram)
	said := func(c net.Conn, p []byte) (from net.Addr) {
		t.Helper()
		if _, err := c.Write(p); err != nil {
			t.Fatal(err)
		}
		n, from, err := up.ReadFrom(b)
		if err != nil || !bytes.Equal(b[:n], p) {
			t.Fatalf("the upstream read %d bytes of %d, %v", n, len(p), err)
		}
		up.WriteTo(p, from)
		if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], p) {
			t.Fatalf("the cluster read %d bytes of %d, %v", n, len(p), err)
		}
		return from
	}
	one, two := flow(), flow()
	from := said(one, []byte("a question"))
	if other := said(two, nil); other.String() == from.String() {
		t.Errorf("two flows have one socket, %s", other)
	}
	if again := said(one, bytes.Repeat([]byte("x"), 65507)); again.String() != from.String() {
		t.Errorf("a flow changes its socket, from %s to %s", from, again)
	}
	if n := s.Status()[0].Connections; n != 2 {
		t.Errorf("%d connections", n)
	}
	two.(relay.Resetter).Reset("IDLE_TIMEOUT")
	up.Close() // the next datagram finds nobody
	one.Write([]byte("hello"))
	if _, err := one.Read(b); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read %v of an upstream that is gone", err)
	}
	s.stop()
	if n := s.Status()[0].Connections; n != 0 {
		t.Errorf("%d connections", n)
	}
}

// TestServeStopsWhileDialling ends a Server that waits for an upstream, and a cluster that
// has given up by then.
func TestServeStopsWhileDialling(t *testing.T) {
	began := make(chan struct{})
	s := serves(t, func(s *client.Server) {
		s.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			began <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		}
	})
	s.Set([]api.ServedService{{Service: "db.default", Config: "default", URL: "tcp://192.0.2.1:1"}})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		for {
			_, err := s.road.Dial(ctx, "db.default/default")
			if err == nil || !strings.Contains(err.Error(), "does not serve now") {
				gone <- err
				return
			}
		}
	}()
	<-began
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Errorf("the dial ended with %v", err)
	}
	ended := make(chan struct{})
	go func() { s.stop(); close(ended) }()
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Fatal("Run goes on")
	}
}
