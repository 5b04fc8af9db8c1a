package ingress

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	"cardea/api"
	"cardea/wire/proxyproto"
)

// trust checks that a connection comes from a proxy that is believed.
func (v *visit) trust() error {
	peer := v.peer.Addr()
	if !slices.ContainsFunc(v.trusted(), func(p netip.Prefix) bool { return p.Contains(peer.WithZone("")) }) {
		return badHeader("%v is not a trusted proxy; ClusterConfig.spec.routing.trustedProxies lists them", peer)
	}
	return nil
}

// hearHeader reads the PROXY header with which a connection begins, and takes from it
// who the client is.
func (v *visit) hearHeader() (more bool, err error) {
	h, n, err := proxyproto.Parse(v.read)
	switch {
	case err != nil:
		return false, badHeader("%v", err)
	case h == nil:
		return true, nil
	}
	v.believe(h)
	if v.read = v.read[n:]; len(v.read) == 0 {
		v.read = nil
	}
	if v.raw != nil {
		v.raw.Discard(n)
	}
	return false, nil
}

func badHeader(format string, args ...any) error {
	return denial{api.ReasonProxyHeader, fmt.Sprintf(format, args...)}
}

// trusted returns the networks from which headers are taken.
func (v *visit) trusted() []netip.Prefix {
	texts := v.router.Settings().TrustedProxies
	if texts == nil {
		texts = []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "::1/128", "fc00::/7", "fe80::/10"}
	}
	var list []netip.Prefix
	for _, text := range texts {
		if p, err := netip.ParsePrefix(text); err == nil { // validated when it was written
			list = append(list, masked(p))
		}
	}
	return list
}

// believe notes what a header says. A proxy that speaks for itself is the client; one
// that does not tell who the client is leaves that unknown, to policies and upstreams
// as well: conditions on where it comes from are not met then, though the proxy may
// meet them.
func (v *visit) believe(h *proxyproto.Header) {
	if h.Local {
		return
	}
	v.facts.ProxiedBy = v.peer.Addr().String()
	v.facts.Proxy = proxyFacts(h)
	v.from, v.facts.IP, v.facts.Port = h.Source, "", 0
	if v.from.IsValid() {
		v.facts.IP, v.facts.Port = v.from.Addr().String(), int(v.from.Port())
	}
}

func proxyFacts(h *proxyproto.Header) *api.ProxyFacts {
	f := &api.ProxyFacts{Version: h.Version, Authority: h.Authority, ALPN: h.ALPN, UniqueID: hex.EncodeToString([]byte(h.UniqueID))}
	if h.Destination.IsValid() {
		f.Destination = h.Destination.String()
	}
	if s := h.SSL; s != nil {
		f.TLSVersion = s.Version
		f.ClientCertificate = s.CertificateNow || s.CertificateSession
		if s.Verified {
			f.CommonName = s.CommonName
		}
	}
	for _, t := range h.TLVs {
		if f.TLVs == nil {
			f.TLVs = map[string]string{}
		}
		f.TLVs[fmt.Sprintf("%02x", t.Type)] = hex.EncodeToString([]byte(t.Value))
	}
	return f
}
