package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/bench/rig"
	"cardea/client"
	"cardea/test/cluster"
)

// The server names: what clients ask for, and what upstreams are asked for.
const (
	serverName   = "server.example.com"
	upstreamName = "upstream.example.com"
)

// nameOf is the i-th name of the large port.
func nameOf(i int) string { return fmt.Sprintf("name-%05d.example.com", i) }

// bench is the proxies: their Targets, by what is measured of them.
type bench struct {
	*rig.Rig
	mappings int
	targets  map[string][]*rig.Target
	// Of the Targets of the row change: how the last name is led elsewhere, and how a
	// connection is opened on which nothing was said.
	changers map[*rig.Target]func(ctx context.Context, to string) error
	last     map[*rig.Target]rig.Dial
	clients  []*client.Client // of Cardea's API

	// Upstreams more than the rig has: echo and sink of TLS, an echo that wants a PROXY
	// header, and one that sends back every byte changed by 1, to be told from echo.
	tlsEcho, tlsSink, proxyEcho, other string
	hellos                             [][]byte // by name
	next                               atomic.Uint64
}

func (b *bench) add(kind string, t *rig.Target) { b.targets[kind] = append(b.targets[kind], t) }

// start starts the upstreams and every proxy.
func (b *bench) start(ctx context.Context) error {
	b.changers = map[*rig.Target]func(context.Context, string) error{}
	b.last = map[*rig.Target]rig.Dial{}
	if err := b.Certificates(serverName, upstreamName); err != nil {
		return err
	}
	if err := errors.Join(b.startUpstreams(), b.sayHello()); err != nil {
		return err
	}
	b.add("sni", &rig.Target{Name: "direct, no proxy", Echo: b.asking(b.Up.Echo, 1)})
	engines, err := b.EngineNames(ctx)
	if err != nil {
		return err
	}
	for _, e := range engines {
		if err := b.startCardea(ctx, e); err != nil {
			return err
		}
	}
	if err := b.startHAProxy(); err != nil {
		return err
	}
	if err := b.startNginx(); err != nil {
		return err
	}
	for _, list := range b.targets {
		if err := b.Wait(ctx, list...); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) startUpstreams() (err error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(b.Dir, upstreamName+".pem"), filepath.Join(b.Dir, upstreamName+".key"))
	if err != nil {
		return err
	}
	// No session can be resumed: whoever would save handshakes cannot.
	config := &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true, CurvePreferences: []tls.CurveID{tls.X25519}}
	for _, x := range []struct {
		at    *string
		serve func(net.Conn)
	}{
		{&b.tlsEcho, func(c net.Conn) { cluster.EchoBack(tls.Server(c, config)) }},
		{&b.tlsSink, func(c net.Conn) { b.Up.Take(tls.Server(c, config)) }},
		{&b.proxyEcho, eatHeader},
		{&b.other, func(c net.Conn) {
			buf := make([]byte, 4<<10)
			for {
				n, err := c.Read(buf)
				for i := range buf[:n] {
					buf[i]++
				}
				if _, werr := c.Write(buf[:n]); err != nil || werr != nil {
					return
				}
			}
		}},
	} {
		if *x.at, err = b.Up.Listen(x.serve); err != nil {
			return err
		}
	}
	return nil
}

// eatHeader takes a PROXY header, of version 1 or 2, and sends back what follows.
func eatHeader(c net.Conn) {
	r := bufio.NewReader(c)
	head, err := r.Peek(16)
	if err != nil {
		return
	}
	if bytes.HasPrefix(head, []byte("PROXY ")) {
		if _, err := r.ReadSlice('\n'); err != nil {
			return
		}
	} else if _, err := r.Discard(16 + int(binary.BigEndian.Uint16(head[14:]))); err != nil {
		return
	}
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{r})
}

// header is a PROXY header of version 2: TCP over IPv4, from 127.0.0.1:1 to
// 127.0.0.1:2.
var header = append([]byte("\r\n\r\n\x00\r\nQUIT\n"), 0x21, 0x11, 0, 12, 127, 0, 0, 1, 127, 0, 0, 1, 0, 1, 0, 2)

// withHeader returns how a connection is opened that begins with a PROXY header.
func withHeader(address string) rig.Dial {
	plain := rig.Plain(address)
	return func(ctx context.Context) (net.Conn, error) {
		c, err := plain(ctx)
		if err == nil {
			_, err = c.Write(header)
		}
		return c, err
	}
}

// sayHello makes a ClientHello for each name. They are sent as they are, to an
// upstream that sends them back: what is measured is who reads them on the way.
func (b *bench) sayHello() error {
	for i := range b.mappings {
		ours, theirs := net.Pipe()
		c := tls.Client(ours, &tls.Config{ServerName: nameOf(i), CurvePreferences: []tls.CurveID{tls.X25519}})
		go c.Handshake() // ends when the pipe does
		buf := make([]byte, 4<<10)
		n, err := theirs.Read(buf)
		theirs.Close()
		if err != nil {
			return err
		}
		b.hellos = append(b.hellos, buf[:n])
	}
	return nil
}

// asking returns how a connection is opened that says a hello, of the first so many
// names in turn, and hears it again.
func (b *bench) asking(address string, names int) rig.Dial {
	plain := rig.Plain(address)
	return func(ctx context.Context) (net.Conn, error) {
		c, err := plain(ctx)
		if err != nil {
			return nil, err
		}
		// Names far from each other, in no order.
		if err := rig.PingPong(c, bytes.Clone(b.hellos[b.next.Add(7919)%uint64(names)])); err != nil {
			c.Close()
			return nil, err
		}
		return c, nil
	}
}

// mapping is a TCPMapping. more is further lines of spec.
func mapping(name string, port int, service, annotations, more string) string {
	return fmt.Sprintf("---\napiVersion: getambassador.io/v3alpha1\nkind: TCPMapping\nmetadata: {name: %s, namespace: default, annotations: {%s}}\nspec: {address: 127.0.0.1, port: %d, service: \"%s\"%s}\n",
		name, annotations, port, service, more)
}

// tlsSecret is a Secret of Kubernetes with what is in files.
func (b *bench) tlsSecret(name, cert, key string) (string, error) {
	c, err := os.ReadFile(filepath.Join(b.Dir, cert))
	if err != nil {
		return "", err
	}
	text := fmt.Sprintf("---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: default}\nstringData:\n  tls.crt: %q\n", name, c)
	if key != "" {
		k, err := os.ReadFile(filepath.Join(b.Dir, key))
		if err != nil {
			return "", err
		}
		text += fmt.Sprintf("  tls.key: %q\n", k)
	}
	return text, nil
}

// at returns the address with a name instead of 127.0.0.1.
func at(name, address string) string { return strings.Replace(address, "127.0.0.1", name, 1) }

func (b *bench) startCardea(ctx context.Context, engine string) error {
	c, err := b.Cardea(ctx, engine)
	if err != nil {
		return err
	}
	p, err := rig.Ports(8)
	if err != nil {
		return err
	}
	server, err := b.tlsSecret("server", serverName+".pem", serverName+".key")
	if err != nil {
		return err
	}
	ca, err := b.tlsSecret("ca", "ca.pem", "")
	if err != nil {
		return err
	}
	const passthrough = "cardea/tls: passthrough"
	documents := server + ca + fmt.Sprintf(`---
kind: ClusterConfig
metadata: {name: default}
spec: {dns: {hosts: {%s: [127.0.0.1]}}, %s}
---
apiVersion: getambassador.io/v3alpha1
kind: TLSContext
metadata: {name: ended, namespace: default}
spec: {hosts: [%s], secret: server, min_tls_version: v1.3, ecdh_curves: [X25519]}
---
apiVersion: getambassador.io/v3alpha1
kind: TLSContext
metadata: {name: begun, namespace: default}
spec: {ca_secret: ca, min_tls_version: v1.3, ecdh_curves: [X25519]}
---
apiVersion: getambassador.io/v3alpha1
kind: Listener
metadata: {name: proxied, namespace: default}
spec: {port: %d, protocolStack: [PROXY, TCP], securityModel: INSECURE, hostBinding: {namespace: {from: ALL}}}
`, upstreamName, rig.Retention, serverName, p[4]) +
		mapping("ended-echo", p[0], b.Up.Echo, "", ", host: "+serverName) +
		mapping("ended-sink", p[1], b.Up.Sink, "", ", host: "+serverName) +
		mapping("begun-echo", p[2], at(upstreamName, b.tlsEcho), "", ", tls: begun") +
		mapping("begun-sink", p[3], at(upstreamName, b.tlsSink), "", ", tls: begun") +
		strings.Replace(mapping("proxied", p[4], b.Up.Echo, "", ""), "address: 127.0.0.1, ", "", 1) +
		mapping("proxying", p[5], b.proxyEcho, "cardea/proxy-protocol: v2", "") +
		mapping("one", p[6], b.Up.Echo, passthrough, ", host: "+nameOf(0))
	var large strings.Builder
	for i := range b.mappings {
		large.WriteString(mapping(fmt.Sprintf("of-many-%05d", i), p[7], b.Up.Echo, passthrough, ", host: "+nameOf(i)))
	}
	if err := c.Apply(ctx, documents); err != nil {
		return err
	}
	begin := time.Now()
	if err := c.Apply(ctx, large.String()); err != nil {
		return err
	}
	fmt.Printf("%s: apply of %d mappings: %s\n", c.Name, b.mappings, time.Since(begin).Round(time.Millisecond))

	full, resumed, err := b.configs()
	if err != nil {
		return err
	}
	b.add("full", c.Target("", rig.TLS(rig.At(p[0]), full), rig.TLS(rig.At(p[1]), full)))
	t := c.Target("", rig.TLS(rig.At(p[0]), resumed), nil)
	t.Resumes = true
	b.add("resumed", t)
	b.add("begun", c.Target("", rig.Plain(rig.At(p[2])), rig.Plain(rig.At(p[3]))))
	b.add("proxy-in", c.Target("", withHeader(rig.At(p[4])), nil))
	b.add("proxy-out", c.Target("", rig.Plain(rig.At(p[5])), nil))
	b.add("sni", c.Target(", 1 mapping", b.asking(rig.At(p[6]), 1), nil))
	b.add("sni", c.Target(fmt.Sprintf(", %d mappings", b.mappings), b.asking(rig.At(p[7]), b.mappings), nil))
	t = c.Target(", apply", b.asking(rig.At(p[7]), b.mappings-1), nil)
	b.add("change", t)
	b.last[t] = c.Counted(rig.Plain(rig.At(p[7])))
	root := &client.Client{Home: c.Home("root")}
	b.clients = append(b.clients, root)
	b.changers[t] = func(ctx context.Context, to string) error {
		return applyAPI(ctx, root, mapping(fmt.Sprintf("of-many-%05d", b.mappings-1), p[7], to, passthrough, ", host: "+nameOf(b.mappings-1)))
	}
	return nil
}

// configs returns what clients need for TLS that a proxy ends: with full
// handshakes, and with resumed ones.
func (b *bench) configs() (full, resumed *tls.Config, err error) {
	ca := filepath.Join(b.Dir, "ca.pem")
	if full, err = rig.ClientConfig(ca, serverName, false); err != nil {
		return nil, nil, err
	}
	resumed, err = rig.ClientConfig(ca, serverName, true)
	return full, resumed, err
}

// rivals adds the Targets of a proxy that is not ours, of which the ports are in
// the order of Cardea's.
func (b *bench) rivals(name string, pid rig.PID, p []int, rival bool) error {
	full, resumed, err := b.configs()
	if err != nil {
		return err
	}
	b.add("full", &rig.Target{Name: name, PID: pid, Rival: rival, Echo: rig.TLS(rig.At(p[0]), full), Sink: rig.TLS(rig.At(p[1]), full)})
	b.add("resumed", &rig.Target{Name: name, PID: pid, Rival: rival, Echo: rig.TLS(rig.At(p[0]), resumed), Resumes: true})
	b.add("begun", &rig.Target{Name: name, PID: pid, Rival: rival, Echo: rig.Plain(rig.At(p[2])), Sink: rig.Plain(rig.At(p[3]))})
	b.add("proxy-in", &rig.Target{Name: name, PID: pid, Rival: rival, Echo: withHeader(rig.At(p[4]))})
	out := name
	if !rival {
		out += " (v1: it has no other)"
	}
	b.add("proxy-out", &rig.Target{Name: out, PID: pid, Rival: rival, Echo: rig.Plain(rig.At(p[5]))})
	b.add("sni", &rig.Target{Name: name + ", map of 1", PID: pid, Rival: rival, Echo: b.asking(rig.At(p[6]), 1)})
	return nil
}

// many adds the Targets of a process that has the large map only: a change of it is
// a change of a file and a signal.
func (b *bench) many(name string, pid rig.PID, port int, rival bool, write func(last string) error, reload syscall.Signal) {
	b.add("sni", &rig.Target{Name: fmt.Sprintf("%s, map of %d", name, b.mappings), PID: pid, Echo: b.asking(rig.At(port), b.mappings)})
	t := &rig.Target{Name: name + ", reload", PID: pid, Rival: rival, Echo: b.asking(rig.At(port), b.mappings-1)}
	b.add("change", t)
	b.last[t] = rig.Plain(rig.At(port))
	b.changers[t] = func(_ context.Context, to string) error {
		if err := write(to); err != nil {
			return err
		}
		return syscall.Kill(int(pid), reload)
	}
}

// table writes a map from each name to what it leads to; the last may lead elsewhere.
func (b *bench) table(file, format, where, last string) error {
	var text strings.Builder
	for i := range b.mappings {
		to := where
		if i == b.mappings-1 {
			to = last
		}
		fmt.Fprintf(&text, format, nameOf(i), to)
	}
	_, err := b.Write(file, text.String())
	return err
}

func (b *bench) startHAProxy() error {
	bin := rig.HAProxy()
	if bin == "" {
		return nil
	}
	p, err := rig.Ports(8)
	if err != nil {
		return err
	}
	common := fmt.Sprintf(`global
  nbthread 2
  maxconn 9500
  maxpipes 200
  log %s local0
  ssl-default-bind-options ssl-min-ver TLSv1.3
  ssl-default-bind-curves X25519
  ssl-default-server-options ssl-min-ver TLSv1.3
defaults
  mode tcp
  log global
  option tcplog
  timeout connect 5s
  timeout client 10m
  timeout server 10m
`, b.Up.Log)
	bySNI := func(port int, file string) string {
		return fmt.Sprintf(`frontend sni%d
  bind %s
  tcp-request inspect-delay 5s
  tcp-request content accept if { req.ssl_hello_type 1 }
  tcp-request content reject
  use_backend %%[req.ssl_sni,lower,map_str(%s)]
`, port, rig.At(port), filepath.Join(b.Dir, file))
	}
	backends := fmt.Sprintf("backend echo\n  server one %s\nbackend other\n  server one %s\n", b.Up.Echo, b.other)
	crt := filepath.Join(b.Dir, serverName+"-both.pem")
	begun := fmt.Sprintf("ssl verify required ca-file %s sni str(%s) verifyhost %s no-ssl-reuse", filepath.Join(b.Dir, "ca.pem"), upstreamName, upstreamName)
	if _, err := b.Write("one.map", nameOf(0)+" echo\n"); err != nil {
		return err
	}
	conf := common + fmt.Sprintf(`listen ended-echo
  bind %s ssl crt %s
  server one %s
listen ended-sink
  bind %s ssl crt %s
  server one %s
listen begun-echo
  bind %s
  server one %s %s
listen begun-sink
  bind %s
  server one %s %s
listen proxied
  bind %s accept-proxy
  server one %s
listen proxying
  bind %s
  server one %s send-proxy-v2
`, rig.At(p[0]), crt, b.Up.Echo, rig.At(p[1]), crt, b.Up.Sink,
		rig.At(p[2]), b.tlsEcho, begun, rig.At(p[3]), b.tlsSink, begun, rig.At(p[4]), b.Up.Echo, rig.At(p[5]), b.proxyEcho) + bySNI(p[6], "one.map") + backends
	file, err := b.Write("haproxy.cfg", conf)
	if err != nil {
		return err
	}
	pid, err := b.Start(bin, "-db", "-f", file)
	if err != nil {
		return err
	}
	if err := b.rivals("haproxy", pid, p, true); err != nil {
		return err
	}
	write := func(last string) error {
		to := "echo"
		if last == b.other {
			to = "other"
		}
		return b.table("many.map", "%s %s\n", "echo", to)
	}
	if err := write(b.Up.Echo); err != nil {
		return err
	}
	if file, err = b.Write("haproxy-many.cfg", common+bySNI(p[7], "many.map")+backends); err != nil {
		return err
	}
	if pid, err = b.Start(bin, "-W", "-db", "-f", file); err != nil {
		return err
	}
	b.many("haproxy", pid, p[7], true, write, syscall.SIGUSR2)
	return nil
}

func (b *bench) startNginx() error {
	bin := rig.Nginx()
	if bin == "" {
		return nil
	}
	p, err := rig.Ports(8)
	if err != nil {
		return err
	}
	common := func(pid string) string {
		return fmt.Sprintf(`load_module %s;
daemon off;
worker_processes 2;
worker_rlimit_nofile 20000;
pid %s/%s.pid;
error_log stderr warn;
events { worker_connections 19000; }
stream {
  log_format one '$remote_addr $time_iso8601 $status $bytes_sent $bytes_received $session_time';
  access_log %s/%s.log one;
  proxy_timeout 10m;
  map_hash_max_size 65536;
  map_hash_bucket_size 128;
`, rig.NginxStream, b.Dir, pid, b.Dir, pid)
	}
	conf := common("nginx") + fmt.Sprintf(`
  ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.3; ssl_ecdh_curve X25519;
  proxy_ssl_protocols TLSv1.3; proxy_ssl_trusted_certificate %s; proxy_ssl_verify on;
  proxy_ssl_name %s; proxy_ssl_server_name on; proxy_ssl_session_reuse off;
  server { listen %s ssl; proxy_pass %s; }
  server { listen %s ssl; proxy_pass %s; }
  server { listen %s; proxy_pass %s; proxy_ssl on; }
  server { listen %s; proxy_pass %s; proxy_ssl on; }
  server { listen %s proxy_protocol; proxy_pass %s; }
  server { listen %s; proxy_pass %s; proxy_protocol on; }
  map $ssl_preread_server_name $where { %s %s; }
  server { listen %s; ssl_preread on; proxy_pass $where; }
}
`, filepath.Join(b.Dir, serverName+".pem"), filepath.Join(b.Dir, serverName+".key"), filepath.Join(b.Dir, "ca.pem"), upstreamName,
		rig.At(p[0]), b.Up.Echo, rig.At(p[1]), b.Up.Sink, rig.At(p[2]), b.tlsEcho, rig.At(p[3]), b.tlsSink,
		rig.At(p[4]), b.Up.Echo, rig.At(p[5]), b.proxyEcho, nameOf(0), b.Up.Echo, rig.At(p[6]))
	start := func(name, conf string) (rig.PID, error) {
		file, err := b.Write(name, conf)
		if err != nil {
			return 0, err
		}
		return b.Start(bin, "-e", "stderr", "-p", b.Dir, "-c", file)
	}
	pid, err := start("nginx.conf", conf)
	if err != nil {
		return err
	}
	if err := b.rivals("nginx stream", pid, p, false); err != nil {
		return err
	}
	write := func(last string) error { return b.table("many.nginx", "%s %s;\n", b.Up.Echo, last) }
	if err := write(b.Up.Echo); err != nil {
		return err
	}
	pid, err = start("nginx-many.conf", common("nginx-many")+fmt.Sprintf("  map $ssl_preread_server_name $where { include %s; }\n  server { listen %s; ssl_preread on; proxy_pass $where; }\n}\n",
		filepath.Join(b.Dir, "many.nginx"), rig.At(p[7])))
	if err != nil {
		return err
	}
	b.many("nginx stream", pid, p[7], false, write, syscall.SIGHUP)
	return nil
}

// close closes the clients of Cardea.
func (b *bench) close() {
	for _, c := range b.clients {
		c.Close()
	}
}
