package network_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cardea/client"
	"cardea/test/network/lab"
)

// documents are Services before the servers that serveAll starts.
const documents = `
---
kind: Namespace
metadata: {name: prod}
`

// programs is what TestPrograms has in all forms of the gateway.
func programs(upstream string) string {
	at := func(port string) string { return net.JoinHostPort(upstream, port) }
	return documents +
		serviceYAML("web", 80, "tcp://"+at("8000")) +
		serviceYAML("web.prod", 8080, "tcp://"+at("8001")) +
		serviceYAML("db", 5432, "tcp://"+at("5432")) +
		serviceYAML("shell", 22, "tcp://"+at("2222")) +
		serviceYAML("echo", 7, "udp://"+at("7007"))
}

// TestPrograms reaches Services with programs that know nothing of Cardea, by name, over
// IPv4 and IPv6: as root with a network interface, and as nobody by published ports and
// a proxy.
func TestPrograms(t *testing.T) {
	for form, want := range forms() {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, lab.Config{Clients: 2}, programs("10.3.0.2"), "--network", form)
			if got := w.gateway().Status.Form; got != want {
				t.Fatalf("the gateway is of form %s, want %s", got, want)
			}
			web(t, w.Upstream, 8000, "the web")
			web(t, w.Upstream, 8001, "the web of prod")
			packets(t, w.Upstream, 7007)
			alice, nobody := w.login(w.Clients[0], "alice"), w.login(w.Clients[1], "nobody")
			alice.connect()
			if p := alice.place(); p.Form != client.FormInterface || p.Gateways[0].Transport != client.TunnelWireGuard || p.Gateways[0].Why == "" {
				t.Errorf("alice is connected so: %+v", p)
			}
			nobody.run("connect", "-p", "web:18080", "-p", "db:15432", "-p", "shell:10022", "-p", "echo:10007", "--socks5", "1080", "--detach")
			t.Run("names", func(t *testing.T) { names(t, alice) })
			t.Run("curl", func(t *testing.T) { curl(t, alice, nobody) })
			t.Run("psql", func(t *testing.T) { psql(t, alice, nobody) })
			t.Run("ssh", func(t *testing.T) { secureShell(t, alice, nobody) })
			t.Run("udp", func(t *testing.T) { datagrams(t, alice, nobody) })
		})
	}
}

// names asks the name server of the cluster, as the machine is set up to.
func names(t *testing.T, alice *person) {
	dig := need(t, "dig")
	v4, v6 := alice.at("web.prod")
	ask := func(name, kind string) []string {
		return strings.Fields(run(t, alice.as(dig, "+short", "+tries=2", "+time=5", name, kind)))
	}
	for _, name := range []string{"web.prod", "web.prod.svc.cardea.internal", "WEB.Prod", "web.prod.local.cardea.internal"} {
		if got := ask(name, "A"); !slices.Equal(got, []string{v4.Addr().String()}) {
			t.Errorf("A of %s: %q, want %v", name, got, v4)
		}
		if got := ask(name, "AAAA"); !slices.Equal(got, []string{v6.Addr().String()}) {
			t.Errorf("AAAA of %s: %q, want %v", name, got, v6)
		}
		if got := ask(name, "SRV"); len(got) != 4 || got[2] != "8080" {
			t.Errorf("SRV of %s: %q, want port 8080", name, got)
		}
	}
	v4, v6 = alice.at("web")
	for _, name := range []string{"web", "web.default", "web.default.svc.cardea.internal"} {
		if got := ask(name, "A"); !slices.Equal(got, []string{v4.Addr().String()}) {
			t.Errorf("A of %s: %q, want %v", name, got, v4)
		}
		if got := ask(name, "AAAA"); !slices.Equal(got, []string{v6.Addr().String()}) {
			t.Errorf("AAAA of %s: %q, want %v", name, got, v6)
		}
	}
	if got := run(t, alice.as(dig, "+tcp", "+short", "web", "A")); strings.TrimSpace(got) != v4.Addr().String() {
		t.Errorf("over TCP, A of web: %q", got)
	}
	if got := run(t, alice.as(dig, "none.default.svc.cardea.internal", "A")); !strings.Contains(got, "status: NXDOMAIN") {
		t.Errorf("a Service that is not there:\n%s", got)
	}
}

func curl(t *testing.T, alice, nobody *person) {
	path := need(t, "curl")
	for want, urls := range map[string][]string{
		"the web":         {"http://web", "http://web.default", "http://web.default.svc.cardea.internal"},
		"the web of prod": {"http://web.prod:8080", "http://web.prod.svc.cardea.internal:8080"},
	} {
		for _, url := range urls {
			for _, family := range []string{"-4", "-6"} {
				if got := run(t, alice.as(path, "-sS", "-m", "20", family, url)); got != want {
					t.Errorf("curl %s %s: %q", family, url, got)
				}
			}
			for _, proxy := range []string{"socks5h://127.0.0.1:1080", "http://127.0.0.1:1080"} {
				if got := run(t, nobody.as(path, "-sS", "-m", "20", "-p", "-x", proxy, url)); got != want {
					t.Errorf("as nobody, curl -x %s %s: %q", proxy, url, got)
				}
			}
		}
	}
	if got := run(t, nobody.as(path, "-sS", "-m", "20", "http://127.0.0.1:18080")); got != "the web" {
		t.Errorf("as nobody, at a published port: %q", got)
	}
	// No program of another user may use them, nor a page in a browser.
	other := func(args ...string) *exec.Cmd {
		return nobody.host.Command("setpriv", append([]string{"--reuid=65533", "--regid=65533", "--clear-groups", path, "-sS", "-m", "20"}, args...)...)
	}
	for _, cmd := range []*exec.Cmd{
		other("http://127.0.0.1:18080"),
		other("-x", "socks5h://127.0.0.1:1080", "http://web"),
		other("-p", "-x", "http://127.0.0.1:1080", "http://web"),
	} {
		if out, err := cmd.CombinedOutput(); err == nil {
			t.Errorf("another user used what nobody has opened: %v: %q", cmd.Args, out)
		}
	}
	page := []string{"-sS", "-m", "20", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Origin: http://evil.example", "-H", "Sec-Fetch-Site: cross-site"}
	for _, url := range []string{"http://127.0.0.1:18080", "http://127.0.0.1:1080"} {
		if got := run(t, nobody.as(path, append(page, url)...)); !strings.HasPrefix(got, "4") {
			t.Errorf("a page of elsewhere was answered %s at %s", got, url)
		}
	}
}

func psql(t *testing.T, alice, nobody *person) {
	path := need(t, "psql")
	startPostgres(t, alice.Upstream)
	query := "select count(*), sum(n) from generate_series(1, 100000) as n"
	_, v6 := alice.at("db")
	for _, cmd := range []*exec.Cmd{
		alice.as(path, "-h", "db", "-U", "app", "-At", "postgres", "-c", query),
		alice.as(path, "host=db hostaddr="+v6.Addr().String()+" user=app dbname=postgres", "-At", "-c", query),
		nobody.as(path, "-h", "127.0.0.1", "-p", "15432", "-U", "app", "-At", "postgres", "-c", query),
	} {
		if got := run(t, cmd); got != "100000|5000050000\n" {
			t.Errorf("%v: %q", cmd.Args, got)
		}
	}
}

// startPostgres starts a PostgreSQL that trusts the user app, at port 5432 of a host.
func startPostgres(t *testing.T, h *lab.Host) {
	t.Helper()
	postgres := need(t, "/usr/lib/postgresql/*/bin/postgres")
	u, err := user.Lookup("postgres")
	if err != nil {
		t.Skipf("needs the user of PostgreSQL: %v", err)
	}
	dir, err := os.MkdirTemp("", "cardea-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	run(t, exec.Command("chown", u.Uid, dir))
	own := func(name string, args ...string) *exec.Cmd {
		cmd := h.Command("setpriv", append([]string{"--reuid=" + u.Uid, "--regid=" + u.Gid, "--clear-groups", name}, args...)...)
		cmd.Dir = dir
		return cmd
	}
	data := filepath.Join(dir, "data")
	run(t, own(filepath.Join(filepath.Dir(postgres), "initdb"), "-N", "-D", data, "-A", "trust", "-U", "app"))
	conf, err := os.OpenFile(filepath.Join(data, "pg_hba.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer conf.Close()
	fmt.Fprintln(conf, "host all all all trust")
	start(t, own(postgres, "-D", data, "-p", "5432", "-h", "*", "-k", dir, "-c", "fsync=off"))
	listens(t, h, 5432)
}

// listens waits until somebody listens at a port of a host.
func listens(t *testing.T, h *lab.Host, port uint16) {
	t.Helper()
	soon(t, patience, fmt.Sprintf("somebody listens at %d", port), func() error {
		c, err := h.Dial(t.Context(), "tcp", netip.AddrPortFrom(h.IPv4, port))
		if err == nil {
			c.Close()
		}
		return err
	})
}

func secureShell(t *testing.T, alice, nobody *person) {
	ssh, sshd, keygen := need(t, "ssh"), need(t, "/usr/sbin/sshd"), need(t, "ssh-keygen")
	dir, err := os.MkdirTemp("", "cardea-ssh-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.MkdirAll("/run/sshd", 0o755)
	run(t, exec.Command("chmod", "755", dir))
	for _, name := range []string{"host", "root", "nobody"} {
		run(t, exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)))
	}
	run(t, exec.Command("sh", "-c", "cd "+dir+" && cat root.pub nobody.pub >authorized && chown 65534 nobody"))
	start(t, alice.Upstream.Command(sshd, "-D", "-e", "-f", "/dev/null", "-p", "2222",
		"-h", filepath.Join(dir, "host"), "-o", "AuthorizedKeysFile="+filepath.Join(dir, "authorized"),
		"-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none", "-o", "UseDNS=no"))
	listens(t, alice.Upstream, 2222)
	options := func(key string) []string {
		return []string{"-F", "none", "-i", filepath.Join(dir, key), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-l", "root"}
	}
	for _, cmd := range []*exec.Cmd{
		alice.as(ssh, append(options("root"), "-4", "shell", "echo over ssh")...),
		alice.as(ssh, append(options("root"), "-6", "shell.default", "echo over ssh")...),
		nobody.as(ssh, append(options("nobody"), "-p", "10022", "127.0.0.1", "echo over ssh")...),
	} {
		if got := run(t, cmd); got != "over ssh\n" {
			t.Errorf("%v: %q", cmd.Args, got)
		}
	}
}

func datagrams(t *testing.T, alice, nobody *person) {
	v4, v6 := alice.at("echo")
	for _, to := range []netip.AddrPort{v4, v6} {
		for _, size := range []int{1, 1000, 5000, 60000} {
			if err := bounce(t, alice.host, to, size); err != nil {
				t.Errorf("%d bytes to %v: %v", size, to, err)
			}
		}
	}
	nc := nobody.as(need(t, "nc"), "-u", "-W", "1", "127.0.0.1", "10007")
	words := strings.Repeat("x", 5000)
	nc.Stdin = strings.NewReader(words)
	if got := run(t, nc); got != words {
		t.Errorf("as nobody, a datagram of %d bytes came back as one of %d", len(words), len(got))
	}
}

// bounce sends a datagram to an echo, a few times if it is lost, and waits for its
// return.
func bounce(t *testing.T, h *lab.Host, to netip.AddrPort, size int) error {
	t.Helper()
	c, err := h.Dial(t.Context(), "udp", to)
	if err != nil {
		return err
	}
	defer c.Close()
	return rebound(c, size)
}
