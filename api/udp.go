package api

import (
	"cmp"
	"errors"
	"strings"
)

// wantDatagrams is what the URL of an upstream must be with mode UDP.
const wantDatagrams = "must be udp://HOST:PORT or dns://HOST"

// datagramScheme returns the port that the scheme of an upstream's URL stands for, 0 if
// it stands for none. ok is false for one that is not of datagrams.
func datagramScheme(s string) (port int, ok bool) {
	switch s {
	case "udp":
		return 0, true
	case "dns":
		return 53, true
	}
	return 0, false
}

// parseEndpoint parses the URL of an upstream of the Service, whose mode says whether it
// is reached by datagrams.
func (s *Service) parseEndpoint(text string) (Endpoint, error) {
	if s.Spec.Mode != ModeUDP {
		e, err := parseEndpoint(text)
		if err == nil && e.UDP {
			scheme, _, _ := strings.Cut(text, ":")
			err = errors.New(wantStream + ": the scheme " + scheme + " needs mode: UDP")
		}
		return e, err
	}
	e, err := parseURL(text, wantDatagrams)
	switch {
	case err != nil && strings.Contains(err.Error(), "the scheme must be"):
		err = errors.New(wantDatagrams + ": the scheme must be udp or dns")
	case err == nil && !e.UDP:
		err = errors.New(wantDatagrams + ", as the mode is UDP")
	}
	return e, err
}

// validateDatagrams refuses what a config of a Service of mode UDP cannot have: what only
// a stream of bytes has.
func (s *Service) validateDatagrams(p *Problems, at string, c *ServiceConfig) {
	u, served := &c.Upstream, c.IsServed()
	for _, x := range []struct {
		field, words string
		is           bool
	}{
		{"/tls", "must be left out with mode UDP: TLS needs TCP", c.TLS != nil},
		{"/clientCertificate", "must be left out with mode UDP: TLS needs TCP", c.ClientCertificate != nil},
		{"/upstream/startTLS", "must be left out with mode UDP: TLS needs TCP", u.StartTLS != ""},
		{"/upstream/proxyProtocol", "must be left out with mode UDP: there is no beginning that a header could stand at", u.ProxyProtocol != ""},
		{"/upstream/health/check", "needs port, of something that answers over TCP, with mode UDP", u.Health != nil && u.Health.Check != nil && u.Health.Check.Port == 0 && !served},
		{"/upstream/health/check", "must be left out with mode UDP and user: a Session can be asked for its URL only, where nothing answers over TCP", u.Health != nil && u.Health.Check != nil && served},
	} {
		if x.is {
			p.Add(at+x.field, x.words, "")
		}
	}
}

// validatePublicDatagrams checks what a Service of mode UDP says of its public port.
func (s *Service) validatePublicDatagrams(p *Problems) {
	spec := &s.Spec
	public := cmp.Or(spec.Public, new(ServicePublic))
	switch {
	case spec.IsTLS:
		p.Add("/spec/isTLS", "must be left out with mode UDP: TLS needs TCP", "true")
	case !spec.IsAnonymous:
		p.Add("/spec/isPublic", "needs isAnonymous: true with mode UDP: who comes there cannot show who he is", "true").
			Hint = "who has a Session reaches every Service, public or not, through cardea connect"
	case s.Status.Port == 0:
		p.Add("/spec/port", "is required for a public Service", "")
	}
	for _, x := range []struct {
		field string
		is    bool
	}{
		{"hosts", len(public.Hosts) > 0}, {"passthrough", public.Passthrough}, {"alpn", len(public.ALPN) > 0},
		{"certificate", public.Certificate != nil}, {"startTLS", public.StartTLS != ""}, {"proxyProtocol", public.ProxyProtocol},
	} {
		if x.is {
			p.Add("/spec/public/"+x.field, "must be left out with mode UDP: it is of TLS, or of streams", "")
		}
	}
}
