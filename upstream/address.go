package upstream

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Addresses, beside the link-local ones, at which clouds tell a machine its
// secrets.
var (
	metadataAWS     = netip.MustParseAddr("fd00:ec2::254")
	metadataGoogle  = netip.MustParseAddr("fd20:ce::254")
	metadataAlibaba = netip.MustParseAddr("100.100.100.200")
	metadataAzure   = netip.MustParseAddr("168.63.129.16")
	metadataOracle  = netip.MustParseAddr("192.0.0.192")
)

// isMetadataName tells whether a name is one by which clouds tell a machine its
// secrets. What it resolves to is checked in any case: this is for names that lead
// there by way of a proxy.
func isMetadataName(host string) bool {
	switch strings.ToLower(strings.TrimSuffix(host, ".")) {
	case "metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal",
		"metadata.azure.internal", "metadata.azure.com", "metadata.tencentyun.com", "metadata.packet.net", "metadata.platformequinix.com":
		return true
	}
	return false
}

// The prefixes of IPv6 whose addresses contain one of IPv4: in their last four
// bytes, but for 6to4. A host, a translator or a relay may take the traffic there.
var (
	compatible = netip.MustParsePrefix("::/96")           // IPv4-compatible (RFC 4291)
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // IPv4-translated (RFC 2765)
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // NAT64 (RFC 6052)
	localNAT64 = netip.MustParsePrefix("64:ff9b:1::/48")  // local NAT64 (RFC 8215), in its /96 form
	sixToFour  = netip.MustParsePrefix("2002::/16")       // 6to4 (RFC 3056)
)

var (
	thisNetwork = netip.MustParsePrefix("0.0.0.0/8") // RFC 1122, section 3.2.1.3
	broadcast   = netip.MustParseAddr("255.255.255.255")
)

// contained returns the IPv4 address that an address contains, beside being one itself,
// if it does.
func contained(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case a.Is4(), a.IsLoopback(), a.IsUnspecified(): // ::1 contains no 0.0.0.1
	case compatible.Contains(a), translated.Contains(a), nat64.Contains(a), localNAT64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:])), true
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:])), true
	}
	return netip.Addr{}, false
}

// A refusal says why an address is not dialled, and the way out.
type refusal struct{ words, wayOut string }

func (r *refusal) Error() string { return "refused: " + r.words }

// check returns a *refusal if an upstream may not be at that address.
func (d *Dialer) check(at netip.AddrPort) error {
	a := at.Addr().Unmap().WithZone("")
	if r := d.checkForm(netip.AddrPortFrom(a, at.Port())); r != nil {
		return r
	}
	if inner, ok := contained(a); ok {
		if r := d.checkForm(netip.AddrPortFrom(inner, at.Port())); r != nil {
			return r
		}
	}
	return nil
}

// checkForm does so for one of the forms of an address.
func (d *Dialer) checkForm(at netip.AddrPort) *refusal {
	a, allow := at.Addr(), d.Allow()
	single := netip.PrefixFrom(a, a.BitLen())
	var words string
	switch {
	case isUnspecified(a):
		return &refusal{"it is not the address of a host", "name the upstream's own address"}
	case slices.Contains(allow, single):
		return nil
	case d.isOwn(at):
		words = "this cluster itself listens there"
	case slices.ContainsFunc(allow, func(p netip.Prefix) bool { return p.Contains(a) }):
		return nil
	case a == metadataAWS, a == metadataGoogle, a == metadataAlibaba, a == metadataAzure, a == metadataOracle:
		words = "clouds keep the secrets of their machines there (metadata)"
	case a.IsLinkLocalUnicast():
		words = "it is a link-local address, as those of cloud metadata are"
	case a.IsMulticast(), a == broadcast:
		words = "it is an address of many hosts"
	case a.IsLoopback() && !d.Loopback:
		words = "it is a loopback address, and this cluster listens on others too"
	default:
		return nil
	}
	return &refusal{words, fmt.Sprintf("if it is meant, add %s to spec.upstream.allow of the ClusterConfig", single)}
}

func isUnspecified(a netip.Addr) bool { return a.IsUnspecified() || thisNetwork.Contains(a) }

// isOwn tells whether the cluster listens at that address.
func (d *Dialer) isOwn(at netip.AddrPort) bool {
	for _, own := range d.Own() {
		if own.Port() != at.Port() {
			continue
		}
		a := own.Addr().Unmap().WithZone("")
		if a == at.Addr() || a.IsUnspecified() && d.isLocal(at.Addr()) {
			return true
		}
	}
	return false
}

// isLocal tells whether a is an address of this machine, or that cannot be told.
func (d *Dialer) isLocal(a netip.Addr) bool {
	if a.IsLoopback() {
		return true
	}
	addrs, err := d.interfaces()
	return err != nil || slices.Contains(addrs, a)
}

// interfacesTime is for how long the addresses of this machine are believed.
const interfacesTime = time.Second

// interfaces are the addresses of this machine as they were a moment ago.
type interfaces struct {
	mu    sync.Mutex
	at    time.Time
	addrs []netip.Addr
}

// interfaces returns the addresses of this machine.
func (d *Dialer) interfaces() ([]netip.Addr, error) {
	l := &d.local
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if d.locals == nil && !l.at.IsZero() && now.Sub(l.at) < interfacesTime {
		return l.addrs, nil
	}
	ask := d.locals
	if ask == nil {
		ask = net.InterfaceAddrs
	}
	list, err := ask()
	if err != nil {
		return nil, err
	}
	l.at, l.addrs = now, nil
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			l.addrs = append(l.addrs, p.Addr().Unmap().WithZone(""))
		}
	}
	return l.addrs, nil
}
