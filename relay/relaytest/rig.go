package relaytest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/relay"
)

// rig is one relay under test, between two peers that the test plays.
type rig struct {
	t                *testing.T
	client, upstream net.Conn // the peers' ends
	ahead            int      // bytes that the client had sent, and the upstream read, before the test
	live             relay.Live
	begin            time.Time // not after the start
	results          chan relay.Result
	calls            atomic.Int32 // of done
}

// run plays body between two peers of joint j and then checks what holds at every
// end: done was called once, and nothing is left behind. The body must bring the
// relay to its end and take its result.
func run(t *testing.T, open Open, j joint, body func(*rig)) {
	t.Helper()
	engine := open(t)
	goroutines, descriptors := goleak.IgnoreCurrent(), openDescriptors()
	r := newRig(t, engine, j, relay.Limits{})
	body(r)
	engine.Wait()
	r.client.Close()
	r.upstream.Close()
	if n := r.calls.Load(); n != 1 {
		t.Errorf("done was called %d times, want once", n)
	}
	if n := openDescriptors(); n != descriptors {
		t.Errorf("%d descriptors are open after the end, %d before the start", n, descriptors)
	}
	if err := goleak.Find(goroutines); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// newRig starts a relay between two peers of joint j.
func newRig(t *testing.T, engine relay.Engine, j joint, limits relay.Limits) *rig {
	t.Helper()
	r := &rig{t: t, results: make(chan relay.Result, 2)}
	var client, upstream net.Conn
	r.client, client = j.client.open(t)
	r.upstream, upstream = j.upstream.open(t)
	r.start(engine, relay.Pair{Client: client, Upstream: upstream, Limits: limits})
	if j.client.name == peeked.name {
		r.reads(r.upstream, prefix)
		r.ahead = len(prefix)
	}
	return r
}

func (r *rig) start(engine relay.Engine, p relay.Pair) {
	deadline := time.Now().Add(patience)
	r.client.SetDeadline(deadline)
	r.upstream.SetDeadline(deadline)
	r.begin = time.Now()
	r.live = engine.Start(p, func(result relay.Result) {
		r.calls.Add(1)
		r.results <- result
	})
}

// ends waits for the result and checks its reason, and that the live counters
// agree with it.
func (r *rig) ends(want ...relay.Reason) relay.Result {
	r.t.Helper()
	result := <-r.results
	matches := false
	for _, w := range want {
		matches = matches || result.Reason == w
	}
	if !matches {
		r.t.Errorf("reason %s (%v), want %v", result.Reason, result.Err, want)
	}
	clean := result.Reason == relay.ClientClosed || result.Reason == relay.UpstreamClosed
	if clean && result.Err != nil {
		r.t.Errorf("reason %s has the error %v, want none", result.Reason, result.Err)
	}
	if received, sent := r.live.Bytes(); received != result.Received || sent != result.Sent {
		r.t.Errorf("Bytes() = %d, %d after a result of %d, %d", received, sent, result.Received, result.Sent)
	}
	return result
}

// carried checks the counters of a result: the bytes that the test itself sent.
func (r *rig) carried(result relay.Result, received, sent int) {
	r.t.Helper()
	received += r.ahead
	if result.Received != int64(received) || result.Sent != int64(sent) {
		r.t.Errorf("counted %d received and %d sent, want %d and %d", result.Received, result.Sent, received, sent)
	}
}

// passes checks that what is written at one end is read at the other.
func (r *rig) passes(from, to net.Conn, message string) {
	r.t.Helper()
	if _, err := io.WriteString(from, message); err != nil {
		r.t.Fatalf("write of %d bytes: %v", len(message), err)
	}
	r.reads(to, message)
}

// reads checks what can be read next.
func (r *rig) reads(from net.Conn, want string) {
	r.t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(from, got); err != nil || string(got) != want {
		r.t.Fatalf("read %.40q after %d bytes with error %v, want %.40q", got[:n], n, err, want)
	}
}

// readsEnd checks that nothing but the end of file is left to read.
func (r *rig) readsEnd(from net.Conn) {
	r.t.Helper()
	if rest, err := io.ReadAll(from); err != nil || len(rest) > 0 {
		r.t.Fatalf("read %.40q and error %v, want the end of file", rest, err)
	}
}

// seesReset checks that a peer is told of a reset, and is never told of an end of file
// before. It may read some bytes first.
func (r *rig) seesReset(peer net.Conn) {
	r.t.Helper()
	if n, err := io.Copy(io.Discard, peer); !relay.IsReset(err) {
		r.t.Errorf("peer sees %v after %d bytes, want a reset", err, n)
	}
}

// cannotWrite checks that a peer that has read the end of file is told of a reset
// when it writes.
func (r *rig) cannotWrite(peer net.Conn) {
	r.t.Helper()
	for {
		switch _, err := peer.Write([]byte("x")); {
		case relay.IsReset(err):
			return
		case err != nil:
			r.t.Errorf("peer writes with error %v, want a reset", err)
			return
		}
	}
}

// stream is an endless sequence of bytes that repeats after a length that no
// buffer divides, so that a chunk lost, doubled or out of place shows.
type stream []byte

func newStream(seed uint64) stream {
	s := make(stream, 1<<20+7)
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	random.Read(s)
	return s
}

// sendTo writes the first n bytes of the stream, in pieces as large as its period.
func (s stream) sendTo(w io.Writer, n int) (sent int, err error) {
	for sent < n && err == nil {
		at := sent % len(s)
		var m int
		m, err = w.Write(s[at:min(len(s), at+n-sent)])
		sent += m
	}
	return sent, err
}

// checker is a writer that compares what is written with a stream.
type checker struct {
	stream
	got int64
}

func (c *checker) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		at := int(c.got % int64(len(c.stream)))
		n := min(len(rest), len(c.stream)-at)
		if !bytes.Equal(rest[:n], c.stream[at:at+n]) {
			return 0, fmt.Errorf("the %d bytes at offset %d are not those that were sent", n, c.got)
		}
		c.got, rest = c.got+int64(n), rest[n:]
	}
	return len(p), nil
}

// checkFrom reads n bytes and compares them.
func (s stream) checkFrom(r io.Reader, n int) error {
	c := &checker{stream: s}
	buffer := make([]byte, 256<<10)
	if _, err := io.CopyBuffer(c, io.LimitReader(r, int64(n)), buffer); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", c.got, n, err)
	}
	if c.got < int64(n) {
		return fmt.Errorf("after %d of %d bytes: %w", c.got, n, io.ErrUnexpectedEOF)
	}
	return nil
}

// checkAll reads n bytes, compares them, and expects the end of file.
func (s stream) checkAll(r io.Reader, n int) error {
	if err := s.checkFrom(r, n); err != nil {
		return err
	}
	switch m, err := r.Read(make([]byte, 1)); {
	case m > 0:
		return fmt.Errorf("more than %d bytes arrived", n)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("after %d bytes: %w, want the end of file", n, err)
	}
	return nil
}

// openDescriptors counts this process's descriptors, where they can be counted.
func openDescriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
