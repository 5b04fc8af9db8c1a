package copy

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"cardea/relay"
	"cardea/relay/relaytest"
)

// tcpPair returns the two ends of a TCP connection.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	dialled, err := net.Dial("tcp4", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		dialled.Close()
		accepted.Close()
	})
	return dialled.(*net.TCPConn), accepted.(*net.TCPConn)
}

// between starts a relay and returns its peers, and a channel that is closed when
// it is done.
func between(t testing.TB, e *Engine, limits relay.Limits) (client, upstream *net.TCPConn, done chan struct{}) {
	t.Helper()
	client, clientGiven := tcpPair(t)
	upstream, upstreamGiven := tcpPair(t)
	done = make(chan struct{})
	e.Start(relay.Pair{Client: clientGiven, Upstream: upstreamGiven, Limits: limits}, func(relay.Result) { close(done) })
	return client, upstream, done
}

// delivers checks that size bytes arrive as they were sent.
func delivers(t *testing.T, from, to net.Conn, size int) {
	t.Helper()
	content := make([]byte, size)
	rand.Read(content)
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(content)
		sent <- err
	}()
	got := make([]byte, size)
	if n, err := io.ReadFull(to, got); err != nil || !bytes.Equal(got, content) {
		t.Fatalf("read %d bytes with error %v, or not those that were sent", n, err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
}

func (e *Engine) freePipes() int {
	e.pipes.mu.Lock()
	defer e.pipes.mu.Unlock()
	return len(e.pipes.free)
}

func TestOnlyBulkIsSpliced(t *testing.T) {
	tests := []struct {
		name         string
		peeked       bool
		size, rounds int
		want         bool
	}{
		{"small messages", false, 64, 1000, false},
		{"bulk", false, 4 << 20, 1, true},
		{"small messages after a look", true, 64, 1000, false},
		{"bulk after a look", true, 4 << 20, 1, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := New()
			defer e.Wait()
			other, _, _ := between(t, e, relay.Limits{}) // keeps the engine from clearing up
			defer relay.Reset(other, relay.ClientReset)
			client, given := tcpPair(t)
			upstream, upstreamGiven := tcpPair(t)
			pair := relay.Pair{Client: given, Upstream: upstreamGiven}
			if tt.peeked {
				pair.Client = &peeked{given}
			}
			done := make(chan struct{})
			e.Start(pair, func(relay.Result) { close(done) })
			if tt.peeked {
				if _, err := io.ReadFull(upstream, make([]byte, 5)); err != nil {
					t.Fatal(err)
				}
			}
			for range tt.rounds {
				delivers(t, client, upstream, tt.size)
			}
			relay.Reset(client, relay.ClientReset)
			<-done
			if got := e.freePipes() > 0; got != tt.want {
				t.Errorf("a pipe was used: %v, want %v", got, tt.want)
			}
		})
	}
}

// peeked is a relay.Transparent.
type peeked struct{ net.Conn }

func (p *peeked) NetConn() net.Conn { return p.Conn }
func (p *peeked) Unread() []byte    { return []byte("hello") }

func TestIdleRelaysHoldNoPipe(t *testing.T) {
	const relays = 50
	e := New()
	defer e.Wait()
	var clients, upstreams []*net.TCPConn
	for range relays {
		client, upstream, _ := between(t, e, relay.Limits{})
		defer relay.Reset(client, relay.ClientReset)
		clients, upstreams = append(clients, client), append(upstreams, upstream)
	}
	before := descriptors(t)
	for i := range relays {
		delivers(t, clients[i], upstreams[i], 1<<20)
	}
	// One pipe is in use at a time, perhaps another on its way back.
	if n := descriptors(t) - before; n > 2*relays/5 {
		t.Errorf("%d relays that were busy one after the other hold %d descriptors more", relays, n)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestSpliceRefused lends pipes into which the kernel does not splice: those whose
// writing end appends.
func TestSpliceRefused(t *testing.T) {
	e := New()
	for range 4 {
		p, err := newPipe()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.FcntlInt(uintptr(p.w), unix.F_SETFL, unix.O_APPEND|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		e.pipes.put(p)
	}
	client, upstream, _ := between(t, e, relay.Limits{})
	delivers(t, client, upstream, 4<<20)
	delivers(t, upstream, client, 4<<20)
	relay.Reset(client, relay.ClientReset)
	e.Wait()
}

// TestResetToldToAWriter shows why an end of file is not taken at its word.
func TestResetToldToAWriter(t *testing.T) {
	peer, given := tcpPair(t)
	var g leg
	g.init(given, relay.ClientClosed, relay.ClientReset)
	relay.Reset(peer, relay.ClientReset)
	if _, err := given.Write([]byte("x")); !relay.IsReset(err) {
		t.Fatalf("write: %v, want a reset", err)
	}
	if _, err := given.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("read: %v, want io.EOF: the kernel has told the reset already", err)
	}
	if !g.wasReset() {
		t.Error("the reset is taken for an end of file")
	}
}

func TestEndOfFileIsNoReset(t *testing.T) {
	for _, weFirst := range []bool{false, true} {
		peer, given := tcpPair(t)
		var g leg
		g.init(given, relay.ClientClosed, relay.ClientReset)
		if weFirst {
			if err := g.closeWrite(); err != nil {
				t.Fatal(err)
			}
		}
		peer.CloseWrite()
		if _, err := given.Read(make([]byte, 1)); err != io.EOF {
			t.Fatalf("read: %v, want io.EOF", err)
		}
		if g.wasReset() {
			t.Errorf("with our end first %v: an end of file is taken for a reset", weFirst)
		}
	}
}

func TestUrgent(t *testing.T) {
	relaytest.RunUrgent(t, func(*testing.T) relay.Engine { return New() })
}

func TestUrgentAmidSignals(t *testing.T) {
	relaytest.RunUrgentAmidSignals(t, func(t *testing.T) (*net.TCPConn, net.Conn) {
		e := New()
		t.Cleanup(e.Wait)
		client, upstream, _ := between(t, e, relay.Limits{})
		return client, upstream
	})
}

func TestSweeperRunsOnlyForLimits(t *testing.T) {
	e := New()
	sweeping := func() bool {
		e.mu.Lock()
		defer e.mu.Unlock()
		return e.sweeper.running
	}
	unlimited, _, _ := between(t, e, relay.Limits{})
	if sweeping() {
		t.Error("the sweeper runs for a relay without limits")
	}
	slow, _, _ := between(t, e, relay.Limits{Upload: 1 << 40, Download: 1 << 40})
	if sweeping() {
		t.Error("the sweeper runs for a relay that has rates only")
	}
	limited, _, _ := between(t, e, relay.Limits{Idle: 1 << 40})
	if !sweeping() {
		t.Error("the sweeper does not run for a relay with limits")
	}
	relay.Reset(limited, relay.ClientReset)
	relay.Reset(unlimited, relay.ClientReset)
	relay.Reset(slow, relay.ClientReset)
	e.Wait()
	if sweeping() {
		t.Error("the sweeper runs after the last relay")
	}
}
