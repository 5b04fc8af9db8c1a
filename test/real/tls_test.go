package real_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/test/cluster"
)

// domain is that of a cluster that was given none.
const domain = "cardea.internal"

// once answers one line and ends the connection.
func once(name string) func(net.Conn) {
	return func(c net.Conn) {
		line, _ := bufio.NewReader(c).ReadString('\n')
		fmt.Fprintf(c, "%s: %s", name, line)
	}
}

// sClient asks by openssl and returns what it prints: the answer, and on standard
// error what is wrong.
func sClient(openssl string, args ...string) (string, error) {
	cmd := exec.Command(openssl, append([]string{"s_client", "-quiet", "-verify_return_error"}, args...)...)
	cmd.Stdin = strings.NewReader("hello\n")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// A client that is not ours, with the certificate of a Session, over IPv4 and IPv6.
func TestSessionCertificate(t *testing.T) {
	t.Parallel()
	openssl := need(t, "openssl")
	upstream := serve(t, once("up"))
	c := up(t, cluster.ServiceYAML("real", upstream)+cluster.ServiceYAML("other", upstream)+
		"---\nkind: ClusterConfig\nmetadata: {name: default}\nspec: {upstream: {allow: [127.0.0.1/32]}}\n", "--listen", ":PORT")
	_, port, _ := net.SplitHostPort(c.Listen)
	names, err := filepath.Glob(filepath.Join(certificates(c), "*"))
	if err != nil || len(names) != 3 {
		t.Fatalf("login --cert-out wrote %s, %v", names, err)
	}
	name := "real.default.svc." + domain
	ca := []string{"-CAfile", filepath.Join(certificates(c), "ca.pem"), "-verify_hostname", name, "-servername", name}
	mine := append(ca, "-cert", filepath.Join(certificates(c), "cert.pem"), "-key", filepath.Join(certificates(c), "key.pem"))
	for _, host := range hosts() {
		at := net.JoinHostPort(host, port)
		if out, err := sClient(openssl, append(mine, "-connect", at)...); err != nil || !strings.Contains(out, "up: hello\n") {
			t.Errorf("%s: %v\n%s", at, err, out)
		}
		if out, _ := sClient(openssl, append(ca, "-connect", at)...); strings.Contains(out, "up:") {
			t.Errorf("%s: without a certificate: %s", at, out)
		}
	}
	if err := c.Apply(t.Context(), cluster.UserYAML("alice")); err != nil {
		t.Fatal(err)
	}
	if out, _ := sClient(openssl, append(mine, "-connect", "127.0.0.1:"+port)...); strings.Contains(out, "up:") {
		t.Errorf("who has no right: %s", out)
	}
}

// hosts are the loopback addresses of the families that this machine has.
func hosts() []string {
	if l, err := net.Listen("tcp", "[::1]:0"); err == nil {
		l.Close()
		return []string{"127.0.0.1", "::1"}
	}
	return []string{"127.0.0.1"}
}

// A public port that speaks TLS proves its name to whoever trusts the cluster's CA.
func TestPublicTLS(t *testing.T) {
	t.Parallel()
	openssl := need(t, "openssl")
	port := freePort(t)
	c := up(t, fmt.Sprintf(`---
kind: Service
metadata: {name: open}
spec:
  mode: TCP
  port: %s
  isPublic: true
  isAnonymous: true
  isTLS: true
  config: {upstream: {url: "tcp://%s"}}
`, port, serve(t, once("open"))))
	ca := filepath.Join(certificates(c), "ca.pem")
	name := "open.default.svc." + domain
	out, err := sClient(openssl, "-connect", "127.0.0.1:"+port, "-CAfile", ca, "-servername", name, "-verify_hostname", name)
	if err != nil || !strings.Contains(out, "open: hello\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := sClient(openssl, "-connect", "127.0.0.1:"+port, "-CAfile", ca, "-servername", name, "-verify_hostname", "other.default.svc."+domain); err == nil {
		t.Errorf("it proved another's name: %s", out)
	}
	if out, err := ask(t, port, "hello"); strings.Contains(out, "open:") {
		t.Errorf("without TLS: %q, %v", out, err)
	}
}

// An upstream that wants TLS and a certificate: nginx.
func TestUpstreamTLS(t *testing.T) {
	t.Parallel()
	nginx := need(t, "nginx", "/usr/sbin/nginx")
	dir := t.TempDir()
	ca, stranger := newAuthority(t, "real-ca"), newAuthority(t, "other-ca")
	ca.issue(t, dir, "server", "up.internal")
	ca.issue(t, dir, "client")
	stranger.issue(t, dir, "foreign")
	write(t, filepath.Join(dir, "ca.pem"), ca.pem)
	port := freePort(t)
	module := ""
	if _, err := os.Stat("/usr/lib/nginx/modules/ngx_stream_module.so"); err == nil {
		module = "load_module /usr/lib/nginx/modules/ngx_stream_module.so;"
	}
	write(t, filepath.Join(dir, "nginx.conf"), fmt.Sprintf(`%s
daemon off; master_process off; pid %[2]s/pid; error_log stderr info;
events {}
stream {
	server {
		listen 127.0.0.1:%[3]s ssl;
		ssl_certificate %[2]s/server.pem;
		ssl_certificate_key %[2]s/server.key;
		ssl_client_certificate %[2]s/ca.pem;
		ssl_verify_client on;
		return "you are $ssl_client_s_dn\n";
	}
}
`, module, dir, port))
	if out, err := exec.Command(nginx, "-t", "-p", dir, "-c", filepath.Join(dir, "nginx.conf")).CombinedOutput(); err != nil && strings.Contains(string(out), `unknown directive "stream"`) {
		t.Skip("skipped: nginx has no stream module; test/setup installs libnginx-mod-stream on Debian as root")
	}
	start(t, "127.0.0.1:"+port, exec.Command(nginx, "-p", dir, "-c", filepath.Join(dir, "nginx.conf")))

	c := up(t, "---\nkind: ClusterConfig\nmetadata: {name: default}\nspec: {dns: {hosts: {up.internal: [127.0.0.1]}}}\n")
	for _, name := range []string{"client", "foreign"} {
		if _, err := c.Run(t.Context(), "root", nil, "create", "secret", name, "--cert", filepath.Join(dir, name+".pem"), "--cert-key", filepath.Join(dir, name+".key")); err != nil {
			t.Fatal(err)
		}
	}
	const works = ""
	for _, tt := range []struct{ name, host, config, words string }{
		{"new", "127.0.0.1", tlsConfig(ca, "up.internal", "client"), works},
		{"older", "up.internal", fmt.Sprintf("clientCertificate: {fromSecret: client, trustedCAs: [%q]}", ca.pem), works},
		{"no-certificate", "127.0.0.1", tlsConfig(ca, "up.internal", ""), "tls.clientCertificate.fromSecret"},
		{"wrong-ca", "127.0.0.1", tlsConfig(stranger, "up.internal", "client"), "list the CA in spec.config.tls.trustedCAs"},
		{"system-cas", "up.internal", "tls: {clientCertificate: {fromSecret: client}}", "list the CA in spec.config.tls.trustedCAs"},
		{"wrong-name", "127.0.0.1", tlsConfig(ca, "down.internal", "client"), `for "up.internal", not for "down.internal"`},
		{"name-of-url", "127.0.0.1", tlsConfig(ca, "", "client"), "set spec.config.tls.serverName"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := c.Apply(t.Context(), tlsService(tt.name, tt.host+":"+port, tt.config)); err != nil {
				t.Fatal(err)
			}
			got, err := ask(t, publish(t, c, tt.name), "hello")
			if tt.words == works {
				if err != nil || got != "you are CN=client\n" {
					t.Errorf("read %q, %v", got, err)
				}
				return
			}
			if got != "" || !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
				t.Errorf("read %q, %v; want a reset", got, err)
			}
			end := lastEnd(t, c, tt.name)
			if end.CloseReason != "UPSTREAM_TLS" || !strings.Contains(end.Error, tt.words) {
				t.Errorf("the log says %s: %s; want UPSTREAM_TLS and %q", end.CloseReason, end.Error, tt.words)
			}
		})
	}

	// A new certificate in the Secret is shown from then on.
	ca.issue(t, dir, "renewed")
	if _, err := c.Run(t.Context(), "root", nil, "update", "secret", "client", "--cert", filepath.Join(dir, "renewed.pem"), "--cert-key", filepath.Join(dir, "renewed.key")); err != nil {
		t.Fatal(err)
	}
	if got, err := ask(t, publish(t, c, "new"), "hello"); got != "you are CN=renewed\n" {
		t.Errorf("after the Secret was changed: %q, %v", got, err)
	}

	// nginx is silent about a certificate that it does not take: it ends the
	// connection in order, as if it had nothing to say.
	if err := c.Apply(t.Context(), tlsService("foreign-certificate", "127.0.0.1:"+port, tlsConfig(ca, "up.internal", "foreign"))); err != nil {
		t.Fatal(err)
	}
	if got, _ := ask(t, publish(t, c, "foreign-certificate"), "hello"); got != "" {
		t.Errorf("with a certificate of another CA: %q", got)
	}

	// A Secret that is not there is refused when it is written.
	if err := c.Apply(t.Context(), tlsService("nobody", "127.0.0.1:"+port, tlsConfig(ca, "up.internal", "nobody"))); err == nil || !strings.Contains(err.Error(), "fromSecret") {
		t.Errorf("a Service that names a Secret that is not there: %v", err)
	}
}

func tlsService(name, address, config string) string {
	return strings.Replace(cluster.ServiceYAML(name, address), "      url: tcp://"+address+"\n", "      url: tcp://"+address+"\n    "+config+"\n", 1)
}

func tlsConfig(ca *authority, serverName, secret string) string {
	fields := []string{fmt.Sprintf("trustedCAs: [%q]", ca.pem)}
	if serverName != "" {
		fields = append(fields, "serverName: "+serverName)
	}
	if secret != "" {
		fields = append(fields, "clientCertificate: {fromSecret: "+secret+"}")
	}
	return "tls: {" + strings.Join(fields, ", ") + "}"
}

// lastEnd waits for the END of a connection to a Service, and returns the last.
func lastEnd(t *testing.T, c *cluster.Cluster, service string) *api.TCPInfo {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		out, err := c.Run(t.Context(), "root", nil, "logs", "--service", service, "--type", "end", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		if lines := strings.Split(strings.TrimSpace(out), "\n"); lines[0] != "" {
			var rec api.AccessLog
			if err := json.Unmarshal([]byte(lines[len(lines)-1]), &rec); err != nil {
				t.Fatal(err)
			}
			return rec.Entry.Info.TCP
		}
		if time.Now().After(deadline) {
			t.Fatalf("the log has no END of %s", service)
		}
	}
}

// Several endpoints take turns; one that is dead costs nothing but its turn.
func TestEndpoints(t *testing.T) {
	t.Parallel()
	one, two, dead := serve(t, once("one")), serve(t, once("two")), "127.0.0.1:"+freePort(t)
	service := func(name string, endpoints ...string) string {
		list := ""
		for _, e := range endpoints {
			list += fmt.Sprintf("{url: \"tcp://%s\"}, ", e)
		}
		return fmt.Sprintf("---\nkind: Service\nmetadata: {name: %s}\nspec:\n  mode: TCP\n  port: 80\n  config: {upstream: {loadbalance: {endpoints: [%s]}}}\n  authorization: {policies: [allow-all]}\n", name, list)
	}
	c := up(t, service("several", one, dead, two)+service("none", dead, "127.0.0.1:"+freePort(t)))
	port := publish(t, c, "several")
	seen := map[string]int{}
	const rounds = 12
	for range rounds {
		got, err := ask(t, port, "hello")
		if err != nil {
			t.Fatal(err)
		}
		seen[got]++
	}
	if seen["one: hello\n"] < rounds/4 || seen["two: hello\n"] < rounds/4 || len(seen) != 2 {
		t.Errorf("answers: %v", seen)
	}
	if got, err := ask(t, publish(t, c, "none"), "hello"); err == nil {
		t.Errorf("from endpoints that are all dead: %q", got)
	}
	if end := lastEnd(t, c, "none"); end.CloseReason != "DIAL_FAILED" || !strings.Contains(end.Error, "none of 2 endpoints") || !strings.Contains(end.Error, "nothing listens there") {
		t.Errorf("the log says %s: %s", end.CloseReason, end.Error)
	}
}

// An authority is a CA that is not the cluster's.
type authority struct {
	pem  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{encode("CERTIFICATE", der), cert, key}
}

// issue writes NAME.pem and NAME.key to a directory.
func (a *authority) issue(t *testing.T, dir, name string, dnsNames ...string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter,
		DNSNames: dnsNames, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, name+".pem"), encode("CERTIFICATE", der))
	write(t, filepath.Join(dir, name+".key"), encode("PRIVATE KEY", keyDER))
}

func encode(typ string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}))
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
