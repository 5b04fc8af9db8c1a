// Package address is the address plan of the private network: which addresses there
// are, and who has which.
//
// An address is an index: its offset in the IPv4 prefix, and its host part in a /64 of
// the IPv6 prefix. Of an IPv4 prefix of N addresses, Services have the offsets from 16
// below N/4, Sessions those from N/4 to N-2; the first 16 are the cluster's own, and 1 of
// these is its DNS server. Of the IPv6 prefix, subnet 0 is that of Services and of the
// DNS server, and subnet 1 that of Sessions. So what belongs to Services, which is all
// that clients send through a tunnel, is one prefix of each family.
//
// Who has which is in the store, in Objects of [Group], and changes in the transaction
// of the Service or Session that it is about.
package address

import (
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"

	"cardea/api"
)

// What of a plan is whose.
const (
	reserved = 16 // addresses at the beginning of the IPv4 prefix that are the cluster's
	dns      = 1  // the index of the DNS server, of these

	serviceSubnet = 0 // of the IPv6 prefix
	sessionSubnet = 1
)

// A Plan is the addresses that there are: an IPv4 prefix of /8 to /24, and an IPv6
// prefix of /48.
type Plan struct{ IPv4, IPv6 netip.Prefix }

// ParsePlan reads a plan that says both families.
func ParsePlan(n api.ClusterNetwork) (Plan, error) {
	v4, err := netip.ParsePrefix(n.IPv4)
	if err != nil || !v4.Addr().Is4() || v4.Masked() != v4 || v4.Bits() < 8 || v4.Bits() > 24 {
		return Plan{}, fmt.Errorf("address: the IPv4 prefix %q is not a network of /8 to /24", n.IPv4)
	}
	v6, err := netip.ParsePrefix(n.IPv6)
	if err != nil || !v6.Addr().Is6() || v6.Addr().Is4In6() || v6.Masked() != v6 || v6.Bits() != 48 {
		return Plan{}, fmt.Errorf("address: the IPv6 prefix %q is not a network of /48", n.IPv6)
	}
	return Plan{v4, v6}, nil
}

// Network returns the plan as it is stored.
func (p Plan) Network() api.ClusterNetwork {
	return api.ClusterNetwork{IPv4: p.IPv4.String(), IPv6: p.IPv6.String()}
}

// Draw returns a prefix of unique local addresses: fd00::/8 and 40 random bits (RFC
// 4193, section 3.2).
func Draw(random io.Reader) (netip.Prefix, error) {
	var a [16]byte
	a[0] = 0xfd
	if _, err := io.ReadFull(random, a[1:6]); err != nil {
		return netip.Prefix{}, fmt.Errorf("address: draw a prefix: %w", err)
	}
	return netip.PrefixFrom(netip.AddrFrom16(a), 48), nil
}

// Services returns the prefixes in which Services and the DNS server have their
// addresses: what clients send through a tunnel.
func (p Plan) Services() []netip.Prefix {
	return []netip.Prefix{netip.PrefixFrom(p.IPv4.Addr(), p.IPv4.Bits()+2), p.subnet(serviceSubnet)}
}

// Sessions returns the prefixes in which Sessions have their addresses.
func (p Plan) Sessions() []netip.Prefix {
	n := p.size()
	return []netip.Prefix{
		netip.PrefixFrom(p.ipv4(n/4), p.IPv4.Bits()+2),
		netip.PrefixFrom(p.ipv4(n/2), p.IPv4.Bits()+1),
		p.subnet(sessionSubnet),
	}
}

// DNS returns the addresses of the DNS server.
func (p Plan) DNS() []netip.Addr {
	return []netip.Addr{p.ipv4(dns), p.ipv6(serviceSubnet, dns)}
}

// size returns how many addresses the IPv4 prefix has.
func (p Plan) size() uint32 { return 1 << (32 - p.IPv4.Bits()) }

func (p Plan) ipv4(index uint32) netip.Addr {
	a := p.IPv4.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])+index)
	return netip.AddrFrom4(a)
}

func (p Plan) ipv6(subnet uint16, index uint32) netip.Addr {
	a := p.IPv6.Addr().As16()
	binary.BigEndian.PutUint16(a[6:], subnet)
	binary.BigEndian.PutUint32(a[12:], index)
	return netip.AddrFrom16(a)
}

func (p Plan) subnet(n uint16) netip.Prefix { return netip.PrefixFrom(p.ipv6(n, 0), 64) }

// A part is what of a plan a Pool gives away.
type part struct {
	subnet      uint16
	first, last uint32 // indexes
}

func (p Plan) part(pool Pool) part {
	if pool == Services {
		return part{serviceSubnet, reserved, p.size()/4 - 1}
	}
	return part{sessionSubnet, p.size() / 4, p.size() - 2} // the last would be that of broadcasts
}

func (x part) has(index uint32) bool { return x.first <= index && index <= x.last }

// addresses returns the addresses of an index.
func (p Plan) addresses(pool Pool, index uint32) api.Addresses {
	return api.Addresses{IPv4: p.ipv4(index).String(), IPv6: p.ipv6(p.part(pool).subnet, index).String()}
}

// index returns the index of addresses, false if they are none of the pool.
func (p Plan) index(pool Pool, a api.Addresses) (uint32, bool) {
	v4, err := netip.ParseAddr(a.IPv4)
	if err != nil || !p.IPv4.Contains(v4) {
		return 0, false
	}
	base, at := p.IPv4.Addr().As4(), v4.As4()
	i := binary.BigEndian.Uint32(at[:]) - binary.BigEndian.Uint32(base[:])
	return i, p.part(pool).has(i) && p.addresses(pool, i) == a
}
