package client_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/client"
)

func TestLogin(t *testing.T) {
	w := newWorld(t)
	token := w.token("alice")
	home := filepath.Join(t.TempDir(), "deep", "home")

	// The fingerprint as other tools print it.
	var pairs []string
	for p := range slices.Chunk([]byte(strings.ToUpper(w.cluster.CASHA256)), 2) {
		pairs = append(pairs, string(p))
	}
	s, err := client.Login(t.Context(), home, w.cluster.Address, token, strings.Join(pairs, ":"))
	if err != nil {
		t.Fatal(err)
	}
	if s.User != "alice" || s.Domain != w.cluster.Domain || !strings.HasPrefix(s.Session, "alice-") {
		t.Errorf("got %+v", s)
	}

	if i, err := os.Stat(home); err != nil || i.Mode().Perm() != 0o700 {
		t.Errorf("the home: %v, %v", i.Mode(), err)
	}
	entries, err := os.ReadDir(home)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
		if i, err := e.Info(); err != nil || i.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", e.Name(), i.Mode(), err)
		}
		if b, err := os.ReadFile(filepath.Join(home, e.Name())); err != nil || strings.Contains(string(b), token) {
			t.Errorf("%s holds the token", e.Name())
		}
	}
	if want := []string{"certificate", "key", "lock", "session.json"}; !slices.Equal(names, want) {
		t.Errorf("the home holds %v, want %v", names, want)
	}

	c, err := client.Open(t.Context(), home)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	call, err := c.API(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var self api.Self
	if err := call.Do(t.Context(), http.MethodGet, "/api/self", nil, &self); err != nil || self.User.Metadata.Name != "alice" {
		t.Errorf("self: %v, %v", self.User, err)
	}
}

func TestLoginIsRefused(t *testing.T) {
	w := newWorld(t)
	other := strings.Repeat("ab", 32)
	for _, tc := range []struct{ name, address, token, ca, want string }{
		{"other CA", w.cluster.Address, "x", other, "expected a CA certificate with SHA-256 " + other + ", found " + w.cluster.CASHA256},
		{"short fingerprint", w.cluster.Address, "x", "abcd", "must be 64 hexadecimal digits"},
		{"no token of ours", w.cluster.Address, "x", w.cluster.CASHA256, "the token is not valid"},
		{"nobody there", "127.0.0.1:1", "x", w.cluster.CASHA256, "connection refused"},
		{"no TLS", plainServer(t), "x", w.cluster.CASHA256, "does not answer as a cluster does"},
		{"a CA that is shown and did not sign", impostor(t, w), "x", w.cluster.CASHA256, "not by the CA that it shows"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			home := filepath.Join(t.TempDir(), "home")
			_, err := client.Login(t.Context(), home, tc.address, tc.token, tc.ca)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
			if _, err := client.Open(t.Context(), home); code(err) != api.CodeUnauthenticated {
				t.Errorf("after it, Open says %v", err)
			}
		})
	}
}

// accept serves each connection of a listener by f.
func accept(t *testing.T, f func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			all.Go(func() { defer c.Close(); f(c) })
		}
	})
	t.Cleanup(func() { l.Close(); all.Wait() })
	return l.Addr().String()
}

func plainServer(t *testing.T) string {
	return accept(t, func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") })
}

// impostor serves TLS with a certificate of its own and shows the cluster's CA
// beside it, which everybody can get.
func impostor(t *testing.T, w *world) string {
	conn, err := tls.Dial("tcp", w.cluster.Address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	chain := conn.ConnectionState().PeerCertificates
	conn.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "impostor"}, DNSNames: chain[0].DNSNames,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	// Its issuer has the name of the CA, and not its key.
	der, err := x509.CreateCertificate(rand.Reader, leaf, &x509.Certificate{Subject: chain[1].Subject}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der, chain[1].Raw}, PrivateKey: key}}}
	return accept(t, func(c net.Conn) {
		s := tls.Server(c, config)
		s.Handshake()
		if b, _ := io.ReadAll(s); len(b) > 0 {
			t.Errorf("the client told the impostor %d bytes", len(b))
		}
	})
}

func TestDial(t *testing.T) {
	w := newWorld(t)
	alice, bob := w.user("alice"), w.user("bob")

	c, err := alice.Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, c)

	for _, service := range []string{"echo", "no-such-service"} {
		_, err := bob.Dial(t.Context(), service)
		e, ok := errors.AsType[*api.Error](err)
		if !ok || e.Code != api.CodePermissionDenied || e.DecisionID == "" || !strings.Contains(e.Message, service+".default") {
			t.Errorf("bob, %s: %#v", service, err)
		}
	}

	c, err = alice.Dial(t.Context(), "echo.default")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	hello(t, c)
	w.do(http.MethodDelete, "/api/core/v1/sessions/"+w.session(alice), nil, nil)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the Session was deleted, Read says %v", err)
	}
}

// TestFollowsLogin shows that a Client that is in use acts for whoever logs in.
func TestFollowsLogin(t *testing.T) {
	w := newWorld(t)
	c := w.user("bob")
	if _, err := c.Dial(t.Context(), "echo"); code(err) != api.CodePermissionDenied {
		t.Fatal(err)
	}
	if _, err := client.Login(t.Context(), c.Home, w.cluster.Address, w.token("alice"), w.cluster.CASHA256); err != nil {
		t.Fatal(err)
	}
	conn, err := c.Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, conn)

	if err := c.Logout(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Dial(t.Context(), "echo"); code(err) != api.CodeUnauthenticated {
		t.Errorf("after logout: %v", err)
	}
	if _, err := os.Stat(filepath.Join(c.Home, "key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("logout leaves the key: %v", err)
	}
}

// TestRenewal looks at a certificate by a clock that is ahead.
func TestRenewal(t *testing.T) {
	w := newWorld(t)
	for _, ahead := range []time.Duration{3 * time.Hour, 5 * time.Hour} { // past its half-life, past its end
		t.Run(ahead.String(), func(t *testing.T) {
			home := w.user("alice").Home
			file := filepath.Join(home, "certificate")
			before, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			now := time.Now()
			c := &client.Client{Home: home, Now: func() time.Time { return now.Add(ahead) }}
			defer c.Close()
			conn, err := c.Dial(t.Context(), "echo")
			if err != nil {
				t.Fatal(err)
			}
			exchange(t, conn)
			after, err := os.ReadFile(file)
			if err != nil || string(after) == string(before) {
				t.Errorf("the certificate was not renewed (%v)", err)
			}
			key, err := os.ReadFile(filepath.Join(home, "key"))
			if err != nil || len(key) == 0 {
				t.Errorf("the key: %v", err)
			}
		})
	}
}

// TestRenewalByMany shows that of many that find the certificate due each can
// go on.
func TestRenewalByMany(t *testing.T) {
	w := newWorld(t)
	home := w.user("alice").Home
	now := time.Now()
	var all sync.WaitGroup
	for range 4 {
		c := &client.Client{Home: home, Now: func() time.Time { return now.Add(3 * time.Hour) }}
		t.Cleanup(func() { c.Close() })
		for range 4 {
			all.Go(func() {
				conn, err := c.Dial(t.Context(), "echo")
				if err != nil {
					t.Error(err)
					return
				}
				exchange(t, conn)
			})
		}
	}
	all.Wait()
}

func TestRenewalOfAnEndedSession(t *testing.T) {
	w := newWorld(t)
	alice := w.user("alice")
	w.do(http.MethodDelete, "/api/core/v1/sessions/"+w.session(alice), nil, nil)
	now := time.Now()
	c := &client.Client{Home: alice.Home, Now: func() time.Time { return now.Add(5 * time.Hour) }}
	defer c.Close()
	_, err := c.Dial(t.Context(), "echo")
	if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeUnauthenticated || !strings.Contains(e.Hint, "cardea login") {
		t.Errorf("got %#v", err)
	}
}

// TestBrokenHome shows that a home that cannot be used says so, and how to go on.
func TestBrokenHome(t *testing.T) {
	w := newWorld(t)
	other := w.user("bob").Home
	for name, spoil := range map[string]func(home string) error{
		"another key": func(home string) error {
			return os.Rename(filepath.Join(other, "key"), filepath.Join(home, "key"))
		},
		"half a certificate": func(home string) error { return os.Truncate(filepath.Join(home, "certificate"), 100) },
		"no key":             func(home string) error { return os.Remove(filepath.Join(home, "key")) },
		"no JSON":            func(home string) error { return os.WriteFile(filepath.Join(home, "session.json"), []byte("{"), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			home := w.user("alice").Home
			if err := spoil(home); err != nil {
				t.Fatal(err)
			}
			_, err := client.Open(t.Context(), home)
			if e, ok := errors.AsType[*api.Error](err); !ok || e.Code != api.CodeUnauthenticated || !strings.Contains(e.Hint, "cardea login") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestZeroClient is how a Go program embeds a Client.
func TestZeroClient(t *testing.T) {
	w := newWorld(t)
	home := w.user("alice").Home
	c := client.Client{Home: home}
	defer c.Close()
	web := http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return c.Dial(ctx, "echo") },
	}
	conn, err := web.DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	exchange(t, conn)
}
