package upstream

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/miekg/dns"
)

const (
	// datagram is the size of the largest datagram that a server may send (EDNS0,
	// RFC 6891): one that passes everywhere.
	datagram = 1232
	// leastTry is the time that a server has at least before the next is asked.
	leastTry = 200 * time.Millisecond
	// maxStrays is the number of datagrams that are no answer to the question, after
	// which a server is asked over TCP, where nobody can slip one in.
	maxStrays = 16
	// maxAliases is the number of CNAMEs that are followed.
	maxAliases = 16
	// maxQueries is the number of queries that following them may take.
	maxQueries = 8
)

// ask finds the answer to a question.
func (r *resolver) ask(ctx context.Context, config *dns.ClientConfig, q question) (*answer, error) {
	first := q.name
	least := mostTTL
	for range maxQueries {
		m, err := r.exchange(ctx, config, q)
		if err != nil {
			return nil, err
		}
		found := read(q, m)
		least = min(least, found.ttl)
		if found.next == "" {
			a := &answer{addrs: found.addrs, services: found.services}
			a.expires = r.time().Add(max(least, leastTTL))
			return a, nil
		}
		q.name = found.next
	}
	return nil, &net.DNSError{Err: "its aliases (CNAME) come to no end", Name: strings.TrimSuffix(first, ".")}
}

// A finding is what a message says to a question: records, or none, or another name
// to ask for.
type finding struct {
	addrs    []netip.Addr
	services []service
	next     string
	ttl      time.Duration
}

// read reads the answer to a question out of a message that answers it, whose Rcode
// is success or that there is no such name.
func read(q question, m *dns.Msg) finding {
	aliases := map[string]*dns.CNAME{}
	for _, rr := range m.Answer {
		if c, ok := rr.(*dns.CNAME); ok && c.Hdr.Class == dns.ClassINET {
			aliases[strings.ToLower(c.Hdr.Name)] = c
		}
	}
	f := finding{ttl: mostTTL}
	name := q.name
	for range maxAliases {
		c := aliases[name]
		if c == nil {
			break
		}
		f.ttl = min(f.ttl, ttl(c))
		name = strings.ToLower(c.Target)
	}
	for _, rr := range m.Answer {
		h := rr.Header()
		if m.Rcode != dns.RcodeSuccess || h.Rrtype != q.kind || h.Class != dns.ClassINET || strings.ToLower(h.Name) != name || len(f.addrs)+len(f.services) == maxRecords {
			continue
		}
		switch rr := rr.(type) {
		case *dns.A:
			f.addAddress(rr.A)
		case *dns.AAAA:
			f.addAddress(rr.AAAA)
		case *dns.SRV:
			f.services = append(f.services, service{strings.ToLower(rr.Target), rr.Port, rr.Priority, rr.Weight})
		}
		f.ttl = min(f.ttl, ttl(rr))
	}
	if len(f.addrs)+len(f.services) > 0 {
		return f
	}
	// None: for how long, the SOA of the zone says (RFC 2308, section 5).
	for _, rr := range m.Ns {
		if soa, ok := rr.(*dns.SOA); ok {
			f.ttl = min(f.ttl, ttl(soa), time.Duration(soa.Minttl)*time.Second, mostNegative)
			return f
		}
	}
	if name != q.name && m.Rcode == dns.RcodeSuccess {
		f.next = name // the server did not go on
		return f
	}
	f.ttl = leastTTL
	return f
}

func (f *finding) addAddress(ip net.IP) {
	if a, ok := netip.AddrFromSlice(ip); ok {
		f.addrs = append(f.addrs, a.Unmap())
	}
}

// ttl returns how long a record may be kept. What is no number of 31 bits is 0 (RFC
// 2181, section 8).
func ttl(rr dns.RR) time.Duration {
	n := rr.Header().Ttl
	if n > 1<<31-1 {
		n = 0
	}
	return time.Duration(n) * time.Second
}

// exchange asks the servers in turn until one has an answer, if only that there is
// no such name.
func (r *resolver) exchange(ctx context.Context, config *dns.ClientConfig, q question) (*dns.Msg, error) {
	var failed error
	tries := config.Attempts * len(config.Servers)
	for i := range tries {
		server := config.Servers[i%len(config.Servers)]
		m, err := r.query(ctx, config, server, q, tries-i)
		if err == nil && m.Rcode != dns.RcodeSuccess && m.Rcode != dns.RcodeNameError {
			err = fmt.Errorf("the server answered %.20s", dns.RcodeToString[m.Rcode])
		}
		if err == nil {
			return m, nil
		}
		timeout, isTimeout := errors.AsType[net.Error](err)
		e := &net.DNSError{UnwrapErr: err, Err: err.Error(), Name: strings.TrimSuffix(q.name, "."), Server: server,
			IsTimeout: errors.Is(err, context.DeadlineExceeded) || isTimeout && timeout.Timeout()}
		if e.IsTimeout {
			e.Err = "no answer"
		}
		failed = cmp.Or[error](failed, e)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, failed
}

// query asks one server, with so many tries left, this one included.
func (r *resolver) query(ctx context.Context, config *dns.ClientConfig, server string, q question, tries int) (*dns.Msg, error) {
	part := time.Duration(config.Timeout) * time.Second
	if _, ok := ctx.Deadline(); ok {
		part = min(part, max(left(ctx)/time.Duration(tries), leastTry))
	}
	ctx, cancel := context.WithTimeout(ctx, part)
	defer cancel()
	address := net.JoinHostPort(server, cmp.Or(r.port, "53"))
	m, err := send(ctx, "udp", address, q, true)
	if err == nil && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) { // it knows no EDNS0
		m, err = send(ctx, "udp", address, q, false)
	}
	if errors.Is(err, errStrays) || err == nil && m.Truncated {
		m, err = send(ctx, "tcp", address, q, true)
	}
	return m, err
}

var errStrays = errors.New("too many datagrams that answer another question")

// send asks a server over udp or tcp and returns what answers the question.
func send(ctx context.Context, network, address string, q question, edns bool) (*dns.Msg, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	m, err := talk(conn, network, q, edns)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return m, err
}

// talk does so on a connection.
func talk(conn net.Conn, network string, q question, edns bool) (*dns.Msg, error) {
	var id [2]byte
	rand.Read(id[:]) // never fails
	ask := &dns.Msg{
		MsgHdr:   dns.MsgHdr{Id: binary.BigEndian.Uint16(id[:]), RecursionDesired: true},
		Question: []dns.Question{{Name: q.name, Qtype: q.kind, Qclass: dns.ClassINET}},
	}
	if edns {
		ask.SetEdns0(datagram, false)
	}
	text, err := ask.Pack()
	if err != nil {
		return nil, err
	}
	if network == "tcp" {
		text = append(binary.BigEndian.AppendUint16(nil, uint16(len(text))), text...)
	}
	if _, err := conn.Write(text); err != nil {
		return nil, err
	}
	if network == "tcp" {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return nil, err
		}
		text = make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, text); err != nil {
			return nil, err
		}
		m := parseAnswer(text, ask.Id, q)
		if m == nil {
			return nil, errors.New("the server answered another question")
		}
		return m, nil
	}
	buffer := make([]byte, 4*datagram) // there are servers that send more than they may
	for range maxStrays {
		n, err := conn.Read(buffer)
		if err != nil {
			return nil, err
		}
		if m := parseAnswer(buffer[:n], ask.Id, q); m != nil {
			return m, nil
		}
	}
	return nil, errStrays
}

// parseAnswer returns the message if it is the answer of a server to a question
// with that id, and nil if it is not.
func parseAnswer(text []byte, id uint16, q question) *dns.Msg {
	m := new(dns.Msg)
	if m.Unpack(text) != nil || !m.Response || m.Id != id || m.Opcode != dns.OpcodeQuery {
		return nil
	}
	if len(m.Question) == 0 && (m.Rcode == dns.RcodeFormatError || m.Rcode == dns.RcodeNotImplemented) {
		return m // such a server may not even repeat the question
	}
	if len(m.Question) != 1 {
		return nil
	}
	got := m.Question[0]
	if got.Qtype != q.kind || got.Qclass != dns.ClassINET || !strings.EqualFold(got.Name, q.name) {
		return nil
	}
	return m
}
