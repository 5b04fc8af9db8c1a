// Package tunneltest is the contract of package tunnel as tests, which every road
// passes.
package tunneltest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/relay/relaytest"
	"cardea/tunnel"
)

// An Open returns the client's end of a new road that leads to a Handler. It has
// the road end in t.Cleanup, with all that it started. Every Service that is
// asked for must get there.
type Open func(t *testing.T, h tunnel.Handler) tunnel.Dialer

// Run holds a road to the contract. Where the conn of an Arrival is a
// tunnel.Teller, that includes verdicts and the reasons of resets.
func Run(t *testing.T, open Open) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, *road)
	}{
		{"arrival", arrives},
		{"bytes", carriesBytes},
		{"half-close by the client", clientHalfCloses},
		{"half-close by the house", houseHalfCloses},
		{"close delivers", closeDelivers},
		{"close stops the other's writes", closeStopsWrites},
		{"reset by the house", houseResets},
		{"reset by the client", clientResets},
		{"reset behind bytes is no end of file", resetBehindBytes},
		{"reset after half-close", resetAfterHalfClose},
		{"half-closed and gone, client", clientGone},
		{"half-closed and gone, house", houseGone},
		{"reset is waited for", waitsForReset},
		{"reset wakes its own end", resetWakes},
		{"cut under back-pressure, house blocked", cutBlockedHouse},
		{"cut under back-pressure, client blocked", cutBlockedClient},
		{"deadlines", deadlines},
		{"one after the other", sequential},
		{"side by side", parallel},
		{"dial is given up", dialGivenUp},
		{"verdict before bytes", verdictFirst},
		{"refusal", refusal},
		{"no verdict", noVerdict},
	} {
		t.Run(test.name, func(t *testing.T) {
			before := goleak.IgnoreCurrent()
			t.Cleanup(func() { goleak.VerifyNone(t, before) }) // after all other cleanups
			r := &road{arrivals: make(chan api.Arrival)}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			t.Cleanup(cancel)
			r.ctx = ctx
			r.dialer = open(t, r)
			test.run(t, r)
		})
	}
}

// road is a road under test, and the Handler at its end.
type road struct {
	ctx      context.Context
	dialer   tunnel.Dialer
	arrivals chan api.Arrival
}

// Arrive implements tunnel.Handler.
func (r *road) Arrive(a api.Arrival) {
	go func() {
		select {
		case r.arrivals <- a:
		case <-r.ctx.Done():
			a.Conn.Close()
		}
	}()
}

// Refused implements tunnel.Handler. Tests see it as an arrival that does not come.
func (r *road) Refused(api.Refusal) {}

// next returns what arrives next.
func (r *road) next(t *testing.T) api.Arrival {
	t.Helper()
	select {
	case a := <-r.arrivals:
		return a
	case <-r.ctx.Done():
		t.Fatal("nothing arrived")
		return api.Arrival{}
	}
}

// admit tells the good news.
func admit(t *testing.T, a api.Arrival) tunnel.Conn {
	t.Helper()
	if v, ok := a.Conn.(tunnel.Teller); ok {
		if err := v.Verdict(api.Verdict{Code: api.VerdictOK}); err != nil {
			t.Errorf("verdict: %v", err)
		}
	}
	c, ok := a.Conn.(tunnel.Conn)
	if !ok {
		t.Fatalf("%T is no tunnel.Conn", a.Conn)
	}
	return c
}

// pair returns both ends of a stream. The test ends the house's, this the
// client's.
func (r *road) pair(t *testing.T) (client, house tunnel.Conn) {
	t.Helper()
	conn, a := r.start(t)
	house = admit(t, a)
	t.Cleanup(func() { house.Reset("the test is over") })
	d := <-conn
	if d.err != nil {
		t.Fatalf("dial: %v", d.err)
	}
	client, ok := d.conn.(tunnel.Conn)
	if !ok {
		t.Fatalf("%T is no tunnel.Conn", d.conn)
	}
	t.Cleanup(func() { client.Reset("the test is over") })
	return client, house
}

type dialled struct {
	conn net.Conn
	err  error
}

// start dials and returns what has arrived.
func (r *road) start(t *testing.T) (<-chan dialled, api.Arrival) {
	t.Helper()
	conn := make(chan dialled, 1)
	go func() {
		c, err := r.dialer.Dial(r.ctx, "echo")
		conn <- dialled{c, err}
	}()
	return conn, r.next(t)
}

// tells tells whether the road carries verdicts.
func (r *road) tells(t *testing.T) (<-chan dialled, api.Arrival) {
	t.Helper()
	conn, a := r.start(t)
	if _, ok := a.Conn.(tunnel.Teller); !ok {
		a.Conn.Close()
		if d := <-conn; d.err == nil {
			d.conn.Close()
		}
		t.Skip("this road carries no verdicts")
	}
	return conn, a
}

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8(sha256.Sum256([]byte(fmt.Sprint(n)))).Read(b)
	return b
}

func write(t *testing.T, c net.Conn, p []byte) {
	t.Helper()
	if n, err := c.Write(p); err != nil || n != len(p) {
		t.Errorf("wrote %d of %d bytes: %v", n, len(p), err)
	}
}

// expect reads to the end of file.
func expect(t *testing.T, c net.Conn, want []byte) {
	t.Helper()
	got, err := io.ReadAll(c)
	if err != nil {
		t.Errorf("after %d bytes: %v; want the end of file", len(got), err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got %d bytes with sum %x, want %d with %x", len(got), sha256.Sum256(got), len(want), sha256.Sum256(want))
	}
}

// expectReset reads until there is an error, which must be a reset.
func expectReset(t *testing.T, c net.Conn, reason string) {
	t.Helper()
	n, err := io.Copy(io.Discard, c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after %d bytes: %v; want a reset", n, err)
	}
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil || err == io.EOF {
		t.Errorf("a second read after a reset says %d, %v", n, err)
	}
	var reset *tunnel.ResetError
	if reason != "" && (!errors.As(err, &reset) || reset.Reason != reason) {
		t.Errorf("%v; want the reason %q", err, reason)
	}
}

// reasonOf returns what a reset of this road should say.
func reasonOf(house net.Conn, reason string) string {
	if _, ok := house.(tunnel.Teller); ok {
		return reason
	}
	return ""
}

// shut says that no more comes.
func shut(t *testing.T, c tunnel.Conn) {
	t.Helper()
	if err := c.CloseWrite(); err != nil {
		t.Errorf("CloseWrite: %v", err)
	}
}

func arrives(t *testing.T, r *road) {
	conn, a := r.start(t)
	if a.Service != "echo.default" {
		t.Errorf("Service %q, want echo.default", a.Service)
	}
	if a.Evidence.Kind == "" || len(a.Evidence.Data) == 0 {
		t.Errorf("no evidence")
	}
	if a.Facts.Tunnel == "" {
		t.Errorf("Facts do not name the road")
	}
	admit(t, a).Close()
	if d := <-conn; d.err == nil {
		d.conn.Close()
	}
}

func carriesBytes(t *testing.T, r *road) {
	client, house := r.pair(t)
	up, down := noise(3<<20+17), noise(2<<20+3)
	var both sync.WaitGroup
	defer both.Wait()
	both.Go(func() { write(t, client, up); shut(t, client) })
	both.Go(func() { write(t, house, down); shut(t, house) })
	both.Go(func() { expect(t, house, up) })
	expect(t, client, down)
}

func clientHalfCloses(t *testing.T, r *road) {
	client, house := r.pair(t)
	write(t, client, []byte("question"))
	shut(t, client)
	expect(t, house, []byte("question"))
	write(t, house, []byte("a late "))
	write(t, house, []byte("answer"))
	shut(t, house)
	expect(t, client, []byte("a late answer"))
	if _, err := client.Write([]byte("x")); err == nil {
		t.Error("a write after CloseWrite succeeds")
	}
}

func houseHalfCloses(t *testing.T, r *road) {
	client, house := r.pair(t)
	write(t, house, []byte("greeting"))
	shut(t, house)
	expect(t, client, []byte("greeting"))
	write(t, client, []byte("a late answer"))
	shut(t, client)
	expect(t, house, []byte("a late answer"))
}

func closeDelivers(t *testing.T, r *road) {
	client, house := r.pair(t)
	sent := noise(1 << 20)
	go func() {
		write(t, client, sent)
		client.Close()
	}()
	expect(t, house, sent)
	if err := house.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	if _, err := house.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a read after Close says %v", err)
	}
}

func closeStopsWrites(t *testing.T, r *road) {
	client, house := r.pair(t)
	client.Close()
	_, err := house.Write(make([]byte, 64<<20))
	if !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("writing to a peer that has closed: %v", err)
	}
}

func houseResets(t *testing.T, r *road) {
	client, house := r.pair(t)
	house.Reset("REVOKED")
	expectReset(t, client, reasonOf(house, "REVOKED"))
	if _, err := io.Copy(client, bytes.NewReader(make([]byte, 1<<20))); err == nil {
		t.Error("writing goes on after a reset")
	}
	if err := house.Reset("again"); err != nil {
		t.Errorf("a second reset: %v", err)
	}
}

func clientResets(t *testing.T, r *road) {
	client, house := r.pair(t)
	client.Reset("cancelled")
	expectReset(t, house, reasonOf(house, "cancelled"))
}

func resetBehindBytes(t *testing.T, r *road) {
	client, house := r.pair(t)
	write(t, client, noise(10_000))
	client.Reset("cancelled")
	expectReset(t, house, "")
}

func resetAfterHalfClose(t *testing.T, r *road) {
	client, house := r.pair(t)
	write(t, client, []byte("question"))
	shut(t, client)
	expect(t, house, []byte("question"))
	house.Reset("UPSTREAM_RESET")
	expectReset(t, client, reasonOf(house, "UPSTREAM_RESET"))
}

func clientGone(t *testing.T, r *road) {
	client, house := r.pair(t)
	gone(t, client, house, reasonOf(house, "cancelled"))
}

func houseGone(t *testing.T, r *road) {
	client, house := r.pair(t)
	gone(t, house, client, reasonOf(house, "cancelled"))
}

// gone has one end half-close and then cut the stream, while what the other end is
// relayed to is silent: a relay must learn of it.
func gone(t *testing.T, leaver, other tunnel.Conn, reason string) {
	near, far := relaytest.Pipe()
	defer far.Close()
	engine := relaycopy.New()
	defer engine.Wait()
	results := make(chan relay.Result, 1)
	engine.Start(relay.Pair{Client: other, Upstream: near}, func(r relay.Result) { results <- r })
	write(t, leaver, []byte("question"))
	shut(t, leaver)
	expect(t, far, []byte("question"))
	leaver.Reset("cancelled")
	result := <-results
	if result.Reason != relay.ClientReset || !relay.IsReset(result.Err) {
		t.Errorf("the relay ended as %s (%v), want %s", result.Reason, result.Err, relay.ClientReset)
	}
	if reason != "" && !strings.Contains(result.Err.Error(), reason) {
		t.Errorf("the relay ended with %v, want the reason %q", result.Err, reason)
	}
	if _, err := far.Write([]byte("x")); !relay.IsReset(err) {
		t.Errorf("the silent peer writes with error %v, want a reset", err)
	}
}

// waitsForReset holds a tunnel.Watcher to its promises, at both ends.
func waitsForReset(t *testing.T, r *road) {
	for _, byClient := range []bool{true, false} {
		for _, own := range []bool{true, false} {
			leaver, other := r.pair(t)
			reason := reasonOf(other, "cancelled")
			watcher, ok := other.(tunnel.Watcher)
			if !ok {
				t.Skip("on this road the kernel tells")
			}
			if !byClient {
				leaver, other = other, leaver
				watcher = other.(tunnel.Watcher)
			}
			shut(t, leaver)
			expect(t, other, nil)
			waited := make(chan error, 1)
			go func() { waited <- watcher.WaitReset() }()
			write(t, other, []byte("a late answer"))
			if _, err := io.ReadFull(leaver, make([]byte, 13)); err != nil {
				t.Errorf("the answer while a reset is waited for: %v", err)
			}
			select {
			case err := <-waited:
				t.Fatalf("the wait ended with %v while the peer was there", err)
			default:
			}
			end := leaver
			if own {
				end = other
			}
			end.Reset("cancelled")
			if err := <-waited; !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the wait ended with %v, want a reset", err)
			}
			expectReset(t, other, reason)
		}
	}
}

func resetWakes(t *testing.T, r *road) {
	client, house := r.pair(t)
	woken := make(chan error, 1)
	go func() {
		_, err := house.Read(make([]byte, 1))
		woken <- err
	}()
	house.Reset("REVOKED")
	if err := <-woken; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a blocked read was woken with %v", err)
	}
	expectReset(t, client, "")
}

func cutBlockedHouse(t *testing.T, r *road) {
	client, house := r.pair(t)
	blocked := make(chan error, 1)
	go func() {
		_, err := house.Write(make([]byte, 64<<20)) // more than any buffer on the way
		blocked <- err
	}()
	io.ReadFull(client, make([]byte, 1<<20))
	house.Reset("REVOKED")
	if err := <-blocked; !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("a blocked write was woken with %v", err)
	}
	expectReset(t, client, "")
}

func cutBlockedClient(t *testing.T, r *road) {
	client, house := r.pair(t)
	blocked := make(chan error, 1)
	go func() {
		_, err := io.Copy(client, bytes.NewReader(make([]byte, 64<<20)))
		blocked <- err
	}()
	io.ReadFull(house, make([]byte, 1<<20))
	house.Reset("REVOKED")
	expectReset(t, client, "")
	if err := <-blocked; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("the peer's blocked write was woken with %v", err)
	}
}

func deadlines(t *testing.T, r *road) {
	client, house := r.pair(t)
	for _, c := range []net.Conn{client, house} {
		if err := c.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a read beyond its deadline: %v", err)
		}
		c.SetDeadline(time.Time{})
	}
	write(t, client, []byte("still"))
	shut(t, client)
	expect(t, house, []byte("still"))
	write(t, house, []byte("good"))
	shut(t, house)
	expect(t, client, []byte("good"))

	client, house = r.pair(t)
	house.SetWriteDeadline(time.Now().Add(time.Millisecond))
	if n, err := house.Write(make([]byte, 64<<20)); n == 64<<20 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a write beyond its deadline: %d, %v", n, err)
	}
	house.Reset("LIMIT")
	expectReset(t, client, "")
}

// echo serves n streams, all at once.
func (r *road) echo(t *testing.T, n int) *sync.WaitGroup {
	var served sync.WaitGroup
	for range n {
		served.Go(func() {
			c := admit(t, r.next(t))
			if _, err := io.Copy(c, c); err != nil {
				t.Errorf("echo: %v", err)
			}
			shut(t, c)
			c.Close()
		})
	}
	return &served
}

// ask has a message echoed.
func (r *road) ask(t *testing.T, message []byte) {
	c, err := r.dialer.Dial(r.ctx, "echo.default")
	if err != nil {
		t.Errorf("dial: %v", err)
		return
	}
	defer c.Close()
	go func() {
		write(t, c, message)
		shut(t, c.(tunnel.Conn))
	}()
	expect(t, c, message)
}

func sequential(t *testing.T, r *road) {
	const n = 50
	served := r.echo(t, n)
	for i := range n {
		r.ask(t, noise(1+i*100))
	}
	served.Wait()
}

func parallel(t *testing.T, r *road) {
	const n, each = 20, 5
	served := r.echo(t, n*each)
	var asked sync.WaitGroup
	for i := range n {
		asked.Go(func() {
			for j := range each {
				r.ask(t, noise(i*10_000+j))
			}
		})
	}
	asked.Wait()
	served.Wait()
}

func dialGivenUp(t *testing.T, r *road) {
	ctx, cancel := context.WithCancel(r.ctx)
	result := make(chan dialled, 1)
	go func() {
		c, err := r.dialer.Dial(ctx, "echo")
		result <- dialled{c, err}
	}()
	a := r.next(t)
	_, tells := a.Conn.(tunnel.Teller)
	cancel()
	d := <-result
	if tells && !errors.Is(d.err, context.Canceled) {
		t.Errorf("dial that was given up: %v", d.err)
	}
	if d.err == nil {
		d.conn.(tunnel.Conn).Reset("given up")
	}
	if n, err := a.Conn.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the house reads %d, %v; want a reset", n, err)
	}
	a.Conn.Close()
}

func verdictFirst(t *testing.T, r *road) {
	dial, a := r.tells(t)
	if _, err := a.Conn.Write([]byte("early")); err == nil {
		t.Error("a byte before the verdict was taken")
	}
	select {
	case d := <-dial:
		t.Fatalf("dial returned before the verdict: %v", d.err)
	default:
	}
	house := admit(t, a)
	if err := a.Conn.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictDenied}); err == nil {
		t.Error("a second verdict was taken")
	}
	write(t, house, []byte("in time"))
	shut(t, house)
	d := <-dial
	if d.err != nil {
		t.Fatal(d.err)
	}
	expect(t, d.conn, []byte("in time"))
	d.conn.Close()
	house.Close()
}

func refusal(t *testing.T, r *road) {
	for _, v := range []struct {
		verdict api.Verdict
		code    api.Code
	}{
		{api.Verdict{Code: api.VerdictDenied, DecisionID: "d-1", Words: "ask the owner of nats"}, api.CodePermissionDenied},
		{api.Verdict{Code: api.VerdictUnavailable, DecisionID: "d-2", Words: "try later"}, api.CodeUnavailable},
		{api.Verdict{Code: "SOMETHING_NEW"}, api.CodePermissionDenied},
	} {
		dial, a := r.tells(t)
		if err := a.Conn.(tunnel.Teller).Verdict(v.verdict); err != nil {
			t.Errorf("verdict: %v", err)
		}
		if _, err := a.Conn.Write([]byte("x")); err == nil {
			t.Error("a byte after a refusal was taken")
		}
		a.Conn.Close()
		d := <-dial
		var e *api.Error
		if !errors.As(d.err, &e) {
			t.Fatalf("dial: %v; want an *api.Error", d.err)
		}
		if e.Code != v.code || e.DecisionID != v.verdict.DecisionID || !strings.Contains(e.Message, v.verdict.Words) {
			t.Errorf("%+v for %+v", e, v.verdict)
		}
	}
	served := r.echo(t, 1) // the road is as good as before
	r.ask(t, []byte("hello"))
	served.Wait()
}

func noVerdict(t *testing.T, r *road) {
	for _, leave := range []func(net.Conn){
		func(c net.Conn) { c.Close() },
		func(c net.Conn) { c.(tunnel.Conn).Reset("DRAINED") },
	} {
		dial, a := r.tells(t)
		leave(a.Conn)
		if d := <-dial; !api.HasCode(d.err, api.CodeUnavailable) {
			t.Errorf("dial without a verdict: %v; want UNAVAILABLE", d.err)
		}
	}
}
