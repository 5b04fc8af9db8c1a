package relaytest

import (
	"io"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"cardea/relay"
)

// tolerance is how late a limit may end a relay. It never ends one early.
const tolerance = time.Second

// RunLimits holds an engine to its limits, in the fake time of a synctest bubble
// and over Pipe. It is for engines that carry any net.Conn and that wait for
// nothing outside of the bubble.
func RunLimits(t *testing.T, open Open) {
	tests := []limitTest{
		{"no limits", relay.Limits{}, testNoLimits},
		{"idle", relay.Limits{Idle: time.Minute}, testIdle},
		{"idle while a peer does not read", relay.Limits{Idle: time.Minute}, testIdleStalled},
		{"half-close", relay.Limits{HalfClose: time.Minute}, testHalfCloseLimit},
		{"half-close before idle", relay.Limits{Idle: time.Hour, HalfClose: time.Minute}, testHalfCloseLimit},
		{"duration", relay.Limits{Idle: time.Minute, Duration: time.Hour}, testDuration},
		{"finished in time", relay.Limits{Idle: time.Minute, HalfClose: time.Minute, Duration: time.Hour}, testFinishedInTime},
		{"buffers are bounded", relay.Limits{}, testBounded},
		{"limits are set", relay.Limits{}, testLimitsSet},
		{"limits are tightened", relay.Limits{Idle: time.Hour}, testLimitsTightened},
		{"limits are loosened", relay.Limits{Idle: time.Minute, HalfClose: time.Minute, Duration: time.Minute}, testLimitsLoosened},
		{"limits are lifted", relay.Limits{Idle: time.Minute, Duration: time.Hour}, testLimitsLifted},
		{"half-close is limited later", relay.Limits{}, testHalfCloseLimitedLater},
		{"limits are set after the end", relay.Limits{}, testLimitsAfterTheEnd},
		{"bytes", relay.Limits{Bytes: 100_000}, testBytes},
		{"bytes that are under way", relay.Limits{Bytes: 100_000}, testBytesUnderWay},
		{"bytes are limited later", relay.Limits{}, testBytesLater},
		{"bytes are allowed", relay.Limits{Bytes: 100_000}, testBytesAllowed},
	}
	tests = slices.Concat(tests, rateTests(), fakeRateTests())
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				engine := open(t)
				r := &rig{t: t, results: make(chan relay.Result, 2), begin: time.Now()}
				var client, upstream net.Conn
				r.client, client = Pipe()
				r.upstream, upstream = Pipe()
				r.live = engine.Start(relay.Pair{Client: client, Upstream: upstream, Limits: tt.limits}, func(result relay.Result) {
					r.calls.Add(1)
					r.results <- result
				})
				tt.test(r)
				engine.Wait()
				if n := r.calls.Load(); n != 1 {
					t.Errorf("done was called %d times, want once", n)
				}
			})
		})
	}
	t.Run("each its own", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { testEachItsOwn(t, open) })
	})
}

// cutAt checks that both peers are reset, for the reason and at the time given.
// The upstream's writes tell, because it may have read an end of file before.
func (r *rig) cutAt(at time.Time, want relay.Reason) relay.Result {
	r.t.Helper()
	r.seesReset(r.client)
	result := r.ends(want)
	if _, err := r.upstream.Write([]byte("x")); !relay.IsReset(err) {
		r.t.Errorf("upstream writes with error %v, want a reset", err)
	}
	if late := time.Since(at); late < 0 || late > tolerance {
		r.t.Errorf("%s came %v after its time, want 0 to %v", want, late, tolerance)
	}
	return result
}

func testNoLimits(r *rig) {
	r.passes(r.client, r.upstream, question)
	time.Sleep(365 * 24 * time.Hour)
	r.passes(r.client, r.upstream, question)
	closeWrite(r.t, r.client)
	time.Sleep(365 * 24 * time.Hour)
	r.passes(r.upstream, r.client, answer)
	closeWrite(r.t, r.upstream)
	r.readsEnd(r.client)
	r.ends(relay.ClientClosed)
}

// testIdle keeps a relay alive by a byte now and then, in either direction.
func testIdle(r *rig) {
	for range 5 {
		time.Sleep(59 * time.Second)
		r.passes(r.client, r.upstream, "c")
		time.Sleep(59 * time.Second)
		r.passes(r.upstream, r.client, "u")
	}
	r.cutAt(time.Now().Add(time.Minute), relay.IdleTimeout)
}

// testIdleStalled has bytes to carry all the time, which nobody takes.
func testIdleStalled(r *rig) {
	begin := time.Now()
	written := make(chan error, 1)
	go func() {
		_, err := r.client.Write(make([]byte, 10*PipeBuffer))
		written <- err
	}()
	if err := <-written; !relay.IsReset(err) {
		r.t.Errorf("writer sees %v, want a reset", err)
	}
	r.cutAt(begin.Add(time.Minute), relay.IdleTimeout)
}

// testHalfCloseLimit has the upstream answer a client that has finished for long,
// and then fall silent.
func testHalfCloseLimit(r *rig) {
	time.Sleep(10 * time.Minute)
	closeWrite(r.t, r.client)
	r.readsEnd(r.upstream)
	for range 5 {
		time.Sleep(59 * time.Second)
		r.passes(r.upstream, r.client, answer)
	}
	r.cutAt(time.Now().Add(time.Minute), relay.IdleTimeout)
}

func testDuration(r *rig) {
	begin := time.Now()
	for time.Since(begin) < 59*time.Minute+30*time.Second {
		time.Sleep(30 * time.Second)
		r.passes(r.client, r.upstream, question)
	}
	r.cutAt(begin.Add(time.Hour), relay.MaxDuration)
}

func testFinishedInTime(r *rig) {
	r.passes(r.client, r.upstream, question)
	closeWrite(r.t, r.client)
	time.Sleep(59 * time.Second)
	closeWrite(r.t, r.upstream)
	r.readsEnd(r.client)
	r.readsEnd(r.upstream)
	r.ends(relay.ClientClosed)
}

// testLimitsSet gives limits to a relay that had none: the duration counts from its
// start, being idle not from before anybody took note.
func testLimitsSet(r *rig) {
	begin := time.Now()
	time.Sleep(30 * time.Minute)
	r.live.Limit(relay.Limits{Idle: 20 * time.Minute, Duration: time.Hour})
	time.Sleep(19 * time.Minute)
	r.passes(r.client, r.upstream, question)
	r.cutAt(begin.Add(time.Hour), relay.MaxDuration)
}

// testLimitsTightened has a relay that was idle for less than its old limit, and
// for more than its new one.
func testLimitsTightened(r *rig) {
	r.passes(r.client, r.upstream, question)
	time.Sleep(30 * time.Minute)
	r.live.Limit(relay.Limits{Idle: time.Minute})
	r.cutAt(time.Now(), relay.IdleTimeout)
}

func testLimitsLoosened(r *rig) {
	begin := time.Now()
	time.Sleep(59 * time.Second)
	r.live.Limit(relay.Limits{Idle: time.Hour, HalfClose: time.Hour, Duration: 2 * time.Hour})
	time.Sleep(58 * time.Minute)
	r.passes(r.client, r.upstream, question)
	time.Sleep(58 * time.Minute)
	r.passes(r.client, r.upstream, question)
	r.cutAt(begin.Add(2*time.Hour), relay.MaxDuration)
}

func testLimitsLifted(r *rig) {
	time.Sleep(59 * time.Second)
	r.live.Limit(relay.Limits{})
	testNoLimits(r)
}

// testHalfCloseLimitedLater begins to take note when there is a limit.
func testHalfCloseLimitedLater(r *rig) {
	closeWrite(r.t, r.client)
	r.readsEnd(r.upstream)
	begin := time.Now()
	time.Sleep(30 * time.Second)
	r.live.Limit(relay.Limits{HalfClose: time.Minute})
	r.cutAt(begin.Add(90*time.Second), relay.IdleTimeout)
}

// testLimitsAfterTheEnd leaves nothing to watch behind: Wait returns.
func testLimitsAfterTheEnd(r *rig) {
	r.live.Cut(relay.Revoked)
	r.ends(relay.Revoked)
	r.live.Limit(relay.Limits{Idle: time.Minute})
}

// testBounded sends to a peer that does not read until nothing moves any more.
func testBounded(r *rig) {
	const much = 100 * PipeBuffer
	content := newStream(7)
	sent := make(chan error, 1)
	go func() {
		_, err := content.sendTo(r.client, much)
		closeWrite(r.t, r.client)
		sent <- err
	}()
	synctest.Wait()
	received, _ := r.live.Bytes()
	if received > PipeBuffer {
		r.t.Errorf("%d bytes were written to an upstream that does not read, want at most %d", received, PipeBuffer)
	}
	if err := content.checkAll(r.upstream, much); err != nil {
		r.t.Error(err)
	}
	if err := <-sent; err != nil {
		r.t.Error(err)
	}
	closeWrite(r.t, r.upstream)
	r.readsEnd(r.client)
	r.carried(r.ends(relay.ClientClosed), much, 0)
}

// testEachItsOwn runs relays of one engine with limits that are all different,
// longest first.
func testEachItsOwn(t *testing.T, open Open) {
	engine := open(t)
	const relays = 100
	begin := time.Now()
	ended := make([]time.Duration, relays)
	for i := range relays {
		client, clientGiven := Pipe()
		upstream, upstreamGiven := Pipe()
		limits := relay.Limits{Duration: time.Duration(relays-i) * 10 * time.Second}
		engine.Start(relay.Pair{Client: clientGiven, Upstream: upstreamGiven, Limits: limits}, func(relay.Result) {
			ended[i] = time.Since(begin)
		})
		go io.Copy(upstream, upstream)
		go client.Read(make([]byte, 1))
	}
	engine.Wait()
	for i, got := range ended {
		want := time.Duration(relays-i) * 10 * time.Second
		if got < want || got > want+tolerance {
			t.Errorf("relay %d ended after %v, want %v to %v", i, got, want, want+tolerance)
		}
	}
}

// testBytes passes one byte less than is allowed, and then that one, which may not be
// read any more.
func testBytes(r *rig) {
	r.passes(r.client, r.upstream, string(newStream(26)[:50_000]))
	r.passes(r.upstream, r.client, string(newStream(27)[:49_999]))
	time.Sleep(10 * time.Minute)
	if _, err := io.WriteString(r.client, "!"); err != nil {
		r.t.Error(err)
	}
	r.carried(r.cutAt(time.Now(), relay.Limit), 50_001, 49_999)
}

// testBytesUnderWay ends what would go on and on.
func testBytesUnderWay(r *rig) {
	for total := 0; total < 100_000; total += 2 * len(question) {
		time.Sleep(time.Millisecond)
		if !r.asks() {
			break
		}
	}
	met, ended := time.Now(), make(chan struct{})
	go func() {
		defer close(ended)
		for err := error(nil); err == nil; _, err = io.WriteString(r.client, question) {
			time.Sleep(time.Millisecond)
		}
	}()
	if result := r.cutAt(met, relay.Limit); result.Received+result.Sent < 100_000 {
		r.t.Errorf("it ended after %d and %d bytes", result.Received, result.Sent)
	}
	<-ended
}

// testBytesLater limits what has passed already, in both directions together.
func testBytesLater(r *rig) {
	r.passes(r.client, r.upstream, question)
	r.passes(r.upstream, r.client, answer)
	r.live.Limit(relay.Limits{Idle: time.Hour, Bytes: int64(len(question) + len(answer) + 1)})
	time.Sleep(10 * time.Minute)
	r.live.Limit(relay.Limits{Idle: time.Hour, Bytes: int64(len(question) + len(answer))})
	r.cutAt(time.Now(), relay.Limit)
}

// testBytesAllowed raises a limit that is almost met, and then lifts it.
func testBytesAllowed(r *rig) {
	content := string(newStream(28)[:49_999])
	for _, limit := range []int64{1_000_000, 0, 0} {
		r.passes(r.client, r.upstream, content)
		r.passes(r.upstream, r.client, content)
		r.live.Limit(relay.Limits{Bytes: limit})
		time.Sleep(10 * time.Minute)
	}
	r.finishes(3*len(content), 3*len(content))
}
