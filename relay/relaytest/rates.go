package relaytest

import (
	"fmt"
	"net"
	"sync"
	"testing/synctest"
	"time"

	"cardea/relay"
)

// trickle is a rate at which a relay is held back for longer than any test has
// patience, once it has delivered burst(trickle).
const trickle = 1 << 10

func trickling() relay.Limits { return relay.Limits{Upload: trickle, Download: trickle} }

// burst is how many bytes may go at once.
func burst(rate int64) int64 { return max(16<<10, rate/4) }

// way is one direction of a relay.
type way struct {
	from, to net.Conn
	rate     int64 // what it must keep to; zero is any
	content  stream
	n        int    // how many bytes of content are sent
	at       int64  // when so many have come…
	reached  func() // …this is called, if it is not nil
}

func (r *rig) up(rate int64, n int) way {
	return way{from: r.client, to: r.upstream, rate: rate, content: newStream(21), n: n}
}

func (r *rig) down(rate int64, n int) way {
	return way{from: r.upstream, to: r.client, rate: rate, content: newStream(22), n: n}
}

// takes sends over all ways at once, and checks at each read that no more has come
// than the rate allows since begin.
func (r *rig) takes(begin time.Time, ways ...way) {
	r.t.Helper()
	var tasks sync.WaitGroup
	for _, w := range ways {
		tasks.Go(func() {
			if _, err := w.content.sendTo(w.from, w.n); err != nil {
				r.t.Errorf("send: %v", err)
			}
		})
		tasks.Go(func() {
			m := &meter{Conn: w.to, way: w, begin: begin}
			if err := w.content.checkFrom(m, w.n); err != nil {
				r.t.Errorf("receive: %v", err)
			}
			if m.err != nil {
				r.t.Error(m.err)
			}
		})
	}
	tasks.Wait()
}

// finishes ends both directions, the client's first.
func (r *rig) finishes(received, sent int) {
	r.t.Helper()
	closeWrite(r.t, r.client)
	r.readsEnd(r.upstream)
	closeWrite(r.t, r.upstream)
	r.readsEnd(r.client)
	r.carried(r.ends(relay.ClientClosed), received, sent)
}

// meter is the receiving end of a way.
type meter struct {
	net.Conn
	way
	begin time.Time
	got   int64
	err   error // more came than the rate allows
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	m.got += int64(n)
	passed := time.Since(m.begin)
	if may := burst(m.rate) + int64(passed.Seconds()*float64(m.rate)) + 1; m.err == nil && m.rate > 0 && m.got > may {
		m.err = fmt.Errorf("%d bytes came in %v, want at most %d", m.got, passed, may)
	}
	if m.reached != nil && m.got >= m.at {
		m.reached()
		m.reached = nil
	}
	return n, err
}

// limitTest is a test of limits. The relay has been started with them.
type limitTest struct {
	name   string
	limits relay.Limits
	test   func(*rig)
}

// rateTests hold over every stream, whatever the time does.
func rateTests() []limitTest {
	return []limitTest{
		{"rates", relay.Limits{Upload: 256 << 10, Download: 4 << 20}, testRates},
		{"cut while held back", trickling(), testCutHeld},
		{"client resets while held back", trickling(), testClientResetsHeld},
		{"upstream resets while held back", trickling(), testUpstreamResetsHeld},
		{"rates are lifted", trickling(), testRatesLifted},
		{"rates are raised", trickling(), testRatesRaised},
		{"rates are set", relay.Limits{}, testRatesSet},
		{"one way is held back", relay.Limits{Upload: trickle}, testOneWayHeld},
		{"great rates", relay.Limits{Upload: 1 << 62, Download: 1 << 62}, testGreatRates},
	}
}

// testRates goes on for half a second. The ends come after the last bytes.
func testRates(r *rig) {
	const up, down = 192 << 10, 3 << 20
	ways := []way{r.up(256<<10, up), r.down(4<<20, down)}
	r.takes(r.begin, ways...)
	for _, w := range ways {
		least := time.Duration(float64(int64(w.n)-burst(w.rate)) / float64(w.rate) * float64(time.Second))
		if took := time.Since(r.begin); took < least {
			r.t.Errorf("%d bytes at %d a second took %v, want at least %v", w.n, w.rate, took, least)
		}
	}
	r.finishes(up, down)
}

// hold floods both ways until the relay may deliver no more.
func (r *rig) hold() (client, upstream *flooding) {
	r.t.Helper()
	client, upstream = flood(r.client), flood(r.upstream)
	zeros := make(stream, 1<<20)
	for _, c := range []net.Conn{r.client, r.upstream} {
		if err := zeros.checkFrom(c, int(burst(trickle))-r.ahead); err != nil {
			r.t.Fatal(err)
		}
	}
	return client, upstream
}

func testCutHeld(r *rig) {
	client, upstream := r.hold()
	r.live.Cut(relay.Revoked)
	client.isReset(r.t)
	upstream.isReset(r.t)
	r.ends(relay.Revoked)
}

// testClientResetsHeld resets one side while both directions are held back and have
// much to carry: the other is told before that is carried.
func testClientResetsHeld(r *rig) {
	client, upstream := r.hold()
	relay.Reset(r.client, relay.ClientReset)
	<-client.ended
	upstream.isReset(r.t)
	r.ends(relay.ClientReset)
}

func testUpstreamResetsHeld(r *rig) {
	client, upstream := r.hold()
	relay.Reset(r.upstream, relay.UpstreamReset)
	<-upstream.ended
	client.isReset(r.t)
	r.ends(relay.UpstreamReset)
}

func testRatesLifted(r *rig) { testRatesChanged(r, relay.Limits{}) }

func testRatesRaised(r *rig) {
	testRatesChanged(r, relay.Limits{Upload: 1 << 30, Download: 1 << 30})
}

// testRatesChanged has a relay that is held back go on at once.
func testRatesChanged(r *rig, after relay.Limits) {
	const n = 1 << 20
	up, down := r.up(0, n), r.down(0, n)
	for _, w := range []*way{&up, &down} {
		w.at, w.reached = burst(trickle), func() { r.live.Limit(after) }
	}
	r.takes(r.begin, up, down)
	r.finishes(n, n)
}

// testRatesSet gives rates to a relay that had none, after bulk.
func testRatesSet(r *rig) {
	const n, more = 1 << 20, 256 << 10
	r.takes(r.begin, r.up(0, n), r.down(0, n))
	begin := time.Now()
	r.live.Limit(relay.Limits{Upload: 256 << 10, Download: 512 << 10})
	r.takes(begin, r.up(256<<10, more), r.down(512<<10, more))
	r.finishes(n+more, n+more)
}

// testOneWayHeld carries at any speed against a direction that is held back.
func testOneWayHeld(r *rig) {
	sender := flood(r.client)
	const n = 4 << 20
	r.takes(r.begin, r.down(0, n))
	received, _ := r.live.Bytes()
	if may := burst(trickle) + int64(time.Since(r.begin).Seconds()*trickle) + 1; received > may {
		r.t.Errorf("%d bytes up, want at most %d", received, may)
	}
	r.live.Cut(relay.Revoked)
	<-sender.ended
	if sent := r.ends(relay.Revoked).Sent; sent != n { // the last ones are counted once they were written
		r.t.Errorf("%d bytes down, want %d", sent, n)
	}
}

func testGreatRates(r *rig) {
	const n = 4 << 20
	r.takes(r.begin, r.up(0, n), r.down(0, n))
	r.finishes(n, n)
}

// fakeRateTests ask that rates are not only kept but used, in fake time.
func fakeRateTests() []limitTest {
	return []limitTest{
		{"rates are used", relay.Limits{Upload: 64 << 10, Download: 1 << 20}, testRatesUsed},
		{"a byte a second", relay.Limits{Idle: 5 * time.Second, Upload: 1}, testByteASecond},
		{"bursts after pauses", relay.Limits{Upload: 32 << 10}, testBurstsAfterPauses},
		{"held back to the end", relay.Limits{Duration: time.Minute, Upload: trickle}, testHeldToTheEnd},
		{"rates change while bytes pass", relay.Limits{}, testRatesVary},
		{"a rate, and nobody reads", relay.Limits{Idle: time.Minute, Upload: 1 << 20}, testIdleStalled},
	}
}

// took checks how long it is since begin.
func (r *rig) took(begin time.Time, want time.Duration) {
	r.t.Helper()
	if took := time.Since(begin); took < want || took > want+tolerance {
		r.t.Errorf("it took %v, want %v to %v", took, want, want+tolerance)
	}
}

func testRatesUsed(r *rig) {
	const seconds = 100
	begin := time.Now()
	r.takes(begin, r.up(64<<10, 16<<10+seconds*64<<10), r.down(1<<20, 256<<10+seconds*1<<20))
	r.took(begin, seconds*time.Second)
	r.finishes(16<<10+seconds*64<<10, 256<<10+seconds*1<<20)
}

// testByteASecond uses up what may go at once. A relay that is held back like that is
// not idle.
func testByteASecond(r *rig) {
	const seconds = 100
	begin := time.Now()
	r.takes(begin, r.up(1, 16<<10+seconds))
	r.took(begin, seconds*time.Second)
	r.finishes(16<<10+seconds, 0)
}

// testBurstsAfterPauses sends what may go at once: a pause allows that again, and no
// more.
func testBurstsAfterPauses(r *rig) {
	const rounds = 5
	for range rounds {
		time.Sleep(time.Minute)
		begin := time.Now()
		r.takes(begin, r.up(32<<10, 16<<10))
		if took := time.Since(begin); took > 0 {
			r.t.Errorf("what may go at once took %v", took)
		}
		r.takes(begin, r.up(0, 64<<10))
		r.took(begin, 2*time.Second)
	}
	r.finishes(rounds*80<<10, 0)
}

// testHeldToTheEnd has a relay that is held back meet another limit.
func testHeldToTheEnd(r *rig) {
	begin := time.Now()
	sender := flood(r.client)
	go newStream(0).checkFrom(r.upstream, 1<<20)
	<-sender.ended
	r.cutAt(begin.Add(time.Minute), relay.MaxDuration)
}

func testRatesVary(r *rig) {
	const n = 16 << 20
	all := make(chan struct{})
	go func() {
		defer close(all)
		r.takes(time.Now(), r.up(0, n))
	}()
	r.live.Limit(relay.Limits{Upload: 1})
	for _, rate := range []int64{1 << 20, 100 << 10, 300 << 10, 1 << 10, 0, 1 << 20} {
		r.live.Limit(relay.Limits{Upload: rate})
		synctest.Wait()
		before, _ := r.live.Bytes()
		const seconds = 4
		time.Sleep(seconds * time.Second)
		synctest.Wait()
		after, _ := r.live.Bytes()
		if got := after - before; rate > 0 && after < n && (got < rate*(seconds-1) || got > rate*seconds+burst(rate)) {
			r.t.Errorf("%d bytes in %d seconds at %d a second", got, seconds, rate)
		}
	}
	<-all
	r.finishes(n, 0)
}
