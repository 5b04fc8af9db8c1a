package copy_test

import (
	"io"
	"net"
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

// TestPlainStreams runs the suite with every TCP connection in disguise, as on a
// system without splice, and with buffers that change all the time.
func TestPlainStreams(t *testing.T) {
	relaytest.Run(t, func(*testing.T) relay.Engine { return disguising{copy.Impatient()} })
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
