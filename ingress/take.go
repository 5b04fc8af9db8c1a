package ingress

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
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
	asked    bool         // the client has asked for TLS, and was told to begin
	service  *api.Service // that is asked for, as far as it is known and is one
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
	if v.listener = r.table.Load().listener(addrPort(c.LocalAddr())); v.listener != nil && v.listener.meter != nil {
		v.service = v.listener.rows[0].service // they are all of one Object
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
	if v.service != nil {
		x.Service = v.service.Metadata.Name
	}
	v.router.refused(v.door, x)
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
func (v *visit) limit() time.Duration { return v.router.Settings().HelloTimeout.Or(helloTime) }

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

// peek reads what tells the row of a connection: the hello of TLS, or that there is
// none. It returns a CancelRequest instead if that comes.
//
// A client that says nothing is taken for one without TLS where there is a row for
// such clients: its server speaks first. Whoever begins a hello is held to it: one
// that cannot be read never makes it a client without TLS.
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
		silent, _ := v.listener.find(q, nil)
		if silent != nil {
			v.conn.SetReadDeadline(end.Add(-limit * 4 / 5))
		}
		switch err := v.more(); {
		case err == nil:
		case silent != nil && (err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded)):
			return q, nil, nil
		default:
			return q, nil, unsaid(err, "the client went away before it said anything", "the client said nothing in time")
		}
		v.conn.SetReadDeadline(end)
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
		return nil, noRoute("%s", why)
	}
	v.service = row.service
	return row, v.may(row, q)
}

// may tells whether a connection may go where its row says.
func (v *visit) may(row *row, q query) error {
	switch e := row.ending.Load(); {
	case v.asked && row.StartTLS == "":
		return noRoute("%v (%s) is not for clients that ask for TLS first, as those of PostgreSQL do", row.Owner, row.words)
	case !v.asked && q.tls && row.StartTLS != "" && !slices.Contains(q.alpn, alpnPostgres):
		return noRoute("%v (%s) is for clients of PostgreSQL: they ask for TLS first, or offer the protocol %s", row.Owner, row.words, alpnPostgres)
	case row.Refused != "":
		return denial{api.ReasonRouteRefused, fmt.Sprintf("%v: %s", row.Owner, row.Refused)}
	case row.Terminate != nil && (e == nil || e.flaw != ""):
		words := "its TLS cannot be ended"
		if e != nil {
			words = e.flaw
		}
		return denial{api.ReasonRouteRefused, fmt.Sprintf("%v: %s", row.Owner, words)}
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
	return conn, leaf, err
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
