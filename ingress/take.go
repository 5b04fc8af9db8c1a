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
	"cardea/relay"
	"cardea/wire/hello"
	"cardea/wire/pgstart"
)

// helloTime is ClusterRouting.HelloTimeout if it is left out.
const helloTime = 5 * time.Second

// alpnPostgres is what clients of PostgreSQL offer that begin with TLS at once.
const alpnPostgres = "postgresql"

// A visit is a connection on its way from the accept to its row. What has to be read
// of it comes in stages. Who waits for it tells the visit what was read (hear), or why
// there is no more (lost): a goroutine (see run), or the loop that accepted the
// connection (see pending).
type visit struct {
	router   *Router
	door     *door
	listener *listener
	raw      relay.Socket // nil if package net has the connection
	conn     *net.TCPConn // nil if it has not
	facts    api.Facts
	peer     netip.AddrPort // at the other end of the connection
	from     netip.AddrPort // the client proper; not valid if a proxy does not tell

	stage    stage
	until    time.Time // when the stage is over; zero if it has not begun
	place    *place    // of Admission; nil while there is none
	read     []byte    // of the connection, and nobody's yet
	headed   bool      // the header of the proxy was read
	listened bool      // the stage silence is over
	silent   bool      // without a byte
	opened   bool      // the stage opening is over

	asked    bool           // the client has asked for TLS, and was told to begin
	requests []pgstart.Kind // of PostgreSQL that were answered
	cancel   *pgstart.Packet
	parser   *hello.Parser // of the hello; nil while there is none
	fed      int           // bytes of read that it was fed
	hello    *hello.Hello
	known    query // what the row is found by

	found   *row // nil while it is not known
	nearest *row // of the Object that the connection is to, if that is known before
}

// A stage is what a visit waits for before its row can be told.
type stage int

// The stages, in their order.
const (
	ready   stage = iota // nothing any more
	heading              // the header of a proxy
	silence              // the first bytes, of clients whose server may speak first
	opening              // the hello of TLS, or what tells that there is none
)

// holds reports whether a place of Admission is held during a stage.
func (s stage) holds() bool { return s == heading || s == opening }

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
	v := visit{router: r, door: d}
	var local netip.AddrPort
	if s, ok := c.(relay.Socket); ok {
		v.raw = s
		local, v.peer = s.AddrPorts()
	} else {
		v.conn = c.(*net.TCPConn)
		local, v.peer = addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	}
	v.from = v.peer
	if v.peer.IsValid() { // else the client has gone
		v.facts.IP, v.facts.Port = v.peer.Addr().String(), int(v.peer.Port())
	}
	v.facts.Listener, v.facts.Tunnel = d.text(local), TunnelPublic
	if v.listener = r.table.Load().entered(d.bind, local); v.listener != nil {
		v.nearest = v.listener.sole
	}
	err := v.enter()
	switch {
	case err != nil:
	case v.next() != ready:
		v.wait(ctx)
		return
	default:
		if err = v.row(); err == nil {
			v.arrive(c, nil)
			return
		}
	}
	v.refuse(err)
}

// text writes the address that a connection came to. As a rule it is that of the
// connection before.
func (d *door) text(local netip.AddrPort) string {
	l := d.local.Load()
	if l == nil || l.AddrPort != local {
		l = &localAddress{local, local.String()}
		d.local.Store(l)
	}
	return l.text
}

// wait begins to wait for what has to be read, without the caller.
func (v *visit) wait(ctx context.Context) {
	if v.raw != nil {
		v.await(ctx)
		return
	}
	own := *v
	own.router.serving.Go(func() { own.run(ctx) })
}

// refuse ends a visit: nothing of the connection is left in the kernel.
func (v *visit) refuse(err error) {
	abort(v.stream())
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
	if err := v.router.Admission.Admit(); err != nil {
		return err
	}
	if v.listener.proxied {
		return nil // it is not known yet who comes
	}
	return v.listener.meter.admit(v.from.Addr())
}

// client returns the address that is taken for the client's where one is needed.
func (v *visit) client() netip.AddrPort {
	if v.from.IsValid() {
		return v.from
	}
	return v.peer
}

// next returns the stage that comes now.
func (v *visit) next() stage {
	switch l := v.listener; {
	case l.proxied && !v.headed:
		return heading
	case l.bare(), v.silent, v.opened:
		return ready
	case !v.listened && len(v.read) == 0 && l.speaksLast(v.from.Addr()):
		return silence
	}
	return opening
}

// within returns the time for a stage.
func (v *visit) within() time.Duration {
	if v.stage == silence {
		return silent(v.router.helloTimeout())
	}
	return v.router.helloTimeout()
}

// hear looks at what was read, which is something, and reports whether its stage needs
// more.
func (v *visit) hear() (more bool, err error) {
	switch v.stage {
	case heading:
		return v.hearHeader()
	case silence:
		return false, nil
	}
	return v.hearOpening()
}

// lost is told that there comes no more for a stage, and returns what that means.
//
// Who says nothing where there is a row for clients without TLS is taken for one of
// those: its server speaks first. That takes no place of Admission, as many such
// clients may wait as there may be connections: one after the other is let in, and
// strangers who are silent on purpose gain no more by it.
func (v *visit) lost(err error) error {
	switch {
	case v.stage == heading:
		return badHeader("%v", unsaid(err, "the proxy went away before its header was complete", "the header of the proxy was not complete in time"))
	case v.stage == silence && (err == io.EOF || errors.Is(err, os.ErrDeadlineExceeded)):
		v.silent = true
		return nil
	case v.parser != nil || v.asked:
		return unsaid(err, "the client went away within its hello", "the hello was not complete in time")
	case len(v.requests) > 0 || len(v.read) > 0:
		return unsaid(err, "the client went away within its first packet", "the first packet was not complete in time")
	}
	return unsaid(err, "the client went away before it said anything", "the client said nothing in time")
}

// unsaid says what the end of a connection, or of the time, means.
func unsaid(err error, gone, late string) error {
	switch {
	case err == io.EOF:
		return handshake("%s", gone)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return handshake("%s", late)
	}
	return handshake("the client went away: %v", err)
}

// passed ends a stage, err is what came of it.
func (v *visit) passed(err error) error {
	v.until = time.Time{}
	switch v.stage {
	case heading:
		v.headed = true
		if err = v.leave(false, err); err == nil {
			err = v.listener.meter.admit(v.client().Addr())
		}
	case silence:
		v.listened = true
	case opening:
		v.opened = true
		if err == nil {
			err = v.router.Admission.heard(v.place)
		}
		if err != nil {
			err = v.leave(false, err)
		}
	}
	return err
}

// leave gives the place back, if one is held. err is what came of the visit so far; it
// does not count if the place had gone to another.
func (v *visit) leave(proved bool, err error) error {
	p := v.place
	if p == nil {
		return err
	}
	v.place = nil
	if e := v.router.Admission.leave(p, proved); e != nil {
		return e
	}
	return err
}

// run waits for a client, and hands its connection on. When ctx is done it ends.
func (v *visit) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { v.conn.Close() })
	conn, leaf, err := v.sort(ctx)
	if !stop() {
		err = errStopping
	}
	switch {
	case err != nil && conn != nil:
		conn.Close()
	case err == nil && v.cancel != nil:
		err = v.passCancel()
	case err == nil:
		v.arrive(conn, leaf)
	}
	if err != nil {
		v.refuse(err)
	}
}

// sort finds out where a connection goes, and ends its TLS if need be.
func (v *visit) sort(ctx context.Context) (conn net.Conn, leaf *x509.Certificate, err error) {
	for v.stage = v.next(); v.stage != ready; v.stage = v.next() {
		if err := v.passed(v.listen(ctx)); err != nil {
			return nil, nil, err
		}
	}
	if v.cancel != nil {
		return nil, nil, v.leave(false, nil)
	}
	if v.found == nil {
		err = v.row()
	}
	if err == nil {
		conn, leaf, err = v.end(ctx)
	}
	return conn, leaf, v.leave(leaf != nil && v.found.Terminate.Sessions, err)
}

// listen waits until a stage is over.
func (v *visit) listen(ctx context.Context) error {
	if err := v.begin(v.conn); err != nil {
		return err
	}
	if v.place != nil {
		if err := v.router.Admission.await(ctx, v.place); err != nil {
			v.place = nil
			return err
		}
	}
	if v.until.IsZero() {
		v.until = time.Now().Add(v.within())
	}
	if err := v.conn.SetDeadline(v.until); err != nil {
		return err
	}
	for {
		if len(v.read) > 0 {
			if more, err := v.hear(); err != nil {
				return err
			} else if !more {
				return v.conn.SetDeadline(time.Time{})
			}
		}
		if err := v.more(); err != nil {
			if err = v.lost(err); err != nil {
				return err
			}
			return v.conn.SetDeadline(time.Time{})
		}
	}
}

// begin checks what can be checked before a stage, and asks for the place that it
// needs. What is to be closed if another needs the place is c.
func (v *visit) begin(c io.Closer) (err error) {
	if v.stage == heading {
		err = v.trust()
	}
	if err == nil && v.stage.holds() && v.place == nil {
		v.place, err = v.router.Admission.enter(v.client().Addr(), c)
	}
	return err
}

// helloTimeout is the time for a hello, and for a PROXY header.
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
	if n > 0 {
		return nil
	}
	return err
}

// hearOpening reads what tells the row of a connection: the hello of TLS, or that there
// is none. A CancelRequest tells none.
//
// Whoever begins a hello is held to it: one that cannot be read never makes it a
// client without TLS.
func (v *visit) hearOpening() (more bool, err error) {
	if v.listener.asks && !v.asked && v.parser == nil {
		if done, more, err := v.hearPostgres(); done || more || err != nil {
			return more, err
		}
	}
	if v.parser == nil {
		v.parser = new(hello.Parser)
	}
	state, err := v.parser.Feed(v.read[v.fed:])
	v.fed = len(v.read)
	switch state {
	case hello.NeedMore:
		return true, nil
	case hello.NotTLS:
		if v.asked {
			return false, handshake("the client asked for TLS, and then did not speak it")
		}
		return false, nil
	case hello.Done:
		h := v.parser.Hello()
		v.hello = &h
		v.facts.TLS = &api.TLSFacts{SNI: h.SNI}
		if len(h.ALPN) > 0 {
			v.facts.TLS.ALPN = h.ALPN[0]
		}
		v.known = query{tls: true, sni: api.FoldName(h.SNI), alpn: h.ALPN}
		return false, nil
	}
	return false, handshake("%v", err)
}

// hearPostgres answers a client of PostgreSQL until TLS begins. It is done if there is
// none (or the client is no client of PostgreSQL), or if this is a CancelRequest.
func (v *visit) hearPostgres() (done, more bool, err error) {
	p, err := pgstart.Parse(v.read)
	switch {
	case errors.Is(err, pgstart.ErrNotPostgres):
		return true, false, nil
	case err != nil:
		return false, false, handshake("%v", err)
	}
	switch p.Kind {
	case pgstart.Incomplete:
		return false, true, nil
	case pgstart.TLS:
		return false, false, nil
	case pgstart.CancelRequest:
		v.cancel = &p
		return true, false, nil
	case pgstart.Startup:
		return true, false, nil
	}
	switch {
	case slices.Contains(v.requests, p.Kind):
		return false, false, handshake("a second %v", p.Kind)
	case len(v.read) > p.Len:
		// Whatever it is, it was sent before the client knew the answer.
		return false, false, handshake("bytes behind %v, before its answer", p.Kind)
	}
	v.requests = append(v.requests, p.Kind)
	answer := byte(pgstart.No)
	if v.asked = p.Kind == pgstart.SSLRequest; v.asked {
		answer = pgstart.Yes
	}
	v.read = v.read[:0]
	if _, err := v.conn.Write([]byte{answer}); err != nil {
		return false, false, handshake("the client went away: %v", err)
	}
	return false, true, nil
}

// row finds the row of a connection, and sees that it may go there.
func (v *visit) row() error {
	q := v.known
	q.from = v.from.Addr()
	row, why := v.listener.find(q, nil)
	if row == nil {
		if b, _ := v.listener.best(q); b != nil {
			v.nearest = sole(b.rows)
		}
		return noRoute("%s", why)
	}
	v.found = row
	return v.may(row, q)
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
func (v *visit) end(ctx context.Context) (net.Conn, *x509.Certificate, error) {
	row := v.found
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
	if v.raw != nil {
		return v.raw
	}
	if len(v.read) == 0 && v.hello == nil {
		return v.conn
	}
	p := &peeked{Conn: v.conn, tcp: v.conn, unread: v.read, hello: v.hello}
	v.read = nil
	return p
}

// arrive hands a connection over, to the member of its row whose turn it is.
func (v *visit) arrive(conn net.Conn, leaf *x509.Certificate) {
	row := v.found
	a := api.Arrival{Conn: conn, Route: row.routed[row.turns.take()], Evidence: api.Evidence{Kind: api.EvidenceAnonymous}, Facts: v.facts}
	if row.service != nil {
		a.Service = row.service.Metadata.Name
	}
	if leaf != nil && row.Terminate.Sessions {
		a.Evidence = api.Evidence{Kind: api.EvidenceCertificate, Data: leaf.Raw}
	}
	v.router.Handle(a)
}
