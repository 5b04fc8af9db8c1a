// Package dns is the cluster's DNS server (RFC 1034, 1035): it answers messages that
// somebody else carries. Names of Services it answers itself; others it asks the name
// servers of the cluster's fallback zone for, and keeps what they say.
package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"cardea/api"
)

const (
	// maxQuery is the size in bytes of the largest query that is read.
	maxQuery = 4096
	// maxDatagram is the size of the largest message that goes in a datagram, whatever
	// the asker takes: what IPv6 and UDP leave of 1,280 bytes.
	maxDatagram = 1232
	// headerSize is that of a message without records.
	headerSize = 12
	// ttl is for how long, in seconds, what is said of a Service may be kept.
	ttl = 5
)

// An Entry is what DNS says of a Service.
type Entry struct {
	Service   string // SERVICE.NAMESPACE
	Addresses []netip.Addr
	Port      int
	Protocol  string // "tcp" or "udp"
}

// A Server answers questions. It knows these names of the cluster, in any case:
//
//   - SERVICE.svc.DOMAIN and SERVICE.NAMESPACE.svc.DOMAIN, and the same with local in
//     place of svc: addresses, SRV for the port (also at _NAME._tcp or _NAME._udp below
//     it, whatever NAME is), and nothing else. Whatever else is in svc.DOMAIN or
//     local.DOMAIN does not exist.
//   - SERVICE and SERVICE.NAMESPACE alone, if there is such a Service; it then hides a
//     name of the Internet, as the other way round a stranger could take the place of a
//     Service by registering its name.
//   - gateway.DOMAIN and dns.DOMAIN.
//   - the reverse names of its addresses.
//
// Who asks for a Service that he may not know of is answered as if there were none.
//
// For any other name the fallback is asked, also for the rest of DOMAIN, which has its
// public addresses in some other DNS. Without a fallback the rest of DOMAIN does not
// exist, and other names are refused, so that the asker turns to its next server.
type Server struct {
	// Domain is that of the cluster.
	Domain string
	// Find returns what is known of SERVICE.NAMESPACE.
	Find func(service string) (Entry, bool)
	// At returns the Service that has an address; nil if reverse names are not known.
	At func(addr netip.Addr) (service string, ok bool)
	// Plan are the prefixes in which Services and Sessions have their addresses. Reverse
	// names in them are the cluster's. No name of the fallback leads into them, nor to a
	// name of the cluster's: a web page could reach Services with the rights of who looks
	// at it (DNS rebinding).
	Plan []netip.Prefix
	// Own are the addresses of the server itself, which is not asked as a fallback.
	Own []netip.Addr
	// May tells whether a Session is told of a Service, SERVICE.NAMESPACE; nil if all are
	// told of all.
	May func(ctx context.Context, session, service string) bool
	// Zone returns who is asked for other names; nil, or a zone without servers, is the
	// name servers of this machine.
	Zone func() *api.FallbackZone
	Log  *slog.Logger

	fallback resolver
}

// Run owns the queries to the fallback, which fail before it. It returns nil when ctx
// is done and all of them have ended.
func (s *Server) Run(ctx context.Context) error {
	s.fallback.log = s.Log
	return s.fallback.run(ctx)
}

// Answer returns the answer to a query that a Session sent, and nil if what it sent is no
// query. It waits for the fallback no longer than ctx. On a stream an answer is whole,
// as a datagram it may be truncated; the length before a message of a stream is the
// caller's.
func (s *Server) Answer(ctx context.Context, session string, query []byte, stream bool) []byte {
	ask, opt, rcode := parse(query)
	if ask == nil {
		return nil
	}
	reply := new(dns.Msg).SetReply(ask)
	reply.RecursionAvailable = true
	reply.Rcode = rcode
	var failed *problem
	if rcode == dns.RcodeSuccess {
		if err := s.fill(ctx, session, ask, opt != nil && opt.Do(), reply); err != nil {
			failed = problemOf(err)
			reply.Rcode = failed.rcode
		}
	}
	return pack(reply, opt, failed, stream)
}

// parse reads a query with its OPT record (RFC 6891), if it has one. It returns nil for
// what is no query, and a code other than success for one that cannot be answered.
func parse(query []byte) (*dns.Msg, *dns.OPT, int) {
	if len(query) < headerSize {
		return nil, nil, 0
	}
	flags := binary.BigEndian.Uint16(query[2:])
	if flags&(1<<15) != 0 { // an answer; to answer it might never end
		return nil, nil, 0
	}
	bare := &dns.Msg{MsgHdr: dns.MsgHdr{
		Id: binary.BigEndian.Uint16(query), Opcode: int(flags >> 11 & 0xf), RecursionDesired: flags&(1<<8) != 0,
	}}
	count := func(section int) uint16 { return binary.BigEndian.Uint16(query[4+2*section:]) }
	switch {
	case bare.Opcode != dns.OpcodeQuery:
		return bare, nil, dns.RcodeNotImplemented
	case len(query) > maxQuery, count(0) != 1, count(1) != 0, count(2) > 1, count(3) > 2: // IXFR has a record of authority
		return bare, nil, dns.RcodeFormatError
	}
	ask := new(dns.Msg)
	if ask.Unpack(query) != nil || len(ask.Question) != 1 {
		return bare, nil, dns.RcodeFormatError
	}
	var opt *dns.OPT
	for _, rr := range ask.Extra {
		if o, ok := rr.(*dns.OPT); ok {
			if opt != nil || o.Hdr.Name != "." {
				return bare, nil, dns.RcodeFormatError
			}
			opt = o
		}
	}
	switch q := ask.Question[0]; {
	case opt != nil && opt.Version() != 0:
		return ask, opt, dns.RcodeBadVers
	case q.Qclass != dns.ClassINET, isMeta(q.Qtype):
		return ask, opt, dns.RcodeRefused
	}
	return ask, opt, dns.RcodeSuccess
}

// isMeta reports whether a type is that of no data that is in a zone (RFC 6895, section
// 3.1): a transfer, a signature of a transaction, and so on. ANY may be asked for.
func isMeta(t uint16) bool {
	return t == dns.TypeNone || t == dns.TypeOPT || t >= 128 && t <= 255 && t != dns.TypeANY
}

// pack returns the message as it goes out: with an OPT record if the query had one, in
// which it says what failed (RFC 8914), and no larger than it may be.
func pack(reply *dns.Msg, opt *dns.OPT, failed *problem, stream bool) []byte {
	size := dns.MinMsgSize
	if opt != nil {
		size = min(int(opt.UDPSize()), maxDatagram)
		reply.SetEdns0(maxDatagram, opt.Do())
		if failed != nil {
			o := reply.IsEdns0()
			o.Option = append(o.Option, &dns.EDNS0_EDE{InfoCode: failed.info, ExtraText: failed.words})
		}
	}
	if stream {
		size = dns.MaxMsgSize
	}
	reply.Truncate(size)
	out, err := reply.Pack()
	if err == nil {
		return out
	}
	// Something that the fallback said cannot be said again.
	bare := &dns.Msg{MsgHdr: dns.MsgHdr{Id: reply.Id, Response: true, RecursionDesired: reply.RecursionDesired, Rcode: dns.RcodeServerFailure}}
	out, _ = bare.Pack() // a header cannot fail
	return out
}

// A problem is why there is no answer: a code, and an Extended DNS Error (RFC 8914).
type problem struct {
	rcode int
	info  uint16
	words string
}

func (p problem) Error() string { return p.words }

func problemOf(err error) *problem {
	if p, ok := errors.AsType[problem](err); ok {
		return &p
	}
	return &problem{dns.RcodeServerFailure, dns.ExtendedErrorCodeInvalidData, err.Error()}
}

// fill answers the question of ask in reply. dnssec tells whether signatures are wanted.
func (s *Server) fill(ctx context.Context, session string, ask *dns.Msg, dnssec bool, reply *dns.Msg) error {
	q := ask.Question[0]
	if s.answerOwn(ctx, session, q, reply) {
		return nil
	}
	var zone *api.FallbackZone
	if s.Zone != nil {
		zone = s.Zone()
	}
	servers := s.fallback.servers(zone, s.Own)
	name := dns.CanonicalName(q.Name)
	switch {
	case len(servers) == 0 && dns.IsSubDomain(s.domain(), name):
		s.negative(reply, s.domain(), name != s.domain())
		return nil
	case len(servers) == 0:
		return problem{dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative, "no name servers for other names are configured"}
	case !ask.RecursionDesired: // it would tell what others have asked for
		return problem{dns.RcodeRefused, dns.ExtendedErrorCodeNotAuthoritative, "ask with the flag for recursion (RD)"}
	}
	m, err := s.fallback.lookup(ctx, session, servers, longest(zone), question{name, q.Qtype, dnssec, ask.CheckingDisabled})
	if err != nil {
		return err
	}
	if s.leadsInside(ctx, session, m) {
		s.Log.Debug("dns: a name of others leads into the private network; it is not told", "name", name, "session", session)
		return problem{dns.RcodeNameError, dns.ExtendedErrorCodeFiltered, "the name leads into the private network (DNS rebinding)"}
	}
	reply.Rcode, reply.Answer, reply.Ns, reply.Extra = m.Rcode, m.Answer, m.Ns, m.Extra
	return nil
}

// leadsInside reports whether a message has an address of the private network, or a name
// that the Session would be told one for.
func (s *Server) leadsInside(ctx context.Context, session string, m *dns.Msg) bool {
	for _, section := range [][]dns.RR{m.Answer, m.Extra} {
		for _, rr := range section {
			if slices.ContainsFunc(addressesIn(rr), s.isInside) {
				return true
			}
			if name := targetOf(rr); name != "" && s.isOwn(ctx, session, name) {
				return true
			}
		}
	}
	return false
}

func (s *Server) isInside(addr netip.Addr) bool {
	return slices.ContainsFunc(s.Plan, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// domain returns that of the cluster, in lower case and with its final dot.
func (s *Server) domain() string { return strings.ToLower(dns.Fqdn(s.Domain)) }
