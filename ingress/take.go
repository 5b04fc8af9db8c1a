package ingress

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"cardea/api"
	"cardea/wire/hello"
	"cardea/wire/pgstart"
)

// helloTime is ClusterRouting.HelloTimeout if it is left out.
const helloTime = 5 * time.Second

// alpnPostgres is what clients of PostgreSQL offer that begin with TLS at once.
const alpnPostgres = "postgresql"

// A visit is a connection on its way from the accept to its row.
type visit struct {
	router   *Router
	door     *door
	listener *listener
	conn     *net.TCPConn
	facts    api.Facts
	peer     netip.AddrPort // at the other end of conn
	from     netip.AddrPort // the client proper; not valid if a proxy does not tell
	read     []byte         // of conn, and nobody's yet
	hello    *hello.Hello
	asked    bool // the client has asked for TLS, and was told to begin
	found    *row // nil while it is not known
	nearest  *row // of the Object that the connection is to, if that is known before
}

// A denial is why a connection comes to nothing, in words for the log.
type denial struct {
	reason api.ReasonType
	words  string
}

// Error implements error.
func (d denial) Error() string { return d.words }

// Reason returns what a Refusal says.
func (d denial) Reason() api.ReasonType { return d.reason }

func noRoute(format string, args ...any) error {
	return denial{api.ReasonNoRoute, fmt.Sprintf(format, args...)}
}

func handshake(format string, args ...any) error {
	return denial{api.ReasonHandshake, fmt.Sprintf(format, args...)}
}

// take begins a visit, and returns at once. Where nothing has to be read it is over
// then.
func (r *Router) take(ctx context.Context, d *door, c net.Conn) {
	d.accepted.Add(1)
	v := &visit{router: r, door: d, conn: c.(*net.TCPConn), facts: facts(c), peer: addrPort(c.RemoteAddr())}
	v.facts.Tunnel = TunnelPublic
	v.from = v.peer
	if v.listener = r.table.Load().listener(addrPort(c.LocalAddr())); v.listener != nil {
		v.nearest = v.listener.sole
	}
	switch err := v.enter(); {
	case err != nil:
		v.refuse(err)
	case v.listener.bare() && !v.listener.proxied:
		if err := v.bare(); err != nil {
			v.refuse(err)
		}
	default:
		r.serving.Go(func() {
			if err := v.run(ctx); err != nil {
				v.refuse(err)
			}
		})
	}
}

// refuse ends a visit: nothing of the connection is left in the kernel.
func (v *visit) refuse(err error) {
	abort(v.conn)
	x := refusal(v.facts, err)
	v.locate(&x)
	v.router.refused(v.door, x)
}

// locate says in a refusal where the connection came in and what it was to, as far as
// that is known: before its row is, of a listener, or a server name, that is one
// Object's alone.
func (v *visit) locate(x *api.Refusal) {
	if v.listener == nil {
		return
	}
	x.Route = &api.LogRoute{Listener: v.listener.bind.String()}
	row := v.nearest
	if v.found != nil {
		row = v.found
		x.Route.Match = row.words
	}
	if row == nil {
		return
	}
	x.Object, x.Anonymous = row.Owner.Ref(), row.service == nil || row.service.Spec.IsAnonymous
}

// enter checks what can be checked before anything is read.
func (v *visit) enter() error {
	if v.listener == nil {
		return noRoute("nothing is served at this address any more")
	}
	if err := v.router.Admission.admit(); err != nil {
		return err
	}
	if v.listener.proxied {
		return nil // it is not known yet who comes
	}
	return v.listener.meter.admit(v.from.Addr())
}

// bare hands a connection on of which nothing has to be read.
func (v *visit) bare() error {
	row, err := v.row(query{from: v.from.Addr()})
	if err == nil {
		v.arrive(row, v.stream(), nil)
	}
	return err
}

// run finds out what has to be read, and hands the connection on. When ctx is done it
// ends.
func (v *visit) run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { v.conn.Close() })
	err := v.sort(ctx, stop)
	if !stop() && ctx.Err() != nil && err != nil {
		return errStopping
	}
	return err
}

// sort is run; stop is to be called before the connection is given away, and reports
// false if it was closed.
func (v *visit) sort(ctx context.Context, stop func() bool) error {
	if v.listener.proxied {
		if err := v.place(ctx, func(func() error) (bool, error) { return false, v.readHeader() }); err != nil {
			return err
		}
		if err := v.listener.meter.admit(v.client().Addr()); err != nil {
			return err
		}
	}
	if v.listener.bare() {
		if !stop() {
			return errStopping
		}
		return v.bare()
	}
	if row, _ := v.listener.find(query{from: v.from.Addr()}, nil); row != nil && len(v.read) == 0 {
		switch speaks, err := v.listen(); {
		case err != nil:
			return err
		case !speaks && !stop():
			return errStopping
		case !speaks:
			v.arrive(row, v.stream(), nil)
			return nil
		}
	}
	var row *row
	var conn net.Conn
	var leaf *x509.Certificate
	var cancel *pgstart.Packet
	err := v.place(ctx, func(heard func() error) (proved bool, err error) {
		var q query
		if q, cancel, err = v.peek(); err != nil {
			return false, err
		}
		if err = heard(); err != nil || cancel != nil {
			return false, err
		}
		if row, err = v.row(q); err != nil {
			return false, err
		}
		conn, leaf, err = v.end(ctx, row)
		return leaf != nil && row.Terminate.Sessions, err
	})
	if err == nil && !stop() {
		err = errStopping
	}
	switch {
	case err != nil:
		if conn != nil {
			conn.Close()
		}
	case cancel != nil:
		return v.cancel(cancel)
	default:
		v.arrive(row, conn, leaf)
	}
	return err
}

// client returns the address that is taken for the client's where one is needed.
func (v *visit) client() netip.AddrPort {
	if v.from.IsValid() {
		return v.from
	}
	return v.peer
}

// place does something while a place of Admission is held.
func (v *visit) place(ctx context.Context, do func(heard func() error) (proved bool, err error)) error {
	heard, leave, err := v.router.Admission.Enter(ctx, visitor{v.conn, v.client()})
	if err != nil {
		return err
	}
	proved, err := do(heard)
	if e := leave(proved); e != nil {
		return e
	}
	return err
}

// limit is the time for a hello, and for a PROXY header.
func (v *visit) limit() time.Duration { return v.router.helloTimeout() }

func (r *Router) helloTimeout() time.Duration { return r.Settings().HelloTimeout.Or(helloTime) }

// silent returns the part of the time for a hello after which a client that says
// nothing is taken for one whose server speaks first.
func silent(limit time.Duration) time.Duration { return limit / 5 }

// more reads what comes next.
func (v *visit) more() error {
	const least, most = 2 << 10, 32 << 10
	if len(v.read) == cap(v.read) {
		v.read = slices.Grow(v.read, min(max(len(v.read), least), most))
	}
	n, err := v.conn.Read(v.read[len(v.read):cap(v.read)])
	v.read = v.read[:len(v.read)+n]
	switch {
	case n > 0:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case err == io.EOF:
		return err
	}
	return handshake("the client went away: %v", err)
}

// listen waits for the first bytes of a client where there is a row for clients
// without TLS, and reports whether there are any. Who says nothing is taken for one of
// those: its server speaks first. That takes no place of Admission, as many such
// clients may wait as there may be connections: one after the other is let in, and
// strangers who are silent on purpose gain no more by it.
func (v *visit) listen() (speaks bool, err error) {
	if err := v.conn.SetReadDeadline(time.Now().Add(silent(v.limit()))); err != nil {
		return false, err
	}
	err = v.more()
	if speaks = err == nil; !speaks && err != io.EOF && !errors.Is(err, os.ErrDeadlineExceeded) {
		return false, err
	}
	return speaks, v.conn.SetReadDeadline(time.Time{})
}

// peek reads what tells the row of a connection: the hello of TLS, or that there is
// none. It returns a CancelRequest instead if that comes.
//
// Whoever begins a hello is held to it: one that cannot be read never makes it a
// client without TLS.
func (v *visit) peek() (q query, cancel *pgstart.Packet, err error) {
	q.from = v.from.Addr()
	limit := v.limit()
	end := time.Now().Add(limit)
	if err := v.conn.SetDeadline(end); err != nil {
		return q, nil, err
	}
	defer func() {
		if err == nil {
			err = v.conn.SetDeadline(time.Time{})
		}
	}()
	if len(v.read) == 0 {
		if err := v.more(); err != nil {
			return q, nil, unsaid(err, "the client went away before it said anything", "the client said nothing in time")
		}
	}
	if v.listener.asks {
		if plain, cancel, err := v.postgres(); err != nil || plain || cancel != nil {
			return q, cancel, err
		}
	}
	err = v.readHello(&q)
	return q, nil, err
}

// unsaid says what the end of a connection, or of the time, means.
func unsaid(err error, gone, late string) error {
	switch {
	case err == io.EOF:
		return handshake("%s", gone)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return handshake("%s", late)
	}
	return err
}

// readHello reads the hello of TLS into q; what is not TLS leaves q as it is.
func (v *visit) readHello(q *query) error {
	var p hello.Parser
	fed := 0
	for {
		state, err := p.Feed(v.read[fed:])
		fed = len(v.read)
		switch state {
		case hello.NotTLS:
			if v.asked {
				return handshake("the client asked for TLS, and then did not speak it")
			}
			return nil
		case hello.Done:
			h := p.Hello()
			v.hello = &h
			v.facts.TLS = &api.TLSFacts{SNI: h.SNI}
			if len(h.ALPN) > 0 {
				v.facts.TLS.ALPN = h.ALPN[0]
			}
			q.tls, q.sni, q.alpn = true, api.FoldName(h.SNI), h.ALPN
			return nil
		case hello.NeedMore:
			if err := v.more(); err != nil {
				return unsaid(err, "the client went away within its hello", "the hello was not complete in time")
			}
		default:
			return handshake("%v", err)
		}
	}
}

// postgres answers a client of PostgreSQL until TLS begins, or tells that it does not
// (or that the client is none), or that this is a CancelRequest.
func (v *visit) postgres() (plain bool, cancel *pgstart.Packet, err error) {
	asked := map[pgstart.Kind]bool{}
	for {
		p, err := pgstart.Parse(v.read)
		switch {
		case errors.Is(err, pgstart.ErrNotPostgres):
			return true, nil, nil
		case err != nil:
			return false, nil, handshake("%v", err)
		}
		switch p.Kind {
		case pgstart.Incomplete:
			if err := v.more(); err != nil {
				return false, nil, unsaid(err, "the client went away within its first packet", "the first packet was not complete in time")
			}
		case pgstart.TLS:
			return false, nil, nil
		case pgstart.CancelRequest:
			return false, &p, nil
		case pgstart.Startup:
			return true, nil, nil
		default:
			if asked[p.Kind] {
				return false, nil, handshake("a second %v", p.Kind)
			}
			asked[p.Kind] = true
			if len(v.read) > p.Len {
				// Whatever it is, it was sent before the client knew the answer.
				return false, nil, handshake("bytes behind %v, before its answer", p.Kind)
			}
			answer := byte(pgstart.No)
			if v.asked = p.Kind == pgstart.SSLRequest; v.asked {
				answer = pgstart.Yes
			}
			v.read = v.read[:0]
			if _, err := v.conn.Write([]byte{answer}); err != nil {
				return false, nil, handshake("the client went away: %v", err)
			}
			if v.asked {
				return false, nil, nil
			}
		}
	}
}

// row finds the row of a connection, and sees that it may go there.
func (v *visit) row(q query) (*row, error) {
	row, why := v.listener.find(q, nil)
	if row == nil {
		if b, _ := v.listener.best(q); b != nil {
			v.nearest = sole(b.rows)
		}
		return nil, noRoute("%s", why)
	}
	v.found = row
	return row, v.may(row, q)
}

// may tells whether a connection may go where its row says.
func (v *visit) may(row *row, q query) error {
	switch {
	case v.asked && row.StartTLS == "":
		return noRoute("%v (%s) is not for clients that ask for TLS first, as those of PostgreSQL do", row.Owner, row.words)
	case !v.asked && q.tls && row.StartTLS != "" && !slices.Contains(q.alpn, alpnPostgres):
		return noRoute("%v (%s) is for clients of PostgreSQL: they ask for TLS first, or offer the protocol %s", row.Owner, row.words, alpnPostgres)
	case row.lacks() != "":
		return denial{api.ReasonRouteRefused, fmt.Sprintf("%v: %s", row.Owner, row.lacks())}
	case v.listener.meter == nil: // else it was asked
		return row.meter.admit(v.client().Addr())
	}
	return nil
}

// end ends the TLS of a connection where its row says so.
func (v *visit) end(ctx context.Context, row *row) (net.Conn, *x509.Certificate, error) {
	if row.Terminate == nil {
		return v.stream(), nil, nil
	}
	config, err := row.ending.Load().config(time.Now())
	if err != nil {
		return nil, nil, denial{api.ReasonRouteRefused, fmt.Sprintf("%v: %v", row.Owner, err)}
	}
	conn, facts, leaf, err := v.router.Terminate(ctx, v.stream(), config)
	if facts != nil {
		v.facts.TLS = facts
	}
	if err != nil {
		return nil, nil, v.explain(err)
	}
	return conn, leaf, nil
}

// explain says of a handshake that failed what crypto/tls says in words that do not
// tell whose certificate is meant, or in numbers.
func (v *visit) explain(err error) error {
	words := err.Error()
	rest, unverified := strings.CutPrefix(words, "failed to verify certificate: ")
	alert, ended := strings.CutPrefix(words, "the client ended the handshake: ")
	switch {
	case unverified:
		words = "the client's certificate does not verify: " + strings.TrimPrefix(rest, "x509: ")
	case words == "client didn't provide a certificate":
		words = "the client shows no certificate"
	case strings.HasPrefix(words, "client offered only unsupported versions") && v.hello != nil:
		words = "the client offers only " + versions(v.hello.Versions)
	case ended:
		words = "the client hung up during the handshake: " + strings.TrimPrefix(alert, "tls: ")
	case words == "local error: tls: bad record MAC":
		// So looks the alert of a client of TLS 1.3 that had no keys for it yet.
		words = "the client hung up during the handshake"
	default:
		return err
	}
	return denial{refusal(v.facts, err).Reason, words}
}

// versions says which versions of TLS a list has; there are others in it that nobody
// means (RFC 8701).
func versions(list []uint16) string {
	var known []uint16
	for _, x := range list {
		if x >= tls.VersionTLS10 && x <= tls.VersionTLS13 {
			known = append(known, x)
		}
	}
	if len(known) == 0 {
		return "versions that are not TLS 1.0 to 1.3"
	}
	words := tls.VersionName(slices.Min(known))
	if most := slices.Max(known); most > slices.Min(known) {
		words += " to " + strings.TrimPrefix(tls.VersionName(most), "TLS ")
	}
	return words
}

// stream returns the connection with what was read of it.
func (v *visit) stream() net.Conn {
	if len(v.read) == 0 && v.hello == nil {
		return v.conn
	}
	p := &peeked{Conn: v.conn, tcp: v.conn, unread: v.read, hello: v.hello}
	v.read = nil
	return p
}

// arrive hands a connection over, to the member of its row whose turn it is.
func (v *visit) arrive(row *row, conn net.Conn, leaf *x509.Certificate) {
	a := api.Arrival{Conn: conn, Route: row.routed[row.turns.take()], Evidence: api.Evidence{Kind: api.EvidenceAnonymous}, Facts: v.facts}
	if row.service != nil {
		a.Service = row.service.Metadata.Name
	}
	if leaf != nil && row.Terminate.Sessions {
		a.Evidence = api.Evidence{Kind: api.EvidenceCertificate, Data: leaf.Raw}
	}
	v.router.Handle(a)
}
