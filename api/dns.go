package api

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// DNSTransport is how a DNS server is asked.
type DNSTransport string

// The transports of DNS.
const (
	DNSDatagram DNSTransport = "dns" // UDP, and TCP where that is too small (RFC 1035)
	DNSTCP      DNSTransport = "tcp" // RFC 7766
	DNSTLS      DNSTransport = "tls" // RFC 7858
)

// A DNSServer is who is asked for names.
type DNSServer struct {
	Transport DNSTransport
	Host      string // an IP address or a host name
	Port      int
}

// Address returns HOST:PORT.
func (s DNSServer) Address() string { return net.JoinHostPort(s.Host, strconv.Itoa(s.Port)) }

// String returns the server as a document says it.
func (s DNSServer) String() string { return string(s.Transport) + "://" + s.Address() }

var errDNSServer = errors.New("must be an IP address, IP:PORT, dns://HOST:PORT, tcp://HOST:PORT or tls://HOST:PORT")

// ParseDNSServer reads one of FallbackZone.Servers. The port is 53, and 853 with tls, if
// it is left out.
func ParseDNSServer(s string) (DNSServer, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return DNSServer{DNSDatagram, addr.String(), 53}, nil
	}
	if to, err := netip.ParseAddrPort(s); err == nil && to.Port() > 0 {
		return DNSServer{DNSDatagram, to.Addr().String(), int(to.Port())}, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.User != nil || u.Path != "" || u.RawQuery != "" || u.ForceQuery || u.Fragment != "" || u.Opaque != "" {
		return DNSServer{}, errDNSServer
	}
	server := DNSServer{DNSTransport(u.Scheme), u.Hostname(), 53}
	switch server.Transport {
	case DNSDatagram, DNSTCP:
	case DNSTLS:
		server.Port = 853
	default:
		return DNSServer{}, errDNSServer
	}
	if p := u.Port(); p != "" {
		if server.Port, err = strconv.Atoi(p); err != nil || server.Port < 1 || server.Port > 65535 {
			return DNSServer{}, errDNSServer
		}
	}
	if _, err := netip.ParseAddr(server.Host); err != nil && !isDNSHost(server.Host) {
		return DNSServer{}, errDNSServer
	}
	return server, nil
}

// isDNSHost reports whether s may be the name of a host (RFC 1123, section 2.1): its last
// label is no number, so that a mistyped address is none.
func isDNSHost(s string) bool {
	if len(s) > 253 {
		return false
	}
	labels := strings.Split(strings.ToLower(s), ".")
	for _, l := range labels {
		if l == "" || len(l) > 63 || l[0] == '-' || l[len(l)-1] == '-' || strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// maxDNSServers is the number of servers of a FallbackZone.
const maxDNSServers = 32

func (z *FallbackZone) validate(p *Problems, at string) {
	if z == nil {
		return
	}
	if n := len(z.Servers); n > maxDNSServers {
		p.Add(at+"/servers", fmt.Sprintf("must be at most %d", maxDNSServers), strconv.Itoa(n))
	}
	for i, s := range z.Servers {
		if _, err := ParseDNSServer(s); err != nil {
			p.Add(fmt.Sprintf("%s/servers/%d", at, i), err.Error(), s)
		}
	}
	z.CacheDuration.validate(p, at+"/cacheDuration", time.Second, 7*day)
}
