package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"cardea/client"
	"cardea/test/cluster"
)

// A target is one proxy, in one configuration.
type target struct {
	name       string
	echo, sink string // where its two Services are
	pid        int    // 0 is no proxy at all
	rival      bool   // whom the others are compared with

	config *tls.Config    // of the path of Sessions; nil is plain
	resume bool           // sessions of TLS are resumed
	framed bool           // speak cardea/1 over it
	pool   *client.Client // connections of cardea/1 are taken from its pool
}

// bench is the proxies and what they share.
type bench struct {
	dir    string
	prefix []string
	up     *upstreams
	each   time.Duration
	idle   int

	cluster *cluster.Cluster
	started []*exec.Cmd
	files   []*os.File
	targets []*target
	tls     []*target
}

func (b *bench) plain() []*target  { return b.targets }
func (b *bench) secure() []*target { return b.tls }

// fresh returns one target of each process.
func (b *bench) fresh() (list []*target) {
	seen := map[int]bool{0: true}
	for _, t := range b.targets {
		if !seen[t.pid] {
			list = append(list, t)
		}
		seen[t.pid] = true
	}
	return list
}

func ports(n int) ([]int, error) {
	var list []int
	for range n {
		p, err := cluster.FreePort()
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

func at(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// start starts every proxy.
func (b *bench) start(ctx context.Context) error {
	b.targets = []*target{{name: "direct, no proxy", echo: b.up.echo, sink: b.up.sink}}
	if err := b.certificates(); err != nil {
		return err
	}
	for _, start := range []func(context.Context) error{b.startCardea, b.startHAProxy, b.startNginx} {
		if err := start(ctx); err != nil {
			return err
		}
	}
	for _, t := range append(b.targets, b.tls...) {
		if err := wait(ctx, t); err != nil {
			said := ""
			for _, f := range b.files {
				text, _ := os.ReadFile(f.Name())
				said += string(text)
			}
			return fmt.Errorf("%s: %w\n%s", t.name, err, said)
		}
	}
	return nil
}

// wait returns when a target answers.
func wait(ctx context.Context, t *target) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		var c net.Conn
		if c, err = t.dial(ctx); err == nil {
			err = pingPong(c, make([]byte, 1))
			c.Close()
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return err
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
	bin, err := cluster.Build(ctx, b.dir)
	if err != nil {
		return err
	}
	p, err := ports(5)
	if err != nil {
		return err
	}
	b.cluster = &cluster.Cluster{Bin: bin, Dir: b.dir, Listen: at(p[0]), Prefix: b.prefix}
	if err := b.cluster.Start(ctx); err != nil {
		return err
	}
	if err := b.cluster.Apply(ctx, cluster.GroupYAML("group-1")+cluster.UserYAML("alice", "group-1")+cluster.ServiceYAML("echo", b.up.echo)+
		public("open-echo", b.up.echo, p[1], "")+public("open-sink", b.up.sink, p[2], "")+
		public("ruled-echo", b.up.echo, p[3], byPolicy)+public("ruled-sink", b.up.sink, p[4], byPolicy)); err != nil {
		return err
	}
	if err := b.cluster.Login(ctx, "alice"); err != nil {
		return err
	}
	pid := b.cluster.PID()
	b.targets = append(b.targets,
		&target{name: "cardea, open to everyone", echo: at(p[1]), sink: at(p[2]), pid: pid},
		&target{name: "cardea, by policy", echo: at(p[3]), sink: at(p[4]), pid: pid})

	alice := b.cluster.Home("alice")
	if err := client.Export(ctx, alice, filepath.Join(b.dir, "alice")); err != nil {
		return err
	}
	read := func(server string, resume bool) (*tls.Config, error) {
		return clientConfig(filepath.Join(b.dir, "alice"), client.ExportedCertificate, client.ExportedKey, client.ExportedCA, server, resume)
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
	b.tls = append(b.tls,
		&target{name: "cardea, full handshake (raw)", echo: at(p[0]), pid: pid, config: full},
		&target{name: "cardea, resumed (cardea/1)", echo: at(p[0]), pid: pid, config: resumed, resume: true, framed: true},
		&target{name: "cardea, pooled (cardea/1)", echo: at(p[0]), pid: pid, pool: &client.Client{Home: alice}})
	return nil
}

// run starts a proxy that is not ours.
func (b *bench) run(name string, args ...string) (int, error) {
	argv := append(append([]string{}, b.prefix...), append([]string{name}, args...)...)
	cmd := exec.Command(argv[0], argv[1:]...)
	f, err := os.Create(filepath.Join(b.dir, filepath.Base(name)+fmt.Sprint(len(b.started))+".out"))
	if err != nil {
		return 0, err
	}
	cmd.Stdout, cmd.Stderr = f, f
	b.files = append(b.files, f)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	b.started = append(b.started, cmd)
	return cmd.Process.Pid, nil
}

func (b *bench) startHAProxy(ctx context.Context) error {
	bin, err := exec.LookPath("haproxy")
	if err != nil {
		fmt.Println("haproxy is not installed: its rows are left out")
		return nil
	}
	for i, v := range []struct{ name, options string }{
		{"haproxy, logging", ""},
		{"haproxy, splice-auto", "option splice-auto"},
		{"haproxy, splice forced", "option splice-request\n  option splice-response"},
	} {
		p, err := ports(4)
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
`, b.up.log, v.options, at(p[0]), b.up.echo, at(p[1]), b.up.sink,
			at(p[2]), filepath.Join(b.dir, "server-both.pem"), filepath.Join(b.dir, "ca.pem"), b.up.echo,
			at(p[3]), filepath.Join(b.dir, "server-both.pem"), filepath.Join(b.dir, "ca.pem"), b.up.echo)
		file := filepath.Join(b.dir, fmt.Sprintf("haproxy%d.cfg", i))
		if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
			return err
		}
		pid, err := b.run(bin, "-db", "-f", file)
		if err != nil {
			return err
		}
		b.targets = append(b.targets, &target{name: v.name, echo: at(p[0]), sink: at(p[1]), pid: pid, rival: i == 0})
		if i == 0 {
			if err := b.rivals("haproxy", pid, at(p[2]), at(p[3]), true); err != nil {
				return err
			}
		}
	}
	return nil
}

// rivals adds the rows of a proxy that asks for client certificates.
func (b *bench) rivals(name string, pid int, full, resumed string, rival bool) error {
	one, err := clientConfig(b.dir, "client.pem", "client.key", "ca.pem", "server", false)
	if err != nil {
		return err
	}
	two, err := clientConfig(b.dir, "client.pem", "client.key", "ca.pem", "server", true)
	if err != nil {
		return err
	}
	b.tls = append(b.tls, &target{name: name + ", full handshake", echo: full, pid: pid, config: one, rival: rival},
		&target{name: name + ", resumed", echo: resumed, pid: pid, config: two, resume: true})
	return nil
}

func (b *bench) startNginx(ctx context.Context) error {
	bin, err := exec.LookPath("nginx")
	module := "/usr/lib/nginx/modules/ngx_stream_module.so"
	if _, e := os.Stat(module); err != nil || e != nil {
		fmt.Println("nginx with its stream module is not installed: its rows are left out")
		return nil
	}
	p, err := ports(4)
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
`, module, b.dir, b.dir, at(p[0]), b.up.echo, at(p[1]), b.up.sink, b.dir, b.dir, b.dir, at(p[2]), b.up.echo, at(p[3]), b.up.echo)
	file := filepath.Join(b.dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return err
	}
	pid, err := b.run(bin, "-e", "stderr", "-p", b.dir, "-c", file)
	if err != nil {
		return err
	}
	b.targets = append(b.targets, &target{name: "nginx stream, logging", echo: at(p[0]), sink: at(p[1]), pid: pid})
	return b.rivals("nginx", pid, at(p[2]), at(p[3]), false)
}

// stop ends every proxy.
func (b *bench) stop(ctx context.Context) error {
	var errs []error
	for _, t := range b.tls {
		if t.pool != nil {
			t.pool.Close()
		}
	}
	for i, cmd := range b.started {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait() // they end by the signal
		b.files[i].Close()
	}
	if b.cluster != nil {
		errs = append(errs, b.cluster.Stop(context.WithoutCancel(ctx)))
	}
	return errors.Join(errs...)
}

// verify makes sure that Cardea's log is whole after all this.
func (b *bench) verify(ctx context.Context) error {
	out, err := b.cluster.Run(ctx, "root", nil, "logs", "verify")
	fmt.Printf("\ncardea logs verify: %s", out)
	return err
}

// certificates makes a CA, and a certificate for the other proxies and their
// callers, all with keys of the type that Cardea's have.
func (b *bench) certificates() error {
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	root, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(b.dir, "ca.pem"), block("CERTIFICATE", root), 0o600); err != nil {
		return err
	}
	for i, name := range []string{"server", "client"} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		leaf := &x509.Certificate{SerialNumber: big.NewInt(int64(i + 2)), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		if err != nil {
			return err
		}
		k, err := x509.MarshalPKCS8PrivateKey(key)
		if err != nil {
			return err
		}
		cert, private := block("CERTIFICATE", der), block("PRIVATE KEY", k)
		if err := errors.Join(os.WriteFile(filepath.Join(b.dir, name+".pem"), cert, 0o600), os.WriteFile(filepath.Join(b.dir, name+".key"), private, 0o600),
			os.WriteFile(filepath.Join(b.dir, name+"-both.pem"), append(bytes.Clone(cert), private...), 0o600)); err != nil {
			return err
		}
	}
	return nil
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// clientConfig reads what a caller needs for TLS with a client certificate.
func clientConfig(dir, cert, key, ca, server string, resume bool) (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, cert), filepath.Join(dir, key))
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, ca))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	// The same curve for all: what is compared is the proxy.
	c := &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots, ServerName: server, MinVersion: tls.VersionTLS13, CurvePreferences: []tls.CurveID{tls.X25519}}
	if resume {
		c.ClientSessionCache = tls.NewLRUClientSessionCache(64)
	}
	return c, nil
}
