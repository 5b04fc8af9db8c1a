package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"path/filepath"

	"cardea/bench/rig"
	"cardea/client"
	"cardea/test/cluster"
)

// bench is the proxies: their Targets on the plain path, and on that of Sessions.
type bench struct {
	*rig.Rig
	pools         []*client.Client
	plain, secure []*rig.Target
}

// A launcher starts a proxy, and returns its Targets, always in the same order.
type launcher func(context.Context) (plain, secure []*rig.Target, end func() error, err error)

// start starts every proxy.
func (b *bench) start(ctx context.Context) error {
	b.plain = []*rig.Target{{Name: "direct, no proxy", Echo: rig.Plain(b.Up.Echo), Sink: rig.Plain(b.Up.Sink)}}
	if err := b.Certificates("server", "client"); err != nil {
		return err
	}
	engines, err := b.EngineNames(ctx)
	if err != nil {
		return err
	}
	var all []launcher
	for _, e := range engines {
		all = append(all, func(ctx context.Context) ([]*rig.Target, []*rig.Target, func() error, error) { return b.cardea(ctx, e) })
	}
	for _, v := range []variant{{"haproxy", "", true}, {"haproxy, splice-auto", "option splice-auto", false},
		{"haproxy, splice forced", "option splice-request\n  option splice-response", false}} {
		all = append(all, func(ctx context.Context) ([]*rig.Target, []*rig.Target, func() error, error) {
			return b.haproxy(ctx, v)
		})
	}
	for _, launch := range append(all, b.nginx) {
		if err := b.launch(ctx, launch); err != nil {
			return err
		}
	}
	return b.Wait(ctx, append(b.plain, b.secure...)...)
}

// launch starts a proxy and adds its Targets, each of which can be started afresh.
func (b *bench) launch(ctx context.Context, launch launcher) error {
	plain, secure, _, err := launch(ctx)
	if err != nil {
		return err
	}
	for i, t := range plain {
		t.Fresh = func(ctx context.Context) (*rig.Target, func() error, error) {
			plain, _, end, err := launch(ctx)
			if err != nil {
				return nil, nil, err
			}
			return plain[i], end, b.Wait(ctx, plain[i])
		}
	}
	for i, t := range secure {
		t.Fresh = func(ctx context.Context) (*rig.Target, func() error, error) {
			_, secure, end, err := launch(ctx)
			if err != nil {
				return nil, nil, err
			}
			return secure[i], end, b.Wait(ctx, secure[i])
		}
	}
	b.plain, b.secure = append(b.plain, plain...), append(b.secure, secure...)
	return nil
}

// close closes the clients of Cardea.
func (b *bench) close() {
	for _, c := range b.pools {
		c.Close()
	}
}

// ruled is a public Service of its own port that a policy lets everybody reach.
func ruled(name, address string, port int) string {
	return fmt.Sprintf(`---
kind: Service
metadata: {name: %s}
spec:
  mode: TCP
  port: %d
  isPublic: true
  isAnonymous: true
  limits: {connectionsPerSecond: 1000000}
  config: {upstream: {url: "tcp://%s"}}
  authorization:
    enableAnonymous: true
    inlinePolicies:
      - spec:
          rules:
            - {effect: ALLOW, condition: {match: 'ctx.request.ip == "127.0.0.1"'}}
`, name, port, address)
}

// mapping is a TCPMapping.
func mapping(name, address string, port int) string {
	return fmt.Sprintf("---\napiVersion: getambassador.io/v3alpha1\nkind: TCPMapping\nmetadata: {name: %s, namespace: default}\nspec: {address: 127.0.0.1, port: %d, service: %q}\n",
		name, port, address)
}

const config = "---\nkind: ClusterConfig\nmetadata: {name: default}\nspec: {" + rig.Retention + "}\n"

// cardea is a launcher of Cardea with an engine.
func (b *bench) cardea(ctx context.Context, engine string) (plain, secure []*rig.Target, end func() error, err error) {
	c, err := b.Cardea(ctx, engine)
	if err != nil {
		return nil, nil, nil, err
	}
	p, err := rig.Ports(4)
	if err != nil {
		return nil, nil, nil, err
	}
	if err := c.Apply(ctx, config+cluster.GroupYAML("group-1")+cluster.UserYAML("alice", "group-1")+
		cluster.ServiceYAML("echo", b.Up.Echo)+cluster.ServiceYAML("sink", b.Up.Sink)+
		mapping("echo", b.Up.Echo, p[0])+mapping("sink", b.Up.Sink, p[1])+
		ruled("ruled-echo", b.Up.Echo, p[2])+ruled("ruled-sink", b.Up.Sink, p[3])); err != nil {
		return nil, nil, nil, err
	}
	if err := c.Login(ctx, "alice"); err != nil {
		return nil, nil, nil, err
	}
	exported := filepath.Join(c.Dir, "alice")
	if err := client.Export(ctx, c.Home("alice"), exported); err != nil {
		return nil, nil, nil, err
	}
	read := func(server string, resume bool) (*tls.Config, error) {
		return withCertificate(filepath.Join(exported, client.ExportedCA), filepath.Join(exported, client.ExportedCertificate), filepath.Join(exported, client.ExportedKey), server, resume)
	}
	echo, err := read("echo.default.svc.cardea.internal", false)
	if err != nil {
		return nil, nil, nil, err
	}
	sink := echo.Clone()
	sink.ServerName = "sink.default.svc.cardea.internal"
	resumed, err := read("gateway.cardea.internal", true)
	if err != nil {
		return nil, nil, nil, err
	}
	resumed.NextProtos = []string{"cardea/1"}
	frames := rig.TLS(c.Listen, resumed)
	pool := &client.Client{Home: c.Home("alice")}
	b.pools = append(b.pools, pool)
	pooled := func(service string) rig.Dial {
		return func(ctx context.Context) (net.Conn, error) { return pool.Dial(ctx, service) }
	}
	plain = []*rig.Target{
		c.Target(", mapping", rig.Plain(rig.At(p[0])), rig.Plain(rig.At(p[1]))),
		c.Target(", by policy", rig.Plain(rig.At(p[2])), rig.Plain(rig.At(p[3]))),
	}
	secure = []*rig.Target{
		c.Target(", TLS", rig.TLS(c.Listen, echo), rig.TLS(c.Listen, sink)),
		c.Target(", cardea/1 resumed", framedTo(frames, "echo"), nil),
		c.Target(", cardea/1 pooled", pooled("echo"), pooled("sink")),
	}
	secure[1].Resumes = true
	return plain, secure, func() error { return c.End(ctx) }, nil
}

// withCertificate is [rig.ClientConfig] with a certificate of the caller's.
func withCertificate(ca, cert, key, server string, resume bool) (*tls.Config, error) {
	c, err := rig.ClientConfig(ca, server, resume)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, err
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// A variant is HAProxy with further options.
type variant struct {
	name, options string
	rival         bool
}

// haproxy is a launcher of it.
func (b *bench) haproxy(_ context.Context, v variant) (plain, secure []*rig.Target, end func() error, err error) {
	bin := rig.HAProxy()
	if bin == "" {
		return nil, nil, nil, nil
	}
	p, err := rig.Ports(5)
	if err != nil {
		return nil, nil, nil, err
	}
	crt, ca := filepath.Join(b.Dir, "server-both.pem"), filepath.Join(b.Dir, "ca.pem")
	conf := fmt.Sprintf(`global
  nbthread 2
  maxconn 9500
  maxpipes 200
  log %s local0
  ssl-default-bind-options ssl-min-ver TLSv1.3
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 5s
  timeout client 10m
  timeout server 10m
  %s
listen echo
  bind %s
  server one %s
listen sink
  bind %s
  server one %s
listen full
  bind %s ssl crt %s ca-file %s verify required no-tls-tickets
  server one %s
listen resumed
  bind %s ssl crt %s ca-file %s verify required
  server one %s
listen secure-sink
  bind %s ssl crt %s ca-file %s verify required no-tls-tickets
  server one %s
`, b.Up.Log, v.options, rig.At(p[0]), b.Up.Echo, rig.At(p[1]), b.Up.Sink, rig.At(p[2]), crt, ca, b.Up.Echo,
		rig.At(p[3]), crt, ca, b.Up.Echo, rig.At(p[4]), crt, ca, b.Up.Sink)
	file, err := b.Write(fmt.Sprintf("haproxy%d.cfg", p[0]), conf)
	if err != nil {
		return nil, nil, nil, err
	}
	pid, err := b.Start(bin, "-db", "-f", file)
	if err != nil {
		return nil, nil, nil, err
	}
	plain = []*rig.Target{{Name: v.name, Echo: rig.Plain(rig.At(p[0])), Sink: rig.Plain(rig.At(p[1])), PID: pid, Rival: v.rival}}
	if v.rival {
		secure, err = b.rivals(v.name, pid, p[2:], true)
	}
	return plain, secure, func() error { b.End(pid); return nil }, err
}

// rivals returns the Targets of a proxy that asks for client certificates: at ports
// with full handshakes, with resumed ones, and before the sink.
func (b *bench) rivals(name string, pid rig.PID, p []int, rival bool) ([]*rig.Target, error) {
	read := func(resume bool) (*tls.Config, error) {
		return withCertificate(filepath.Join(b.Dir, "ca.pem"), filepath.Join(b.Dir, "client.pem"), filepath.Join(b.Dir, "client.key"), "server", resume)
	}
	full, err := read(false)
	if err != nil {
		return nil, err
	}
	resumed, err := read(true)
	return []*rig.Target{
		{Name: name + ", TLS", Echo: rig.TLS(rig.At(p[0]), full), Sink: rig.TLS(rig.At(p[2]), full), PID: pid, Rival: rival},
		{Name: name + ", TLS resumed", Echo: rig.TLS(rig.At(p[1]), resumed), PID: pid, Resumes: true},
	}, err
}

// nginx is a launcher of it.
func (b *bench) nginx(context.Context) (plain, secure []*rig.Target, end func() error, err error) {
	bin := rig.Nginx()
	if bin == "" {
		return nil, nil, nil, nil
	}
	p, err := rig.Ports(5)
	if err != nil {
		return nil, nil, nil, err
	}
	conf := fmt.Sprintf(`load_module %s;
daemon off;
worker_processes 2;
worker_rlimit_nofile 20000;
pid %s/nginx%d.pid;
error_log stderr warn;
events { worker_connections 19000; }
stream {
  log_format one '$remote_addr $time_iso8601 $status $bytes_sent $bytes_received $session_time';
  access_log %s/nginx.log one;
  proxy_timeout 10m;
  server { listen %s; proxy_pass %s; }
  server { listen %s; proxy_pass %s; }
  ssl_certificate %s/server.pem; ssl_certificate_key %s/server.key;
  ssl_client_certificate %s/ca.pem; ssl_verify_client on; ssl_protocols TLSv1.3;
  server { listen %s ssl; ssl_session_tickets off; proxy_pass %s; }
  server { listen %s ssl; ssl_session_cache shared:a:4m; proxy_pass %s; }
  server { listen %s ssl; ssl_session_tickets off; proxy_pass %s; }
}
`, rig.NginxStream, b.Dir, p[0], b.Dir, rig.At(p[0]), b.Up.Echo, rig.At(p[1]), b.Up.Sink, b.Dir, b.Dir, b.Dir,
		rig.At(p[2]), b.Up.Echo, rig.At(p[3]), b.Up.Echo, rig.At(p[4]), b.Up.Sink)
	file, err := b.Write(fmt.Sprintf("nginx%d.conf", p[0]), conf)
	if err != nil {
		return nil, nil, nil, err
	}
	pid, err := b.Start(bin, "-e", "stderr", "-p", b.Dir, "-c", file)
	if err != nil {
		return nil, nil, nil, err
	}
	plain = []*rig.Target{{Name: "nginx stream", Echo: rig.Plain(rig.At(p[0])), Sink: rig.Plain(rig.At(p[1])), PID: pid}}
	secure, err = b.rivals("nginx stream", pid, p[2:], false)
	return plain, secure, func() error { b.End(pid); return nil }, err
}
