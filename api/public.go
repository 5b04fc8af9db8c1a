package api

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// AnyAddress is ServicePublic.Address of every address of both families.
const AnyAddress = "*"

// ServicePublic says where the public port of a Service is, and what of its traffic
// is the Service's. It has no effect without isPublic.
type ServicePublic struct {
	// Address is the IP address of the port: that of the cluster's own listener if it
	// is left out; * is every address of IPv4 and IPv6, 0.0.0.0 every one of IPv4, ::
	// every one of IPv6.
	Address string `json:"address,omitempty"`
	// Hosts are the server names (SNI) that are the Service's: NAME, *.DOMAIN, or *
	// for TLS with any name or none. With them several Services share a port.
	Hosts []string `json:"hosts,omitempty"`
	// Passthrough leaves TLS to the upstream: the bytes stay as they are, and only the
	// server name is read. It needs hosts, and no isTLS.
	Passthrough bool `json:"passthrough,omitempty"`
	// ALPN lists protocols of which the client must offer one. It needs hosts.
	ALPN []string `json:"alpn,omitempty"`
	// Sources lists the networks (CIDR) that clients may come from.
	Sources []string `json:"sources,omitempty"`
	// Certificate is what clients are shown instead of one of the cluster's CA.
	Certificate *PublicCertificate `json:"certificate,omitempty"`
	// StartTLS is the protocol in which clients ask for TLS before they speak it. It
	// needs isTLS or passthrough.
	StartTLS StartTLS `json:"startTLS,omitempty"`
	// ProxyProtocol says that each connection begins with a PROXY header. It holds for
	// all Services of the port.
	ProxyProtocol bool `json:"proxyProtocol,omitempty"`
}

// PublicCertificate says where the certificate of a public port is.
type PublicCertificate struct {
	// FromSecret names a Secret with a certificate chain and its key, PEM.
	FromSecret string `json:"fromSecret"`
}

// Limits of ServicePublic.
const (
	maxHosts   = 1000
	maxALPN    = 16
	maxSources = 1000
)

// validatePublic checks what a Service says of its public port.
func (s *Service) validatePublic(p *Problems) {
	spec := &s.Spec
	passthrough := spec.Public != nil && spec.Public.Passthrough
	switch {
	case spec.IsPublic && spec.Mode == ModeUDP:
		s.validatePublicDatagrams(p)
	case spec.IsPublic && !spec.IsAnonymous && passthrough:
		p.Add("/spec/public/passthrough", "needs isAnonymous: true; who comes is not asked who he is, as his TLS goes to the upstream", "true").
			Hint = "let Cardea end TLS with isTLS, or let everybody in with isAnonymous"
	case spec.IsPublic && !spec.IsAnonymous && !spec.IsTLS:
		p.Add("/spec/isPublic", "needs isTLS: true, so that who comes can show the certificate of a Session, or isAnonymous: true", "true").
			Hint = "who has a Session reaches every Service, public or not, through cardea connect"
	case spec.IsAnonymous && !spec.IsPublic:
		p.Add("/spec/isAnonymous", "needs isPublic: true", "true")
	case spec.IsTLS && !spec.IsPublic:
		p.Add("/spec/isTLS", "needs isPublic: true; TLS within the private network is not yet available", "true")
	case spec.IsPublic && s.Status.Port == 0:
		p.Add("/spec/port", "is required for a public Service", "")
	}
	if spec.Authorization.EnableAnonymous && !spec.IsAnonymous {
		p.Add("/spec/authorization/enableAnonymous", "needs isAnonymous: true", "true")
	}
	if x := spec.Public; x != nil {
		if !spec.IsPublic {
			p.Warn("/spec/public", "has no effect without isPublic", "")
		}
		x.validate(p, "/spec/public", spec.IsTLS)
	}
}

func (x *ServicePublic) validate(p *Problems, at string, isTLS bool) {
	if x.Address != "" && x.Address != AnyAddress {
		if a, err := netip.ParseAddr(x.Address); err != nil || a.Zone() != "" {
			p.Add(at+"/address", "must be an IP address, without a zone, or *", x.Address)
		}
	}
	x.validateHosts(p, at+"/hosts")
	switch {
	case x.Passthrough && isTLS:
		p.Add(at+"/passthrough", "must be left out with isTLS: TLS ends here, or at the upstream", "true")
	case x.Passthrough && len(x.Hosts) == 0:
		p.Add(at+"/passthrough", "needs hosts; without them the port takes any bytes, TLS too", "true")
	case len(x.Hosts) > 0 && !x.Passthrough && !isTLS:
		p.Add(at+"/hosts", "needs isTLS: true, with which TLS ends here, or public.passthrough: true, with which it goes to the upstream", strings.Join(x.Hosts, ", "))
	}
	if len(x.ALPN) > 0 && len(x.Hosts) == 0 {
		p.Add(at+"/alpn", "needs hosts; * is any", strings.Join(x.ALPN, ", "))
	}
	validateALPN(p, at+"/alpn", x.ALPN)
	if c := x.Certificate; c != nil {
		switch {
		case !isTLS:
			p.Add(at+"/certificate", "needs isTLS: true", "")
		case !validLabel(c.FromSecret):
			p.Add(at+"/certificate/fromSecret", "must name a Secret with a certificate and its key", c.FromSecret)
		}
	}
	if x.StartTLS != "" && !isTLS && !x.Passthrough {
		p.Add(at+"/startTLS", "needs isTLS or passthrough", string(x.StartTLS))
	}
	if len(x.Sources) > maxSources {
		p.Add(at+"/sources", fmt.Sprintf("must be at most %d", maxSources), strconv.Itoa(len(x.Sources)))
		return
	}
	for i, c := range x.Sources {
		if _, err := netip.ParsePrefix(c); err != nil {
			p.Add(fmt.Sprintf("%s/sources/%d", at, i), "must be a CIDR such as 10.0.0.0/8 or ::1/128", c)
		}
	}
}

func (x *ServicePublic) validateHosts(p *Problems, at string) {
	if len(x.Hosts) > maxHosts {
		p.Add(at, fmt.Sprintf("must be at most %d", maxHosts), strconv.Itoa(len(x.Hosts)))
		return
	}
	var seen []string
	for i, h := range x.Hosts {
		at, name := fmt.Sprintf("%s/%d", at, i), FoldName(h)
		_, ip := netip.ParseAddr(name)
		rest := strings.TrimPrefix(name, "*.")
		switch {
		case slices.Contains(seen, name):
			p.Add(at, "must not be there twice", h)
		case name == AnyName:
		case ip == nil:
			p.Add(at, "must not be an IP address: clients do not name those (RFC 6066)", h)
		case strings.Contains(rest, "*"):
			p.Add(at, "may have a * only as its first label, *.DOMAIN, or for every name, *", h)
		case !validHost(rest):
			p.Add(at, "must be a DNS name, *.DOMAIN or *", h)
		}
		seen = append(seen, name)
	}
}

// FoldName returns a server name as it is compared: in lower case, without the dot
// at its end.
func FoldName(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// validateALPN checks a list of protocols of ALPN (RFC 7301).
func validateALPN(p *Problems, at string, list []string) {
	if len(list) > maxALPN {
		p.Add(at, fmt.Sprintf("must be at most %d", maxALPN), strconv.Itoa(len(list)))
		return
	}
	for i, proto := range list {
		switch {
		case proto == "" || len(proto) > 255:
			p.Add(fmt.Sprintf("%s/%d", at, i), "must be 1 to 255 bytes", proto)
		case slices.Contains(list[:i], proto):
			p.Add(fmt.Sprintf("%s/%d", at, i), "must not be there twice", proto)
		}
	}
}
