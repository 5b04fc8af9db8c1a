package proxyproto

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// listen returns a listener on loopback.
func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.(*net.TCPListener)
}

// haproxy starts a HAProxy and returns its address. It inherits the listener, so
// that nobody has to wait for its port.
func haproxy(t *testing.T, bind, server string) string {
	t.Helper()
	bin, err := exec.LookPath("haproxy")
	if err != nil {
		t.Skip("haproxy is not installed")
	}
	path := filepath.Join(t.TempDir(), "haproxy.cfg")
	text := fmt.Sprintf(`global
  maxconn 100
defaults
  mode tcp
  timeout connect 10s
  timeout client 10s
  timeout server 10s
listen front
  bind fd@3 %s
  unique-id-format unique-%%ci
  server back %s
`, bind, server)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	front := listen(t)
	file, err := front.File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var words bytes.Buffer
	cmd := exec.Command(bin, "-db", "-f", path)
	cmd.ExtraFiles, cmd.Stderr = []*os.File{file}, &words
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Log(words.String())
		}
	})
	return front.Addr().String()
}

// nginx starts an nginx, which goes into the background once its port is open, and
// returns its address.
func nginx(t *testing.T, back string) string {
	t.Helper()
	module := "/usr/lib/nginx/modules/ngx_stream_module.so"
	bin, err := exec.LookPath("nginx")
	if _, e := os.Stat(module); err != nil || e != nil {
		t.Skip("nginx is not installed, or its stream module is not")
	}
	front := listen(t)
	front.Close()
	dir := t.TempDir()
	path := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`load_module %s;
error_log %s/log; pid %[2]s/pid;
events {}
stream { server { listen %s proxy_protocol; set_real_ip_from 127.0.0.1; proxy_protocol on; proxy_pass %s; } }
`, module, dir, front.Addr(), back)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	do := func(args ...string) {
		if out, err := exec.Command(bin, append([]string{"-p", dir, "-c", path, "-e", filepath.Join(dir, "log")}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	do()
	t.Cleanup(func() { do("-s", "stop") })
	return front.Addr().String()
}

// received accepts a connection and returns the header with which it begins, and
// what follows.
func received(t *testing.T, l *net.TCPListener) (*Header, string) {
	t.Helper()
	l.SetDeadline(time.Now().Add(20 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	b, err := io.ReadAll(c)
	if err != nil {
		t.Fatal(err)
	}
	h, n, err := Parse(b)
	if err != nil || h == nil {
		t.Fatalf("%x: %v", b, err)
	}
	return h, string(b[n:])
}

// TestWhatHAProxySends reads the headers of a real HAProxy.
func TestWhatHAProxySends(t *testing.T) {
	for option, version := range map[string]int{"send-proxy": 1, "send-proxy-v2": 2} {
		t.Run(option, func(t *testing.T) {
			back := listen(t)
			c, err := net.Dial("tcp", haproxy(t, "", back.Addr().String()+" "+option))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			io.WriteString(c, "hello")
			c.(*net.TCPConn).CloseWrite()
			h, rest := received(t, back)
			if h.Version != version || h.Source.String() != c.LocalAddr().String() || h.Destination.String() != c.RemoteAddr().String() || rest != "hello" {
				t.Errorf("%+v, %q", h, rest)
			}
		})
	}
}

func TestWhatHAProxySaysOfTLS(t *testing.T) {
	pemFile, cert := certificate(t)
	back := listen(t)
	front := haproxy(t, "ssl crt "+pemFile+" ca-file "+pemFile+" verify required alpn h2",
		back.Addr().String()+" send-proxy-v2 proxy-v2-options ssl,cert-cn,ssl-cipher,cert-sig,cert-key,authority,crc32c,unique-id")
	c, err := tls.Dial("tcp", front, &tls.Config{
		InsecureSkipVerify: true, ServerName: "db.example", NextProtos: []string{"h2"}, Certificates: []tls.Certificate{cert},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "hello")
	c.CloseWrite()
	h, rest := received(t, back)
	if rest != "hello" || h.Authority != "db.example" || h.UniqueID != "unique-127.0.0.1" || !h.Checksum || h.ALPN != "h2" {
		t.Errorf("%+v, %q", h, rest)
	}
	s := h.SSL
	if s == nil || !s.TLS || !s.CertificateNow || !s.Verified || s.Version != "TLSv1.3" || s.CommonName != "alice" ||
		!strings.HasPrefix(s.Cipher, "TLS_") || s.SigAlg != "ecdsa-with-SHA256" || s.KeyAlg != "EC256" {
		t.Errorf("%+v", s)
	}
}

// certificate returns a certificate of alice, signed by itself, and a file of it.
func certificate(t *testing.T) (string, tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	template.Subject.CommonName = "alice"
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	path := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// TestWhatIsAccepted sends our headers to real proxies, which pass on what they
// understood.
func TestWhatIsAccepted(t *testing.T) {
	ap := netip.MustParseAddrPort
	for name, h := range map[string]Header{
		"v1 IPv4": {Version: 1, Source: ap("192.0.2.1:4711"), Destination: ap("198.51.100.7:443")},
		"v1 IPv6": {Version: 1, Source: ap("[2001:db8::1]:4711"), Destination: ap("[2001:db8::2]:443")},
		"v2 IPv4": {Version: 2, Source: ap("192.0.2.1:4711"), Destination: ap("198.51.100.7:443")},
		"v2 IPv6": {Version: 2, Source: ap("[2001:db8::1]:4711"), Destination: ap("[2001:db8::2]:443")},
		"v2 TLVs": {Version: 2, Source: ap("192.0.2.1:4711"), Destination: ap("198.51.100.7:443"), Checksum: true, ALPN: "h2",
			Authority: "a.example", UniqueID: "x", SSL: &SSL{TLS: true, Version: "TLSv1.3"}, TLVs: []TLV{{0xe0, "mine"}}},
	} {
		for rival, start := range map[string]func(t *testing.T, back string) string{
			"haproxy": func(t *testing.T, back string) string { return haproxy(t, "accept-proxy", back+" send-proxy-v2") },
			"nginx":   nginx,
		} {
			t.Run(rival+", "+name, func(t *testing.T) {
				back := listen(t)
				c, err := net.Dial("tcp", start(t, back.Addr().String()))
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				b, err := h.Append(nil)
				if err != nil {
					t.Fatal(err)
				}
				c.Write(append(b, "hello"...))
				c.(*net.TCPConn).CloseWrite()
				got, rest := received(t, back)
				if rest != "hello" || got.Source != h.Source {
					t.Errorf("%+v, %q", got, rest)
				}
				if rival == "haproxy" && got.Destination != h.Destination { // nginx says its own
					t.Errorf("%+v", got)
				}
			})
		}
	}
}
