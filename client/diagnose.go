package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"cardea/api"
	"cardea/client/resolver"
	"cardea/netif"
	"cardea/tunnel/quic"
	"cardea/tunnel/wireguard"
)

// diagnoseTime bounds the wait for one gateway.
const diagnoseTime = 2 * time.Second

// Diagnose looks whether this machine can be in the private network of its cluster, by
// which ways, and what stands in the way. has is what there is of it now, nil if nothing.
// Nothing is changed.
func (c *Client) Diagnose(ctx context.Context, has *NetworkStatus) (checks []api.HealthCheck) {
	add := func(name string, err error, words, hint string) {
		x := api.HealthCheck{Name: name, OK: err == nil, Words: words}
		if err != nil {
			x.Words, x.Hint = err.Error(), hint
		}
		checks = append(checks, x)
	}
	l, err := c.current(ctx)
	if err != nil {
		return nil // which is told elsewhere
	}
	var s api.NetworkState
	err = l.api.Do(ctx, http.MethodGet, "/api/connect", nil, &s)
	if api.HasCode(err, api.CodeNotFound) {
		add("private network", nil, "this cluster has none", "")
		return checks
	}
	if err != nil {
		add("private network", err, "", "")
		return checks
	}
	n := &Network{Client: c, Options: NetworkOptions{Interface: "cardea0"}, Log: slog.New(slog.DiscardHandler)}
	n.init()
	if has != nil && has.Form == FormInterface {
		add("interface", nil, fmt.Sprintf("%s has %s", has.Interface, strings.Join(has.Services, ", ")), "")
		var lost error
		if why, ok := strings.CutPrefix(has.DNS, "not set: "); ok {
			lost = errors.New("names of Services are not known on this machine: " + why)
		}
		add("names", lost, "set by "+has.DNS, "their addresses work (cardea services); mend what is said, and connect again")
	} else {
		n.diagnoseInterface(&s, add)
	}
	for _, g := range s.Gateways {
		words, err := n.diagnoseGateway(ctx, l, g, &s)
		add("gateway "+g.Name, err, words, "")
	}
	return checks
}

// diagnoseInterface looks whether there can be an interface.
func (n *Network) diagnoseInterface(s *api.NetworkState, add func(name string, err error, words, hint string)) {
	if err := netif.Able(n.Options.Interface); err != nil {
		add("interface", nil, fmt.Sprintf("there can be none: %v; -p and --socks5 need none", err), "")
		return
	}
	c, err := n.interfaceConfig(s)
	if err == nil {
		err = netif.Overlap(c)
	}
	if errors.Is(err, netif.ErrGateway) {
		add("interface", nil, "there can be none: the gateway of a cluster on this machine has the addresses (interface "+netif.Gateway+"); -p and --socks5 need none", "")
		return
	}
	hint := "without an interface: cardea connect -p SERVICE:PORT, or --socks5 1080"
	if e, ok := errors.AsType[*netif.Error](err); ok {
		err, hint = errors.New(e.Message), e.Hint+"; "+hint
	}
	add("interface", err, fmt.Sprintf("there can be one; nothing else has %s", strings.Join(s.Services, ", ")), hint)
	words := "would be set by " + resolver.Find()
	if resolver.Find() == resolver.File {
		words += ": all names are asked at the cluster first, which asks on; systemd-resolved would ask it for its own alone"
	}
	add("names", nil, words, "")
}

// diagnoseGateway looks by which ways a gateway can be reached. By TLS it can: the cluster
// has answered.
func (n *Network) diagnoseGateway(ctx context.Context, l *login, g api.GatewayPlace, s *api.NetworkState) (words string, err error) {
	type way struct {
		name string
		port int
		try  func(context.Context, netip.AddrPort) error
	}
	var yes, no, shut []string
	for _, w := range []way{
		{"WireGuard", g.WireGuardPort, func(ctx context.Context, _ netip.AddrPort) error { return n.probeOnce(ctx, g, s) }},
		{"QUIC", g.QUICPort, func(ctx context.Context, at netip.AddrPort) error {
			d := &quic.Dialer{Address: at.String(), Domain: l.Domain, Roots: l.roots, Certificate: l.fresh}
			defer d.Close()
			return d.Connect(ctx)
		}},
	} {
		if w.port == 0 {
			no = append(no, "it has no "+w.name)
			continue
		}
		places, err := n.places(ctx, g, w.port)
		if err != nil {
			return "", err
		}
		brief, cancel := context.WithTimeout(ctx, diagnoseTime)
		err = w.try(brief, places[0])
		cancel()
		if err == nil {
			yes = append(yes, fmt.Sprintf("%s at %s", w.name, places[0]))
		} else {
			no = append(no, fmt.Sprintf("no answer by %s at %s (UDP)", w.name, places[0]))
			shut = append(shut, strconv.Itoa(w.port)+"/udp")
		}
	}
	words = "reached by " + strings.Join(append(yes, "TLS at "+l.Address), ", ")
	for _, x := range no {
		words += "; " + x
	}
	if len(shut) > 0 {
		words += ": what else there is carries, more slowly; open " + strings.Join(shut, ", ") + " in the firewalls on the way"
	}
	return words, nil
}

// probeOnce asks a gateway's port of WireGuard for an answer.
func (n *Network) probeOnce(ctx context.Context, g api.GatewayPlace, s *api.NetworkState) error {
	remote, _, err := n.remote(ctx, g, s.Services)
	if err != nil {
		return err
	}
	end := &wireguard.Client{Key: wireguard.NewKey(), Addresses: []netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, 1})}, Log: n.Log}
	if err := end.Open(); err != nil {
		return err
	}
	defer end.Close()
	if err := end.Set([]wireguard.Remote{remote}); err != nil {
		return err
	}
	_, err = end.Probe(ctx, g.Name)
	return err
}
