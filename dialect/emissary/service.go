package emissary

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// A service is what the service of a mapping says: [SCHEME://]HOST[:PORT].
type service struct {
	scheme  string // "", http, https or tcp
	host    string // lower case; a final dot is kept, as DNS gives it a meaning
	port    int    // 0 if it is left out
	path    string // which has no effect
	literal bool   // the host is an IP address
}

// parseService reads a service, or says what is wrong with it. Nothing is guessed.
func parseService(text string) (service, error) {
	var s service
	rest := text
	if i := strings.Index(text, "://"); i >= 0 {
		s.scheme, rest = strings.ToLower(text[:i]), text[i+3:]
		switch s.scheme {
		case "http", "https", "tcp":
		default:
			return s, fmt.Errorf("the scheme %q is not one of http and https; for TLS to the service write https://, or set tls", short(s.scheme))
		}
	}
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		rest, s.path = rest[:i], rest[i:]
	}
	host, port, hasPort := rest, "", false
	if strings.HasPrefix(rest, "[") {
		end := strings.IndexByte(rest, ']')
		if end < 0 {
			return s, errors.New("the ] after the IPv6 address is missing")
		}
		a, err := netip.ParseAddr(rest[1:end])
		if err != nil || !a.Is6() || a.Zone() != "" {
			return s, errors.New("what is in [ ] must be an IPv6 address without a zone")
		}
		host = rest[1:end]
		if rest = rest[end+1:]; rest != "" {
			if port, hasPort = strings.CutPrefix(rest, ":"); !hasPort {
				return s, errors.New("what follows ] must be :PORT")
			}
		}
	} else {
		if strings.Count(rest, ":") > 1 {
			return s, errors.New("an IPv6 address must be in brackets: [::1]:PORT")
		}
		host, port, hasPort = strings.Cut(rest, ":")
	}
	if hasPort {
		n, err := strconv.Atoi(port)
		if err != nil || n < 1 || n > 65535 || strings.Trim(port, "0123456789") != "" {
			return s, fmt.Errorf("the port must be a number from 1 to 65535, not %q", short(port))
		}
		s.port = n
	}
	s.host = strings.ToLower(host)
	if a, err := netip.ParseAddr(s.host); err == nil {
		s.host, s.literal = a.String(), true
	} else if s.host == "" {
		return s, errors.New("the host name is missing")
	} else if !isName(strings.TrimSuffix(s.host, ".")) {
		return s, fmt.Errorf("%q is neither a host name nor an IP address", short(host))
	}
	return s, nil
}

// in returns the service as a mapping of a Namespace means it: a bare name is one of
// that Namespace.
func (s service) in(ns string) service {
	if !s.literal && s.host != "localhost" && !strings.Contains(s.host, ".") {
		s.host += "." + ns
	}
	return s
}

// url returns where connections go, for an api.Upstream.
func (s service) url(port int) string {
	return "tcp://" + net.JoinHostPort(s.host, strconv.Itoa(port))
}

// isName reports whether s, in lower case, is a host name without final dot. Names of
// services have underscores, too.
func isName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	label := 0
	for i := range len(s) {
		switch b := s[i]; {
		case b == '.':
			if label == 0 {
				return false
			}
			label = 0
		case b >= 'a' && b <= 'z', b >= '0' && b <= '9', b == '-', b == '_':
			if label++; label > 63 {
				return false
			}
		default:
			return false
		}
	}
	return label > 0
}

// canonical returns a server name in the one form in which names are compared.
func canonical(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }

// isPattern reports whether a canonical name is NAME, *.DOMAIN or *.
func isPattern(s string) bool { return s == "*" || isName(strings.TrimPrefix(s, "*.")) }
