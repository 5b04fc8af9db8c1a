package world_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardea/api"
	tunneltls "cardea/tunnel/tls"
)

// Strangers at the TLS port are refused and learn nothing, and the log has each
// of them with the address he came from.
func TestStrangers(t *testing.T) {
	w := start(t)
	w.apply(groupOne + service("echo", echo(t)))
	alice, gone := w.user("alice", "group-1"), w.user("gone", "group-1")
	s, err := gone.Session(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w.do(http.MethodDelete, "/api/core/v1/sessions/"+s.Session, nil, nil)
	domain := w.ready.Domain
	real := tunneltls.ServiceName("echo", domain)

	attempt := func(sni, alpn string, cert ...tls.Certificate) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			cfg := &tls.Config{ServerName: sni, InsecureSkipVerify: true, Certificates: cert}
			if alpn != "" {
				cfg.NextProtos = []string{alpn}
			}
			return tls.Dial("tcp", w.ready.Address, cfg)
		}
	}
	raw := func(bytes string) func() (net.Conn, error) {
		return func() (net.Conn, error) {
			c, err := net.Dial("tcp", w.ready.Address)
			if err == nil {
				_, err = io.WriteString(c, bytes)
			}
			return c, err
		}
	}
	mine, revoked := certificate(t, w, "alice"), certificate(t, w, "gone")
	_ = alice
	for _, tt := range []struct {
		name, words string
		reason      api.ReasonType
		try         func() (net.Conn, error)
	}{
		{"no certificate, raw", "certificate", api.ReasonHandshake, attempt(real, "")},
		{"no certificate, framed", "certificate", api.ReasonHandshake, attempt(tunneltls.GatewayName(domain), tunneltls.Protocol)},
		{"a certificate of another CA", "certificate", api.ReasonHandshake, attempt(real, "", forged(t))},
		{"a Session that was deleted", "", api.ReasonNoSession, attempt(real, "", revoked)},
		{"a Service that does not exist", "no Service", api.ReasonNoService, attempt(tunneltls.ServiceName("nothing", domain), "", mine)},
		{"a name that is not ours", "", api.ReasonHandshake, attempt("www.example.com", "", mine)},
		{"plain HTTP", "", api.ReasonHandshake, raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n")},
		{"garbage", "", api.ReasonHandshake, raw(strings.Repeat("\x00\xff\x13garbage", 100))},
	} {
		t.Run(tt.name, func(t *testing.T) {
			seen := len(denials(w))
			c, err := tt.try()
			if err == nil {
				// In TLS 1.3 a client has finished before the server looks at its certificate.
				c.SetDeadline(time.Now().Add(30 * time.Second))
				_, told := io.WriteString(c, "hello\n") // Linux tells of a reset once
				if n, err := io.Copy(io.Discard, c); n != 0 && tt.reason != api.ReasonHandshake {
					t.Errorf("was sent %d bytes, %v", n, err)
				} else if err == nil && told == nil && tt.reason != api.ReasonHandshake {
					t.Error("saw an end of file, not a reset")
				}
				c.Close()
			}
			var found []api.AccessLog
			for deadline := time.Now().Add(30 * time.Second); len(found) <= seen; {
				if time.Now().After(deadline) {
					t.Fatal("nothing is in the log")
				}
				found = denials(w)
			}
			if len(found) != seen+1 {
				t.Errorf("%d records of one attempt", len(found)-seen)
			}
			common := found[len(found)-1].Entry.Common
			if common.Reason == nil || common.Reason.Type != tt.reason || !strings.Contains(common.Reason.Words, tt.words) {
				t.Errorf("reason = %+v, want %s with %q", common.Reason, tt.reason, tt.words)
			}
			if common.Facts == nil || common.Facts.IP != "127.0.0.1" || common.Facts.Port == 0 {
				t.Errorf("facts = %+v", common.Facts)
			}
		})
	}
	if n := len(denials(w)); n != 8 {
		t.Errorf("%d denials in the log, want 8", n)
	}
}

// denials returns the DENIED records of connections.
func denials(w *world) (recs []api.AccessLog) {
	for _, r := range w.logs() {
		if tcp := r.Entry.Info.TCP; tcp != nil && tcp.Type == api.LogDenied {
			recs = append(recs, r)
		}
	}
	return recs
}

// certificate returns what a thief of a home would have.
func certificate(t *testing.T, w *world, user string) tls.Certificate {
	t.Helper()
	home := filepath.Join(w.dir, "home-"+user)
	for _, names := range [][2]string{{"certificate.pem", "key.pem"}, {"cert.pem", "key.pem"}, {"certificate", "key"}} {
		if c, err := tls.LoadX509KeyPair(filepath.Join(home, names[0]), filepath.Join(home, names[1])); err == nil {
			return c
		}
	}
	t.Fatal("no certificate in the home of " + user)
	return tls.Certificate{}
}

// forged returns a certificate for a Session that nobody of ours signed.
func forged(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse("cardea://session/00000000-0000-4000-8000-000000000000")
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "mallory"}, URIs: []*url.URL{u},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// The API has a door of its own: without a Session it answers nothing but login.
func TestStrangersAtTheAPI(t *testing.T) {
	w := start(t)
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer c.CloseIdleConnections()
	for _, path := range []string{"/api/core/v1/services", "/api/core/v1/users/root", "/api/conns", "/api/logs", "/api/self"} {
		res, err := c.Get("https://" + w.ready.Address + path)
		if err != nil {
			t.Fatal(err)
		}
		var e api.Error
		err = json.NewDecoder(res.Body).Decode(&e)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusUnauthorized || e.Code != api.CodeUnauthenticated {
			t.Errorf("%s: %d %+v %v", path, res.StatusCode, e, err)
		}
	}
	bob := w.user("bob")
	a, err := bob.API(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var e *api.Error
	if err := a.Do(t.Context(), http.MethodGet, "/api/core/v1/users", nil, nil); !errors.As(err, &e) || e.Code != api.CodePermissionDenied {
		t.Errorf("bob, who has no right, got %v", err)
	}
	if err := a.Do(t.Context(), http.MethodGet, "/api/self", nil, new(api.Self)); err != nil {
		t.Errorf("bob may know himself: %v", err)
	}
}
