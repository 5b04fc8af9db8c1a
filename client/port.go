package client

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"cardea/api"
)

// A Port is a local address at which a Service is published.
type Port struct {
	Service string `json:"service"`         // SERVICE.NAMESPACE; "" with NetworkProxy
	Network string `json:"network"`         // "tcp", "udp", "unix" or NetworkProxy
	Address string `json:"address"`         // HOST:PORT, or the path of a socket
	Share   bool   `json:"share,omitempty"` // serve everyone who can connect, not only the own User of this machine
}

// ParsePort reads SERVICE:PORT, SERVICE:HOST:PORT, SERVICE:[IPv6]:PORT, each with
// "/udp" behind it for a port of UDP, SERVICE:/PATH or SERVICE:unix:PATH. Without a host
// it is 127.0.0.1; port 0 is any that is free.
func ParsePort(s string) (Port, error) {
	service, at, ok := strings.Cut(s, ":")
	if !ok || service == "" || at == "" {
		return Port{}, fmt.Errorf("%.200q is not a published port: want %s", s, portForms)
	}
	if isNumber(service) {
		return Port{}, fmt.Errorf("%.200q is not a published port: the Service comes first, %.100s:%.40s", s, at, service)
	}
	if rule := wrongName(service); rule != "" {
		return Port{}, fmt.Errorf("%.200q is not a published port: the Service %.100q %s", s, service, rule)
	}
	p := Port{Service: api.ServiceName(service), Network: "tcp"}
	if path, ok := strings.CutPrefix(at, "unix:"); ok || strings.HasPrefix(at, "/") {
		if path == "" && ok {
			return Port{}, fmt.Errorf("%.200q names no socket: want SERVICE:unix:PATH", s)
		}
		abs, err := filepath.Abs(path)
		if err != nil {
			return Port{}, err
		}
		p.Network, p.Address = "unix", abs
		return p, nil
	}
	if rest, ok := strings.CutSuffix(at, "/udp"); ok {
		p.Network, at = "udp", rest
	}
	host, port, err := net.SplitHostPort(at)
	if err != nil {
		host, port = "127.0.0.1", at
	}
	n, err := strconv.ParseUint(port, 10, 16)
	switch {
	case err != nil:
		return Port{}, fmt.Errorf("%.200q is not a published port: %.40q is no port number from 0 to 65535; want %s", s, port, portForms)
	case isNumber(host):
		return Port{}, fmt.Errorf("%.200q is not a published port: one port is given, the local one, as the Service knows its own; want %s", s, portForms)
	}
	port = strconv.FormatUint(n, 10)
	if host == "" {
		return Port{}, fmt.Errorf("%.200q names no host: want SERVICE:PORT for this machine alone, 0.0.0.0 for all addresses of IPv4, or [::] for those of IPv6", s)
	}
	p.Address = net.JoinHostPort(host, port)
	return p, nil
}

// portForms are the forms of a Port, for people.
const portForms = "SERVICE:[HOST:]PORT, SERVICE:[HOST:]PORT/udp or SERVICE:/PATH"

// isNumber reports whether s is one of a port, and so no host that anybody means.
func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 16)
	return err == nil
}

// ParseService reads the name of a Service, SERVICE or SERVICE.NAMESPACE.
func ParseService(s string) (string, error) {
	if rule := wrongName(s); rule != "" {
		return "", fmt.Errorf("%.100q is not the name of a Service: it %s", s, rule)
	}
	return api.ServiceName(s), nil
}

// wrongName returns the rule that the name of a Service breaks, or "".
func wrongName(service string) string {
	var found api.Problems
	s := api.Service{Head: api.Head{Metadata: api.Metadata{Name: service}}}
	s.Validate(&found)
	for _, p := range found.List {
		if p.Pointer == "/metadata/name" {
			return p.Rule
		}
	}
	return ""
}

// network returns what net is to listen at: an address of IPv4 is not one of IPv6
// too, as net takes 0.0.0.0 to be.
func (p Port) network() string {
	if p.Network == "unix" {
		return p.Network
	}
	network := "tcp"
	if p.Network == "udp" {
		network = "udp"
	}
	host, _, _ := net.SplitHostPort(p.Address)
	ip, err := netip.ParseAddr(host)
	switch {
	case err != nil:
		return network
	case ip.Is4():
		return network + "4"
	}
	return network + "6"
}

// String returns the Port as ParsePort, or ParseProxy, reads it.
func (p Port) String() string {
	switch p.Network {
	case "unix":
		return p.Service + ":unix:" + p.Address
	case NetworkProxy:
		return p.Address
	case "udp":
		return p.Service + ":" + p.Address + "/udp"
	}
	return p.Service + ":" + p.Address
}

// refused says why a Port cannot be listened at, and the way out.
func (p Port) refused(err error) error {
	if p.Network == NetworkProxy {
		e := api.Errorf(api.CodeUnavailable, "cannot open the proxy at %s: %v", p.Address, rootCause(err))
		e.Hint = "choose another address with --socks5 [HOST:]PORT"
		return e
	}
	e := api.Errorf(api.CodeUnavailable, "cannot publish %s at %s: %v", p.Service, p.Address, rootCause(err))
	e.Hint = "choose another address with -p " + p.Service + ":[HOST:]PORT"
	return e
}

// rootCause returns what is at the bottom of an error of net.
func rootCause(err error) error {
	for {
		inner := errors.Unwrap(err)
		if inner == nil {
			return err
		}
		err = inner
	}
}
