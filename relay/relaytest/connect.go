package relaytest

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/relay"
)

// RunConnect holds an engine to the promises of relay.Connector. It is not to be run in
// parallel with other tests: it counts goroutines and descriptors.
func RunConnect(t *testing.T, open OpenGate) {
	warm(t)
	tests := []struct {
		name string
		test func(*door)
	}{
		{"not a socket", testConnectForeign},
		{"exchange", testConnect},
		{"beneath another", testConnectBeneath},
		{"wait while others come", testWaitWhileServing},
		{"preface", testPreface},
		{"refused, then another", testRefusedThenAnother},
		{"nowhere to go", testNowhere},
		{"all refused", testAllRefused},
		{"no answer", testNoAnswer},
		{"no answer, then another", testNoAnswerThenAnother},
		{"no way there", testNoWay},
		{"cut while connecting", testCutConnecting},
		{"client gone while connecting", testGoneConnecting},
		{"client finished while connecting", testFinishedConnecting},
		{"not wanted any more", testNotWanted},
		{"cut", testConnectCut},
		{"limits", testConnectLimits},
		{"no descriptors", testConnectNoDescriptors},
		{"many", testConnectMany},
		{"much", testConnectMuch},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { atDoor(t, open, "127.0.0.1:0", tt.test) })
	}
	t.Run("IPv6", func(t *testing.T) { atDoor(t, open, "[::1]:0", testConnect) })
}

// plan is a relay.Opening: where to connect to, one after the other, and what is said.
type plan struct {
	to      []string
	within  time.Duration
	local   bool // whether to ask for it
	preface string
	limits  relay.Limits
	refuse  error // of Connected

	mu        sync.Mutex
	failures  []error
	connected netip.AddrPort
	answered  chan struct{} // closed by Connected
	results   chan relay.Result
}

func (p *plan) init() *plan {
	p.answered, p.results = make(chan struct{}), make(chan relay.Result, 2)
	if p.within == 0 {
		p.within = patience
	}
	return p
}

// Next implements relay.Opening.
func (p *plan) Next(failed error) (netip.AddrPort, time.Duration, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.failures = append(p.failures, failed)
	if len(p.failures) > len(p.to) {
		return netip.AddrPort{}, 0, false
	}
	return netip.MustParseAddrPort(p.to[len(p.failures)-1]), p.within, true
}

// NeedsLocal implements relay.Opening.
func (p *plan) NeedsLocal() bool { return p.local }

// Connected implements relay.Opening.
func (p *plan) Connected(local netip.AddrPort) (relay.Limits, []byte, error) {
	p.connected = local
	close(p.answered)
	return p.limits, []byte(p.preface), p.refuse
}

// Done implements relay.Opening.
func (p *plan) Done(r relay.Result) { p.results <- r }

// ends waits for the result, and checks it.
func (p *plan) ends(d *door, want relay.Reason) relay.Result {
	d.Helper()
	r := <-p.results
	if r.Reason != want {
		d.Errorf("result %+v, want %s", r, want)
	}
	return r
}

// failedWith checks what Next was told: first nothing, then these.
func (p *plan) failedWith(d *door, want ...error) {
	d.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.failures) != len(want)+1 || p.failures[0] != nil {
		d.Fatalf("Next was told %v, want nil and %v", p.failures, want)
	}
	for i, err := range p.failures[1:] {
		if !errors.Is(err, want[i]) {
			d.Errorf("Next was told %v, want %v", err, want[i])
		}
	}
}

// upstream listens, and yields who connects.
func (d *door) upstream() (address string, conns chan *net.TCPConn, done func()) {
	d.Helper()
	host, _, _ := net.SplitHostPort(d.address)
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		d.Fatal(err)
	}
	conns = make(chan *net.TCPConn, 10_000)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(patience))
			conns <- c.(*net.TCPConn)
		}
	}()
	return l.Addr().String(), conns, func() {
		l.Close()
		<-ended
		for len(conns) > 0 {
			(<-conns).Close()
		}
	}
}

// refusing returns an address at which nobody listens, until the end of the test: the
// caller's one of a connection. A port that is merely free could be given to anybody, and
// who connects to it from itself is answered.
func refusing(d *door) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		d.Fatal(err)
	}
	defer l.Close()
	from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)}}
	c, err := from.DialContext(d.Context(), "tcp", l.Addr().String())
	if err != nil {
		d.Fatal(err)
	}
	other, err := l.Accept()
	if err != nil {
		d.Fatal(err)
	}
	d.peers = append(d.peers, c, other)
	return c.LocalAddr().String()
}

// connect has a Socket connected.
func (d *door) connect(s relay.Socket, p *plan) relay.Live {
	d.Helper()
	live := d.engine.Connect(s, p.init())
	if live == nil {
		d.Fatal("Connect does not take a Socket")
	}
	return live
}

func testConnectForeign(d *door) {
	peer, given := tcp4.open(d.T)
	defer peer.Close()
	defer given.Close()
	p := (&plan{}).init()
	if d.engine.Connect(given, p) != nil || len(p.failures) > 0 {
		d.Error("Connect takes what is not a Socket of its engine")
	}
	client, s := d.enter()
	d.write(client, "x")
	d.reads(s, "x") // package net has it now
	if d.engine.Connect(s, p) != nil || len(p.failures) > 0 {
		d.Error("Connect takes a Socket that belongs to package net")
	}
	s.Close()
}

func testConnect(d *door) {
	to, conns, done := d.upstream()
	defer done()
	for _, await1 := range []bool{false, true} {
		client, s := d.enter()
		first := ""
		if await1 {
			first = "hello"
			d.write(client, first)
			d.tells(await(s, time.Hour, 100, 1), first, nil)
		}
		p := &plan{to: []string{to}}
		live := d.connect(s, p)
		upstream := <-conns
		d.exchange(client, upstream, p.results, first)
		if up, down := live.Bytes(); up != int64(len(first)+len(question)) || down != int64(len(answer)) {
			d.Errorf("Bytes() = %d, %d", up, down)
		}
		if p.connected.IsValid() {
			d.Errorf("the local address %v is told to one who does not need it", p.connected)
		}
		p.failedWith(d)
	}
}

// over is a relay.Transparent that notes how it ended.
type over struct {
	ahead
	ended chan string // "closed", or the reason of a reset
}

// Close implements net.Conn.
func (o *over) Close() error {
	o.ended <- "closed"
	return o.ahead.Close()
}

// Reset implements relay.Resetter.
func (o *over) Reset(reason string) error {
	o.ended <- reason
	return relay.Reset(o.Conn, relay.Reason(reason))
}

// testConnectBeneath has a Socket connected that somebody is over, who hears of the end
// before Done does.
func testConnectBeneath(d *door) {
	to, conns, done := d.upstream()
	defer done()
	for _, cut := range []bool{false, true} {
		client, s := d.enter()
		d.write(client, "hello")
		d.tells(await(s, time.Hour, 100, 1), "hello", nil)
		top := &over{ahead{s, []byte("ahead ")}, make(chan string, 2)}
		p := (&plan{to: []string{to}}).init()
		live := d.engine.Connect(top, p)
		if live == nil {
			d.Fatal("Connect does not take a Socket beneath another stream")
		}
		upstream := <-conns
		want := "closed"
		if cut {
			d.reads(upstream, "ahead hello")
			live.Cut(relay.Revoked)
			p.ends(d, relay.Revoked)
			d.readsReset(client)
			d.readsReset(upstream)
			want = string(relay.Revoked)
		} else {
			d.exchange(client, upstream, p.results, "ahead hello")
		}
		select {
		case got := <-top.ended:
			if got != want {
				d.Errorf("what is over the Socket was ended with %q, want %q", got, want)
			}
		default:
			d.Error("what is over the Socket does not hear of the end")
		}
		upstream.Close()
	}
}

// testWaitWhileServing has Wait wait for what is relayed, and not for a Listener, nor
// for who comes in there meanwhile.
func testWaitWhileServing(d *door) {
	to, conns, done := d.upstream()
	defer done()
	client, s := d.enter()
	p := &plan{to: []string{to}}
	live := d.connect(s, p)
	upstream := <-conns
	d.write(client, question)
	d.reads(upstream, question)
	_, held := d.enter()
	live.Cut(relay.Drained)
	d.engine.Wait()
	select {
	case r := <-p.results:
		if r.Reason != relay.Drained {
			d.Errorf("result %+v", r)
		}
	default:
		d.Error("Wait does not wait for the end of a relay")
	}
	upstream.Close()
	held.Close()
	client, s = d.enter()
	p = &plan{to: []string{to}}
	d.connect(s, p)
	upstream = <-conns
	d.exchange(client, upstream, p.results, "")
}

// testPreface has words sent to the upstream before those of the client, which are
// there already, and count as nobody's.
func testPreface(d *door) {
	to, conns, done := d.upstream()
	defer done()
	for _, awaited := range []bool{false, true} {
		client, s := d.enter()
		d.write(client, "hello")
		if awaited {
			d.tells(await(s, time.Hour, 100, 1), "hello", nil)
		}
		p := &plan{to: []string{to}, local: true, preface: "PROXY\r\n"}
		d.connect(s, p)
		upstream := <-conns
		d.reads(upstream, "PROXY\r\n")
		<-p.answered
		if p.connected.String() != upstream.RemoteAddr().String() {
			d.Errorf("the local address is %v, want %v", p.connected, upstream.RemoteAddr())
		}
		d.exchange(client, upstream, p.results, "hello")
	}
}

func testRefusedThenAnother(d *door) {
	to, conns, done := d.upstream()
	defer done()
	client, s := d.enter()
	p := &plan{to: []string{refusing(d), refusing(d), to}}
	d.connect(s, p)
	d.exchange(client, <-conns, p.results, "")
	p.failedWith(d, syscall.ECONNREFUSED, syscall.ECONNREFUSED)
}

func testNowhere(d *door) {
	client, s := d.enter()
	p := &plan{}
	d.connect(s, p)
	d.readsReset(client)
	if r := p.ends(d, relay.DialFailed); r.Err != nil {
		d.Errorf("error %v, want none", r.Err)
	}
}

func testAllRefused(d *door) {
	client, s := d.enter()
	p := &plan{to: []string{refusing(d)}}
	live := d.connect(s, p)
	d.readsReset(client)
	if r := p.ends(d, relay.DialFailed); !errors.Is(r.Err, syscall.ECONNREFUSED) {
		d.Errorf("error %v, want a refusal", r.Err)
	}
	live.Cut(relay.Revoked) // does nothing
	live.Limit(relay.Limits{Idle: 1})
	p.failedWith(d, syscall.ECONNREFUSED)
}

// full listens and takes nobody.
func (d *door) full() (address string, accept func() error, done func()) {
	d.Helper()
	address, accept, done, err := fullListener()
	if err != nil {
		d.Skipf("no listener can be full here: %v", err)
	}
	return address, accept, done
}

func testNoAnswer(d *door) {
	to, _, done := d.full()
	defer done()
	client, s := d.enter()
	const within = 50 * time.Millisecond
	p := &plan{to: []string{to}, within: within}
	begin := time.Now()
	d.connect(s, p)
	d.readsReset(client)
	if r := p.ends(d, relay.DialTimeout); !errors.Is(r.Err, syscall.ETIMEDOUT) {
		d.Errorf("error %v, want a time-out", r.Err)
	}
	if took := time.Since(begin); took < within {
		d.Errorf("the time was over after %v, want %v", took, within)
	}
	p.failedWith(d, syscall.ETIMEDOUT)
}

func testNoAnswerThenAnother(d *door) {
	slow, _, doneSlow := d.full()
	defer doneSlow()
	to, conns, done := d.upstream()
	defer done()
	client, s := d.enter()
	p := &plan{to: []string{slow, refusing(d), to}, within: 20 * time.Millisecond}
	d.connect(s, p)
	d.exchange(client, <-conns, p.results, "")
	p.failedWith(d, syscall.ETIMEDOUT, syscall.ECONNREFUSED)
}

// testNoWay connects to where connect(2) fails at once.
func testNoWay(d *door) {
	client, s := d.enter()
	p := &plan{to: []string{"255.255.255.255:1"}}
	d.connect(s, p)
	d.readsReset(client)
	r := p.ends(d, relay.DialFailed)
	if _, ok := errors.AsType[*net.OpError](r.Err); !ok {
		d.Errorf("error %#v, want one of net", r.Err)
	}
}

func testCutConnecting(d *door) {
	to, _, done := d.full()
	defer done()
	client, s := d.enter()
	p := &plan{to: []string{to}}
	live := d.connect(s, p)
	live.Cut(relay.Revoked)
	live.Cut(relay.Drained)
	d.readsReset(client)
	p.ends(d, relay.Revoked)
}

func testGoneConnecting(d *door) {
	to, _, done := d.full()
	defer done()
	for _, before := range []bool{false, true} {
		client, s := d.enter()
		p := &plan{to: []string{to}}
		if before {
			relay.Reset(client, relay.ClientReset)
		}
		d.connect(s, p)
		relay.Reset(client, relay.ClientReset)
		if r := p.ends(d, relay.ClientReset); !relay.IsReset(r.Err) {
			d.Errorf("error %v, want a reset", r.Err)
		}
	}
}

// testFinishedConnecting has a client that says all and finishes, and waits.
func testFinishedConnecting(d *door) {
	slow, _, doneSlow := d.full()
	defer doneSlow()
	to, conns, done := d.upstream()
	defer done()
	client, s := d.enter()
	p := &plan{to: []string{slow, to}, within: 50 * time.Millisecond}
	d.connect(s, p)
	d.write(client, question)
	client.CloseWrite()
	upstream := <-conns
	d.reads(upstream, question)
	d.readsEnd(upstream)
	d.write(upstream, answer)
	upstream.Close()
	d.reads(client, answer)
	d.readsEnd(client)
	p.ends(d, relay.ClientClosed)
}

type refusal struct{ error }

func (refusal) CloseReason() string { return string(relay.Unhealthy) }

// testNotWanted has Connected refuse.
func testNotWanted(d *door) {
	to, conns, done := d.upstream()
	defer done()
	for err, want := range map[error]relay.Reason{
		errors.New("no journal"):          relay.ProtocolError,
		refusal{errors.New("not at all")}: relay.Unhealthy,
	} {
		client, s := d.enter()
		p := &plan{to: []string{to}, refuse: err, preface: "never sent"}
		d.connect(s, p)
		upstream := <-conns
		d.readsReset(client)
		if n, err := io.Copy(io.Discard, upstream); n > 0 || !relay.IsReset(err) {
			d.Errorf("upstream reads %d bytes and %v, want a reset", n, err)
		}
		upstream.Close()
		if r := p.ends(d, want); r.Err != err {
			d.Errorf("error %v, want %v", r.Err, err)
		}
	}
}

func testConnectCut(d *door) {
	to, conns, done := d.upstream()
	defer done()
	client, s := d.enter()
	p := &plan{to: []string{to}}
	live := d.connect(s, p)
	upstream := <-conns
	defer upstream.Close()
	d.write(client, question)
	d.reads(upstream, question)
	live.Cut(relay.Revoked)
	d.readsReset(client)
	d.readsReset(upstream)
	if r := p.ends(d, relay.Revoked); r.Received != int64(len(question)) {
		d.Errorf("result %+v", r)
	}
}

func testConnectLimits(d *door) {
	to, conns, done := d.upstream()
	defer done()
	for _, tt := range []struct {
		limits relay.Limits
		want   relay.Reason
	}{
		{relay.Limits{Idle: 10 * time.Millisecond}, relay.IdleTimeout},
		{relay.Limits{Idle: time.Hour, Duration: 10 * time.Millisecond}, relay.MaxDuration},
		{relay.Limits{Bytes: 5}, relay.Limit},
	} {
		client, s := d.enter()
		p := &plan{to: []string{to}, limits: tt.limits}
		d.connect(s, p)
		upstream := <-conns
		io.WriteString(client, "hello")
		d.readsReset(client)
		d.readsReset(upstream)
		upstream.Close()
		p.ends(d, tt.want)
	}
}

// testConnectNoDescriptors has no descriptor left for an upstream.
func testConnectNoDescriptors(d *door) {
	to, conns, done := d.upstream()
	defer done()
	client, s := d.enter()
	restore, err := noDescriptors()
	if err != nil {
		d.Skipf("descriptors cannot be denied here: %v", err)
	}
	p := &plan{to: []string{to}}
	d.connect(s, p)
	r := <-p.results
	restore()
	if r.Reason != relay.DialFailed || !errors.Is(r.Err, syscall.EMFILE) {
		d.Errorf("result %+v, want EMFILE", r)
	}
	d.readsReset(client)
	if len(conns) > 0 {
		d.Error("a connection was made without a descriptor")
	}
}

// testConnectMany makes many short connections at once, of which each says something
// else.
func testConnectMany(d *door) {
	to, conns, done := d.upstream()
	defer done()
	callers, calls, nobody := 50, 60, refusing(d)
	if testing.Short() {
		calls = 10
	}
	var tasks sync.WaitGroup
	tasks.Go(func() { // upstreams echo
		for range callers * calls {
			c := <-conns
			tasks.Go(func() {
				// Bare, package net would splice, through pipes that it keeps.
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c})
				c.Close()
			})
		}
	})
	var ended atomic.Int64
	all := newStream(23)
	tasks.Go(func() {
		for i := range callers * calls {
			p := (&plan{to: []string{to}, limits: relay.Limits{Idle: time.Hour}}).init()
			if i%3 == 0 {
				p.to = []string{nobody, to}
			}
			d.engine.Connect(<-d.sockets, p)
			tasks.Go(func() {
				if r := <-p.results; r.Err != nil || r.Received != r.Sent || r.Sent < 8 {
					d.Errorf("result %+v", r)
				}
				ended.Add(1)
			})
		}
	})
	for caller := range callers {
		tasks.Go(func() {
			for call := range calls {
				c, err := net.Dial("tcp", d.address)
				if err != nil {
					d.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				k := caller*calls + call
				content, size := all[k:k+64<<10], 8+k*37%(64<<10)
				tasks.Go(func() {
					content.sendTo(c, size)
					c.(*net.TCPConn).CloseWrite()
				})
				if err := content.checkAll(c, size); err != nil {
					d.Error(err)
				}
				c.Close()
			}
		})
	}
	tasks.Wait()
	if n := ended.Load(); n != int64(callers*calls) {
		d.Errorf("%d of %d relays have ended", n, callers*calls)
	}
}

// testConnectMuch sends much both ways at once, to peers that read slowly at first.
func testConnectMuch(d *door) {
	to, conns, done := d.upstream()
	defer done()
	size := 128 << 20
	if testing.Short() {
		size = 4 << 20
	}
	client, s := d.enter()
	p := &plan{to: []string{to}}
	d.connect(s, p)
	upstream := <-conns
	var tasks sync.WaitGroup
	up, down := newStream(20), newStream(21)
	for _, way := range []struct {
		from, to *net.TCPConn
		content  stream
	}{{client, upstream, up}, {upstream, client, down}} {
		way.to.SetReadBuffer(32 << 10)
		tasks.Go(func() {
			if _, err := way.content.sendTo(way.from, size); err != nil {
				d.Error(err)
			}
			way.from.CloseWrite()
		})
		tasks.Go(func() {
			if err := way.content.checkAll(way.to, size); err != nil {
				d.Error(err)
			}
		})
	}
	tasks.Wait()
	upstream.Close()
	r := <-p.results
	if r.Err != nil || r.Received != int64(size) || r.Sent != int64(size) {
		d.Errorf("result %+v", r)
	}
}
