// Package network_test shows the promises of the private network with all that is real:
// network namespaces for clients, a NAT, the gateway and an upstream behind it (see
// package lab), the program as it is built, and programs that know nothing of it: curl,
// psql, ssh, dig. Nothing of it touches the network of the machine itself.
package network_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/client"
	"cardea/test/cluster"
	"cardea/test/network/lab"
)

// patience is for what has to come, and for which nothing is promised: machines of tests
// are slow.
const patience = 30 * time.Second

// program builds cardea once for all tests, where everybody may run it.
var program = sync.OnceValues(func() (string, error) {
	if built := os.Getenv(inGuest); built != "" {
		return built, nil
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("cardea-network-%d", os.Getpid()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	return cluster.Build(context.Background(), dir)
})

func TestMain(m *testing.M) {
	os.Exit(func() int {
		defer os.RemoveAll(filepath.Join(os.TempDir(), fmt.Sprintf("cardea-network-%d", os.Getpid())))
		return m.Run()
	}())
}

// port is where the cluster listens: the API and all of TLS at TCP, QUIC at UDP.
// WireGuard has the default port.
const (
	port          = "8443"
	wireguardPort = "51820"
)

// A world is a lab with a cluster at its Gateway.
type world struct {
	*testing.T
	*lab.Lab
	cluster *cluster.Cluster
	log     *bytes.Buffer // what the cluster says
	nobody  string        // directory that belongs to nobody
}

// newWorld makes a world of the documents and the Group group-1, whose Services are
// reached at addresses of the Upstream. flags are further ones of cardea up.
func newWorld(t *testing.T, config lab.Config, documents string, flags ...string) *world {
	t.Helper()
	if !slices.Contains(flags, "--network") {
		flags = append([]string{"--network", network()}, flags...)
	}
	w := &world{T: t, Lab: lab.New(t, config), log: new(bytes.Buffer)}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "cardea-world-") // not t.TempDir, which nobody may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	w.nobody = filepath.Join(dir, "nobody")
	err = errors.Join(os.Chmod(dir, 0o755), os.Mkdir(w.nobody, 0o700), os.Chown(w.nobody, nobody, nobody))
	if err != nil {
		t.Fatal(err)
	}
	at := []string{"ip", "netns", "exec", w.Gateway.Name}
	w.cluster = &cluster.Cluster{Bin: bin, Dir: dir, Listen: "[::]:" + port, Prefix: at, People: at, Args: flags, Log: w.log}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.cluster.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		w.cluster.Signal(syscall.SIGKILL) // what is left of it ends here, as the namespaces do
		sane(t, w.log.String())
		if t.Failed() {
			t.Logf("the cluster says\n%s", w.log)
		}
	})
	people := cluster.GroupYAML("group-1")
	for _, name := range []string{"alice", "bob", "mallory", "nobody"} {
		people += cluster.UserYAML(name, "group-1")
	}
	w.apply(people + documents)
	return w
}

// nobody is the uid, and the gid, of lab's Unprivileged.
const nobody = 65534

func (w *world) apply(documents string) {
	w.Helper()
	if err := w.cluster.Apply(w.Context(), documents); err != nil {
		w.Fatal(err)
	}
}

// root runs cardea as root of the cluster, and returns what it prints.
func (w *world) root(args ...string) string {
	w.Helper()
	out, err := w.cluster.Run(w.Context(), "root", nil, args...)
	if err != nil {
		w.Fatal(err)
	}
	return out
}

// A person is somebody at a client.
type person struct {
	*world
	host *lab.Host
	home string
	as   func(name string, args ...string) *exec.Cmd
}

// login logs a User in at a host, as its root or, if his name is nobody, as nobody.
func (w *world) login(h *lab.Host, user string, flags ...string) *person {
	w.Helper()
	var made struct{ Token string }
	out := w.root("create", "credential", "--user", user, "--type", "auth-token", user+"-"+strings.ToLower(rand.Text()), "-o", "json")
	if err := json.Unmarshal([]byte(out), &made); err != nil {
		w.Fatal(err)
	}
	p := &person{world: w, host: h, as: h.Command, home: w.homeOf(h, user)}
	if user == "nobody" {
		p.as = h.Unprivileged
	}
	address := netip.AddrPortFrom(w.Gateway.IPv4, 8443).String()
	p.run(append([]string{"login", address, "--token", made.Token, "--ca-sha256", w.cluster.CA()}, flags...)...)
	return p
}

// homeOf is where a User's Session at a host is kept.
func (w *world) homeOf(h *lab.Host, user string) string {
	if user == "nobody" {
		return filepath.Join(w.nobody, "home")
	}
	return filepath.Join(w.cluster.Dir, "home-"+user+"-"+h.Name[strings.LastIndexByte(h.Name, '-')+1:])
}

// command is cardea as that person.
func (p *person) command(args ...string) *exec.Cmd {
	cmd := p.as(p.cluster.Bin, args...)
	cmd.Env = append(os.Environ(), "CARDEA_HOME="+p.home)
	return cmd
}

// run runs cardea as that person, and returns what it prints.
func (p *person) run(args ...string) string {
	p.Helper()
	return run(p.T, p.command(args...))
}

// run runs a program to its end, and returns its standard output. One that fails ends
// the test.
func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %v\n%s%s", cmd.Args, err, out.Bytes(), stderr.Bytes())
	}
	return out.String()
}

// A process is a program that runs.
type process struct {
	*exec.Cmd
	out   *output
	ended chan struct{} // closed when it has ended
}

// An output is what a program has said until now.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// start starts a program, which ends with the test.
func start(t *testing.T, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{Cmd: cmd, out: new(output), ended: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-p.ended
		sane(t, p.out.String())
		if t.Failed() {
			t.Logf("%v says\n%s", cmd.Args, p.out)
		}
	})
	return p
}

// sane looks for what no program should say.
func sane(t *testing.T, said string) {
	t.Helper()
	for _, never := range []string{"panic:", "fatal error:", "DATA RACE"} { // the last one if CARDEA_BIN is so built
		if strings.Contains(said, never) {
			t.Errorf("a program says %q:\n%s", never, said)
		}
	}
}

// wait waits until it has ended, and returns its exit code.
func (p *process) wait(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("%v does not end\n%s", p.Args, p.out)
	}
	return p.ProcessState.ExitCode()
}

// connect runs cardea connect in the foreground until the test is over or it ends, and
// waits until it says that it is there.
func (p *person) connect(flags ...string) *process {
	p.Helper()
	c := start(p.T, p.command(append([]string{"connect"}, flags...)...))
	p.until("connect is there", func() error {
		select {
		case <-c.ended:
			p.Fatalf("connect %v ended\n%s", flags, c.out)
		default:
		}
		s, err := p.status()
		if err != nil {
			return err
		}
		if s.Network == nil || len(s.Network.Gateways) == 0 || s.Network.Form == client.FormInterface && s.Network.Gateways[0].Transport == "" {
			return fmt.Errorf("status is %+v", s)
		}
		return nil
	})
	return c
}

// status returns what cardea status says of connect.
func (p *person) status() (*client.Status, error) {
	out, err := p.command("status", "-o", "json").Output()
	if err != nil {
		return nil, err
	}
	var s struct{ Connect *client.Status }
	if err := json.Unmarshal(out, &s); err != nil {
		return nil, err
	}
	if s.Connect == nil {
		return nil, errors.New("nothing is connected")
	}
	return s.Connect, nil
}

// place returns how it stands with the private network.
func (p *person) place() *client.NetworkStatus {
	p.Helper()
	s, err := p.status()
	if err != nil || s.Network == nil {
		p.Fatalf("status: %+v %v", s, err)
	}
	return s.Network
}

// carried waits until the gateway is reached by a transport.
func (p *person) carried(by client.Tunnel, within time.Duration) client.GatewayStatus {
	p.Helper()
	var g client.GatewayStatus
	soon(p.T, within, fmt.Sprintf("the gateway is reached by %s", by), func() error {
		s, err := p.status()
		if err != nil {
			return err
		}
		if len(s.Network.Gateways) != 1 || s.Network.Gateways[0].Transport != by {
			return fmt.Errorf("status is %+v", s.Network.Gateways)
		}
		g = s.Network.Gateways[0]
		return nil
	})
	return g
}

// until waits until something is so.
func (w *world) until(what string, is func() error) {
	w.Helper()
	soon(w.T, patience, what, is)
}

// soon waits for at most so long until something is so.
func soon(t *testing.T, limit time.Duration, what string, is func() error) time.Duration {
	t.Helper()
	begin := time.Now()
	for {
		err := is()
		took := time.Since(begin)
		if err == nil {
			return took
		}
		if took > limit {
			t.Fatalf("not so after %v: %s: %v", limit, what, err)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// service returns a Service as the cluster has it.
func (w *world) service(name string) *api.Service {
	w.Helper()
	s := new(api.Service)
	if err := json.Unmarshal([]byte(w.root("get", "service", name, "-o", "json")), s); err != nil {
		w.Fatal(err)
	}
	return s
}

// at returns the addresses of a Service.
func (w *world) at(name string) (v4, v6 netip.AddrPort) {
	w.Helper()
	s := w.service(name)
	a, err4 := netip.ParseAddr(s.Status.Addresses.IPv4)
	b, err6 := netip.ParseAddr(s.Status.Addresses.IPv6)
	if err := errors.Join(err4, err6); err != nil {
		w.Fatalf("%s has the addresses %+v: %v", name, s.Status.Addresses, err)
	}
	return netip.AddrPortFrom(a, uint16(s.Status.Port)), netip.AddrPortFrom(b, uint16(s.Status.Port))
}

// gateway returns the Gateway as the cluster has it.
func (w *world) gateway() *api.Gateway {
	w.Helper()
	var list struct{ Items []*api.Gateway }
	if err := json.Unmarshal([]byte(w.root("get", "gateways", "-o", "json")), &list); err != nil || len(list.Items) != 1 {
		w.Fatalf("there are %d Gateways: %v", len(list.Items), err)
	}
	return list.Items[0]
}

// session returns the Session of a User, who has only one.
func (w *world) session(user string) *api.Session {
	w.Helper()
	var list struct{ Items []*api.Session }
	if err := json.Unmarshal([]byte(w.root("get", "sessions", "-o", "json")), &list); err != nil {
		w.Fatal(err)
	}
	for _, s := range list.Items {
		if s.Status.UserRef.Name == user {
			return s
		}
	}
	w.Fatalf("%s has no Session", user)
	return nil
}

// need skips without a program, else returns its path.
func need(t *testing.T, name string) string {
	t.Helper()
	if found, _ := filepath.Glob(name); len(found) > 0 {
		return found[len(found)-1]
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("needs %s: see test/setup", name)
	}
	return path
}

// echo serves an echo of TCP at a port of a host.
func echo(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	listen(t, h, port, cluster.EchoBack)
}

// listen serves TCP at a port of a host.
func listen(t *testing.T, h *lab.Host, port uint16, serve func(net.Conn)) {
	t.Helper()
	l, err := h.Listen("tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	var mu sync.Mutex
	open := map[net.Conn]struct{}{}
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = struct{}{}
			mu.Unlock()
			all.Go(func() {
				serve(c)
				c.Close()
				mu.Lock()
				delete(open, c)
				mu.Unlock()
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
}

// web serves HTTP at a port of a host.
func web(t *testing.T, h *lab.Host, port uint16, answer string) {
	t.Helper()
	l, err := h.Listen("tcp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, answer) })}
	done := make(chan struct{})
	go func() {
		s.Serve(l)
		close(done)
	}()
	t.Cleanup(func() {
		s.Close()
		<-done
	})
}

// packets serves an echo of UDP at a port of a host.
func packets(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	p, err := h.ListenPacket("udp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1<<16)
		for {
			n, from, err := p.ReadFrom(b)
			if err != nil {
				return
			}
			p.WriteTo(b[:n], from)
		}
	}()
	t.Cleanup(func() {
		p.Close()
		<-done
	})
}

// serviceYAML is a Service for the members of group-1, at a port, before an upstream.
func serviceYAML(name string, port int, url string) string {
	mode := "TCP"
	if strings.HasPrefix(url, "udp:") {
		mode = "UDP"
	}
	return fmt.Sprintf(`---
kind: Service
metadata: {name: %s}
spec:
  mode: %s
  port: %d
  config: {upstream: {url: "%s"}}
  authorization:
    inlinePolicies:
      - spec:
          rules: [{effect: ALLOW, condition: {match: '"group-1" in ctx.user.spec.groups'}}]
`, name, mode, port, url)
}

// talk dials an echo from a host.
func talk(t *testing.T, h *lab.Host, to netip.AddrPort) (net.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := h.Dial(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	return c, nil
}

// say sends words to an echo and waits for their return.
func say(c net.Conn, words string, within time.Duration) error {
	c.SetDeadline(time.Now().Add(within))
	if _, err := io.WriteString(c, words); err != nil {
		return err
	}
	b := make([]byte, len(words))
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	if string(b) != words {
		return fmt.Errorf("said %q, heard %q", words, b)
	}
	return nil
}

// rebound sends a datagram to an echo, again while it is lost, and waits for its return.
func rebound(c net.Conn, size int) (err error) {
	sent, b := bytes.Repeat([]byte("x"), size), make([]byte, 1<<16)
	for range 20 {
		if _, err := c.Write(sent); err != nil {
			return err
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		var n int
		if n, err = c.Read(b); err == nil && n != size {
			return fmt.Errorf("%d bytes came back as %d", size, n)
		}
		if err == nil {
			return nil
		}
	}
	return err
}

// transfer exchanges bytes on a connection until the test is over, or the connection, and
// waits until they run. moved is how many came back, and done is told why it ended.
func (w *world) transfer(c net.Conn) (moved *atomic.Int64, done <-chan error) {
	w.Helper()
	moved = new(atomic.Int64)
	ended := make(chan error, 1)
	w.Cleanup(func() {
		c.Close()
		<-ended
	})
	go func() {
		defer close(ended)
		ended <- exchange(c, 1<<40, moved)
	}()
	w.until("the transfer runs", func() error { return more(moved, 0) })
	return moved, ended
}
