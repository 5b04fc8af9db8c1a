// Command l4 measures Cardea's routing table, with each of its engines, beside HAProxy
// and nginx stream, with equal settings, in one run on one machine: TLS ended and
// begun, routing by SNI without ending TLS, PROXY headers in and out, 10,000 mappings
// on one port, and a change of one of these. A mapping that leaves bytes as they are
// is a row of bench/proxy, which says also what runs where.
//
//	go run ./bench/l4 [-rows sni,proxy-in,…] [-targets cardea,…] [-mappings 10000] [-quick] [-profile DIR]
package main

import (
	"context"
	"flag"
	"fmt"

	"cardea/bench/rig"
)

func main() {
	o := rig.Flags(rig.Usual(), "full", "resumed", "ended", "begun", "begun-bytes", "proxy-in", "proxy-out", "sni", "change")
	mappings := flag.Int("mappings", 10_000, "how many mappings the large port has")
	rig.Main(o, func(ctx context.Context, r *rig.Rig) error { return measure(ctx, r, *mappings) })
}

func measure(ctx context.Context, r *rig.Rig, mappings int) error {
	b := &bench{Rig: r, mappings: mappings, targets: map[string][]*rig.Target{}}
	defer b.close()
	if err := b.start(ctx); err != nil {
		return err
	}
	row := func(name, title string, units []string, targets string, f rig.Measure) rig.Row {
		return rig.Row{Name: name, Title: title, Units: units, Targets: b.targets[targets], Measure: f}
	}
	return r.Measure(ctx,
		row("full", "TLS ended: full handshakes (1.3, ECDSA P-256, X25519), 32 callers", rig.PerConn(), "full", r.Conns(32)),
		row("resumed", "TLS ended: resumed handshakes, 32 callers", rig.PerConn(), "resumed", r.Conns(32)),
		row("ended", "TLS ended: bytes up, 8 streams", rig.PerGB(), "full", r.Bytes),
		row("begun", "TLS begun: new connections, verified, not resumed, 32 callers", rig.PerConn(), "begun", r.Conns(32)),
		row("begun-bytes", "TLS begun: bytes up, 8 streams", rig.PerGB(), "begun", r.Bytes),
		row("proxy-in", "PROXY v2 in: new connections, 64 callers", rig.PerConn(), "proxy-in", r.Conns(64)),
		row("proxy-out", "PROXY v2 out: new connections, 64 callers", rig.PerConn(), "proxy-out", r.Conns(64)),
		row("sni", fmt.Sprintf("by SNI, TLS left as it is, 1 and %d names: new connections, 64 callers", mappings), rig.PerConn(), "sni", r.Conns(64)),
		row("change", fmt.Sprintf("one of %d names led elsewhere, every 300 ms; 1,000 new connections a second meanwhile", mappings),
			[]string{"in force, p50 ms", "quiet p99 µs", "changing p99 µs"}, "change", b.change),
	)
}
