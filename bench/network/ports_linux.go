package main

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"

	"cardea/bench/rig"
	"cardea/test/network/lab"
	"cardea/tunnel/wireguard"
)

// ports are the Targets that are ports of loopback at the client: Cardea's over each of
// its tunnels, and others'.
func (b *bench) ports(ctx context.Context, c *cardea) (all []*rig.Target, err error) {
	for n, tunnel := range []string{"tls", "quic", "wireguard"} {
		t, err := c.byPort(ctx, n, tunnel)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	if err := b.Certificates("server", "client"); err != nil {
		return nil, err
	}
	bare, err := b.build(ctx, "cardea/bench/network/bare")
	if err != nil {
		return nil, err
	}
	for n, rival := range []func(ctx context.Context, bare string, iperf, echo int) (*rig.Target, error){b.tlsProxies, b.bareQUIC, b.bareStack, b.frp} {
		t, err := rival(ctx, bare, 20100+2*n, 20101+2*n)
		if err != nil {
			return nil, err
		}
		if t != nil {
			all = append(all, t)
		}
	}
	return all, b.ready(ctx, all...)
}

// upstreamAt is the address of a port at the upstream.
func (b *bench) upstreamAt(port int) string {
	return net.JoinHostPort(b.Upstream.IPv4.String(), fmt.Sprint(port))
}

// gatewayAt is the address of a port at the gateway.
func (b *bench) gatewayAt(port int) string {
	return net.JoinHostPort(b.Gateway.IPv4.String(), fmt.Sprint(port))
}

// tlsProxies is an HAProxy at either end with TLS and a client certificate between them.
func (b *bench) tlsProxies(_ context.Context, _ string, iperf, echo int) (*rig.Target, error) {
	file := func(name string) string { return filepath.Join(b.Dir, name) }
	const ports = 20200
	take := func(port int) string {
		return fmt.Sprintf("0.0.0.0:%d ssl crt %s ca-file %s verify required", port, file("server-both.pem"), file("ca.pem"))
	}
	lead := func(port int) string {
		return fmt.Sprintf("%s ssl crt %s ca-file %s verify required verifyhost server", b.gatewayAt(port), file("client-both.pem"), file("ca.pem"))
	}
	gateway, err := b.haproxy(b.Gateway, section("iperf", take(ports), b.upstreamAt(iperfPort))+section("echo", take(ports+1), b.upstreamAt(echoPort)))
	if err != nil {
		return nil, err
	}
	client, err := b.haproxy(b.Clients[0], section("iperf", rig.At(iperf), lead(ports))+section("echo", rig.At(echo), lead(ports+1)))
	if err != nil {
		return nil, err
	}
	t := b.target("haproxy, TLS, haproxy", "127.0.0.1", iperf, echo, gateway, client)
	t.Rival = true
	return t, nil
}

// bareQUIC is quic-go.
func (b *bench) bareQUIC(ctx context.Context, bare string, iperf, echo int) (*rig.Target, error) {
	const port = 20210
	file := func(name string) string { return filepath.Join(b.Dir, name) }
	gateway, err := b.start(b.Gateway, nil, bare, "quic-server", fmt.Sprintf("0.0.0.0:%d", port), file("server.pem"), file("server.key"), b.upstreamAt(iperfPort), b.upstreamAt(echoPort))
	if err != nil {
		return nil, err
	}
	client, err := b.start(b.Clients[0], nil, bare, "quic-client", b.gatewayAt(port), file("ca.pem"), fmt.Sprint(iperf), fmt.Sprint(echo))
	if err != nil {
		return nil, err
	}
	return b.target("quic-go bare", "127.0.0.1", iperf, echo, gateway, client), nil
}

// bareGateway is wireguard-go with an interface at the client, and a stack and a plain
// proxy at the gateway.
func (b *bench) bareGateway(ctx context.Context) (*rig.Target, error) {
	const number = 61
	bare, err := b.build(ctx, "cardea/bench/network/bare")
	if err != nil {
		return nil, err
	}
	program, err := b.build(ctx, "golang.zx2c4.com/wireguard")
	if err != nil {
		return nil, err
	}
	client, err := b.wireEnd(ctx, b.Clients[0], program, "c", number, 2, wireguard.DefaultMTU)
	if err != nil {
		return nil, err
	}
	key, at := wireguard.NewKey(), wireAddress(number, 1)
	to := func(port int) string { return fmt.Sprintf("%d=%s", port, b.upstreamAt(port)) }
	gateway, err := b.start(b.Gateway, nil, bare, "wireguard-server", key.Text(), client.key.Public().Text(), fmt.Sprint(wirePort+number),
		at, client.address, fmt.Sprint(wireguard.DefaultMTU), to(iperfPort), to(echoPort))
	if err != nil {
		return nil, err
	}
	if err := client.set("peer", key.Public().Text(), "allowed-ips", at+"/32", "endpoint", b.gatewayAt(wirePort+number)); err != nil {
		return nil, err
	}
	t := b.target("wireguard-go with a netstack, bare", at, iperfPort, echoPort, gateway, client.pid)
	t.Rival = true
	return t, b.ready(ctx, t)
}

// bareStack is wireguard-go with a stack at the client, and an interface and HAProxy at
// the gateway.
func (b *bench) bareStack(ctx context.Context, bare string, iperf, echo int) (*rig.Target, error) {
	const number = 60
	proxy, proxyIperf, proxyEcho, err := b.relay(30)
	if err != nil {
		return nil, err
	}
	program, err := b.build(ctx, "golang.zx2c4.com/wireguard")
	if err != nil {
		return nil, err
	}
	key := wireguard.NewKey()
	g, err := b.wireEnd(ctx, b.Gateway, program, "g", number, 1, wireguard.DefaultMTU)
	if err != nil {
		return nil, err
	}
	own := wireAddress(number, 2)
	if err := g.set("listen-port", fmt.Sprint(wirePort+number), "peer", key.Public().Text(), "allowed-ips", own+"/32"); err != nil {
		return nil, err
	}
	to := func(port, at int) string { return fmt.Sprintf("%d=%s:%d", port, g.address, at) }
	client, err := b.start(b.Clients[0], nil, bare, "wireguard-client", key.Text(), g.key.Public().Text(), b.gatewayAt(wirePort+number),
		own, fmt.Sprint(wireguard.DefaultMTU), to(iperf, proxyIperf), to(echo, proxyEcho))
	if err != nil {
		return nil, err
	}
	return b.target("netstack bare + haproxy", "127.0.0.1", iperf, echo, g.pid, client, proxy), nil
}

// frp is https://github.com/fatedier/frp: its server at the gateway, a client of it there
// that leads to the upstream, and one at the client that opens the ports ("stcp"); TLS
// between them, as it is by itself.
func (b *bench) frp(ctx context.Context, _ string, iperf, echo int) (*rig.Target, error) {
	const port = 20220
	for _, program := range []string{"frps", "frpc"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-C", filepath.Join("bench", "network", "frp"), "-o", filepath.Join(b.Dir, program), "github.com/fatedier/frp/cmd/"+program)
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Printf("frp cannot be built, and is left out: %v: %s\n", err, out)
			return nil, nil
		}
	}
	run := func(h *lab.Host, program, config string) (rig.PID, error) {
		file, err := b.Write(fmt.Sprintf("frp%d.toml", b.ran), config)
		if err != nil {
			return 0, err
		}
		return b.start(h, nil, filepath.Join(b.Dir, program), "-c", file)
	}
	server, err := run(b.Gateway, "frps", fmt.Sprintf("bindPort = %d\n", port))
	if err != nil {
		return nil, err
	}
	if err := b.until(ctx, func() error { // clients that come before it end
		c, err := b.load.dial(b.gatewayAt(port))(ctx)
		if err == nil {
			c.Close()
		}
		return err
	}); err != nil {
		return nil, err
	}
	common := fmt.Sprintf("serverAddr = %q\nserverPort = %d\n", b.Gateway.IPv4, port)
	serves, visits := common, common
	for name, p := range map[string][2]int{"iperf": {iperfPort, iperf}, "echo": {echoPort, echo}} {
		serves += fmt.Sprintf("[[proxies]]\nname = %q\ntype = \"stcp\"\nsecretKey = \"key\"\nlocalIP = %q\nlocalPort = %d\n", name, b.Upstream.IPv4, p[0])
		visits += fmt.Sprintf("[[visitors]]\nname = \"visit-%s\"\ntype = \"stcp\"\nserverName = %q\nsecretKey = \"key\"\nbindAddr = \"127.0.0.1\"\nbindPort = %d\n", name, name, p[1])
	}
	serving, err := run(b.Gateway, "frpc", serves)
	if err != nil {
		return nil, err
	}
	client, err := run(b.Clients[0], "frpc", visits)
	if err != nil {
		return nil, err
	}
	return b.target("frp", "127.0.0.1", iperf, echo, server, client, serving), nil
}
