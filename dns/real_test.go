package dns

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"cardea/api"
)

// carry answers what comes to a port of this machine, over UDP and TCP, until the test
// ends. It returns the port.
func carry(t *testing.T, s *Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenPacket("udp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	t.Cleanup(func() { stop(); l.Close(); pc.Close(); all.Wait() })
	all.Go(func() {
		buffer := make([]byte, 65535)
		for {
			n, from, err := pc.ReadFrom(buffer)
			if err != nil {
				return
			}
			if answer := s.Answer(ctx, "guest", buffer[:n], false); answer != nil {
				pc.WriteTo(answer, from)
			}
		}
	})
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer conn.Close()
				defer context.AfterFunc(ctx, func() { conn.Close() })()
				for {
					var size [2]byte
					if _, err := io.ReadFull(conn, size[:]); err != nil {
						return
					}
					query := make([]byte, binary.BigEndian.Uint16(size[:]))
					if _, err := io.ReadFull(conn, query); err != nil {
						return
					}
					answer := s.Answer(ctx, "guest", query, true)
					if answer == nil {
						return
					}
					conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...))
				}
			})
		}
	})
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// A dig is what dig said.
type dig struct {
	text    string
	status  string
	flags   string
	records []string // of the answer, in short form
}

var (
	digStatus = regexp.MustCompile(`status: (\w+)`)
	digFlags  = regexp.MustCompile(`;; flags: ([a-z ]*);`)
)

func runDig(t *testing.T, port string, args ...string) dig {
	t.Helper()
	path, err := exec.LookPath("dig")
	if err != nil {
		t.Skip("there is no dig (Debian: apt-get install bind9-dnsutils)")
	}
	args = append([]string{"@127.0.0.1", "-p", port, "+tries=1", "+time=10", "+nocookie"}, args...)
	out, err := exec.CommandContext(t.Context(), path, args...).CombinedOutput()
	d := dig{text: string(out)}
	if err != nil {
		d.text += err.Error()
	}
	if m := digStatus.FindStringSubmatch(d.text); m != nil {
		d.status = m[1]
	}
	if m := digFlags.FindStringSubmatch(d.text); m != nil {
		d.flags = m[1]
	}
	if _, section, ok := strings.Cut(d.text, ";; ANSWER SECTION:\n"); ok {
		section, _, _ = strings.Cut(section, "\n\n")
		for line := range strings.Lines(section) {
			if f := strings.Fields(line); len(f) > 4 {
				d.records = append(d.records, strings.Join(f[3:], " "))
			}
		}
	}
	slices.Sort(d.records)
	return d
}

func TestDig(t *testing.T) {
	s := newServer()
	many := Entry{Service: "many.default", Port: 1}
	for i := range 100 {
		many.Addresses = append(many.Addresses, netip.AddrFrom4([4]byte{100, 64, 1, byte(i)}))
	}
	find := s.Find
	s.Find = func(service string) (Entry, bool) {
		if service == many.Service {
			return many, true
		}
		return find(service)
	}
	port := carry(t, s)
	for _, row := range []struct {
		args   string
		status string
		flags  string // "" for any
		want   string // records, joined with ", "; "" for none
	}{
		{"nats.svc.example.com", "NOERROR", "qr aa rd ra", "A 100.64.0.16"},
		{"nats", "NOERROR", "qr aa rd ra", "A 100.64.0.16"},
		{"nats +tcp", "NOERROR", "qr aa rd ra", "A 100.64.0.16"},
		{"nats +noedns", "NOERROR", "qr aa rd ra", "A 100.64.0.16"},
		{"nats +norecurse", "NOERROR", "qr aa ra", "A 100.64.0.16"},
		{"nats +cookie +nsid +subnet=192.0.2.0/24 +padding=64", "NOERROR", "", "A 100.64.0.16"},
		{"DB.Prod.SVC.example.com AAAA", "NOERROR", "", "AAAA fd00:1:2::11"},
		{"db.prod.svc.example.com SRV", "NOERROR", "", "SRV 0 0 5432 db.prod.svc.example.com."},
		{"_postgresql._tcp.db.prod.svc.example.com SRV", "NOERROR", "", "SRV 0 0 5432 db.prod.svc.example.com."},
		{"-x 100.64.0.17", "NOERROR", "", "PTR db.prod.svc.example.com."},
		{"-x fd00:1:2::11", "NOERROR", "", "PTR db.prod.svc.example.com."},
		{"nats MX", "NOERROR", "qr aa rd ra", ""},
		{"nope.svc.example.com", "NXDOMAIN", "qr aa rd ra", ""},
		{"nats ANY +notcp", "NOERROR", "", `HINFO "RFC8482" ""`},
		{"www.example.org", "REFUSED", "qr rd ra", ""},
		{"version.bind CH TXT", "REFUSED", "", ""},
		{"nats +edns=1 +noednsnegotiation", "BADVERS", "", ""},
		{"nats +header-only", "FORMERR", "", ""},
		{"nats +opcode=notify", "NOTIMP", "", ""},
		{"nats +opcode=update", "NOTIMP", "", ""},
	} {
		d := runDig(t, port, strings.Fields(row.args)...)
		if d.status != row.status || row.flags != "" && d.flags != row.flags || strings.Join(d.records, ", ") != row.want || d.status == "NOERROR" && strings.Contains(d.text, "WARNING") {
			t.Errorf("dig %s: %s, flags %s, %q:\n%s", row.args, d.status, d.flags, d.records, d.text)
		}
	}
	for _, row := range []struct {
		args      string
		count     int
		truncated bool
	}{
		{"many", 100, false}, // it asks again over TCP by itself
		{"many +tcp", 100, false},
		{"many +ignore", 74, true},
		{"many +ignore +noedns", 30, true},
		{"many +ignore +bufsize=700", 41, true},
	} {
		d := runDig(t, port, strings.Fields(row.args)...)
		if isCut := strings.Contains(" "+d.flags+" ", " tc "); len(d.records) != row.count || isCut != row.truncated {
			t.Errorf("dig %s: %d records, truncated %t:\n%s", row.args, len(d.records), isCut, d.text)
		}
	}
	if d := runDig(t, port, "svc.example.com", "AXFR"); !strings.Contains(d.text, "Transfer failed") {
		t.Errorf("a transfer:\n%s", d.text)
	}
}

// start starts a server of this machine and waits until it says that it is ready.
func start(t *testing.T, ready string, name string, args ...string) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name // is not in everybody's PATH
		if _, err := os.Stat(path); err != nil {
			t.Skipf("there is no %s", name)
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, path, args...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	up := make(chan struct{})
	done := make(chan struct{})
	var said strings.Builder
	go func() {
		defer close(done)
		isUp := false
		for lines := bufio.NewScanner(r); lines.Scan(); {
			if !isUp {
				fmt.Fprintln(&said, lines.Text())
			}
			if !isUp && strings.Contains(lines.Text(), ready) {
				isUp = true
				close(up)
			}
		}
	}()
	t.Cleanup(func() { stop(); cmd.Wait(); r.Close(); <-done })
	select {
	case <-up:
	case <-done:
		t.Fatalf("%s ended:\n%s", name, said.String())
	case <-time.After(30 * time.Second):
		t.Fatalf("%s does not say that it is ready", name)
	}
}

// freePort returns a port that nobody has, for UDP and TCP.
func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// askThrough returns what dig is told of others' names by a Server with that fallback.
func askThrough(t *testing.T, roots *x509.CertPool, fallback string) func(args ...string) dig {
	s := newServer()
	s.fallback.roots = roots
	s.Zone = func() *api.FallbackZone { return &api.FallbackZone{Servers: []string{fallback}} }
	run(t, s)
	port := carry(t, s)
	return func(args ...string) dig { return runDig(t, port, args...) }
}

func TestDnsmasq(t *testing.T) {
	port := freePort(t)
	args := []string{"--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-", "--user=", "--pid-file=", "--no-resolv", "--no-hosts",
		"--bind-interfaces", "--listen-address=127.0.0.1", fmt.Sprint("--port=", port), "--local=/fallback.test/", "--local-ttl=60",
		"--host-record=www.fallback.test,192.0.2.80,2001:db8::80", "--host-record=evil.fallback.test,100.64.0.16"}
	for i := range 20 {
		args = append(args, fmt.Sprintf("--txt-record=big.fallback.test,%03d-%s", i, strings.Repeat("x", 200)))
	}
	start(t, "started, version", "dnsmasq", args...)
	for _, scheme := range []string{"dns", "tcp"} {
		ask := askThrough(t, nil, fmt.Sprintf("%s://127.0.0.1:%d", scheme, port))
		for range 2 {
			if d := ask("www.fallback.test"); d.status != "NOERROR" || strings.Join(d.records, ", ") != "A 192.0.2.80" || d.flags != "qr rd ra" {
				t.Errorf("%s: an address:\n%s", scheme, d.text)
			}
		}
		if d := ask("www.fallback.test", "AAAA"); strings.Join(d.records, ", ") != "AAAA 2001:db8::80" {
			t.Errorf("%s: an address of IPv6:\n%s", scheme, d.text)
		}
		if d := ask("www.fallback.test", "MX"); d.status != "NOERROR" || len(d.records) != 0 {
			t.Errorf("%s: no such records:\n%s", scheme, d.text)
		}
		if d := ask("nope.fallback.test"); d.status != "NXDOMAIN" {
			t.Errorf("%s: no such name:\n%s", scheme, d.text)
		}
		if d := ask("big.fallback.test", "TXT"); len(d.records) != 20 {
			t.Errorf("%s: a large answer:\n%s", scheme, d.text)
		}
		if d := ask("evil.fallback.test"); d.status != "NXDOMAIN" || strings.Contains(d.text, "100.64.0.16") {
			t.Errorf("%s: a name that leads to a Service:\n%s", scheme, d.text)
		}
	}
}

func TestUnbound(t *testing.T) {
	certificate, roots := issue(t, []string{"localhost"}, nil)
	dir := t.TempDir()
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, "key.pem": {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	config := fmt.Sprintf(`server:
  verbosity: 1
  logfile: ""
  use-syslog: no
  log-time-ascii: no
  do-daemonize: no
  username: ""
  chroot: ""
  directory: "%[1]s"
  pidfile: ""
  interface: 127.0.0.1@%[2]d
  tls-port: %[2]d
  tls-service-key: "%[1]s/key.pem"
  tls-service-pem: "%[1]s/cert.pem"
  num-threads: 1
  module-config: "iterator"
  local-zone: "fallback.test." static
  local-data: "fallback.test. 300 IN SOA ns. root. 1 2 3 4 60"
  local-data: "www.fallback.test. 60 IN A 192.0.2.80"
remote-control:
  control-enable: no
`, dir, port)
	path := filepath.Join(dir, "unbound.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, "start of service", "unbound", "-d", "-p", "-c", path)
	ask := askThrough(t, roots, fmt.Sprintf("tls://localhost:%d", port))
	for range 2 {
		if d := ask("www.fallback.test"); strings.Join(d.records, ", ") != "A 192.0.2.80" {
			t.Errorf("an address:\n%s", d.text)
		}
		if d := ask("nope.fallback.test"); d.status != "NXDOMAIN" || !strings.Contains(d.text, "SOA") {
			t.Errorf("no such name:\n%s", d.text)
		}
	}
	wrong := askThrough(t, roots, fmt.Sprintf("tls://127.0.0.1:%d", port))
	if d := wrong("www.fallback.test"); d.status != "SERVFAIL" || !strings.Contains(d.text, "certificate") {
		t.Errorf("a server that is not the one that is named:\n%s", d.text)
	}
}
