package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"cardea/api"
	"cardea/bench/rig"
	"cardea/test/cluster"
	"cardea/test/network/lab"
)

// A cardea is a cluster at the gateway, its log on.
type cardea struct {
	*bench
	flags   []string // of up
	address string   // HOST:PORT of it
	ca      string   // SHA-256 of its CA
	pid     rig.PID
	profile rig.Dial // nil if there is no profiler
}

const profilerPort = 6060

// profiler returns the environment that gives a program a profiler at a port of a host,
// and how it is reached; nothing if there is to be none.
func (b *bench) profiler(h *lab.Host, port int) ([]string, rig.Dial) {
	if b.Profile == "" {
		return nil, nil
	}
	at := rig.At(port)
	return []string{rig.ProfilerAddress + "=" + at}, b.openers(h).dial(at)
}

// up starts the server of a cluster, or starts it again.
func (c *cardea) up(ctx context.Context) (ca, token string, err error) {
	env, profile := c.profiler(c.Gateway, profilerPort)
	c.profile = profile
	ready := filepath.Join(c.Dir, "ready.json")
	os.Remove(ready)
	args := append([]string{"up", "--data-dir", filepath.Join(c.Dir, "data"), "--listen", fmt.Sprintf("0.0.0.0:%d", apiPort), "--ready-file", ready}, c.flags...)
	if c.pid, err = c.start(c.Gateway, env, c.Bin, args...); err != nil {
		return "", "", err
	}
	var r struct{ CASHA256, Token string }
	err = c.until(ctx, func() error {
		text, err := os.ReadFile(ready)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &r)
	})
	return r.CASHA256, r.Token, err
}

const apiPort = 8443

// cardea starts a cluster with the Services iperf and echo, and datagrams and public of
// mode UDP, whose root has logged in at the gateway. It takes flags of up.
func (b *bench) cardea(ctx context.Context, flags ...string) (*cardea, error) {
	c := &cardea{bench: b, flags: flags, address: b.gatewayAt(apiPort)}
	ca, token, err := c.up(ctx)
	if err != nil {
		return nil, err
	}
	c.ca = ca
	if err := c.login(b.Gateway, "root", token); err != nil {
		return nil, err
	}
	const mayAll = `  authorization:
    inlinePolicies:
      - spec:
          rules:
            - {effect: ALLOW, condition: {match: '"group-1" in ctx.user.spec.groups'}}
`
	service := func(name, mode string, port, upstream int, more string) string {
		return fmt.Sprintf(`---
kind: Service
metadata: {name: %s}
spec:
  mode: %s
  port: %d
  config: {upstream: {url: "%s://%s:%d"}}
%s`, name, mode, port, strings.ToLower(mode), b.Upstream.IPv4, upstream, more)
	}
	return c, c.apply("---\nkind: ClusterConfig\nmetadata: {name: default}\nspec: {" + rig.Retention + "}\n" +
		cluster.GroupYAML("group-1") + service("iperf", "TCP", iperfPort, iperfPort, mayAll) + service("echo", "TCP", echoPort, echoPort, mayAll) +
		service("datagrams", "UDP", udpPort, udpPort, mayAll) + service("public", "UDP", publicPort, udpPort, "  isPublic: true\n  isAnonymous: true\n"))
}

// until tries until something is done, for a while.
func (b *bench) until(ctx context.Context, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w\n%s", err, b.said())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *cardea) home(who string) []string {
	return []string{"CARDEA_HOME=" + filepath.Join(c.Dir, "home-"+who)}
}

// as runs the program as somebody at a host.
func (c *cardea) as(h *lab.Host, who, stdin string, args ...string) (string, error) {
	return c.run(h, stdin, c.home(who), c.Bin, args...)
}

func (c *cardea) apply(yaml string) error {
	_, err := c.as(c.Gateway, "root", yaml, "apply", "-f", "-")
	return err
}

func (c *cardea) login(h *lab.Host, who, token string) error {
	_, err := c.as(h, who, "", "login", c.address, "--token", token, "--ca-sha256", c.ca)
	return err
}

// user makes a User of group-1 and returns a token of his.
func (c *cardea) user(name string) (string, error) {
	if err := c.apply(cluster.UserYAML(name, "group-1")); err != nil {
		return "", err
	}
	out, err := c.as(c.Gateway, "root", "", "create", "credential", name, "--user", name, "--type", "auth-token", "-o", "json")
	if err != nil {
		return "", err
	}
	var t struct{ Token string }
	return t.Token, json.Unmarshal([]byte(out), &t)
}

// connect has a new User run connect at the client.
func (c *cardea) connect(who string, profilerPort int, flags ...string) (pid rig.PID, profile rig.Dial, err error) {
	token, err := c.user(who)
	if err != nil {
		return 0, nil, err
	}
	h := c.Clients[0]
	if err := c.login(h, who, token); err != nil {
		return 0, nil, err
	}
	env, profile := c.profiler(h, profilerPort)
	pid, err = c.start(h, append(env, c.home(who)...), c.Bin, append([]string{"connect"}, flags...)...)
	return pid, profile, err
}

// measured is a Target of it: CPU and profiles are those of the gateway and of a client.
func (c *cardea) measured(name, host string, iperf, echo int, client rig.PID, profile rig.Dial) *rig.Target {
	t := c.target(name, host, iperf, echo, c.pid, client)
	if profile != nil {
		t.Profilers = map[string]rig.Dial{"-gateway": c.profile, "-client": profile}
	}
	return t
}

// byInterface is the way of unmodified programs: an interface at the client.
func (c *cardea) byInterface(ctx context.Context) (*rig.Target, error) {
	pid, profile, err := c.connect("alice", profilerPort, "--no-dns")
	if err != nil {
		return nil, err
	}
	iperf, err := c.addressOf("iperf")
	if err != nil {
		return nil, err
	}
	echo, err := c.addressOf("echo")
	if err != nil {
		return nil, err
	}
	t := c.measured("cardea", iperf, iperfPort, echoPort, pid, profile)
	t.Echo = c.load.dial(net.JoinHostPort(echo, fmt.Sprint(echoPort)))
	return t, c.ready(ctx, t)
}

// addressOf is the address of a Service within the network.
func (c *cardea) addressOf(service string) (string, error) {
	out, err := c.as(c.Gateway, "root", "", "get", "service", service, "-o", "json")
	if err != nil {
		return "", err
	}
	var s api.Service
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return "", err
	}
	return s.Status.Addresses.IPv4, nil
}

// byPort is that of ports at the client.
func (c *cardea) byPort(ctx context.Context, number int, tunnel string) (*rig.Target, error) {
	iperf, echo := 20000+2*number, 20001+2*number
	pid, profile, err := c.connect("user-"+tunnel, profilerPort+1+number,
		"-p", fmt.Sprintf("iperf:%d", iperf), "-p", fmt.Sprintf("echo:%d", echo), "--tunnel", tunnel)
	if err != nil {
		return nil, err
	}
	t := c.measured("cardea, "+tunnel, "127.0.0.1", iperf, echo, pid, profile)
	return t, c.ready(ctx, t)
}

// verify makes sure that the log is whole.
func (c *cardea) verify() error {
	out, err := c.as(c.Gateway, "root", "", "logs", "verify")
	if err == nil {
		fmt.Printf("\nlogs verify: %s", out)
	}
	return err
}
