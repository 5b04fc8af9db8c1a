package relaytest

import (
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"cardea/relay"
)

// short is a limit of time that a test has the patience to wait for. A machine that is
// busy may take longer for anything; a test must not mind.
const short = 300 * time.Millisecond

// RunRealLimits holds an engine to its limits in real time, over real sockets and
// other streams: that none ends a relay early, that each does end it, and that rates
// are kept. That a limit of time ends a relay late it only sees if that is more than a
// minute: [RunLimits] knows better, for engines that can run in fake time.
func RunRealLimits(t *testing.T, open Open) {
	timed := []limitTest{
		{"idle", relay.Limits{Idle: short}, testRealIdle},
		{"idle while a peer does not read", relay.Limits{Idle: short}, testRealStalled},
		{"half-close", relay.Limits{Idle: time.Hour, HalfClose: short}, testRealHalfClose},
		{"duration", relay.Limits{Idle: time.Hour, Duration: short}, testRealDuration},
		{"finished in time", relay.Limits{Idle: time.Hour, HalfClose: time.Hour, Duration: time.Hour, Bytes: 1 << 30}, testClientHalfCloses},
		{"bytes", relay.Limits{Bytes: 100_000}, testRealBytes},
		{"bytes that are under way", relay.Limits{Bytes: 4 << 20}, testRealBytesUnderWay},
		{"limits are set", relay.Limits{}, testRealSet},
		{"limits are tightened", relay.Limits{Idle: time.Hour, Duration: time.Hour, Bytes: 1 << 50}, testRealSet},
		{"limits are lifted", relay.Limits{Idle: short, Duration: short}, testRealLifted},
	}
	var tasks sync.WaitGroup
	defer tasks.Wait()
	for _, tt := range slices.Concat(timed, rateTests()) {
		for _, j := range joints {
			if j.client.name == peeked.name && tt.limits.Idle > 0 {
				continue // the test would have to be done with the prefix by then
			}
			tasks.Go(func() { // all at once, as they wait most of the time
				t.Run(tt.name+"/"+j.String(), func(t *testing.T) {
					engine := open(t)
					r := newRig(t, engine, j, tt.limits)
					tt.test(r)
					engine.Wait()
					r.client.Close()
					r.upstream.Close()
					if n := r.calls.Load(); n != 1 {
						t.Errorf("done was called %d times, want once", n)
					}
				})
			})
		}
	}
}

// over checks that the relay has ended for one of its limits, and not before that
// time. Neither peer can write any more; which of its calls was told first of the
// reset is a matter of luck.
func (r *rig) over(notBefore time.Time, want relay.Reason) {
	r.t.Helper()
	if early := time.Until(notBefore); early > 0 {
		r.t.Errorf("it ended %v early", early)
	}
	r.ends(want)
	r.cannotWrite(r.client)
	r.cannotWrite(r.upstream)
}

// quiet checks that nothing comes for a while, not even an end.
func (r *rig) quiet(c net.Conn, d time.Duration) {
	r.t.Helper()
	c.SetReadDeadline(time.Now().Add(d))
	if n, err := c.Read(make([]byte, 1)); n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		r.t.Fatalf("read %d bytes and %v, want nothing for %v", n, err, d)
	}
	c.SetReadDeadline(time.Now().Add(patience))
}

// asks reports whether a message passes, and an answer comes back, before the relay
// ends.
func (r *rig) asks() bool {
	r.t.Helper()
	for _, way := range [][2]net.Conn{{r.client, r.upstream}, {r.upstream, r.client}} {
		if _, err := io.WriteString(way[0], question); err != nil {
			return false
		}
		got := make([]byte, len(question))
		if _, err := io.ReadFull(way[1], got); err != nil {
			return false
		}
		if string(got) != question {
			r.t.Errorf("read %q, want %q", got, question)
		}
	}
	return true
}

// testRealIdle keeps a relay busy for a while, and then does not.
func testRealIdle(r *rig) {
	last := r.begin
	for time.Since(r.begin) < 3*short {
		begin := time.Now()
		if !r.asks() { // the machine had no time for us for so long
			break
		}
		last = begin
	}
	io.Copy(io.Discard, r.client)
	r.over(last.Add(short), relay.IdleTimeout)
}

// testRealStalled has bytes to carry all the time, which nobody takes.
func testRealStalled(r *rig) {
	flood(r.client).isReset(r.t)
	r.over(r.begin.Add(short), relay.IdleTimeout)
}

func testRealHalfClose(r *rig) {
	r.quiet(r.client, 2*short)
	begin := time.Now()
	closeWrite(r.t, r.client)
	r.seesReset(r.client)
	if took := time.Since(begin); took < short {
		r.t.Errorf("it ended after %v, want %v", took, short)
	}
	r.ends(relay.IdleTimeout)
	r.cannotWrite(r.upstream)
}

// testRealDuration has a relay that is never idle.
func testRealDuration(r *rig) {
	for r.asks() {
	}
	r.over(r.begin.Add(short), relay.MaxDuration)
}

// testRealBytes passes one byte less than is allowed, and then that one.
func testRealBytes(r *rig) {
	r.passes(r.client, r.upstream, string(newStream(26)[:50_000-r.ahead]))
	r.passes(r.upstream, r.client, string(newStream(27)[:49_999]))
	r.quiet(r.client, 1200*time.Millisecond)
	io.WriteString(r.client, "!")
	r.seesReset(r.client)
	r.carried(r.ends(relay.Limit), 50_001-r.ahead, 49_999)
	r.cannotWrite(r.upstream)
}

// testRealBytesUnderWay ends what would go on and on.
func testRealBytesUnderWay(r *rig) {
	client, upstream := flood(r.client), flood(r.upstream)
	go io.Copy(io.Discard, r.upstream)
	go io.Copy(io.Discard, r.client)
	client.isReset(r.t)
	upstream.isReset(r.t)
	if result := r.ends(relay.Limit); result.Received+result.Sent < 4<<20 {
		r.t.Errorf("it ended after %d and %d bytes, want %d together", result.Received, result.Sent, 4<<20)
	}
}

// testRealSet sets one limit after the other.
func testRealSet(r *rig) {
	r.passes(r.client, r.upstream, question)
	r.live.Limit(relay.Limits{Idle: time.Hour, Bytes: 1 << 40})
	r.passes(r.upstream, r.client, answer)
	r.live.Limit(relay.Limits{Idle: time.Hour, Duration: 2 * short})
	for r.asks() {
	}
	r.over(r.begin.Add(2*short), relay.MaxDuration)
}

// testRealLifted has a relay outlive its first limits, if the machine lets it.
func testRealLifted(r *rig) {
	r.live.Limit(relay.Limits{Upload: 1 << 30})
	if time.Since(r.begin) >= short {
		r.live.Cut(relay.Revoked)
		<-r.results
		return
	}
	r.quiet(r.client, 3*short)
	testClientHalfCloses(r)
}
