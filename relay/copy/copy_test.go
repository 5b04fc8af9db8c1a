package copy_test

import (
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"cardea/relay"
	"cardea/relay/copy"
	"cardea/relay/relaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(*testing.T) relay.Engine { return copy.New() }

func TestEngine(t *testing.T) { relaytest.Run(t, open) }

func TestLimits(t *testing.T) { relaytest.RunLimits(t, open) }

func TestRealLimits(t *testing.T) { relaytest.RunRealLimits(t, open) }

// TestPlainStreams runs the suite with every TCP connection in disguise, as on a
// system without splice, and with buffers that change all the time.
func TestPlainStreams(t *testing.T) {
	disguised := func(*testing.T) relay.Engine { return disguising{copy.Impatient()} }
	relaytest.Run(t, disguised)
	t.Run("limits", func(t *testing.T) { relaytest.RunRealLimits(t, disguised) })
}

type disguising struct{ *copy.Engine }

func (e disguising) Start(p relay.Pair, done func(relay.Result)) relay.Live {
	p.Client, p.Upstream = disguise(p.Client), disguise(p.Upstream)
	return e.Engine.Start(p, done)
}

func disguise(c net.Conn) net.Conn {
	if tcp, ok := c.(*net.TCPConn); ok {
		return disguised{tcp}
	}
	return c
}

// disguised is a relay.Layered, so that its resets can be told from its ends.
type disguised struct{ *net.TCPConn }

func (d disguised) NetConn() net.Conn { return d.TCPConn }

// TestRefusedBytesAreNoEnd relays to a stream that takes no bytes any more but
// sends some, and then its end: the client must see those bytes and a reset.
func TestRefusedBytesAreNoEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		engine := copy.New()
		client, clientGiven := relaytest.Pipe()
		upstream, upstreamGiven := relaytest.Pipe()
		noting := &noting{PipeEnd: clientGiven}
		results := make(chan relay.Result, 1)
		engine.Start(relay.Pair{Client: noting, Upstream: refusing{upstreamGiven}}, func(r relay.Result) { results <- r })
		io.WriteString(client, "not wanted")
		synctest.Wait()
		io.WriteString(upstream, "sorry")
		upstream.CloseWrite()
		synctest.Wait()
		if result := <-results; result.Reason != relay.UpstreamReset || result.Received != 0 || result.Sent != 5 {
			t.Errorf("result %+v, want UPSTREAM_RESET after 0 and 5 bytes", result)
		}
		if _, err := io.ReadAll(client); !relay.IsReset(err) {
			t.Errorf("client sees %v, want a reset", err)
		}
		if noting.ended {
			t.Error("the client was told of an end before the reset")
		}
		engine.Wait()
	})
}

// refusing is a stream whose peer has stopped receiving.
type refusing struct{ *relaytest.PipeEnd }

func (refusing) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// noting is a stream that knows whether it was half-closed.
type noting struct {
	*relaytest.PipeEnd
	ended bool
}

func (n *noting) CloseWrite() error {
	n.ended = true
	return n.PipeEnd.CloseWrite()
}

// TestDeparture relays for a client that goes without a goodbye when it has the
// upstream's end: the upstream sees a reset, and the log hears of none.
func TestDeparture(t *testing.T) {
	for _, side := range []relay.Reason{relay.ClientClosed, relay.UpstreamClosed} {
		synctest.Test(t, func(t *testing.T) {
			engine := copy.New()
			first, firstGiven := relaytest.Pipe()
			second, secondGiven := relaytest.Pipe()
			p := relay.Pair{Client: firstGiven, Upstream: leaving{secondGiven, make(chan struct{})}}
			if side == relay.UpstreamClosed {
				p.Client, p.Upstream = p.Upstream, p.Client
			}
			results := make(chan relay.Result, 1)
			engine.Start(p, func(r relay.Result) { results <- r })
			io.WriteString(first, "all")
			if b, err := io.ReadAll(io.LimitReader(second, 3)); string(b) != "all" || err != nil {
				t.Errorf("read %q, %v", b, err)
			}
			first.CloseWrite()
			if r := <-results; r.Reason != side || r.Err != nil {
				t.Errorf("%s, %v; want %s", r.Reason, r.Err, side)
			}
			if _, err := io.ReadAll(first); !relay.IsReset(err) {
				t.Errorf("the other peer sees %v, want a reset", err)
			}
			engine.Wait()
		})
	}
}

// leaving is a stream whose peer leaves when it is told of the end.
type leaving struct {
	*relaytest.PipeEnd
	told chan struct{}
}

func (l leaving) Read([]byte) (int, error) {
	<-l.told
	return 0, departure{&relay.ResetError{Reason: "no goodbye"}}
}

func (l leaving) CloseWrite() error {
	defer close(l.told)
	return l.PipeEnd.CloseWrite()
}

type departure struct{ *relay.ResetError }

func (departure) AfterEnd() {}

// TestGone relays an end to a peer of which the kernel knows that it is gone.
func TestGone(t *testing.T) {
	for lost, words := range map[relay.Reason]string{relay.ClientReset: "the client is gone", relay.UpstreamReset: "the upstream is gone"} {
		synctest.Test(t, func(t *testing.T) {
			engine := copy.New()
			first, firstGiven := relaytest.Pipe()
			_, secondGiven := relaytest.Pipe()
			p := relay.Pair{Client: firstGiven, Upstream: gone{secondGiven}}
			if lost == relay.ClientReset {
				p.Client, p.Upstream = p.Upstream, p.Client
			}
			results := make(chan relay.Result, 1)
			engine.Start(p, func(r relay.Result) { results <- r })
			first.CloseWrite()
			if r := <-results; r.Reason != lost || r.Err == nil || r.Err.Error() != words || !relay.IsReset(r.Err) {
				t.Errorf("%s, %v; want %s, %s", r.Reason, r.Err, lost, words)
			}
			if _, err := io.ReadAll(first); !relay.IsReset(err) {
				t.Errorf("the other peer sees %v, want a reset", err)
			}
			engine.Wait()
		})
	}
}

// gone is a stream that cannot be half-closed any more.
type gone struct{ *relaytest.PipeEnd }

func (gone) CloseWrite() error {
	return &net.OpError{Op: "close", Net: "tcp", Err: os.NewSyscallError("shutdown", syscall.ENOTCONN)}
}
