package main

import (
	"context"
	"fmt"
	"os"

	"cardea/bench/rig"
	"cardea/test/network/lab"
	"cardea/tunnel/wireguard"
)

// haproxy runs one at a host, with the sections after defaults that are given.
func (b *bench) haproxy(h *lab.Host, sections string) (rig.PID, error) {
	file, err := b.Write(fmt.Sprintf("haproxy%d.cfg", b.ran), fmt.Sprintf(`global
  maxconn 4000
  log %s local0
  ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
  mode tcp
  log global
  option tcplog
  option splice-auto
  timeout connect 5s
  timeout client 10m
  timeout server 10m
%s`, b.logs, sections))
	if err != nil {
		return 0, err
	}
	return b.start(h, nil, "haproxy", "-db", "-f", file)
}

// section is a port of HAProxy and what it leads to, each with options.
func section(name, bind, server string) string {
	return fmt.Sprintf("listen %s\n  bind %s\n  server one %s\n", name, bind, server)
}

// relay runs an HAProxy at the gateway, and returns its ports for iperf3 and echo, which
// are as far as that from those of the upstream.
func (b *bench) relay(further int) (pid rig.PID, iperf, echo int, err error) {
	iperf, echo = iperfPort+further, echoPort+further
	pid, err = b.haproxy(b.Gateway, section("iperf", fmt.Sprintf("0.0.0.0:%d", iperf), b.upstreamAt(iperfPort))+
		section("echo", fmt.Sprintf("0.0.0.0:%d", echo), b.upstreamAt(echoPort)))
	return pid, iperf, echo, err
}

// A wireEnd is a wireguard-go at one end.
type wireEnd struct {
	*lab.Host
	name, address string
	key           wireguard.Key
	pid           rig.PID
	b             *bench
}

const wirePort = 41000

// wireAddress is that of an end, 1 or 2, of a WireGuard that a number tells from others.
func wireAddress(number, end int) string { return fmt.Sprintf("10.50.%d.%d", number, end) }

// wireEnd runs a wireguard-go at a host.
func (b *bench) wireEnd(ctx context.Context, h *lab.Host, program, side string, number, end, mtu int) (*wireEnd, error) {
	// Names are those of sockets in a directory that all namespaces share.
	e := &wireEnd{h, fmt.Sprintf("b%d%s%d", os.Getpid(), side, number), wireAddress(number, end), wireguard.NewKey(), 0, b}
	var err error
	if e.pid, err = b.start(h, nil, program, "-f", e.name); err != nil {
		return nil, err
	}
	if err := b.until(ctx, func() error { return e.set() }); err != nil { // it takes a moment to begin
		return nil, err
	}
	e.Run("ip", "address", "add", e.address+"/24", "dev", e.name)
	e.Run("ip", "link", "set", e.name, "mtu", fmt.Sprint(mtu), "up")
	return e, nil
}

// set sets its private key, and what else is given.
func (e *wireEnd) set(more ...string) error {
	_, err := e.b.run(e.Host, e.key.Text(), nil, "wg", append([]string{"set", e.name, "private-key", "/dev/stdin"}, more...)...)
	return err
}

// A wire is a WireGuard of wireguard-go between client and gateway.
type wire struct{ client, gateway *wireEnd }

// wire runs a wireguard-go at both ends.
func (b *bench) wire(ctx context.Context, program string, number, mtu int) (w wire, err error) {
	if w.gateway, err = b.wireEnd(ctx, b.Gateway, program, "g", number, 1, mtu); err != nil {
		return w, err
	}
	if w.client, err = b.wireEnd(ctx, b.Clients[0], program, "c", number, 2, mtu); err != nil {
		return w, err
	}
	port := wirePort + number
	if err := w.gateway.set("listen-port", fmt.Sprint(port), "peer", w.client.key.Public().Text(), "allowed-ips", w.client.address+"/32"); err != nil {
		return w, err
	}
	return w, w.client.set("peer", w.gateway.key.Public().Text(), "allowed-ips", w.gateway.address+"/32", "endpoint", b.gatewayAt(port))
}

// wires are the Targets of wireguard-go, with and without HAProxy behind it.
func (b *bench) wires(ctx context.Context) ([]*rig.Target, error) {
	proxy, iperf, echo, err := b.relay(1)
	if err != nil {
		return nil, err
	}
	current, err := b.build(ctx, "golang.zx2c4.com/wireguard")
	if err != nil {
		return nil, err
	}
	var all []*rig.Target
	for n, v := range []struct {
		name, program string
		mtu           int
		plain         bool
	}{
		{"wireguard-go", current, 1420, true},
		{"wireguard-go (MTU 1280)", current, wireguard.DefaultMTU, false},
		{"wireguard-go of Debian", "wireguard-go", 1420, false},
	} {
		if _, err := os.Stat("/usr/bin/wireguard-go"); v.program == "wireguard-go" && err != nil {
			fmt.Println("wireguard-go is not installed: its row is left out")
			continue
		}
		w, err := b.wire(ctx, v.program, n, v.mtu)
		if err != nil {
			return nil, err
		}
		t := b.target(v.name+" + haproxy", w.gateway.address, iperf, echo, w.gateway.pid, w.client.pid, proxy)
		t.Rival = n == 0
		all = append(all, t)
		if v.plain {
			all = append(all, b.target(v.name+", no proxy", w.gateway.address, iperfPort, echoPort, w.gateway.pid, w.client.pid))
		}
	}
	return all, b.ready(ctx, all...)
}
