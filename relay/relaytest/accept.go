package relaytest

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/relay"
)

// Gate is an engine that accepts and connects by itself.
type Gate interface {
	relay.Acceptor
	relay.Connector
}

// OpenGate is Open for such an engine.
type OpenGate func(t *testing.T) Gate

// RunAccept holds an engine to the promises of relay.Acceptor, relay.Listener and
// relay.Socket. It is not to be run in parallel with other tests: it counts goroutines
// and descriptors.
func RunAccept(t *testing.T, open OpenGate) {
	warm(t)
	tests := []struct {
		name string
		test func(*door)
	}{
		{"addresses", testAddresses},
		{"bytes", testSocketBytes},
		{"close and reset", testSocketEnds},
		{"deadline", testSocketDeadline},
		{"TLS over it", testSocketTLS},
		{"many at once", testManyAtOnce},
		{"await in pieces", testAwait},
		{"await and TCP", testAwaitThenTCP},
		{"await at most", testAwaitMost},
		{"await an end", testAwaitEnd},
		{"await a reset", testAwaitReset},
		{"await too long", testAwaitTooLong},
		{"await twice", testAwaitTwice},
		{"close while awaiting", testAwaitClosed},
		{"start", testStartSocket},
		{"start after await", testStartAwaited},
		{"start with another stream", testStartMixed},
		{"close ends serve", testListenerClose},
		{"serve again", testServeAgain},
		{"retire", testRetire},
		{"retire for another", testRetireForAnother},
		{"no descriptors", testAcceptNoDescriptors},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) { atDoor(t, open, "127.0.0.1:0", tt.test) })
	}
	t.Run("IPv6", func(t *testing.T) {
		atDoor(t, open, "[::1]:0", func(d *door) { testAddresses(d); testSocketBytes(d) })
	})
	t.Run("any address", func(t *testing.T) { atDoor(t, open, ":0", testAnyAddress) })
}

// warm has the Go runtime open what it opens for the first socket.
func warm(t *testing.T) {
	a, b := tcp4.open(t)
	a.Close()
	b.Close()
}

// door is a listener of an engine that serves.
type door struct {
	*testing.T
	engine   Gate
	listener relay.Listener
	address  string
	sockets  chan relay.Socket // that came in
	troubles chan error
	wait     time.Duration // what trouble returns
	stop     context.CancelFunc
	served   chan error
	peers    []net.Conn // to be closed in the end
}

// atDoor runs body at a listener that serves, and then checks that nothing is left.
func atDoor(t *testing.T, open OpenGate, address string, body func(*door)) {
	t.Helper()
	engine := open(t)
	goroutines, descriptors := goleak.IgnoreCurrent(), openDescriptors()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skipf("cannot listen here: %v", err)
	}
	d := &door{T: t, engine: engine, address: l.Addr().String(),
		sockets: make(chan relay.Socket, 10_000), troubles: make(chan error, 10_000), wait: time.Millisecond}
	if d.listener, err = engine.Listen(l.(*net.TCPListener)); err != nil {
		t.Fatal(err)
	}
	if got := d.listener.Addr().String(); got != d.address {
		t.Errorf("Addr() = %s, want %s", got, d.address)
	}
	d.serve()
	body(d)
	d.stop()
	if err := <-d.served; err != nil {
		t.Errorf("Serve: %v", err)
	}
	d.listener.Close()
	engine.Wait()
	for _, p := range d.peers {
		p.Close()
	}
	if n := openDescriptors(); n != descriptors {
		t.Errorf("%d descriptors are open after the end, %d before the start", n, descriptors)
	}
	if err := goleak.Find(goroutines); err != nil {
		t.Errorf("after the end: %v", err)
	}
}

func (d *door) serve() {
	ctx, stop := context.WithCancel(d.Context())
	d.stop = stop
	d.served = make(chan error, 1)
	served := d.served
	go func() {
		served <- d.listener.Serve(ctx, func(c net.Conn) { d.sockets <- c.(relay.Socket) }, func(err error) time.Duration {
			d.troubles <- err
			return d.wait
		})
	}()
}

// dial makes a connection.
func (d *door) dial() *net.TCPConn {
	d.Helper()
	c, err := net.Dial("tcp", d.address)
	if err != nil {
		d.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(patience))
	d.peers = append(d.peers, c)
	return c.(*net.TCPConn)
}

// enter makes a connection and returns its two ends.
func (d *door) enter() (peer *net.TCPConn, s relay.Socket) {
	d.Helper()
	peer = d.dial()
	return peer, <-d.sockets
}

func (d *door) write(c net.Conn, s string) {
	d.Helper()
	if _, err := io.WriteString(c, s); err != nil {
		d.Fatalf("write of %q: %v", s, err)
	}
}

func (d *door) reads(c net.Conn, want string) {
	d.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(c, got); err != nil || string(got) != want {
		d.Fatalf("read %.40q with error %v, want %.40q", got[:n], err, want)
	}
}

func (d *door) readsEnd(c net.Conn) {
	d.Helper()
	if rest, err := io.ReadAll(c); err != nil || len(rest) > 0 {
		d.Fatalf("read %.40q and error %v, want the end of file", rest, err)
	}
}

func (d *door) readsReset(c net.Conn) {
	d.Helper()
	if _, err := io.Copy(io.Discard, c); !relay.IsReset(err) {
		d.Errorf("read error %v, want a reset", err)
	}
}

func testAddresses(d *door) {
	peer, s := d.enter()
	defer s.Close()
	local, remote := s.AddrPorts()
	if local.String() != peer.RemoteAddr().String() || remote.String() != peer.LocalAddr().String() {
		d.Errorf("AddrPorts() = %v, %v; want %v, %v", local, remote, peer.RemoteAddr(), peer.LocalAddr())
	}
	if s.LocalAddr().String() != local.String() || s.RemoteAddr().String() != remote.String() {
		d.Errorf("addresses %v, %v; want %v, %v", s.LocalAddr(), s.RemoteAddr(), local, remote)
	}
}

// testAnyAddress listens on all addresses of both families: each connection has its own.
func testAnyAddress(d *door) {
	_, port, _ := net.SplitHostPort(d.address)
	for _, to := range []string{"127.0.0.1", "127.0.0.2", "::1"} {
		peer, err := net.Dial("tcp", net.JoinHostPort(to, port))
		if err != nil {
			d.Logf("no %s here: %v", to, err)
			continue
		}
		s := <-d.sockets
		local, remote := s.AddrPorts()
		if local.Addr() != netip.MustParseAddr(to) || remote.String() != peer.LocalAddr().String() {
			d.Errorf("AddrPorts() = %v, %v; want %v, %v", local, remote, to, peer.LocalAddr())
		}
		peer.Close()
		s.Close()
	}
}

func testSocketBytes(d *door) {
	peer, s := d.enter()
	d.write(peer, "to the socket")
	d.reads(s, "to the socket")
	d.write(s, "from the socket")
	d.reads(peer, "from the socket")
	closeWrite(d.T, s)
	d.readsEnd(peer)
	d.write(peer, "more")
	peer.Close()
	d.reads(s, "more")
	d.readsEnd(s)
	if err := s.Close(); err != nil {
		d.Error(err)
	}
}

func testSocketEnds(d *door) {
	for _, used := range []bool{false, true} {
		ready := func() (*net.TCPConn, relay.Socket) {
			peer, s := d.enter()
			if used {
				d.write(s, "x")
				d.reads(peer, "x")
			}
			return peer, s
		}
		peer, s := ready()
		s.Close()
		d.readsEnd(peer)
		peer, s = ready()
		relay.Reset(s, relay.Revoked)
		d.readsReset(peer)
		relay.Reset(s, relay.Revoked) // does no harm
		s.Close()
	}
}

func testSocketDeadline(d *door) {
	_, s := d.enter()
	defer s.Close()
	s.SetReadDeadline(time.Unix(1, 0))
	if _, err := s.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		d.Errorf("read error %v, want the deadline's", err)
	}
}

func testSocketTLS(d *door) {
	peer, s := d.enter()
	server := tls.Server(s, &tls.Config{Certificates: []tls.Certificate{certificate(d.T)}})
	client := tls.Client(peer, &tls.Config{InsecureSkipVerify: true}) // a test of bytes, not of names
	go func() {
		io.WriteString(client, "hello")
		client.CloseWrite()
	}()
	d.reads(server, "hello")
	d.readsEnd(server)
	server.Close()
}

func testManyAtOnce(d *door) {
	const callers, calls = 64, 25
	var tasks sync.WaitGroup
	for range callers {
		tasks.Go(func() {
			for range calls {
				c, err := net.Dial("tcp", d.address)
				if err != nil {
					d.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				if b, err := io.ReadAll(c); err != nil || string(b) != "welcome" {
					d.Errorf("read %q, %v", b, err)
				}
				c.Close()
			}
		})
	}
	for range callers * calls {
		s := <-d.sockets
		tasks.Go(func() {
			io.WriteString(s, "welcome")
			s.Close()
		})
	}
	tasks.Wait()
}

// awaited is one call of what Await was given.
type awaited struct {
	read string
	err  error
}

// await returns what Await tells, until it was told so often or of an error.
func await(s relay.Socket, within time.Duration, most, times int) chan awaited {
	told := make(chan awaited, 100)
	s.Await(within, most, func(read []byte, err error) bool {
		told <- awaited{string(read), err}
		times--
		return times > 0
	})
	return told
}

func (d *door) tells(told chan awaited, read string, err error) {
	d.Helper()
	if got := <-told; got.read != read || !errors.Is(got.err, err) {
		d.Fatalf("Await tells %q, %v; want %q, %v", got.read, got.err, read, err)
	}
}

func testAwait(d *door) {
	peer, s := d.enter()
	told := await(s, time.Hour, 100, 3)
	for _, all := range []string{"h", "hel", "hello"} {
		d.write(peer, all[len(all)-min(len(all), 2):])
		d.tells(told, all, nil)
	}
	s.Discard(1)
	d.reads(s, "ello")
	d.write(peer, ", world")
	d.reads(s, ", world")
	s.Close()
}

func testAwaitThenTCP(d *door) {
	peer, s := d.enter()
	d.write(peer, "hello")
	d.tells(await(s, time.Hour, 100, 1), "hello", nil)
	s.Discard(2)
	d.write(peer, ", world")
	tcp, read, err := s.TCP()
	if err != nil || string(read) != "llo" {
		d.Fatalf("TCP: %q, %v", read, err)
	}
	d.reads(tcp, ", world")
	d.write(tcp, "answer")
	d.reads(peer, "answer")
	tcp.Close()
	d.readsEnd(peer)
	if _, _, err := s.TCP(); err != nil && !errors.Is(err, net.ErrClosed) {
		d.Error(err)
	}
}

func testAwaitMost(d *door) {
	peer, s := d.enter()
	told := await(s, time.Hour, 5, 100)
	d.write(peer, "hello, world")
	for got := ""; len(got) < 5; {
		x := <-told
		if got = x.read; got != "hello"[:len(got)] || x.err != nil {
			d.Fatalf("Await tells %q, %v", got, x.err)
		}
	}
	d.tells(await(s, time.Millisecond, 5, 1), "hello", nil)
	d.reads(s, "hello, world")
	s.Close()
}

func testAwaitEnd(d *door) {
	peer, s := d.enter()
	d.write(peer, "all")
	peer.CloseWrite()
	told := await(s, time.Hour, 100, 100)
	d.tells(told, "all", nil)
	d.tells(told, "all", io.EOF)
	d.reads(s, "all")
	d.readsEnd(s)
	s.Close()
}

func testAwaitReset(d *door) {
	peer, s := d.enter()
	told := await(s, time.Hour, 100, 100)
	relay.Reset(peer, relay.ClientReset)
	if x := <-told; x.read != "" || !relay.IsReset(x.err) {
		d.Errorf("Await tells %q, %v, want a reset", x.read, x.err)
	}
	s.Close()
}

func testAwaitTooLong(d *door) {
	peer, s := d.enter()
	d.write(peer, "hel")
	const within = 20 * time.Millisecond
	begin := time.Now()
	told := await(s, within, 100, 100)
	d.tells(told, "hel", nil)
	d.tells(told, "hel", os.ErrDeadlineExceeded)
	if took := time.Since(begin); took < within {
		d.Errorf("the deadline came after %v, want %v", took, within)
	}
	s.Close()
	d.readsEnd(peer)
}

// testAwaitTwice looks for one thing and then, in what was read with it, for another.
func testAwaitTwice(d *door) {
	peer, s := d.enter()
	told := make(chan awaited, 10)
	s.Await(time.Hour, 100, func(read []byte, err error) bool {
		s.Discard(6)
		s.Await(time.Hour, 100, func(read []byte, err error) bool {
			told <- awaited{string(read), err}
			return len(read) < 5
		})
		return false
	})
	d.write(peer, "PROXY hel")
	d.tells(told, "hel", nil)
	d.write(peer, "lo")
	d.tells(told, "hello", nil)
	s.Close()
}

func testAwaitClosed(d *door) {
	peer, s := d.enter()
	told := await(s, time.Hour, 100, 100)
	s.Close()
	d.tells(told, "", net.ErrClosed)
	d.readsEnd(peer)
}

// start relays a Socket to a new upstream, and returns that.
func (d *door) start(s net.Conn, l link) (upstream net.Conn, results chan relay.Result) {
	upstream, given := l.open(d.T)
	upstream.SetDeadline(time.Now().Add(patience))
	d.peers = append(d.peers, upstream)
	results = make(chan relay.Result, 2)
	d.engine.Start(relay.Pair{Client: s, Upstream: given}, func(r relay.Result) { results <- r })
	return upstream, results
}

// exchange plays both peers of a relay, and checks its result.
func (d *door) exchange(client, upstream net.Conn, results chan relay.Result, ahead string) {
	d.Helper()
	d.reads(upstream, ahead)
	d.write(client, question)
	d.reads(upstream, question)
	d.write(upstream, answer)
	d.reads(client, answer)
	closeWrite(d.T, client)
	d.readsEnd(upstream)
	upstream.Close()
	d.readsEnd(client)
	r := <-results
	if r.Reason != relay.ClientClosed || r.Err != nil || r.Received != int64(len(ahead)+len(question)) || r.Sent != int64(len(answer)) {
		d.Errorf("result %+v", r)
	}
}

func testStartSocket(d *door) {
	for _, used := range []bool{false, true} {
		client, s := d.enter()
		if used {
			s.SetDeadline(time.Unix(1, 0))
		}
		upstream, results := d.start(s, tcp4)
		s.Close() // is too late to do anything
		d.exchange(client, upstream, results, "")
	}
}

func testStartAwaited(d *door) {
	client, s := d.enter()
	d.write(client, "hello")
	d.tells(await(s, time.Hour, 100, 1), "hello", nil)
	s.Discard(1)
	upstream, results := d.start(&ahead{s, []byte("ahead ")}, tcp4)
	d.exchange(client, upstream, results, "ahead ello")
}

func testStartMixed(d *door) {
	for _, l := range []link{secured, pipe} {
		client, s := d.enter()
		d.write(client, "hello")
		d.tells(await(s, time.Hour, 100, 1), "hello", nil)
		upstream, results := d.start(s, l)
		d.exchange(client, upstream, results, "hello")
	}
	// A Socket is an upstream as well.
	client, s := d.enter()
	d.write(client, "hello")
	d.tells(await(s, time.Hour, 100, 1), "hello", nil)
	peer, given := tcp4.open(d.T)
	results := make(chan relay.Result, 2)
	d.engine.Start(relay.Pair{Client: given, Upstream: s}, func(r relay.Result) { results <- r })
	d.reads(peer, "hello")
	relay.Reset(client, relay.ClientReset)
	d.readsReset(peer)
	peer.Close()
	if r := <-results; r.Reason != relay.UpstreamReset {
		d.Errorf("result %+v", r)
	}
}

func testListenerClose(d *door) {
	d.listener.Close()
	if err := <-d.served; err != nil {
		d.Errorf("Serve: %v", err)
	}
	d.served <- nil
	if c, err := net.Dial("tcp", d.address); err == nil {
		c.Close()
		d.Error("a connection was made to a listener that is closed")
	}
	raw, err := d.listener.SyscallConn()
	if err == nil {
		err = raw.Control(func(uintptr) { d.Error("the descriptor is given out after Close") })
	}
	if err == nil {
		d.Error("no error from the descriptor of a listener that is closed")
	}
}

func testServeAgain(d *door) {
	d.stop()
	if err := <-d.served; err != nil {
		d.Errorf("Serve: %v", err)
	}
	peer := d.dial() // waits in the queue
	d.serve()
	(<-d.sockets).Close()
	d.readsEnd(peer)
}

func testRetire(d *door) {
	d.stop()
	<-d.served
	const waiting = 100
	var peers []net.Conn
	for range waiting {
		peers = append(peers, d.dial())
	}
	d.listener.Retire()
	d.serve()
	if err := <-d.served; err != nil {
		d.Errorf("Serve: %v", err)
	}
	d.served <- nil
	for range waiting {
		(<-d.sockets).Close()
	}
	for _, p := range peers {
		d.readsEnd(p)
	}
}

// testRetireForAnother has another listener of the same socket take over under load.
func testRetireForAnother(d *door) {
	raw, err := d.listener.SyscallConn()
	if err != nil {
		d.Fatal(err)
	}
	var twin net.Listener
	raw.Control(func(fd uintptr) { twin, err = duplicate(fd) })
	if err != nil {
		d.Skipf("no listener can be had twice here: %v", err)
	}
	stop := make(chan struct{})
	var callers, tasks sync.WaitGroup
	var made atomic.Int64
	for range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				c, err := net.Dial("tcp", d.address)
				if err != nil {
					d.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(patience))
				if _, err := io.ReadAll(c); err != nil {
					d.Error(err)
				}
				c.Close()
				made.Add(1)
			}
		})
	}
	tasks.Go(func() {
		for {
			c, err := twin.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	})
	for range 100 {
		(<-d.sockets).Close()
	}
	d.listener.Retire()
	if err := <-d.served; err != nil {
		d.Errorf("Serve: %v", err)
	}
	d.served <- nil
	d.listener.Close()
	for len(d.sockets) > 0 {
		(<-d.sockets).Close()
	}
	for before := made.Load(); made.Load() < before+100; {
		d.readsEnd(d.dial())
	}
	close(stop)
	callers.Wait()
	twin.Close()
	tasks.Wait()
}

// testAcceptNoDescriptors has a connection wait until there are descriptors.
func testAcceptNoDescriptors(d *door) {
	_, other := d.enter() // so that the engine is never at rest
	defer other.Close()
	d.stop()
	<-d.served
	peer := d.dial()
	restore, err := noDescriptors()
	if err != nil {
		d.Skipf("descriptors cannot be denied here: %v", err)
	}
	d.serve()
	err = <-d.troubles
	restore()
	if !errors.Is(err, syscall.EMFILE) {
		d.Errorf("trouble is told of %v, want EMFILE", err)
	}
	(<-d.sockets).Close()
	d.readsEnd(peer)
}
