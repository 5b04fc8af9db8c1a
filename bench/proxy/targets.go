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
	cluster       *cluster.Cluster
	pool          *client.Client
	plain, secure []*rig.Target
}

// fresh returns one target of each process.
func (b *bench) fresh() (list []*rig.Target) {
	seen := map[rig.PID]bool{0: true}
	for _, t := range b.plain {
		if !seen[t.PID] {
			list = append(list, t)
		}
		seen[t.PID] = true
	}
	return list
}

// start starts every proxy.
func (b *bench) start(ctx context.Context) error {
	b.plain = []*rig.Target{{Name: "direct, no proxy", Echo: rig.Plain(b.Up.Echo), Sink: rig.Plain(b.Up.Sink)}}
	if err := b.Certificates("server", "client"); err != nil {
		return err
	}
	for _, start := range []func(context.Context) error{b.startCardea, b.startHAProxy, b.startNginx} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	return b.Wait(ctx, append(b.plain, b.secure...)...)
}

func public(name, address string, port int, authorization string) string {
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
%s`, name, port, address, authorization)
}

const byPolicy = `  authorization:
    enableAnonymous: true
    inlinePolicies:
      - spec:
          rules:
            - {effect: ALLOW, condition: {match: 'ctx.request.ip == "127.0.0.1"'}}
`

func (b *bench) startCardea(ctx context.Context) error {
	bin, err := cluster.Build(ctx, b.Dir)
	if err != nil {
		return err
	}
	p, err := rig.Ports(5)
	if err != nil {
		return err
	}
	b.cluster = &cluster.Cluster{Bin: bin, Dir: b.Dir, Listen: rig.At(p[0]), Prefix: b.Prefix}
	if err := b.cluster.Start(ctx); err != nil {
		return err
	}
	if err := b.cluster.Apply(ctx, cluster.GroupYAML("group-1")+cluster.UserYAML("alice", "group-1")+cluster.ServiceYAML("echo", b.Up.Echo)+
		public("open-echo", b.Up.Echo, p[1], "")+public("open-sink", b.Up.Sink, p[2], "")+
		public("ruled-echo", b.Up.Echo, p[3], byPolicy)+public("ruled-sink", b.Up.Sink, p[4], byPolicy)); err != nil {
		return err
	}
	if err := b.cluster.Login(ctx, "alice"); err != nil {
		return err
	}
	pid := rig.PID(b.cluster.PID())
	b.plain = append(b.plain,
		&rig.Target{Name: "cardea, open to everyone", Echo: rig.Plain(rig.At(p[1])), Sink: rig.Plain(rig.At(p[2])), PID: pid},
		&rig.Target{Name: "cardea, by policy", Echo: rig.Plain(rig.At(p[3])), Sink: rig.Plain(rig.At(p[4])), PID: pid})

	alice := b.cluster.Home("alice")
	exported := filepath.Join(b.Dir, "alice")
	if err := client.Export(ctx, alice, exported); err != nil {
		return err
	}
	read := func(server string, resume bool) (*tls.Config, error) {
		return withCertificate(filepath.Join(exported, client.ExportedCA), filepath.Join(exported, client.ExportedCertificate), filepath.Join(exported, client.ExportedKey), server, resume)
	}
	full, err := read("echo.default.svc.cardea.internal", false)
	if err != nil {
		return err
	}
	resumed, err := read("gateway.cardea.internal", true)
	if err != nil {
		return err
	}
	resumed.NextProtos = []string{"cardea/1"}
	b.pool = &client.Client{Home: alice}
	b.secure = append(b.secure,
		&rig.Target{Name: "cardea, full handshake (raw)", Echo: rig.TLS(rig.At(p[0]), full), PID: pid},
		&rig.Target{Name: "cardea, resumed (cardea/1)", Echo: framedTo(rig.TLS(rig.At(p[0]), resumed)), PID: pid, Resumes: true},
		&rig.Target{Name: "cardea, pooled (cardea/1)", Echo: func(ctx context.Context) (net.Conn, error) { return b.pool.Dial(ctx, "echo") }, PID: pid})
	return nil
}

// withCertificate is [rig.ClientConfig] with a certificate of the caller's.
func withCertificate(ca, cert, key, server string, resume bool) (*tls.Config, error) {
	c, err := rig.ClientConfig(ca, server, resume)
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	c.Certificates = []tls.Certificate{pair}
	return c, err
}

func (b *bench) startHAProxy(context.Context) error {
	bin := rig.HAProxy()
	if bin == "" {
		return nil
	}
	for i, v := range []struct{ name, options string }{
		{"haproxy, logging", ""},
		{"haproxy, splice-auto", "option splice-auto"},
		{"haproxy, splice forced", "option splice-request\n  option splice-response"},
	} {
		p, err := rig.Ports(4)
		if err != nil {
			return err
		}
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
`, b.Up.Log, v.options, rig.At(p[0]), b.Up.Echo, rig.At(p[1]), b.Up.Sink,
			rig.At(p[2]), filepath.Join(b.Dir, "server-both.pem"), filepath.Join(b.Dir, "ca.pem"), b.Up.Echo,
			rig.At(p[3]), filepath.Join(b.Dir, "server-both.pem"), filepath.Join(b.Dir, "ca.pem"), b.Up.Echo)
		file, err := b.Write(fmt.Sprintf("haproxy%d.cfg", i), conf)
		if err != nil {
			return err
		}
		pid, err := b.Start(bin, "-db", "-f", file)
		if err != nil {
			return err
		}
		b.plain = append(b.plain, &rig.Target{Name: v.name, Echo: rig.Plain(rig.At(p[0])), Sink: rig.Plain(rig.At(p[1])), PID: pid, Rival: i == 0})
		if i == 0 {
			if err := b.rivals("haproxy", pid, rig.At(p[2]), rig.At(p[3]), true); err != nil {
				return err
			}
		}
	}
	return nil
}

// rivals adds the rows of a proxy that asks for client certificates.
func (b *bench) rivals(name string, pid rig.PID, full, resumed string, rival bool) error {
	read := func(resume bool) (*tls.Config, error) {
		return withCertificate(filepath.Join(b.Dir, "ca.pem"), filepath.Join(b.Dir, "client.pem"), filepath.Join(b.Dir, "client.key"), "server", resume)
	}
	one, err := read(false)
	if err != nil {
		return err
	}
	two, err := read(true)
	if err != nil {
		return err
	}
	b.secure = append(b.secure, &rig.Target{Name: name + ", full handshake", Echo: rig.TLS(full, one), PID: pid, Rival: rival},
		&rig.Target{Name: name + ", resumed", Echo: rig.TLS(resumed, two), PID: pid, Resumes: true})
	return nil
}

func (b *bench) startNginx(context.Context) error {
	bin := rig.Nginx()
	if bin == "" {
		return nil
	}
	p, err := rig.Ports(4)
	if err != nil {
		return err
	}
	conf := fmt.Sprintf(`load_module %s;
daemon off;
worker_processes 2;
worker_rlimit_nofile 20000;
pid %s/nginx.pid;
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
}
`, rig.NginxStream, b.Dir, b.Dir, rig.At(p[0]), b.Up.Echo, rig.At(p[1]), b.Up.Sink, b.Dir, b.Dir, b.Dir, rig.At(p[2]), b.Up.Echo, rig.At(p[3]), b.Up.Echo)
	file, err := b.Write("nginx.conf", conf)
	if err != nil {
		return err
	}
	pid, err := b.Start(bin, "-e", "stderr", "-p", b.Dir, "-c", file)
	if err != nil {
		return err
	}
	b.plain = append(b.plain, &rig.Target{Name: "nginx stream, logging", Echo: rig.Plain(rig.At(p[0])), Sink: rig.Plain(rig.At(p[1])), PID: pid})
	return b.rivals("nginx", pid, rig.At(p[2]), rig.At(p[3]), false)
}

// stop ends Cardea.
func (b *bench) stop(ctx context.Context) error {
	if b.pool != nil {
		b.pool.Close()
	}
	if b.cluster == nil {
		return nil
	}
	return b.cluster.Stop(context.WithoutCancel(ctx))
}

// verify makes sure that Cardea's log is whole after all this.
func (b *bench) verify(ctx context.Context) error {
	out, err := b.cluster.Run(ctx, "root", nil, "logs", "verify")
	fmt.Printf("\ncardea logs verify: %s", out)
	return err
}
