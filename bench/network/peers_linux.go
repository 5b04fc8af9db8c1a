package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"time"

	"cardea/api"
	"cardea/bench/rig"
	"cardea/client"
	tunneltls "cardea/tunnel/tls"
)

// devices are as many processes of bench/network/peers as their descriptors need.
type devices []process

const devicesEach = 4000 // of a process

// process is one of them.
type process struct {
	in  io.Writer
	out *bufio.Scanner
}

// an answer of it, and of all together. Packets and Calls are seconds, of each device.
type answer struct {
	Seconds        float64
	Failed         int
	Why            string
	Cookies, Again int
	Packets, Calls []float64
}

// do has them do something.
func (d devices) do(word string) (all answer, err error) {
	for _, p := range d {
		fmt.Fprintln(p.in, word)
	}
	for _, p := range d {
		var a answer
		if !p.out.Scan() {
			return all, fmt.Errorf("the devices ended when they were to %s: %w", word, p.out.Err())
		}
		if err := json.Unmarshal(p.out.Bytes(), &a); err != nil {
			return all, err
		}
		all.Seconds, all.Why = max(all.Seconds, a.Seconds), cmp.Or(all.Why, a.Why)
		all.Failed, all.Cookies, all.Again = all.Failed+a.Failed, all.Cookies+a.Cookies, all.Again+a.Again
		all.Packets, all.Calls = append(all.Packets, a.Packets...), append(all.Calls, a.Calls...)
	}
	if all.Failed > 0 {
		return all, fmt.Errorf("%s: %d devices failed: %s", word, all.Failed, all.Why)
	}
	return all, nil
}

// peers measures a gateway with n devices, which are at the upstream: there is no NAT
// between, and each has an address of its own.
func (b *bench) peers(ctx context.Context, n int) error {
	const network = "10.200.0.0"
	b.Upstream.Run("ip", "route", "add", "local", network+"/16", "dev", "lo")
	b.Gateway.Run("ip", "route", "add", network+"/16", "via", b.Upstream.IPv4.String())
	c, err := b.cardea(ctx)
	if err != nil {
		return err
	}
	if err := c.apply(fmt.Sprintf("---\nkind: ClusterConfig\nmetadata: {name: default}\nspec: {session: {human: {maxPerUser: %d}}}\n", n)); err != nil {
		return err
	}
	d, err := c.devices(ctx, n, network)
	if err != nil {
		return err
	}
	empty := c.resident()
	each := func() float64 { return float64(c.resident()-empty) / 1024 / float64(n) }
	var lines [][]string
	say := func(what string, a answer) {
		lines = append(lines, []string{what, fmt.Sprintf("%.1f s", a.Seconds), fmt.Sprintf("%.0f a second, %.1f KiB each", float64(n)/a.Seconds, each())})
	}
	for _, step := range []struct{ word, what string }{
		{"login", "login, place in the network, the call for it open"}, {"handshake", "and a handshake of WireGuard"}, {"hangup", "and without the call"},
	} {
		a, err := d.do(step.word)
		if err != nil {
			return fmt.Errorf("%w\n%s", err, b.said())
		}
		say(step.what, a)
		if err := c.held(step.word); err != nil {
			return err
		}
	}
	c.kill(c.pid)
	begin := time.Now()
	if _, _, err := c.up(ctx); err != nil {
		return err
	}
	lines = append(lines, []string{"killed; serves again after", fmt.Sprintf("%.2f s", time.Since(begin).Seconds()), ""})
	a, err := d.do("back")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, b.said())
	}
	line := func(what string, seconds []float64) {
		slices.Sort(seconds)
		at := func(q float64) float64 { return seconds[min(int(q*float64(n)), n-1)] }
		lines = append(lines, []string{what, fmt.Sprintf("%.2f s", at(1)), fmt.Sprintf("p50 %.2f s, p99 %.2f s", at(0.5), at(0.99))})
	}
	line("all packets pass again after (noticed within 2 s)", a.Packets)
	line("all calls are open again after", a.Calls)
	lines = append(lines, []string{"memory of a server that has done nothing else", "", fmt.Sprintf("%.1f KiB each", float64(c.resident())/1024/float64(n))})
	b.Show("peers", fmt.Sprintf("%d devices, each a Session", n), fmt.Sprintf("%d cookies, %d calls tried again.", a.Cookies, a.Again), []string{"", "takes", ""}, lines)
	return nil
}

// resident returns the resident bytes of the server when it has come to rest.
func (c *cardea) resident() int64 {
	time.Sleep(5 * time.Second) // as it is for most of its life
	return c.pid.Resident()
}

// held writes down what the server holds in memory, if there is a profiler.
func (c *cardea) held(when string) error {
	if c.profile == nil {
		return nil
	}
	dir, err := filepath.Abs(c.Profile)
	if err != nil {
		return err
	}
	return rig.Call(c.profile, "/heap?file="+url.QueryEscape(filepath.Join(dir, "peers-"+when+"-gateway.heap")))
}

// devices starts them.
func (c *cardea) devices(ctx context.Context, n int, network string) (devices, error) {
	bin, err := c.build(ctx, "cardea/bench/network/peers")
	if err != nil {
		return nil, err
	}
	token, err := c.user("devices")
	if err != nil {
		return nil, err
	}
	exported := filepath.Join(c.Dir, "root")
	if err := client.Export(ctx, filepath.Join(c.Dir, "home-root"), exported); err != nil {
		return nil, err
	}
	out, err := c.as(c.Gateway, "root", "", "get", "gateway", "default", "-o", "json")
	if err != nil {
		return nil, err
	}
	var g api.Gateway
	if err := json.Unmarshal([]byte(out), &g); err != nil {
		return nil, err
	}
	if g.Status.WireGuard == nil {
		return nil, errors.New("the gateway has no WireGuard")
	}
	var all devices
	gateway := c.Upstream.IPv4.Prev() // its address on this side
	at := func(port int) string { return netip.AddrPortFrom(gateway, uint16(port)).String() }
	for from := netip.MustParseAddr(network); n > 0; n -= devicesEach {
		some := min(n, devicesEach)
		cmd := c.Upstream.Command(bin, "-n", fmt.Sprint(some), "-from", from.String(), "-cluster", at(apiPort), "-name", tunneltls.APIName("cardea.internal"),
			"-ca", filepath.Join(exported, client.ExportedCA), "-token", token,
			"-wireguard", at(g.Status.WireGuard.Port), "-key", g.Status.WireGuard.PublicKey)
		for range some {
			from = from.Next()
		}
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			return nil, err
		}
		said, err := cmd.StdoutPipe()
		if err != nil {
			return nil, err
		}
		if err := cmd.Start(); err != nil {
			return nil, err
		}
		c.Cleanup(func() {
			in.Close()
			cmd.Process.Kill()
			cmd.Wait() // it was killed
		})
		out := bufio.NewScanner(said)
		out.Buffer(nil, 1<<20)
		all = append(all, process{in, out})
	}
	return all, nil
}
