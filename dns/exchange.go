package dns

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"

	"cardea/api"
)

const (
	// maxStrays is the number of datagrams that are no answer to the question, after
	// which a server is asked over TCP, where nobody can slip one in (RFC 5452).
	maxStrays = 16
	// idleLink is for how long a connection to a server is kept for the next question,
	// and maxLinks how many are.
	idleLink = 10 * time.Second
	maxLinks = 8
)

var (
	errStrays  = errors.New("too many datagrams that answer another question")
	errAnother = errors.New("it answered another question")
)

// query asks a server once, as its transport says.
func (r *resolver) query(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error) {
	if server.Transport != api.DNSDatagram {
		return r.overStream(ctx, server, q)
	}
	m, err := overDatagrams(ctx, server, q, true)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) { // it knows no EDNS(0)
		m, err = overDatagrams(ctx, server, q, false)
	}
	if errors.Is(err, errStrays) || err == nil && m.Truncated {
		server.Transport = api.DNSTCP
		m, err = r.overStream(ctx, server, q)
	}
	return m, err
}

// compose returns a query with an id that cannot be guessed.
func compose(q question, edns bool) (id uint16, text []byte, err error) {
	var random [2]byte
	rand.Read(random[:]) // never fails
	id = binary.BigEndian.Uint16(random[:])
	ask := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: id, RecursionDesired: true, CheckingDisabled: q.checkingDisabled},
		Question: []dns.Question{{Name: q.name, Qtype: q.kind, Qclass: dns.ClassINET}},
	}
	if edns {
		ask.SetEdns0(maxDatagram, q.dnssec)
	}
	text, err = ask.Pack()
	return id, text, err
}

// overDatagrams asks over UDP, from a port that the system draws.
func overDatagrams(ctx context.Context, server api.DNSServer, q question, edns bool) (*dns.Msg, error) {
	id, text, err := compose(q, edns)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, "udp", server.Address())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := conn.Write(text); err != nil {
		return nil, err
	}
	buffer := make([]byte, 4*maxDatagram) // there are servers that send more than they may
	for range maxStrays {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, err
		}
		if m := parseAnswer(buffer[:n], id, q); m != nil {
			return m, nil
		}
	}
	return nil, errStrays
}

// overStream asks over TCP or TLS: on a connection of before if there is one and, where
// that turns out to be over, on a new one.
func (r *resolver) overStream(ctx context.Context, server api.DNSServer, q question) (*dns.Msg, error) {
	for {
		conn, isNew := r.links.take(server), false
		if conn == nil {
			var err error
			if conn, err = r.connect(ctx, server); err != nil {
				return nil, err
			}
			isNew = true
		}
		m, err := talk(ctx, conn, q)
		if err == nil {
			r.links.give(server, conn)
			return m, nil
		}
		conn.Close()
		if isNew || ctx.Err() != nil {
			return nil, err
		}
	}
}

// connect connects to a server. With TLS it must prove to be the host that is named.
func (r *resolver) connect(ctx context.Context, server api.DNSServer) (net.Conn, error) {
	if server.Transport != api.DNSTLS {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", server.Address())
	}
	d := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, ServerName: server.Host, RootCAs: r.roots, NextProtos: []string{"dot"}}}
	return d.DialContext(ctx, "tcp", server.Address())
}

// talk asks on a connection that nobody else uses.
func talk(ctx context.Context, conn net.Conn, q question) (*dns.Msg, error) {
	id, text, err := compose(q, true)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	m, err := exchange(conn, text, id, q)
	if !stop() && err == nil { // the connection has a deadline that is over
		return nil, ctx.Err()
	}
	return m, err
}

func exchange(conn net.Conn, text []byte, id uint16, q question) (*dns.Msg, error) {
	if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...)); err != nil {
		return nil, err
	}
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	text = make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, text); err != nil {
		return nil, err
	}
	if m := parseAnswer(text, id, q); m != nil {
		return m, nil
	}
	return nil, errAnother
}

// parseAnswer returns the message if it is the answer of a server to a question with
// that id, without what concerns this exchange alone, and nil if it is not.
func parseAnswer(text []byte, id uint16, q question) *dns.Msg {
	m := new(dns.Msg)
	if m.Unpack(text) != nil || !m.Response || m.Id != id || m.Opcode != dns.OpcodeQuery {
		return nil
	}
	// Who does not understand a query may not even repeat its question.
	lost := len(m.Question) == 0 && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented)
	if !lost {
		if len(m.Question) != 1 {
			return nil
		}
		got := m.Question[0]
		if got.Qtype != q.kind || got.Qclass != dns.ClassINET || !strings.EqualFold(got.Name, q.name) {
			return nil
		}
	}
	extra := m.Extra[:0]
	for _, rr := range m.Extra {
		switch rr.Header().Rrtype {
		case dns.TypeOPT, dns.TypeTSIG, dns.TypeSIG:
		default:
			extra = append(extra, rr)
		}
	}
	m.Extra = extra
	return m
}

// links are connections to servers that nobody uses. The zero value has none.
type links struct {
	mu   sync.Mutex
	idle map[api.DNSServer][]link // the one that was used last is the last
}

type link struct {
	net.Conn
	since time.Time
}

// take returns a connection to a server, nil if there is none.
func (l *links) take(server api.DNSServer) net.Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	list := l.idle[server]
	if len(list) == 0 {
		return nil
	}
	last := list[len(list)-1]
	l.idle[server] = list[:len(list)-1]
	return last.Conn
}

// give keeps a connection for the next question, unless there are enough.
func (l *links) give(server api.DNSServer, conn net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.idle[server]) >= maxLinks {
		conn.Close()
		return
	}
	if l.idle == nil {
		l.idle = map[api.DNSServer][]link{}
	}
	l.idle[server] = append(l.idle[server], link{conn, time.Now()})
}

// closeBefore closes those that nobody has used since an instant.
func (l *links) closeBefore(at time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for server, list := range l.idle {
		for len(list) > 0 && list[0].since.Before(at) {
			list[0].Close()
			list = list[1:]
		}
		if l.idle[server] = list; len(list) == 0 {
			delete(l.idle, server)
		}
	}
}
