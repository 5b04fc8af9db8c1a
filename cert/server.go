package cert

import (
	"container/list"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"
	"unicode"
)

const (
	serverLifetime = 24 * time.Hour
	// renewBefore is how long before its end a server's certificate is replaced.
	renewBefore = serverLifetime / 2
	// maxServers is the number of server certificates that are kept. A stranger
	// can ask for any namespace; this bounds what that costs.
	maxServers = 256
)

// servers holds the server certificates of this process, the least recently used
// last. They share one key, so that a stranger's hello costs a signature at most.
type servers struct {
	mu     sync.Mutex
	byName map[string]*list.Element // of *server
	order  list.List
}

type server struct {
	name string
	cert *tls.Certificate
}

// get returns the certificate of that name that is valid, and will be for a
// while; nil if there is none.
func (s *servers) get(name string, now time.Time) *tls.Certificate {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.byName[name]
	if e == nil {
		return nil
	}
	c := e.Value.(*server).cert
	if now.Before(c.Leaf.NotBefore) || now.After(c.Leaf.NotAfter.Add(-renewBefore)) {
		return nil
	}
	s.order.MoveToFront(e)
	return c
}

// put keeps the certificate of that name, in place of one that was there.
func (s *servers) put(name string, c *tls.Certificate) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byName == nil {
		s.byName = map[string]*list.Element{}
	}
	if e := s.byName[name]; e != nil {
		e.Value.(*server).cert = c
		s.order.MoveToFront(e)
		return
	}
	s.byName[name] = s.order.PushFront(&server{name, c})
	if s.order.Len() > maxServers {
		delete(s.byName, s.order.Remove(s.order.Back()).(*server).name)
	}
}

// ServerCertificate is a tls.Config's GetCertificate: it returns the certificate
// for the server name that a client asks for, followed by those of the CAs, which
// clients pin when they log in, the newest last.
//
// There are certificates for api.DOMAIN, gateway.DOMAIN, *.svc.DOMAIN and
// *.NAMESPACE.svc.DOMAIN, whether or not there is such a Namespace: a stranger
// learns nothing of what exists. Who sends no server name gets one for
// api.DOMAIN and the address that was connected to. Any other name is an error.
func (a *Authority) ServerCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name, err := a.serverName(hello.ServerName)
	if err != nil {
		return nil, err
	}
	if hello.ServerName == "" {
		return a.server([]string{name}, localAddr(hello.Conn))
	}
	return a.server([]string{name}, netip.Addr{})
}

// NameCertificate returns the certificate for one name of a Service,
// NAME.NAMESPACE.svc.DOMAIN, and for more names, or *.DOMAIN, that are not below the
// cluster's domain: what a public listener shows to everybody, whatever name they ask
// for.
func (a *Authority) NameCertificate(name string, more ...string) (*tls.Certificate, error) {
	if of, err := a.serverName(name); err != nil || !strings.HasPrefix(of, "*.") {
		return nil, fmt.Errorf("cert: no certificate for %.100q: it is not NAME.NAMESPACE.svc.%s", name, a.domain)
	}
	return a.server(append([]string{strings.ToLower(name)}, more...), netip.Addr{})
}

// server returns the certificate for names, of which the first is the cluster's own
// and no other is, and, if it is valid, an address.
func (a *Authority) server(names []string, ip netip.Addr) (*tls.Certificate, error) {
	s := a.current()
	leaf := x509.Certificate{DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	slot := strings.Join(names, " ")
	if ip.IsValid() {
		leaf.IPAddresses = []net.IP{ip.AsSlice()}
		slot += " " + ip.String()
	}
	now := a.now()
	if c := s.servers.get(slot, now); c != nil {
		return c, nil
	}
	for _, n := range names[1:] {
		if !a.isForeign(n) {
			return nil, fmt.Errorf("cert: no certificate for %.100q: it is not a name, or *.NAME, outside %s", n, a.domain)
		}
	}
	// Two that find none at once both make one: either is as good.
	by, above := s.issuer()
	der, err := a.issue(by, &leaf, a.serverKey.Public(), now.Add(serverLifetime))
	if err != nil {
		return nil, fmt.Errorf("cert: %w", err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("cert: %w", err)
	}
	c := &tls.Certificate{Certificate: append([][]byte{der}, above...), PrivateKey: a.serverKey, Leaf: parsed}
	s.servers.put(slot, c)
	return c, nil
}

// isForeign tells whether a name, or *.NAME, in lower case is one of DNS, and not in
// the cluster's domain. It may have '_', as names in use do.
func (a *Authority) isForeign(name string) bool {
	name = strings.TrimPrefix(name, "*.")
	for l := range strings.SplitSeq(name, ".") {
		if !validLabel(strings.ReplaceAll(l, "_", "x")) {
			return false
		}
	}
	return len(name) <= 253 && name != a.domain && !strings.HasSuffix(name, "."+a.domain)
}

// serverName returns the name of the certificate for a server name.
func (a *Authority) serverName(sni string) (string, error) {
	if sni == "" {
		return "api." + a.domain, nil
	}
	lower := strings.ToLower(sni) // DNS names are the same in any case (RFC 4343)
	host, ours := strings.CutSuffix(lower, "."+a.domain)
	path, isService := strings.CutSuffix(host, ".svc")
	service, namespace, deep := strings.Cut(path, ".")
	switch {
	case !ours, strings.ContainsFunc(sni, func(r rune) bool { return r > unicode.MaxASCII }): // some have an ASCII letter as lower case
	case host == "api", host == "gateway":
		return lower, nil
	case isService && validLabel(service) && !deep:
		return "*.svc." + a.domain, nil
	case isService && validLabel(service) && validLabel(namespace):
		return "*." + namespace + ".svc." + a.domain, nil
	}
	return "", fmt.Errorf("cert: no certificate for the server name %.100q: this cluster's names end in .svc.%s", sni, a.domain)
}

// localAddr returns the address of our end of c, or the zero Addr if it has none.
func localAddr(c net.Conn) netip.Addr {
	if c == nil || c.LocalAddr() == nil {
		return netip.Addr{}
	}
	at, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return at.Addr().Unmap().WithZone("")
}
