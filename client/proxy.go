package client

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cardea/api"
	"cardea/client/socks"
	"cardea/relay"
)

// ParseProxy reads [HOST:]PORT, where SOCKS5 and HTTP CONNECT are to be served, as a Port.
// Without a host it is 127.0.0.1; port 0 is any that is free.
func ParseProxy(s string) (Port, error) {
	p, err := ParsePort("proxy:" + s)
	if err != nil || p.Network != "tcp" {
		return Port{}, fmt.Errorf("%.100q is no address of a proxy: want [HOST:]PORT", s)
	}
	return Port{Network: NetworkProxy, Address: p.Address}, nil
}

// NetworkProxy is the Network of a Port that leads not to one Service, but to each that a
// program asks for by SOCKS5 or HTTP CONNECT.
const NetworkProxy = "socks5"

// serveProxy serves the proxy at a port until ctx is done.
func (p *Ports) serveProxy(ctx context.Context, o *port) {
	const any = "a Service of the proxy"
	s := &socks.Server{
		Dial: func(ctx context.Context, host string, port int) (net.Conn, error) {
			return p.dialNamed(ctx, host, port, p.Dialer.Dial)
		},
		DialPackets: func(ctx context.Context, host string, port int) (net.Conn, error) {
			return p.dialNamed(ctx, host, port, p.dialFlow)
		},
		Admit: func(c net.Conn) error { return p.admit(o.Share, c) },
		AdmitPackets: func(client, socket netip.AddrPort) error {
			if o.Share {
				return nil
			}
			return own(senderUID(client, socket))
		},
		Relay: func(client, upstream net.Conn) {
			p.relay(ctx, p.streams, any, relay.Pair{Client: client, Upstream: upstream})
		},
		Log: p.Log,
	}
	if err := s.Serve(ctx, o.listener); err != nil {
		p.setTrouble("the proxy at %s has ended: %v", o.Address, err)
		p.Log.Error("the proxy has ended", "address", o.Address, "error", err)
	}
}

// dialNamed opens a connection to the Service that a program means, or says why there is
// none: all that a program hears is a number.
func (p *Ports) dialNamed(ctx context.Context, host string, port int, open func(context.Context, string) (net.Conn, error)) (net.Conn, error) {
	service, err := p.Names.find(ctx, host, port)
	if err != nil {
		p.tell(net.JoinHostPort(host, strconv.Itoa(port)), err)
		return nil, err
	}
	return p.dial(ctx, service, open)
}

// Names finds the Service that a program means by a name, or an address, and a port. Its
// zero value takes names for what they are.
type Names struct {
	Client *Client // whose Services they are; nil knows none

	mu    sync.Mutex
	list  api.Reachable
	asked time.Time
}

const (
	namesFresh = 30 * time.Second // for which the list of Services is good
	namesAgain = 2 * time.Second  // between two looks for what was not in it
	namesTime  = 5 * time.Second  // to get it
)

// find returns the Service. What is no name of one is NOT_FOUND; that it has another port
// is an error too. Whether it may be reached is for the house to say.
func (n *Names) find(ctx context.Context, host string, port int) (string, error) {
	list := n.services(ctx, namesFresh)
	service, found := match(&list, host)
	if found == nil || found.Port != port { // it may be newer than the list
		list = n.services(ctx, namesAgain)
		service, found = match(&list, host)
	}
	switch {
	case service == "":
		e := api.Errorf(api.CodeNotFound, "%.100q is no Service that this Session may reach", host)
		e.Hint = "the proxy leads to Services alone: SERVICE, SERVICE.NAMESPACE or an address that cardea services shows"
		return "", e
	case found != nil && found.Port != 0 && found.Port != port:
		e := api.Errorf(api.CodeNotFound, "Service %s is at port %d, not at %d", service, found.Port, port)
		e.Hint = fmt.Sprintf("use %s:%d", service, found.Port)
		return "", e
	}
	return service, nil
}

// services returns the Services that the Session may reach, as they were at most so long
// ago; those that are known if the cluster does not say.
func (n *Names) services(ctx context.Context, old time.Duration) api.Reachable {
	if n == nil || n.Client == nil {
		return api.Reachable{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if time.Since(n.asked) < old {
		return n.list
	}
	ctx, cancel := context.WithTimeout(ctx, namesTime)
	defer cancel()
	n.asked = time.Now()
	call, err := n.Client.API(ctx)
	if err != nil {
		return n.list
	}
	var list api.Reachable
	if err := call.Do(ctx, http.MethodGet, "/api/self/services", nil, &list); err == nil {
		n.list = list
	}
	return n.list
}

// match returns the Service that a host is the name or an address of, "" if it can be
// none, and what is known of it.
func match(list *api.Reachable, host string) (service string, found *api.ReachableService) {
	if a, err := netip.ParseAddr(host); err == nil {
		text := a.Unmap().String()
		i := slices.IndexFunc(list.Items, func(s api.ReachableService) bool {
			return s.Addresses.IPv4 == text || s.Addresses.IPv6 == text
		})
		if i < 0 {
			return "", nil
		}
		return list.Items[i].Name, &list.Items[i]
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	for _, zone := range []string{".svc.", ".local."} {
		if list.Domain != "" {
			name = strings.TrimSuffix(name, zone+list.Domain)
		}
	}
	if wrongName(name) != "" {
		return "", nil
	}
	service = api.ServiceName(name)
	i := slices.IndexFunc(list.Items, func(s api.ReachableService) bool { return s.Name == service })
	if i < 0 {
		return service, nil
	}
	return service, &list.Items[i]
}
