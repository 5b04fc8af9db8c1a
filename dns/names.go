package dns

import (
	"context"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"cardea/api"
)

// answerOwn answers a question for a name of the cluster's. It reports false if the name
// is not one.
func (s *Server) answerOwn(ctx context.Context, session string, q dns.Question, reply *dns.Msg) bool {
	name, domain := dns.CanonicalName(q.Name), s.domain()
	for _, zone := range []string{"svc." + domain, "local." + domain} {
		if !dns.IsSubDomain(zone, name) {
			continue
		}
		if name == zone {
			s.answerApex(q, zone, reply)
			return true
		}
		labels := dns.SplitDomainName(name)
		s.answerInZone(ctx, session, q, zone, labels[:len(labels)-dns.CountLabel(zone)], reply)
		return true
	}
	if name == "gateway."+domain || name == "dns."+domain {
		s.answerAddresses(q, name, s.Own, reply)
		return true
	}
	if labels := dns.SplitDomainName(name); len(labels) == 1 || len(labels) == 2 {
		if e, ok := s.find(ctx, session, labels); ok {
			s.answerService(q, name, e, reply)
			return true
		}
	}
	if addr, ok := parseReverse(name); ok && (s.isInside(addr) || slices.Contains(s.Own, addr)) {
		s.answerReverse(ctx, session, q, addr, reply)
		return true
	}
	return false
}

// isOwn reports whether a name leads to what only the cluster has: it is in svc.DOMAIN or
// local.DOMAIN, whether it exists or not, or one that answerOwn finds an address for. Of a
// Service that the Session may not know of it says no more than answerOwn does.
func (s *Server) isOwn(ctx context.Context, session, name string) bool {
	reply := new(dns.Msg)
	q := dns.Question{Name: name, Qtype: dns.TypeANY, Qclass: dns.ClassINET}
	return s.answerOwn(ctx, session, q, reply)
}

// answerInZone answers a question for a name in a zone; labels are what is before it. A
// Service has one port, which is that of whatever is looked for by _NAME._PROTOCOL (RFC
// 2782).
func (s *Server) answerInZone(ctx context.Context, session string, q dns.Question, zone string, labels []string, reply *dns.Msg) {
	marks := 0 // labels that begin with _
	for marks < len(labels) && strings.HasPrefix(labels[marks], "_") {
		marks++
	}
	e, ok := s.find(ctx, session, labels[marks:])
	switch {
	case !ok, marks > 2, marks > 0 && labels[marks-1] != "_"+e.Protocol:
		s.negative(reply, zone, true)
	case marks == 0:
		s.answerService(q, zone, e, reply)
	case marks == 2 && (q.Qtype == dns.TypeSRV || q.Qtype == dns.TypeANY):
		s.answerPort(q, e, reply)
	default:
		s.negative(reply, zone, false)
	}
}

// find returns the Service with the labels of its name, if the Session may know of it.
func (s *Server) find(ctx context.Context, session string, labels []string) (Entry, bool) {
	return s.entry(ctx, session, api.ServiceName(strings.Join(labels, ".")))
}

func (s *Server) entry(ctx context.Context, session, service string) (Entry, bool) {
	e, ok := s.Find(service)
	if !ok || s.May != nil && !s.May(ctx, session, service) {
		return Entry{}, false
	}
	return e, true
}

// answerService answers a question for a name of a Service, in a zone.
func (s *Server) answerService(q dns.Question, zone string, e Entry, reply *dns.Msg) {
	if q.Qtype == dns.TypeSRV {
		s.answerPort(q, e, reply)
		return
	}
	s.answerAddresses(q, zone, e.Addresses, reply)
}

// answerPort says the port of a Service, and the name that has its addresses.
func (s *Server) answerPort(q dns.Question, e Entry, reply *dns.Msg) {
	reply.Authoritative = true
	target := s.nameOf(e.Service)
	reply.Answer = []dns.RR{&dns.SRV{Hdr: header(q.Name, dns.TypeSRV), Port: uint16(e.Port), Target: target}}
	for _, a := range e.Addresses {
		reply.Extra = append(reply.Extra, addressRecord(target, a))
	}
}

// answerAddresses answers a question for a name that has addresses, and nothing else.
func (s *Server) answerAddresses(q dns.Question, zone string, addrs []netip.Addr, reply *dns.Msg) {
	reply.Authoritative = true
	if q.Qtype == dns.TypeANY { // RFC 8482, section 4.2
		reply.Answer = []dns.RR{&dns.HINFO{Hdr: header(q.Name, dns.TypeHINFO), Cpu: "RFC8482"}}
		return
	}
	for _, a := range addrs {
		if rr := addressRecord(q.Name, a); rr.Header().Rrtype == q.Qtype {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	if len(reply.Answer) == 0 {
		s.negative(reply, zone, false)
	}
}

// answerApex answers a question for the name of a zone itself.
func (s *Server) answerApex(q dns.Question, zone string, reply *dns.Msg) {
	reply.Authoritative = true
	switch q.Qtype {
	case dns.TypeSOA, dns.TypeANY:
		reply.Answer = []dns.RR{s.soa(zone)}
	case dns.TypeNS:
		reply.Answer = []dns.RR{&dns.NS{Hdr: header(q.Name, dns.TypeNS), Ns: "dns." + s.domain()}}
		for _, a := range s.Own {
			reply.Extra = append(reply.Extra, addressRecord("dns."+s.domain(), a))
		}
	default:
		s.negative(reply, zone, false)
	}
}

// answerReverse answers a question for the reverse name of an address of the cluster's.
func (s *Server) answerReverse(ctx context.Context, session string, q dns.Question, addr netip.Addr, reply *dns.Msg) {
	// The zone is the name above: an address that is not there has none of its own.
	_, zone, _ := strings.Cut(dns.CanonicalName(q.Name), ".")
	target := ""
	if slices.Contains(s.Own, addr) {
		target = "dns." + s.domain()
	} else if s.At != nil {
		if service, ok := s.At(addr); ok {
			if e, ok := s.entry(ctx, session, service); ok {
				target = s.nameOf(e.Service)
			}
		}
	}
	if target == "" || q.Qtype != dns.TypePTR && q.Qtype != dns.TypeANY {
		s.negative(reply, zone, target == "")
		return
	}
	reply.Authoritative = true
	reply.Answer = []dns.RR{&dns.PTR{Hdr: header(q.Name, dns.TypePTR), Ptr: target}}
}

// negative says that a name of a zone is not there or, if it is not missing, has no such
// records, and for how long that may be kept (RFC 2308).
func (s *Server) negative(reply *dns.Msg, zone string, missing bool) {
	reply.Authoritative = true
	if missing {
		reply.Rcode = dns.RcodeNameError
	}
	reply.Ns = []dns.RR{s.soa(zone)}
}

// soa returns the SOA record of a zone. There are no secondary servers to which its
// numbers would say something, but for the last.
func (s *Server) soa(zone string) *dns.SOA {
	return &dns.SOA{Hdr: header(zone, dns.TypeSOA), Ns: "dns." + s.domain(), Mbox: "hostmaster." + s.domain(),
		Serial: 1, Refresh: 3600, Retry: 600, Expire: 86400, Minttl: ttl}
}

// nameOf returns the full name of a Service.
func (s *Server) nameOf(service string) string { return service + ".svc." + s.domain() }

func header(name string, kind uint16) dns.RR_Header {
	return dns.RR_Header{Name: name, Rrtype: kind, Class: dns.ClassINET, Ttl: ttl}
}

// addressRecord returns the A or AAAA record of an address.
func addressRecord(name string, addr netip.Addr) dns.RR {
	if addr.Is4() {
		return &dns.A{Hdr: header(name, dns.TypeA), A: addr.AsSlice()}
	}
	return &dns.AAAA{Hdr: header(name, dns.TypeAAAA), AAAA: addr.AsSlice()}
}

// addressesIn returns the addresses to which a record leads.
func addressesIn(rr dns.RR) (addrs []netip.Addr) {
	add := func(ip []byte) {
		if a, ok := netip.AddrFromSlice(ip); ok {
			addrs = append(addrs, a.Unmap())
		}
	}
	var hints []dns.SVCBKeyValue
	switch rr := rr.(type) {
	case *dns.A:
		add(rr.A)
	case *dns.AAAA:
		add(rr.AAAA)
	case *dns.SVCB:
		hints = rr.Value
	case *dns.HTTPS:
		hints = rr.Value
	}
	for _, h := range hints {
		switch h := h.(type) {
		case *dns.SVCBIPv4Hint:
			for _, ip := range h.Hint {
				add(ip)
			}
		case *dns.SVCBIPv6Hint:
			for _, ip := range h.Hint {
				add(ip)
			}
		}
	}
	return addrs
}

// targetOf returns the name to which a record leads whoever looks for an address, "" if to
// none.
func targetOf(rr dns.RR) string {
	switch rr := rr.(type) {
	case *dns.CNAME:
		return rr.Target
	case *dns.DNAME:
		return rr.Target
	case *dns.SRV:
		return rr.Target
	case *dns.MX:
		return rr.Mx
	case *dns.SVCB:
		return rr.Target
	case *dns.HTTPS:
		return rr.Target
	}
	return ""
}

// parseReverse returns the address whose reverse name (RFC 1035, section 3.5; RFC 3596,
// section 2.5) a name in lower case is.
func parseReverse(name string) (netip.Addr, bool) {
	labels := dns.SplitDomainName(name)
	switch {
	case len(labels) == 6 && strings.HasSuffix(name, ".in-addr.arpa."):
		var b [4]byte
		for i := range b {
			n, err := strconv.ParseUint(labels[3-i], 10, 8)
			if err != nil || strconv.Itoa(int(n)) != labels[3-i] {
				return netip.Addr{}, false
			}
			b[i] = byte(n)
		}
		return netip.AddrFrom4(b), true
	case len(labels) == 34 && strings.HasSuffix(name, ".ip6.arpa."):
		var b [16]byte
		for i := range 32 {
			n, err := strconv.ParseUint(labels[31-i], 16, 4)
			if err != nil || len(labels[31-i]) != 1 {
				return netip.Addr{}, false
			}
			b[i/2] |= byte(n) << (4 * (1 - i%2))
		}
		return netip.AddrFrom16(b), true
	}
	return netip.Addr{}, false
}
