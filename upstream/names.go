package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"cardea/api"
)

// resolve returns the addresses of host, one at least: those of the families that
// are wanted, the preferred first; and until when nobody has to ask again. An address
// is itself, of whatever family. A name is looked up in Hosts, which hold until they
// are others, then with the machine's resolver, where an answer that ends within ahead
// is asked for again.
func (d *Dialer) resolve(ctx context.Context, host string, families []api.IPFamily, ahead time.Duration) ([]netip.Addr, time.Time, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a}, forever(), nil
	}
	var addrs []netip.Addr
	for _, s := range d.host(host) {
		if a, err := netip.ParseAddr(s); err == nil {
			addrs = append(addrs, a.Unmap())
		}
	}
	if len(addrs) > 0 {
		addrs, err := ofFamilies(host, addrs, families)
		return addrs, forever(), err
	}
	if err := d.checkName(host); err != nil {
		return nil, time.Time{}, err
	}
	if d.lookup != nil {
		var err error
		if addrs, err = d.lookup(ctx, host); err != nil {
			return nil, time.Time{}, err
		}
		for i := range addrs {
			addrs[i] = addrs[i].Unmap()
		}
		addrs, err = ofFamilies(host, addrs, families)
		return addrs, time.Time{}, err
	}
	addrs, until, err := d.names.addresses(ctx, host, families, ahead)
	if missing, ok := errors.AsType[*net.DNSError](err); ok && missing.IsNotFound && len(families) == 1 {
		addrs = d.others(ctx, host, families[0])
	}
	if err != nil && len(addrs) == 0 {
		return nil, time.Time{}, err
	}
	addrs, err = ofFamilies(host, addrs, families)
	return addrs, until, err
}

// othersTime is how long the addresses of a family are asked for that is not wanted.
const othersTime = time.Second

// others returns the addresses of the other family that a name has which has none of
// the one that is wanted, as far as that can be told: a name that is not there is
// another fault.
func (d *Dialer) others(ctx context.Context, host string, wanted api.IPFamily) []netip.Addr {
	other := api.IPv4
	if wanted == api.IPv4 {
		other = api.IPv6
	}
	ctx, cancel := context.WithTimeout(ctx, othersTime)
	defer cancel()
	addrs, _, _ := d.names.addresses(ctx, host, []api.IPFamily{other}, 0)
	return addrs
}

// A familyError is that a name has addresses, but none of the family that is wanted.
type familyError struct{ families []api.IPFamily }

func (e *familyError) Error() string {
	return fmt.Sprintf("the name has no %s address, only others", e.families[0])
}

// checkName refuses names of cloud metadata.
func (d *Dialer) checkName(host string) error {
	if !isMetadataName(host) {
		return nil
	}
	r := metadataRefusal()
	d.refuse(host, r)
	return r
}

func metadataRefusal() *refusal {
	return &refusal{"by this name clouds tell their machines their secrets (metadata)",
		"if it is meant, list the name with its address in spec.dns.hosts of the ClusterConfig, and the address in spec.upstream.allow"}
}

// host returns what Hosts has for a name, whatever its case and final dot.
func (d *Dialer) host(name string) []string {
	hosts := d.Hosts()
	if addrs, ok := hosts[name]; ok {
		return addrs
	}
	for h, addrs := range hosts {
		if strings.EqualFold(strings.TrimSuffix(h, "."), strings.TrimSuffix(name, ".")) {
			return addrs
		}
	}
	return nil
}

// ofFamilies returns those of the addresses of a host that are of the families which
// are wanted, the preferred first, else as they were. No families are both, none
// preferred.
func ofFamilies(host string, addrs []netip.Addr, families []api.IPFamily) ([]netip.Addr, error) {
	out := addrs
	if len(families) > 0 {
		out = nil
		for _, f := range families {
			for _, a := range addrs {
				if a.Is4() == (f == api.IPv4) {
					out = append(out, a)
				}
			}
		}
	}
	switch {
	case len(out) > 0:
		return out, nil
	case len(addrs) > 0:
		return nil, &familyError{families}
	}
	return nil, &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
}

// wants tells whether addresses of a family are wanted.
func wants(families []api.IPFamily, f api.IPFamily) bool {
	return len(families) == 0 || slices.Contains(families, f)
}
