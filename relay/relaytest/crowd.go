package relaytest

import (
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/relay"
)

// resting calls body and checks that the engine holds nothing after it. The body has
// to close the peers.
func resting(t *testing.T, open Open, body func(relay.Engine)) {
	t.Helper()
	engine := open(t)
	goroutines, descriptors := goleak.IgnoreCurrent(), openDescriptors()
	body(engine)
	engine.Wait()
	if n := openDescriptors(); n != descriptors {
		t.Errorf("%d descriptors are open after the end, %d before the start", n, descriptors)
	}
	if err := goleak.Find(goroutines); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

// crowd starts so many relays.
func crowd(t *testing.T, engine relay.Engine, j joint, n int) []*rig {
	t.Helper()
	var rigs []*rig
	for range n {
		rigs = append(rigs, newRig(t, engine, j, relay.Limits{}))
	}
	return rigs
}

// leave closes the peers, after the relay has ended.
func (r *rig) leave() {
	r.t.Helper()
	r.client.Close()
	r.upstream.Close()
	if n := r.calls.Load(); n != 1 {
		r.t.Errorf("done was called %d times, want once", n)
	}
}

// testMixed has small messages go to and fro beside bulk, in both directions and over
// more relays than there are processors. All go on until each has come so far: none
// may keep another from going on.
func testMixed(t *testing.T, open Open) {
	resting(t, open, func(engine relay.Engine) {
		bulk, chat := crowd(t, engine, joint{tcp4, tcp4}, 8), crowd(t, engine, joint{tcp4, tcp4}, 20)
		var far, tasks sync.WaitGroup
		stop := make(chan struct{})
		for i, r := range bulk {
			far.Add(2)
			tasks.Go(func() {
				var ways sync.WaitGroup
				ways.Go(func() { carries(t, r.client, r.upstream, newStream(uint64(2*i)), stop, far.Done) })
				ways.Go(func() { carries(t, r.upstream, r.client, newStream(uint64(2*i+1)), stop, far.Done) })
				ways.Wait()
				r.ends(relay.ClientClosed, relay.UpstreamClosed)
			})
		}
		for _, r := range chat {
			far.Add(1)
			tasks.Go(func() {
				n := talks(t, r, stop, far.Done)
				r.finishes(n*len(question), n*len(question))
			})
		}
		far.Wait()
		close(stop)
		tasks.Wait()
		for _, r := range slices.Concat(bulk, chat) {
			r.leave()
		}
	})
}

// carries sends until stop is closed, then finishes, and checks what arrives. It calls
// far when that is much.
func carries(t *testing.T, from, to net.Conn, content stream, stop chan struct{}, far func()) {
	far = sync.OnceFunc(far)
	defer far()
	sent := make(chan int64, 1)
	go func() {
		total := int64(0)
		defer func() { sent <- total }()
		for {
			n, err := content.sendTo(from, len(content))
			total += int64(n)
			if err != nil {
				t.Error(err)
				return
			}
			select {
			case <-stop:
				closeWrite(t, from)
				return
			default:
			}
		}
	}()
	check := &checker{stream: content}
	_, err := io.CopyN(check, to, 4<<20)
	far()
	if err == nil {
		_, err = io.Copy(check, to)
	}
	if n := <-sent; err != nil || check.got != n {
		t.Errorf("read %d of %d bytes, with error %v", check.got, n, err)
	}
}

// talks exchanges messages until stop is closed, and returns how many. It calls far
// when they are many.
func talks(t *testing.T, r *rig, stop chan struct{}, far func()) int {
	far = sync.OnceFunc(far)
	defer far()
	for n := 0; ; n++ {
		if n == 50 {
			far()
		}
		select {
		case <-stop:
			return n
		default:
		}
		if !r.asks() {
			t.Errorf("no answer to message %d", n)
			return n
		}
	}
}

// testCutAll cuts very many relays at once.
func testCutAll(t *testing.T, open Open) {
	n := 1000
	if testing.Short() {
		n = 100
	}
	resting(t, open, func(engine relay.Engine) {
		rigs := crowd(t, engine, joint{tcp4, tcp4}, n)
		var cutters sync.WaitGroup
		for i := range 4 {
			cutters.Go(func() {
				for k := range rigs {
					rigs[(k+i*n/4)%n].live.Cut(relay.Revoked) // each is cut by all four
				}
			})
		}
		cutters.Wait()
		for _, r := range rigs {
			r.seesReset(r.client)
			r.seesReset(r.upstream)
			r.ends(relay.Revoked)
		}
		engine.Wait()
		for _, r := range rigs {
			r.leave()
		}
	})
}

// testCutAtStart cuts relays that have hardly begun.
func testCutAtStart(t *testing.T, open Open) {
	resting(t, open, func(engine relay.Engine) {
		for range 100 {
			r := &rig{t: t, results: make(chan relay.Result, 2)}
			client, clientGiven := tcp4.open(t)
			upstream, upstreamGiven := tcp4.open(t)
			r.client, r.upstream = client, upstream
			io.WriteString(client, question)
			r.start(engine, relay.Pair{Client: clientGiven, Upstream: upstreamGiven})
			r.live.Cut(relay.Drained)
			r.seesReset(upstream)
			r.ends(relay.Drained)
			r.cannotWrite(client)
			r.leave()
		}
	})
}

// testDoneCalls has done use the engine: it starts a relay, and asks and changes and
// cuts others, and the one that has ended. Wait waits for what it has started.
func testDoneCalls(t *testing.T, open Open) {
	resting(t, open, func(engine relay.Engine) {
		other := newRig(t, engine, joint{tcp4, tcp4}, relay.Limits{})
		var last *rig
		var next func(n int)
		next = func(n int) {
			client, clientGiven := tcp4.open(t)
			upstream, upstreamGiven := tcp4.open(t)
			if n == 0 {
				last = &rig{t: t, client: client, upstream: upstream, results: make(chan relay.Result, 2)}
				last.start(engine, relay.Pair{Client: clientGiven, Upstream: upstreamGiven})
				return
			}
			started := make(chan relay.Live, 1)
			live := engine.Start(relay.Pair{Client: clientGiven, Upstream: upstreamGiven}, func(relay.Result) {
				for _, l := range []relay.Live{<-started, other.live} {
					l.Bytes()
					l.Limit(relay.Limits{Idle: time.Hour})
				}
				client.Close()
				upstream.Close()
				next(n - 1)
				if n == 1 {
					other.live.Cut(relay.Drained)
				}
			})
			started <- live
			live.Cut(relay.Revoked)
		}
		next(20)
		other.ends(relay.Drained)
		testClientHalfCloses(last)
		engine.Wait()
		other.leave()
		last.leave()
	})
}

// testChangesAtTheEnd changes limits while relays end: the engine comes to rest all the
// same.
func testChangesAtTheEnd(t *testing.T, open Open) {
	for _, j := range []joint{{tcp4, tcp4}, {pipe, pipe}} {
		t.Run(j.String(), func(t *testing.T) {
			resting(t, open, func(engine relay.Engine) {
				var changing sync.WaitGroup
				rigs := crowd(t, engine, j, 100)
				for i, r := range rigs {
					changing.Go(func() {
						for k := range 20 {
							r.live.Limit(relay.Limits{Idle: time.Duration((i+k)%3) * time.Hour, Upload: int64(k % 2)})
						}
					})
					changing.Go(func() { r.live.Cut(relay.Drained) })
				}
				changing.Wait()
				engine.Wait()
				for _, r := range rigs {
					r.ends(relay.Drained)
					r.leave()
				}
			})
		})
	}
}

// testUsedAgain has an engine come to rest, and work again.
func testUsedAgain(t *testing.T, open Open) {
	engine := open(t)
	again := func(*testing.T) relay.Engine { return engine }
	for range 3 {
		run(t, again, joint{tcp4, tcp4}, testBursts)
		run(t, again, joint{tcp4, secured}, testClientHalfCloses)
		engine.Wait()
	}
}

// testStopsReading has a peer stop reading for a while, again and again.
func testStopsReading(r *rig) {
	total := 0
	for i := range 3 {
		content := newStream(uint64(50 + i))
		n := r.stalls(content)
		r.passes(r.upstream, r.client, answer)
		if err := content.checkFrom(r.upstream, n); err != nil {
			r.t.Fatal(err)
		}
		r.passes(r.client, r.upstream, question)
		total += n + len(question)
	}
	r.finishes(total, 3*len(answer))
}
