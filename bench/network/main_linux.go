// Command network measures the private network: in network namespaces, client — NAT —
// gateway — upstream, in one run beside others.
//
//	go run ./bench/network [-rows tun,…] [-targets cardea,…] [-quick] [-profile DIR] [-results FILE]
//
// Each group of rows has a place of its own. Rows that begin with
//
//	tun     are of a network interface at the client, beside wireguard-go with HAProxy
//	        behind it: the one of the library that Cardea uses, and Debian's
//	stack   are the same with a gateway without privileges, beside wireguard-go with the
//	        netstack of the same library and a plain proxy (bench/network/bare)
//	ports   are of published ports, over each kind of tunnel, beside HAProxy with TLS at
//	        both ends, the libraries of the tunnels without more, and frp
//	udp     are of Services of mode UDP, beside nginx, alone and behind wireguard-go
//
// CPU is that of the processes of both ends; what the kernel does for the packets, TCP and
// the links, counts for the machine alone. The row idle is what those of TCP
// cost while nothing is asked of them. The row peers is of many devices
// (bench/network/peers): what a connected Session takes of the gateway's memory, and how
// long all need to find back when the gateway was killed and started again.
//
// All of it takes some ten minutes, and -quick two. Where all is measured, the tables go
// into bench/RESULTS.md.
package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	"cardea/bench/rig"
)

func main() {
	o := rig.Flags(rig.Defaults{Rounds: 4, Each: time.Second, QuickRows: "tun-8,tun-conns,stack-8,ports-8,ports-conns,udp,peers", QuickTargets: "cardea,wireguard-go + haproxy,TLS,quic-go,netstack,nginx"},
		"tun-1-up", "tun-1-down", "tun-8-up", "tun-8-down", "tun-conns", "tun-latency",
		"stack-1-up", "stack-1-down", "stack-8-up", "stack-8-down", "stack-conns", "stack-latency",
		"ports-1-up", "ports-1-down", "ports-8-up", "ports-8-down", "ports-conns", "ports-latency",
		"udp-tunnel", "udp-tunnel-latency", "udp-public", "udp-public-latency", "idle", "peers")
	peers := flag.Int("peers", 0, "devices of the row peers; 10,000 if not said, and 500 with -quick")
	o.Shared = true // packets pass five processes and the kernel: who has what core is the kernel's business
	o.Part = "network"
	rig.Main(o, func(ctx context.Context, r *rig.Rig) error {
		for _, g := range groups() {
			if !r.Wants(g.name) && !(g.idle && r.Wants("idle")) {
				continue
			}
			if err := within(ctx, r, func(b *bench) error { return b.measure(ctx, g) }); err != nil {
				return err
			}
		}
		if !r.Wants("peers") {
			return nil
		}
		n := *peers
		switch {
		case n > 0:
		case r.Quick():
			n = 500
		default:
			n = 10_000
		}
		return within(ctx, r, func(b *bench) error { return b.peers(ctx, n) })
	})
}

// A group of rows is measured in a place of its own.
type group struct {
	name string
	idle bool // its Targets are those of the row idle too
	rows func(*bench, context.Context) (*cardea, []rig.Row, error)
}

func groups() []group {
	return []group{{"tun", true, (*bench).interfaceRows}, {"stack", true, (*bench).stackRows}, {"ports", true, (*bench).portRows}, {"udp", false, (*bench).datagramRows}}
}

// measure measures a group.
func (b *bench) measure(ctx context.Context, g group) error {
	c, rows, err := g.rows(b, ctx)
	if err != nil {
		return err
	}
	if g.idle && b.Wants("idle") {
		b.idle(ctx, g.name, rows[0].Targets)
	}
	if err := b.Measure(ctx, rows...); err != nil {
		return fmt.Errorf("%w\n%s", err, b.said())
	}
	return c.verify()
}

func (b *bench) interfaceRows(ctx context.Context) (*cardea, []rig.Row, error) {
	c, err := b.cardea(ctx)
	if err != nil {
		return nil, nil, err
	}
	t, err := c.byInterface(ctx)
	if err != nil {
		return nil, nil, err
	}
	wires, err := b.wires(ctx)
	return c, b.rows("tun", "an interface at the client", append([]*rig.Target{t}, wires...)), err
}

func (b *bench) stackRows(ctx context.Context) (*cardea, []rig.Row, error) {
	c, err := b.cardea(ctx, "--network", "userspace")
	if err != nil {
		return nil, nil, err
	}
	t, err := c.byInterface(ctx)
	if err != nil {
		return nil, nil, err
	}
	bare, err := b.bareGateway(ctx)
	return c, b.rows("stack", "an interface at the client, a gateway without privileges", []*rig.Target{t, bare}), err
}

func (b *bench) portRows(ctx context.Context) (*cardea, []rig.Row, error) {
	c, err := b.cardea(ctx)
	if err != nil {
		return nil, nil, err
	}
	ports, err := b.ports(ctx, c)
	return c, b.rows("ports", "a port of loopback at the client", ports), err
}

// tails are the units of a row of latencies.
func tails() []string {
	return []string{"p50 µs, 1 conn", "p99", "p50 µs, 64 conns", "p99"}
}

// rows are those of a way to reach Services of TCP.
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
			Units: tails(), Targets: targets, Measure: b.Tails(1, 64)})
}

// idle shows what the processes of Targets use while nothing is asked of them.
func (b *bench) idle(ctx context.Context, group string, targets []*rig.Target) {
	const rest = 5 * time.Second
	pause := func() {
		select {
		case <-time.After(rest):
		case <-ctx.Done():
		}
	}
	pause() // what began has come to its end
	before := map[rig.PID]rig.Usage{}
	for _, t := range targets {
		for _, p := range append([]rig.PID{t.PID}, t.With...) {
			before[p] = p.Usage()
		}
	}
	pause()
	var lines [][]string
	for _, t := range targets {
		line := []string{t.Name}
		for _, all := range [][]rig.PID{{t.PID}, t.With} {
			var sum rig.Usage
			for _, p := range all {
				sum = sum.Plus(p.Usage().Minus(before[p]))
			}
			line = append(line, fmt.Sprintf("%.2f", 100*sum.CPU.Seconds()/rest.Seconds()), fmt.Sprintf("%.0f", float64(sum.Switches)/rest.Seconds()))
		}
		lines = append(lines, line)
	}
	b.Show("idle", group+", nothing is asked of it", "", []string{"", "% of a core, gateway", "wakes a second", "% of a core, client and others", "wakes a second"}, lines)
}
