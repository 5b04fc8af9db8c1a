package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"cardea/bench/rig"
	"cardea/test/network/lab"
)

// sendBack sends back every datagram that comes to udpPort of a host.
func (b *bench) sendBack(h *lab.Host) error {
	p, err := h.ListenPacket("udp", netip.AddrPortFrom(netip.IPv4Unspecified(), udpPort))
	if err != nil {
		return err
	}
	b.Cleanup(func() { p.Close() })
	c := p.(*net.UDPConn)
	c.SetReadBuffer(4 << 20)
	for range 2 {
		go func() { // ends with c
			for data := make([]byte, 64<<10); ; {
				n, from, err := c.ReadFromUDPAddrPort(data)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err == nil {
					c.WriteToUDPAddrPort(data[:n], from)
				}
			}
		}()
	}
	return nil
}

// datagramRows are those of Services of mode UDP: through a network interface, and
// through a public port.
func (b *bench) datagramRows(ctx context.Context) (*cardea, []rig.Row, error) {
	c, err := b.cardea(ctx)
	if err != nil {
		return nil, nil, err
	}
	own, err := c.byInterface(ctx)
	if err != nil {
		return nil, nil, err
	}
	service, err := c.addressOf("datagrams")
	if err != nil {
		return nil, nil, err
	}
	at := func(host string, port int) rig.Dial { return b.load.dialUDP(net.JoinHostPort(host, fmt.Sprint(port))) }
	own.Echo = at(service, udpPort)
	tunnel := []*rig.Target{own}
	public := []*rig.Target{{Name: "cardea", PID: c.pid, Echo: at(b.Gateway.IPv4.String(), publicPort)}}
	if c.profile != nil {
		public[0].Profilers = map[string]rig.Dial{"-gateway": c.profile}
	}
	if rig.Nginx() != "" {
		const port = udpPort + 30
		nginx, err := b.nginx(port)
		if err != nil {
			return nil, nil, err
		}
		program, err := b.build(ctx, "golang.zx2c4.com/wireguard")
		if err != nil {
			return nil, nil, err
		}
		w, err := b.wire(ctx, program, 70, 1420)
		if err != nil {
			return nil, nil, err
		}
		tunnel = append(tunnel,
			&rig.Target{Name: "wireguard-go + nginx", PID: w.gateway.pid, With: []rig.PID{w.client.pid, nginx}, Rival: true, Echo: at(w.gateway.address, port)},
			&rig.Target{Name: "wireguard-go, no proxy", PID: w.gateway.pid, With: []rig.PID{w.client.pid}, Echo: at(w.gateway.address, udpPort)})
		public = append(public, &rig.Target{Name: "nginx", PID: nginx, Rival: true, Echo: at(b.Gateway.IPv4.String(), port)})
	}
	var rows []rig.Row
	for _, way := range []struct {
		name, title string
		targets     []*rig.Target
	}{{"udp-tunnel", "UDP, an interface at the client", tunnel}, {"udp-public", "UDP, a public port", public}} {
		rows = append(rows,
			rig.Row{Name: way.name, Title: way.title + ", 512 bytes there and back, 8 flows, 32 of each under way",
				Units: []string{"packets/s", "CPU s per million", "machine s per million", "lost %"}, Targets: way.targets, Measure: b.datagrams(8, 32, 512)},
			rig.Row{Name: way.name + "-latency", Title: way.title + ", 64 bytes there and back, the next when the last is back",
				Units: tails(), Targets: way.targets, Measure: b.Tails(1, 64)})
	}
	for _, targets := range [][]*rig.Target{tunnel, public} {
		if err := b.ready(ctx, targets...); err != nil {
			return nil, nil, err
		}
	}
	return c, rows, nil
}

// nginx runs one at the gateway whose port of UDP leads to the upstream's.
func (b *bench) nginx(port int) (rig.PID, error) {
	file, err := b.Write("nginx.conf", fmt.Sprintf(`load_module %s;
daemon off;
user root;
worker_processes auto;
pid %s/nginx.pid;
error_log stderr warn;
events { worker_connections 4000; }
stream {
  log_format one '$remote_addr $time_iso8601 $status $bytes_sent $bytes_received $session_time';
  access_log %s/nginx.log one;
  server { listen 0.0.0.0:%d udp reuseport; proxy_timeout 1m; proxy_pass %s; }
}
`, rig.NginxStream, b.Dir, b.Dir, port, b.upstreamAt(udpPort)))
	if err != nil {
		return 0, err
	}
	return b.start(b.Gateway, nil, "nginx", "-c", file)
}

// lost is how long a datagram may be under way.
const lost = 100 * time.Millisecond

// datagrams returns a Measure of packets a second, both ways together, of CPU seconds for
// a million of them, of the processes and of the whole machine, and of how many in a
// hundred were lost. Each flow has so many datagrams under way.
func (b *bench) datagrams(flows, window, size int) rig.Measure {
	return func(ctx context.Context, t *rig.Target) ([]float64, error) {
		ctx, cancel := context.WithTimeout(ctx, b.Each)
		defer cancel()
		var sent, back atomic.Int64
		failed := make([]error, flows)
		used, begin := rig.From(t), time.Now()
		var all sync.WaitGroup
		for i := range flows {
			all.Go(func() { failed[i] = exchange(ctx, t.Echo, window, size, &sent, &back) })
		}
		all.Wait()
		took := time.Since(begin).Seconds()
		n := float64(sent.Load() + back.Load())
		own, machine := used.Per(n / 1e6)
		return []float64{n / took, own.Seconds(), machine.Seconds(), 100 * float64(sent.Load()-back.Load()) / float64(max(sent.Load(), 1))}, errors.Join(failed...)
	}
}

// exchange keeps so many datagrams of a flow under way until ctx is done.
func exchange(ctx context.Context, dial rig.Dial, window, size int, sent, back *atomic.Int64) error {
	c, err := dial(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	defer c.Close()
	data := make([]byte, size)
	way := 0 // under way
	for {
		for ; way < window && ctx.Err() == nil; way++ {
			if _, err := c.Write(data); err != nil {
				return err
			}
			sent.Add(1)
		}
		c.SetReadDeadline(time.Now().Add(lost))
		switch _, err := c.Read(data); {
		case err == nil:
			back.Add(1)
			way--
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return err
		default:
			way = 0
		}
		if ctx.Err() != nil && way == 0 {
			return nil
		}
	}
}
