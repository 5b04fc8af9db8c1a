// Package relaytest is the conformance suite of relay engines, over real sockets
// ([Run], [RunUrgent], [RunRealLimits]) and in the fake time of a synctest bubble
// ([RunLimits]), and their in-memory stream ([Pipe]).
package relaytest

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"cardea/relay"
)

// Open returns an engine at rest. What it needs beyond Wait to give its resources
// back, it registers with t.Cleanup.
type Open func(t *testing.T) relay.Engine

// Run holds an engine to the promises of package relay, over TCP on IPv4 and IPv6
// and over pairs of a TCP connection and another stream. It is not to be run in
// parallel with other tests: it counts goroutines and descriptors.
func Run(t *testing.T, open Open) {
	// The Go runtime opens descriptors of its own for the first socket.
	a, b := tcp4.open(t)
	a.Close()
	b.Close()

	tests := []rigTest{
		{"ping-pong", testPingPong},
		{"bursts", testBursts},
		{"transfer", testTransfer},
		{"client half-closes", testClientHalfCloses},
		{"upstream half-closes", testUpstreamHalfCloses},
		{"both half-close", testBothHalfClose},
		{"nothing sent", testNothingSent},
		{"client resets", testClientResets},
		{"upstream resets", testUpstreamResets},
		{"reset after half-close", testResetAfterHalfClose},
		{"client half-closes and is gone", testClientGone},
		{"upstream half-closes and is gone", testUpstreamGone},
		{"bulk after half-close", testBulkAfterHalfClose},
		{"cut", testCut},
		{"cut under back-pressure", testCutUnderBackPressure},
		{"cut with bytes unread", testCutUnread},
		{"cut after the end", testCutAfterTheEnd},
	}
	for _, tt := range slices.Concat(tests, endTests()) {
		t.Run(tt.name, func(t *testing.T) {
			for _, j := range joints {
				t.Run(j.String(), func(t *testing.T) {
					run(t, open, j, tt.test)
				})
			}
		})
	}
	for _, j := range []joint{{tcp4, tcp4}, {tcp6, tcp6}, {peeked, tcp4}, {tcp4, secured}} {
		t.Run("back-pressure/"+j.String(), func(t *testing.T) { run(t, open, j, testBackPressure) })
	}
	for _, j := range []joint{{tcp4, tcp4}, {peeked, tcp4}, {tcp4, tls13}} {
		t.Run("stops reading/"+j.String(), func(t *testing.T) { run(t, open, j, testStopsReading) })
	}
	for _, j := range []joint{{tcp4, tcp4}, {tcp6, tcp6}, {peeked, tcp4}} {
		t.Run("last words/"+j.String(), func(t *testing.T) { testLastWords(t, open, j) })
	}
	t.Run("after a cut", func(t *testing.T) { testAfterACut(t, open) })
	t.Run("no half-close", func(t *testing.T) { testNoHalfClose(t, open) })
	t.Run("cut while what was read ahead stalls", func(t *testing.T) { testCutAhead(t, open) })
	t.Run("stale deadline", func(t *testing.T) { testStaleDeadline(t, open) })
	t.Run("many", func(t *testing.T) { testMany(t, open) })
	t.Run("mixed", func(t *testing.T) { testMixed(t, open) })
	t.Run("all are cut", func(t *testing.T) { testCutAll(t, open) })
	t.Run("cut at the start", func(t *testing.T) { testCutAtStart(t, open) })
	t.Run("done uses the engine", func(t *testing.T) { testDoneCalls(t, open) })
	t.Run("limits change at the end", func(t *testing.T) { testChangesAtTheEnd(t, open) })
	t.Run("used again", func(t *testing.T) { testUsedAgain(t, open) })
	t.Run("simultaneous close", func(t *testing.T) { testSimultaneousClose(t, open) })
	t.Run("last bytes before the end", func(t *testing.T) { testLastBytes(t, open) })
	t.Run("last bytes before a reset", func(t *testing.T) { testLastBytesBeforeReset(t, open) })
	t.Run("started late", func(t *testing.T) { testStartedLate(t, open) })
	t.Run("no descriptors", func(t *testing.T) { testNoDescriptors(t, open) })
}

// rigTest is what is tried over every joint.
type rigTest struct {
	name string
	test func(*rig)
}

// RunUrgent has peers send urgent bytes over TCP. It is for engines that read
// sockets by themselves: on Linux a read that begins at an urgent byte gives up when
// a signal is pending, as those are with which the Go runtime interrupts its
// threads, and package net then waits for more than has arrived.
func RunUrgent(t *testing.T, open Open) {
	for _, j := range []joint{{tcp4, tcp4}, {tcp6, tcp6}} {
		t.Run(j.String(), func(t *testing.T) { run(t, open, j, testUrgent) })
	}
	t.Run("when stalled", func(t *testing.T) { run(t, open, joint{tcp4, tcp4}, testUrgentWhenStalled) })
}

func testPingPong(r *rig) {
	const rounds = 500
	for i := range rounds {
		r.passes(r.client, r.upstream, fmt.Sprintf("ping %04d", i))
		r.passes(r.upstream, r.client, fmt.Sprintf("pong %04d", i))
	}
	if received, sent := r.live.Bytes(); received > int64(r.ahead+rounds*9) || sent > rounds*9 {
		r.t.Errorf("Bytes() = %d, %d while running, want at most %d each", received, sent, rounds*9)
	}
	closeWrite(r.t, r.client)
	closeWrite(r.t, r.upstream)
	r.readsEnd(r.client)
	r.readsEnd(r.upstream)
	r.carried(r.ends(relay.ClientClosed, relay.UpstreamClosed), rounds*9, rounds*9)
}

// testBursts goes to and fro between small messages and bulk.
func testBursts(r *rig) {
	total := 0
	content := newStream(1)
	for _, size := range []int{1, 64, 4 << 10, 16<<10 - 1, 16 << 10, 16<<10 + 1, 1, 128 << 10, 1, 512 << 10, 1 << 20, 7} {
		message := string(content[:size])
		for _, way := range [][2]net.Conn{{r.client, r.upstream}, {r.upstream, r.client}} {
			sent := make(chan error, 1)
			go func() {
				_, err := io.WriteString(way[0], message)
				sent <- err
			}()
			r.reads(way[1], message)
			if err := <-sent; err != nil {
				r.t.Fatal(err)
			}
		}
		total += size
	}
	r.client.Close()
	r.readsEnd(r.upstream)
	r.upstream.Close()
	r.carried(r.ends(relay.ClientClosed), total, total)
}

// testTransfer sends much in both directions at once.
func testTransfer(r *rig) {
	size := 8 << 20
	_, clientIsTCP := r.client.(*net.TCPConn)
	_, upstreamIsTCP := r.upstream.(*net.TCPConn)
	switch {
	case testing.Short():
		size = 2 << 20
	case clientIsTCP && upstreamIsTCP:
		size = 128 << 20 // 256 MiB in all
	}
	var tasks sync.WaitGroup
	send := func(c net.Conn, s stream) {
		if _, err := s.sendTo(c, size); err != nil {
			r.t.Errorf("send: %v", err)
		}
		closeWrite(r.t, c)
	}
	receive := func(c net.Conn, s stream) {
		if err := s.checkAll(c, size); err != nil {
			r.t.Errorf("receive: %v", err)
		}
	}
	up, down := newStream(2), newStream(3)
	tasks.Go(func() { send(r.client, up) })
	tasks.Go(func() { receive(r.upstream, up) })
	tasks.Go(func() { send(r.upstream, down) })
	tasks.Go(func() { receive(r.client, down) })
	tasks.Wait()
	r.carried(r.ends(relay.ClientClosed, relay.UpstreamClosed), size, size)
}

func testClientHalfCloses(r *rig) {
	testHalfClose(r, r.client, r.upstream)
	r.carried(r.ends(relay.ClientClosed), len(question), len(answer))
}

func testUpstreamHalfCloses(r *rig) {
	testHalfClose(r, r.upstream, r.client)
	r.carried(r.ends(relay.UpstreamClosed), len(answer), len(question))
}

const question, answer = "all that will be asked", "first part, second part"

// testHalfClose ends one direction, and uses the other after that end has arrived.
func testHalfClose(r *rig, asker, answerer net.Conn) {
	r.passes(asker, answerer, question)
	closeWrite(r.t, asker)
	r.readsEnd(answerer)
	r.passes(answerer, asker, answer[:12])
	r.passes(answerer, asker, answer[12:])
	closeWrite(r.t, answerer)
	r.readsEnd(asker)
}

func testBothHalfClose(r *rig) {
	r.passes(r.client, r.upstream, question)
	begin := make(chan struct{})
	var tasks sync.WaitGroup
	for _, c := range []net.Conn{r.client, r.upstream} {
		tasks.Go(func() {
			<-begin
			closeWrite(r.t, c)
		})
	}
	close(begin)
	r.readsEnd(r.client)
	r.readsEnd(r.upstream)
	tasks.Wait()
	r.carried(r.ends(relay.ClientClosed, relay.UpstreamClosed), len(question), 0)
}

func testNothingSent(r *rig) {
	r.upstream.Close()
	r.readsEnd(r.client)
	r.client.Close()
	r.carried(r.ends(relay.UpstreamClosed), 0, 0)
}

func testClientResets(r *rig) {
	r.passes(r.client, r.upstream, question)
	relay.Reset(r.client, relay.ClientReset)
	r.seesReset(r.upstream)
	if result := r.ends(relay.ClientReset); !relay.IsReset(result.Err) {
		r.t.Errorf("error %v, want a reset", result.Err)
	}
}

func testUpstreamResets(r *rig) {
	r.passes(r.client, r.upstream, question)
	relay.Reset(r.upstream, relay.UpstreamReset)
	r.seesReset(r.client)
	if result := r.ends(relay.UpstreamReset); !relay.IsReset(result.Err) {
		r.t.Errorf("error %v, want a reset", result.Err)
	}
}

// testResetAfterHalfClose resets the direction that is still open.
func testResetAfterHalfClose(r *rig) {
	r.passes(r.client, r.upstream, question)
	closeWrite(r.t, r.client)
	r.readsEnd(r.upstream)
	r.passes(r.upstream, r.client, answer)
	relay.Reset(r.upstream, relay.UpstreamReset)
	r.seesReset(r.client)
	r.carried(r.ends(relay.UpstreamReset), len(question), len(answer))
}

func testClientGone(r *rig) {
	testGone(r, r.client, r.upstream)
	r.carried(r.ends(relay.ClientReset), len(question), 0)
	r.cannotWrite(r.upstream)
}

func testUpstreamGone(r *rig) {
	testGone(r, r.upstream, r.client)
	r.carried(r.ends(relay.UpstreamReset), 0, len(question))
	r.cannotWrite(r.client)
}

// testGone resets the direction that has finished, while the other peer is silent:
// nothing is read or written that could fail.
func testGone(r *rig, asker, answerer net.Conn) {
	r.passes(asker, answerer, question)
	closeWrite(r.t, asker)
	r.readsEnd(answerer)
	relay.Reset(asker, relay.ClientReset)
}

// testBulkAfterHalfClose has a client that has half-closed take much: it is
// there all the time, whatever its socket has to report.
func testBulkAfterHalfClose(r *rig) {
	const size = 4 << 20
	closeWrite(r.t, r.client)
	r.readsEnd(r.upstream)
	content := newStream(11)
	sent := make(chan error, 1)
	go func() {
		_, err := content.sendTo(r.upstream, size)
		sent <- err
	}()
	if err := content.checkFrom(r.client, size); err != nil {
		r.t.Fatal(err)
	}
	if err := <-sent; err != nil {
		r.t.Fatal(err)
	}
	closeWrite(r.t, r.upstream)
	r.readsEnd(r.client)
	r.carried(r.ends(relay.ClientClosed), 0, size)
}

func testCut(r *rig) {
	r.passes(r.client, r.upstream, question)
	r.passes(r.upstream, r.client, answer)
	r.live.Cut(relay.Revoked)
	r.live.Cut(relay.Drained) // too late to be the reason
	r.seesReset(r.client)
	r.seesReset(r.upstream)
	result := r.ends(relay.Revoked)
	r.carried(result, len(question), len(answer))
}

// testCutUnderBackPressure cuts, from many goroutines at once, a relay whose peers
// both write and do not read.
func testCutUnderBackPressure(r *rig) {
	client, upstream := flood(r.client), flood(r.upstream)
	<-client.begun
	<-upstream.begun
	var cutters sync.WaitGroup
	for range 8 {
		cutters.Go(func() { r.live.Cut(relay.Revoked) })
	}
	cutters.Wait()
	for _, f := range []*flooding{client, upstream} {
		f.isReset(r.t)
	}
	r.ends(relay.Revoked)
}

// testCutUnread cuts a relay while much is on its way to a peer that has not read
// it. That peer reads some, and then of the reset.
func testCutUnread(r *rig) {
	f := flood(r.client)
	<-f.begun
	r.live.Cut(relay.Revoked)
	r.seesReset(r.upstream)
	f.isReset(r.t)
	r.ends(relay.Revoked)
}

// flooding is a goroutine that writes until it fails.
type flooding struct {
	begun chan struct{} // something was written
	ended chan error
}

// isReset checks that it failed because of a reset.
func (f *flooding) isReset(t *testing.T) {
	t.Helper()
	if err := <-f.ended; !relay.IsReset(err) {
		t.Errorf("writer sees %v, want a reset", err)
	}
}

func flood(c net.Conn) *flooding {
	f := &flooding{begun: make(chan struct{}), ended: make(chan error, 1)}
	go func() {
		block := make([]byte, 32<<10)
		_, err := c.Write(block)
		close(f.begun)
		for err == nil {
			_, err = c.Write(block)
		}
		f.ended <- err
	}()
	return f
}

func testCutAfterTheEnd(r *rig) {
	r.passes(r.client, r.upstream, question)
	r.client.Close()
	r.readsEnd(r.upstream)
	r.upstream.Close()
	result := r.ends(relay.ClientClosed)
	r.live.Cut(relay.Revoked)
	r.carried(result, len(question), 0)
}

// testBackPressure sends to a peer that does not read: the sender must stall
// before much is under way, and nothing of it may be lost.
func testBackPressure(r *rig) {
	content := newStream(4)
	sent := r.stalls(content)
	closeWrite(r.t, r.client)
	if err := content.checkAll(r.upstream, sent); err != nil {
		r.t.Error(err)
	}
	r.upstream.Close()
	r.carried(r.ends(relay.ClientClosed), sent, 0)
}

// stalls sends from the client until no more is taken, and returns how much was.
func (r *rig) stalls(content stream) (sent int) {
	r.t.Helper()
	const much = 256 << 20
	socket(r.client).SetWriteBuffer(64 << 10)
	socket(r.upstream).SetReadBuffer(64 << 10)
	r.client.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	sent, err := content.sendTo(r.client, much)
	if !errors.Is(err, os.ErrDeadlineExceeded) || sent >= much/2 {
		r.t.Fatalf("the sender got rid of %d bytes (%v), want a stall", sent, err)
	}
	r.client.SetWriteDeadline(time.Now().Add(patience))
	return sent
}

// socket returns the TCP connection that is beneath a peer.
func socket(c net.Conn) *net.TCPConn {
	if l, ok := c.(relay.Layered); ok {
		c = l.NetConn()
	}
	return c.(*net.TCPConn)
}

// testLastWords has the upstream answer and hang up while the client is sending:
// the relay's writes fail then, but the client must read the answer, as it would
// without a relay, and a reset after it.
func testLastWords(t *testing.T, open Open, j joint) {
	for range 50 {
		run(t, open, j, func(r *rig) {
			var tasks sync.WaitGroup
			tasks.Go(func() {
				block := make([]byte, 1000)
				for {
					if _, err := r.client.Write(block); err != nil {
						return
					}
				}
			})
			// Closing with bytes unread is a reset. One byte is read so that
			// others follow.
			io.ReadFull(r.upstream, make([]byte, 1))
			io.WriteString(r.upstream, answer)
			r.upstream.Close()
			r.reads(r.client, answer)
			// The client's kernel may tell the writer of the reset instead.
			io.Copy(io.Discard, r.client)
			tasks.Wait()
			r.ends(relay.UpstreamReset)
		})
	}
}

// testUrgent sends a byte out of band before, amid and after bulk. It is not part
// of the stream, and must not stop it.
func testUrgent(r *rig) {
	client, content := r.client.(*net.TCPConn), newStream(5)
	size := 4 * len(content)
	urgent := func() {
		if err := sendUrgent(client, '!'); err != nil {
			r.t.Fatal(err)
		}
	}
	r.passes(client, r.upstream, "before")
	urgent()
	r.passes(client, r.upstream, "after")
	received := make(chan error, 1)
	go func() { received <- content.checkFrom(r.upstream, size) }()
	for i := range 2 {
		if i > 0 {
			urgent()
		}
		if _, err := content.sendTo(client, size/2); err != nil {
			r.t.Fatal(err)
		}
	}
	if err := <-received; err != nil {
		r.t.Fatal(err)
	}
	urgent()
	closeWrite(r.t, client)
	r.readsEnd(r.upstream)
	r.upstream.Close()
	r.carried(r.ends(relay.ClientClosed), len("before")+len("after")+size, 0)
}

// testUrgentWhenStalled has an urgent byte, more bytes and the end wait behind
// others: nothing that follows the urgent byte may be taken for absent.
func testUrgentWhenStalled(r *rig) {
	client, content := r.client.(*net.TCPConn), newStream(8)
	sent := r.stalls(content)
	const tail = "the tail"
	go func() {
		sendUrgent(client, '!')
		io.WriteString(client, tail)
		client.CloseWrite()
	}()
	if err := content.checkFrom(r.upstream, sent); err != nil {
		r.t.Fatal(err)
	}
	r.reads(r.upstream, tail)
	r.readsEnd(r.upstream)
	r.upstream.Close()
	r.carried(r.ends(relay.ClientClosed), sent+len(tail), 0)
}

// testAfterACut cuts relays while bytes are under way in them: none of those may
// turn up in the next relay of the same engine.
func testAfterACut(t *testing.T, open Open) {
	engine := open(t)
	start := func() *rig {
		r := &rig{t: t, results: make(chan relay.Result, 2)}
		var client, upstream net.Conn
		r.client, client = tcp4.open(t)
		r.upstream, upstream = tcp4.open(t)
		r.start(engine, relay.Pair{Client: client, Upstream: upstream})
		t.Cleanup(func() {
			r.client.Close()
			r.upstream.Close()
		})
		return r
	}
	other := start() // so that the engine is never at rest
	for range 3 {
		cut := start()
		cut.stalls(newStream(9))
		cut.live.Cut(relay.Revoked)
		cut.ends(relay.Revoked)

		content, size := newStream(10), 4<<20
		next := start()
		go content.sendTo(next.client, size)
		if err := content.checkFrom(next.upstream, size); err != nil {
			t.Fatal(err)
		}
		next.live.Cut(relay.Drained)
		next.ends(relay.Drained)
	}
	other.live.Cut(relay.Drained)
	other.ends(relay.Drained)
	engine.Wait()
}

// testNoHalfClose relays to a stream that can only be closed: either end ends the
// relay.
func testNoHalfClose(t *testing.T, open Open) {
	t.Run("client first", func(t *testing.T) {
		run(t, open, joint{tcp4, plain}, func(r *rig) {
			r.passes(r.client, r.upstream, question)
			closeWrite(r.t, r.client)
			r.readsEnd(r.upstream)
			// The upstream might have had more to say.
			r.seesReset(r.client)
			r.carried(r.ends(relay.ClientClosed), len(question), 0)
		})
	})
	t.Run("upstream first", func(t *testing.T) {
		run(t, open, joint{tcp4, plain}, func(r *rig) {
			r.passes(r.upstream, r.client, answer)
			r.upstream.Close()
			r.readsEnd(r.client)
			r.client.Close()
			r.carried(r.ends(relay.UpstreamClosed), 0, len(answer))
		})
	})
}

// testCutAhead cuts a relay that cannot get rid of what was read ahead.
func testCutAhead(t *testing.T, open Open) {
	much := link{"much", func(t *testing.T) (net.Conn, net.Conn) {
		peer, given := tcp4.open(t)
		return peer, &ahead{given, make([]byte, 16<<20)}
	}}
	run(t, open, joint{much, tcp4}, func(r *rig) {
		if _, err := io.ReadFull(r.upstream, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		r.live.Cut(relay.Revoked)
		r.seesReset(r.client)
		r.seesReset(r.upstream)
		if result := r.ends(relay.Revoked); result.Received < 1 || result.Received == 16<<20 {
			t.Errorf("counted %d bytes received", result.Received)
		}
	})
}

// testStaleDeadline relays a stream that someone has left a deadline on.
func testStaleDeadline(t *testing.T, open Open) {
	stale := link{"stale", func(t *testing.T) (net.Conn, net.Conn) {
		peer, given := tcp4.open(t)
		given.SetDeadline(time.Unix(1, 0))
		return peer, given
	}}
	run(t, open, joint{stale, tcp4}, testClientHalfCloses)
}

// testMany runs many relays of one engine at once, which end in different ways.
func testMany(t *testing.T, open Open) {
	const relays, size = 100, 300 << 10
	engine := open(t)
	descriptors := openDescriptors()
	content := newStream(6)
	var tasks sync.WaitGroup
	for i := range relays {
		client, clientGiven := tcp4.open(t)
		upstream, upstreamGiven := tcp4.open(t)
		r := &rig{t: t, client: client, upstream: upstream, results: make(chan relay.Result, 2)}
		r.start(engine, relay.Pair{Client: clientGiven, Upstream: upstreamGiven})
		tasks.Go(func() {
			if _, err := content.sendTo(client, size); err != nil {
				t.Error(err)
			}
		})
		tasks.Go(func() {
			defer client.Close()
			defer upstream.Close()
			if err := content.checkFrom(upstream, size); err != nil {
				t.Error(err)
				return
			}
			switch i % 3 {
			case 0:
				closeWrite(t, upstream)
				closeWrite(t, client)
				r.ends(relay.ClientClosed, relay.UpstreamClosed)
			case 1:
				relay.Reset(client, relay.ClientReset)
				r.seesReset(upstream)
				r.ends(relay.ClientReset)
			case 2:
				r.live.Cut(relay.Drained)
				r.seesReset(upstream)
				r.ends(relay.Drained)
			}
		})
	}
	tasks.Wait()
	engine.Wait()
	if n := openDescriptors(); n != descriptors {
		t.Errorf("%d descriptors are open after the end, %d before the start", n, descriptors)
	}
}
