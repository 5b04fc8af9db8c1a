// Command network measures the private network: in network namespaces, client — NAT —
// gateway — upstream, in one run beside others.
//
//	go run ./bench/network [-rows tun,…] [-targets cardea,…] [-quick] [-profile DIR]
//
// Rows that begin with tun are of a network interface at the client, beside wireguard-go
// with HAProxy behind it: the one of the library that Cardea uses, and Debian's. CPU is
// that of the processes of both ends; what the kernel does for the packets, TCP and the
// links, counts for the machine alone. Rows that begin with ports are of published ports,
// over each kind of tunnel, beside HAProxy with TLS at both ends, the libraries of the
// tunnels without more (bench/network/bare), and frp. The row peers is of many devices
// (bench/network/peers): what a connected Session takes of the gateway's memory, and how
// long all need to find back when the gateway was killed and started again.
package main

import (
	"context"
	"flag"
	"fmt"

	"cardea/bench/rig"
)

func main() {
	o := rig.Flags("tun-1-up", "tun-1-down", "tun-8-up", "tun-8-down", "tun-conns", "tun-latency",
		"ports-1-up", "ports-1-down", "ports-8-up", "ports-8-down", "ports-conns", "ports-latency", "peers")
	peers := flag.Int("peers", 10_000, "devices of the row peers")
	o.Shared = true // packets pass five processes and the kernel: who has what core is the kernel's business
	rig.Main(o, func(ctx context.Context, r *rig.Rig) error {
		if r.Wants("tun") || r.Wants("ports") {
			if err := within(ctx, r, func(b *bench) error { return b.measure(ctx) }); err != nil {
				return err
			}
		}
		if r.Wants("peers") {
			return within(ctx, r, func(b *bench) error { return b.peers(ctx, *peers) })
		}
		return nil
	})
}

func (b *bench) measure(ctx context.Context) error {
	c, err := b.cardea(ctx)
	if err != nil {
		return err
	}
	var rows []rig.Row
	if b.Wants("tun") {
		t, err := c.byInterface(ctx)
		if err != nil {
			return err
		}
		wires, err := b.wires(ctx)
		if err != nil {
			return err
		}
		rows = append(rows, b.rows("tun", "an interface at the client", append([]*rig.Target{t}, wires...))...)
	}
	if b.Wants("ports") {
		ports, err := b.ports(ctx, c)
		if err != nil {
			return err
		}
		rows = append(rows, b.rows("ports", "a port of loopback at the client", ports)...)
	}
	if err := b.Measure(ctx, rows...); err != nil {
		return fmt.Errorf("%w\n%s", err, b.said())
	}
	return c.verify()
}

// rows are those of a way to reach Services.
func (b *bench) rows(name, title string, targets []*rig.Target) (all []rig.Row) {
	for _, streams := range []int{1, 8} {
		for _, way := range []string{"up", "down"} {
			all = append(all, rig.Row{Name: fmt.Sprintf("%s-%d-%s", name, streams, way), Title: fmt.Sprintf("%s, iperf3 %s, streams: %d", title, way, streams),
				Units: rig.PerGB(), Targets: targets, Measure: b.iperf(streams, way == "down")})
		}
	}
	return append(all,
		rig.Row{Name: name + "-conns", Title: title + ", new connections (connect, 1 byte there and back, close), 32 callers",
			Units: rig.PerConn(), Targets: targets, Measure: b.Conns(32)},
		rig.Row{Name: name + "-latency", Title: title + ", 64 bytes there and back, the next when the last is back",
			Units: []string{"p50 µs, 1 conn", "p50 µs, 64 conns"}, Targets: targets, Measure: b.Closed(1, 64)})
}
