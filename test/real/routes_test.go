package real_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// route is a TCPMapping of a port.
func route(name, port, host, service, more string) string {
	if host != "" {
		host = fmt.Sprintf("host: %q, ", host)
	}
	return fmt.Sprintf("---\napiVersion: getambassador.io/v3alpha1\nkind: TCPMapping\nmetadata: {name: %s}\nspec: {port: %s, %sservice: %q%s}\n", name, port, host, service, more)
}

// annotated gives the first metadata of a document annotations: KEY and VALUE in
// turn.
func annotated(document string, annotations ...string) string {
	var list []string
	for i := 0; i+1 < len(annotations); i += 2 {
		list = append(list, fmt.Sprintf("cardea/%s: %q", annotations[i], annotations[i+1]))
	}
	return strings.Replace(document, "metadata: {", "metadata: {annotations: {"+strings.Join(list, ", ")+"}, ", 1)
}

// tlsSecret is a Secret of Kubernetes with what issue wrote to a directory.
func tlsSecret(t *testing.T, dir, name string) string {
	t.Helper()
	data := map[string][]byte{}
	for key, file := range map[string]string{"tls.crt": name + ".pem", "tls.key": name + ".key"} {
		b, err := os.ReadFile(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		data[key] = b
	}
	b, err := json.Marshal(data)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: %s}\ndata: %s\n", name, b)
}

// context is a TLSContext that ends the TLS of a host with a Secret.
func tlsContext(name, host, secret string) string {
	return fmt.Sprintf("---\napiVersion: getambassador.io/v3alpha1\nkind: TLSContext\nmetadata: {name: %s}\nspec: {hosts: [%q], secret: %s}\n", name, host, secret)
}

// hostsYAML is a ClusterConfig by which names are addresses.
func hostsYAML(hosts map[string]string) string {
	s := "---\nkind: ClusterConfig\nmetadata: {name: default}\nspec:\n  dns:\n    hosts:\n"
	for name, address := range hosts {
		s += fmt.Sprintf("      %s: [%s]\n", name, address)
	}
	return s
}

// postgresTLS starts a PostgreSQL that speaks TLS with a certificate for a name.
func postgresTLS(t *testing.T, ca *authority, name string) (port string) {
	t.Helper()
	return startPostgres(t, func(dir string) []string {
		ca.issue(t, dir, "server", name)
		return []string{"-c", "ssl=on", "-c", "ssl_cert_file=" + filepath.Join(dir, "server.pem"), "-c", "ssl_key_file=" + filepath.Join(dir, "server.key"), "-c", "fsync=off"}
	})
}

// Two databases share a port: the server name in the TLS that psql asks for decides
// which one it reaches, be the TLS theirs or ended here. A query that is cancelled
// (Ctrl-C in psql: a connection of its own) ends in the database where it runs.
func TestPostgreSQLByName(t *testing.T) {
	t.Parallel()
	psql := need(t, "psql")
	ca := newAuthority(t, "db-ca")
	a, b := postgresTLS(t, ca, "db-a.test"), postgresTLS(t, ca, "db-b.test")
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ca.pem"), ca.pem)
	ca.issue(t, dir, "ended", "ended.test")
	port := freePort(t)
	up(t, hostsYAML(map[string]string{"pg.internal": "127.0.0.1"})+
		annotated(route("db-a", port, "db-a.test", "pg.internal:"+a, ""), "starttls", "postgres", "tls", "passthrough")+
		annotated(route("db-b", port, "db-b.test", "pg.internal:"+b, ""), "starttls", "postgres", "tls", "passthrough")+
		annotated(route("ended", port, "ended.test", "https://pg.internal:"+b, ""), "starttls", "postgres")+
		tlsContext("ended", "ended.test", "ended")+tlsSecret(t, dir, "ended"))
	query := func(host, mode string, sql ...string) (string, error) {
		args := []string{fmt.Sprintf("host=%s hostaddr=127.0.0.1 port=%s user=app dbname=postgres sslmode=%s sslrootcert=%s connect_timeout=20", host, port, mode, filepath.Join(dir, "ca.pem")), "-At"}
		for _, s := range sql {
			args = append(args, "-c", s)
		}
		out, err := exec.Command(psql, args...).CombinedOutput()
		return string(out), err
	}
	for host, want := range map[string]string{"db-a.test": a, "db-b.test": b, "ended.test": b} {
		got, err := query(host, "verify-full", "show port", "select ssl from pg_stat_ssl where pid = pg_backend_pid()")
		if err != nil || got != want+"\nt\n" {
			t.Errorf("%s: %q, %v; want port %s", host, got, err, want)
		}
	}
	if got, err := query("db-c.test", "verify-full", "show port"); err == nil {
		t.Errorf("a name that nobody has: %q", got)
	}
	if got, err := query("db-a.test", "disable", "show port"); err == nil {
		t.Errorf("without TLS: %q", got)
	}

	for _, host := range []string{"db-a.test", "db-b.test", "ended.test"} {
		cmd := exec.Command(psql, fmt.Sprintf("host=%s hostaddr=127.0.0.1 port=%s user=app dbname=postgres sslmode=require", host, port), "-At", "-c", "set application_name = 'sleeper'", "-c", "select pg_sleep(600)")
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// It sleeps when the database says so.
		for deadline := time.Now().Add(30 * time.Second); ; {
			got, err := query(host, "require", "select count(*) from pg_stat_activity where application_name = 'sleeper' and query like '%pg_sleep%'")
			if err == nil && got == "1\n" {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("nobody sleeps: %q, %v", got, err)
			}
		}
		cmd.Process.Signal(os.Interrupt)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			cmd.Process.Kill()
			<-ended
			t.Errorf("%s: the query was not cancelled", host)
		}
		if !strings.Contains(out.String(), "canceling statement due to user request") {
			t.Errorf("%s: psql printed %q", host, out.String())
		}
	}
}

// A database that speaks first: nothing is waited for where nothing has to be read,
// and where names share the port, not for long.
func TestMariaDB(t *testing.T) {
	t.Parallel()
	server, client := need(t, "/usr/sbin/mariadbd"), need(t, "mariadb")
	install := need(t, "mariadb-install-db")
	dir, err := os.MkdirTemp("", "maria")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	run(t, exec.Command(install, "--no-defaults", "--datadir="+dir, "--user="+me.Username, "--auth-root-authentication-method=normal", "--skip-test-db"))
	port := freePort(t)
	start(t, "127.0.0.1:"+port, exec.Command(server, "--no-defaults", "--datadir="+dir, "--user="+me.Username, "--port="+port, "--bind-address=127.0.0.1", "--socket="+filepath.Join(dir, "sock"), "--pid-file="+filepath.Join(dir, "pid")))
	alone, shared := freePort(t), freePort(t)
	certs := t.TempDir()
	newAuthority(t, "ca").issue(t, certs, "site", "site.test")
	up(t, hostsYAML(map[string]string{"maria": "127.0.0.1"})+route("alone", alone, "", "maria:"+port, "")+
		route("shared", shared, "", "maria:"+port, "")+route("named", shared, "site.test", "maria:"+port, "")+
		tlsContext("site", "site.test", "site")+tlsSecret(t, certs, "site"))
	for _, p := range []string{alone, shared} {
		got := run(t, exec.Command(client, "--no-defaults", "--skip-ssl", "-h", "127.0.0.1", "-P", p, "-u", "root", "-N", "-e", "select 6*7"))
		if strings.TrimSpace(got) != "42" {
			t.Errorf("port %s: %q", p, got)
		}
	}
}

// PROXY headers, in from HAProxy and out to nginx, beside what goes over the wire.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	haproxy, nginx, openssl := need(t, "haproxy", "/usr/sbin/haproxy"), need(t, "nginx", "/usr/sbin/nginx"), need(t, "openssl")
	dir := t.TempDir()
	if _, err := os.Stat("/usr/lib/nginx/modules/ngx_stream_module.so"); err != nil {
		t.Skip("skipped: nginx has no stream module; test/setup installs libnginx-mod-stream on Debian as root")
	}
	ca := newAuthority(t, "ca")
	ca.issue(t, dir, "site", "site.test")
	ports := map[string]string{}
	for _, name := range []string{"nginx", "in", "v1", "v2", "tls", "front", "frontv1"} {
		ports[name] = freePort(t)
	}
	write(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf(`load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off; master_process off; pid %[1]s/pid; error_log stderr info;
events {}
stream {
	server {
		listen 127.0.0.1:%[2]s proxy_protocol;
		return "client $proxy_protocol_addr to port $proxy_protocol_server_port\n";
	}
}
`, dir, ports["nginx"]))
	start(t, "127.0.0.1:"+ports["nginx"], exec.Command(nginx, "-p", dir, "-c", filepath.Join(dir, "nginx.conf"), "-e", "stderr"))
	write(t, filepath.Join(dir, "haproxy.cfg"), fmt.Sprintf(`defaults
	mode tcp
	timeout connect 5s
	timeout client 30s
	timeout server 30s
listen front
	bind 127.0.0.1:%[1]s
	server s 127.0.0.1:%[3]s send-proxy-v2
listen frontv1
	bind 127.0.0.1:%[2]s
	server s 127.0.0.1:%[3]s send-proxy
`, ports["front"], ports["frontv1"], ports["in"]))
	start(t, "127.0.0.1:"+ports["front"], exec.Command(haproxy, "-db", "-f", filepath.Join(dir, "haproxy.cfg")))

	c := up(t, hostsYAML(map[string]string{"nginx": "127.0.0.1"})+
		annotated(route("v1", ports["v1"], "", "nginx:"+ports["nginx"], ""), "proxy-protocol", "v1")+
		annotated(route("v2", ports["v2"], "", "nginx:"+ports["nginx"], ""), "proxy-protocol", "v2")+
		annotated(route("tls", ports["tls"], "site.test", "nginx:"+ports["nginx"], ""), "proxy-protocol", "v2")+
		tlsContext("site", "site.test", "site")+tlsSecret(t, dir, "site")+
		annotated(route("in", ports["in"], "", "nginx:"+ports["nginx"], ""), "proxy-protocol", "v2")+
		fmt.Sprintf("---\napiVersion: getambassador.io/v3alpha1\nkind: Listener\nmetadata: {name: in}\nspec: {port: %s, protocolStack: [PROXY, TLS, TCP], securityModel: XFP, hostBinding: {namespace: {from: ALL}}}\n", ports["in"]))
	told := func(from, port string) string {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 20 * time.Second}
		c, err := d.Dial("tcp", "127.0.0.1:"+port)
		if err != nil {
			return err.Error()
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(20 * time.Second))
		b, err := io.ReadAll(c)
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	for port, tellsPort := range map[string]string{"v1": "v1", "v2": "v2", "front": "front", "frontv1": "frontv1"} {
		want := fmt.Sprintf("client 127.94.0.7 to port %s\n", ports[tellsPort])
		if got := told("127.94.0.7", ports[port]); got != want {
			t.Errorf("%s: %q, want %q", port, got, want)
		}
	}
	cmd := exec.Command(openssl, "s_client", "-quiet", "-connect", "127.0.0.1:"+ports["tls"], "-servername", "site.test")
	cmd.Stdin = io.MultiReader() // nginx speaks first
	out, _ := cmd.CombinedOutput()
	if !strings.Contains(string(out), "client 127.0.0.1 to port "+ports["tls"]) {
		t.Errorf("through TLS: %s", out)
	}
	// Where a header is wanted, what has none comes to nothing, and the log says why.
	if got := told("127.94.0.7", ports["in"]); strings.Contains(got, "client") {
		t.Errorf("without a header: %q", got)
	}
	conn, err := net.Dial("tcp", "127.0.0.1:"+ports["in"])
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET / HTTP/1.0\r\n\r\n")
	conn.SetReadDeadline(time.Now().Add(20 * time.Second))
	if b, _ := io.ReadAll(conn); len(b) > 0 {
		t.Errorf("without a header: %q", b)
	}
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, err := c.Run(t.Context(), "root", nil, "logs", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(out, `"PROXY_HEADER"`) && strings.Contains(out, `"proxiedBy":"127.0.0.1`) && strings.Contains(out, `"ip":"127.94.0.7"`) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log does not tell of the header that was missing, and of the one that was there:\n%s", out)
		}
	}
}

// What goes over the wire before the client's first byte, as tcpdump sees it.
func TestProxyBytes(t *testing.T) {
	t.Parallel()
	tcpdump := need(t, "tcpdump", "/usr/bin/tcpdump", "/usr/sbin/tcpdump")
	if os.Getuid() != 0 {
		t.Skip("skipped: tcpdump needs root")
	}
	upstream := serve(t, once("up"))
	_, upstreamPort, _ := net.SplitHostPort(upstream)
	port := freePort(t)
	up(t, hostsYAML(map[string]string{"up.internal": "127.0.0.1"})+annotated(route("v1", port, "", "up.internal:"+upstreamPort, ""), "proxy-protocol", "v1"))
	dump := exec.Command(tcpdump, "-i", "lo", "-n", "-U", "-l", "-x", "tcp dst port "+upstreamPort+" and tcp[tcpflags] & tcp-push != 0")
	stderr, err := dump.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := dump.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := dump.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		dump.Process.Kill()
		dump.Wait()
	}()
	for listening := bufio.NewScanner(stderr); listening.Scan() && !strings.Contains(listening.Text(), "listening on"); {
	}
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	fmt.Fprintln(c, "hello")
	want := fmt.Sprintf("PROXY TCP4 127.0.0.1 127.0.0.1 %d %s\r\n", c.LocalAddr().(*net.TCPAddr).Port, port)
	seen := make(chan string, 1)
	go func() {
		var hexes strings.Builder
		lines := bufio.NewScanner(stdout)
		for lines.Scan() && hexes.Len() < 1<<16 {
			if _, h, ok := strings.Cut(lines.Text(), ":  "); ok && strings.HasPrefix(lines.Text(), "\t0x") {
				hexes.WriteString(strings.ReplaceAll(h, " ", ""))
			}
			if strings.Contains(hexes.String(), fmt.Sprintf("%x", "\r\n")) {
				break
			}
		}
		seen <- hexes.String()
	}()
	if _, err := bufio.NewReader(c).ReadString('\n'); err != nil && !strings.Contains(err.Error(), "EOF") {
		t.Fatal(err)
	}
	select {
	case got := <-seen:
		if !strings.Contains(got, fmt.Sprintf("%x", want)) {
			t.Errorf("on the wire is %s, and not %q", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("tcpdump saw nothing")
	}
}

// Upstreams by openssl: what verifies is verified; what does not is reported where
// the mapping names no CA, and refused where it does, or the cluster says so.
func TestOriginationToOpenSSL(t *testing.T) {
	t.Parallel()
	openssl := need(t, "openssl")
	dir := t.TempDir()
	ca, other := newAuthority(t, "ca"), newAuthority(t, "other")
	ca.issue(t, dir, "server", "up.internal")
	write(t, filepath.Join(dir, "ca.pem"), ca.pem)
	port := freePort(t)
	server := exec.Command(openssl, "s_server", "-accept", "127.0.0.1:"+port, "-cert", filepath.Join(dir, "server.pem"), "-key", filepath.Join(dir, "server.key"), "-rev", "-quiet")
	start(t, "127.0.0.1:"+port, server)
	secret := func(name string, a *authority) string {
		return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s}\ndata: {tls.crt: %s}\n", name, base64.StdEncoding.EncodeToString([]byte(a.pem)))
	}
	context := func(name, ca string) string {
		return fmt.Sprintf("---\napiVersion: getambassador.io/v3alpha1\nkind: TLSContext\nmetadata: {name: %s}\nspec: {ca_secret: %s}\n", name, ca)
	}
	ports := map[string]string{}
	documents := hostsYAML(map[string]string{"up.internal": "127.0.0.1", "wrong.internal": "127.0.0.1"}) + secret("ca", ca) + secret("other", other) + context("good", "ca") + context("bad", "other")
	for name, spec := range map[string][2]string{
		"reported": {"up.internal", ", tls: \"\""}, "good": {"up.internal", ", tls: good"}, "bad": {"up.internal", ", tls: bad"}, "wrong-name": {"wrong.internal", ", tls: good"},
	} {
		ports[name] = freePort(t)
		service := spec[0] + ":" + port
		if name == "reported" {
			service = "https://" + service
		}
		documents += route(name, ports[name], "", service, spec[1])
	}
	c := up(t, documents)
	says := func(name string) string {
		conn, err := net.Dial("tcp", "127.0.0.1:"+ports[name])
		if err != nil {
			return err.Error()
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintln(conn, "hello")
		line, err := bufio.NewReader(conn).ReadString('\n')
		if err != nil {
			return err.Error()
		}
		return line
	}
	for name, works := range map[string]bool{"reported": true, "good": true, "bad": false, "wrong-name": false} {
		if got := says(name); (got == "olleh\n") != works {
			t.Errorf("%s: %q", name, got)
		}
	}
	verified := func(name string) string {
		out, err := c.Run(t.Context(), "root", nil, "get", "tcpmapping", name, "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var o struct {
			Status struct {
				Conditions []struct{ Type, Status, Message string }
			}
		}
		if err := json.Unmarshal([]byte(out), &o); err != nil {
			t.Fatal(err)
		}
		for _, x := range o.Status.Conditions {
			if x.Type == "UpstreamVerified" {
				return x.Status + " " + x.Message
			}
		}
		return ""
	}
	for name, want := range map[string]string{"reported": "False", "good": "True", "bad": "False", "wrong-name": "False"} {
		if got := verified(name); !strings.HasPrefix(got, want) {
			t.Errorf("%s: UpstreamVerified is %q, want %s", name, got, want)
		}
	}
	strict := strings.Replace(hostsYAML(map[string]string{"up.internal": "127.0.0.1"}), "spec:\n", "spec:\n  routing: {upstreamVerification: REQUIRE}\n", 1)
	if err := c.Apply(t.Context(), strict); err != nil {
		t.Fatal(err)
	}
	if got := says("reported"); got == "olleh\n" {
		t.Error("REQUIRE does not refuse what does not verify")
	}
	if end := lastEnd(t, c, "reported"); end.CloseReason != "UPSTREAM_TLS" {
		t.Errorf("the log says %s: %s", end.CloseReason, end.Error)
	}
	if got := says("good"); got != "olleh\n" {
		t.Errorf("REQUIRE refuses what verifies: %q", got)
	}
}
