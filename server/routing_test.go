package server

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
)

// Only files that are really below one of the directories may be named.
func TestBelow(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(path string) string { return filepath.Join(top, filepath.FromSlash(path)) }
	for _, dir := range []string{"tls/sub", "tlsmore", "else", "other"} {
		if err := os.MkdirAll(at(dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{"tls/a.pem", "tls/sub/b.pem", "else/key.pem", "other/c.pem", "tlsmore/d.pem"} {
		if err := os.WriteFile(at(file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"tls/out": "../else", "tls/out.pem": "../else/key.pem", "tls/in.pem": "sub/b.pem", "tls/nowhere.pem": "../else/late.pem", "tls/loop": "loop", "linked": "other",
	} {
		if err := os.Symlink(to, at(link)); err != nil {
			t.Fatal(err)
		}
	}
	may := Below([]string{at("tls"), at("linked"), at("absent")})
	for path, want := range map[string]bool{
		at("tls/a.pem"): true, at("tls/sub/b.pem"): true, at("tls/in.pem"): true, at("linked/c.pem"): true, at("other/c.pem"): true,
		at("tls") + "/sub/../a.pem": true, at("else") + "/../tls/a.pem": true,
		at("tls/late.pem"): true, at("tls/new/late.pem"): true, at("absent/late.pem"): true, // as soon as they are there
		at("tls") + "/../else/key.pem": false, at("tls") + "/sub/../../else/key.pem": false, at("else/key.pem"): false, at("tlsmore/d.pem"): false,
		at("tls/out.pem"): false, at("tls/out/key.pem"): false, at("tls/out/late.pem"): false, at("tls/nowhere.pem"): false, at("tls/loop"): false, at("tls/loop/a.pem"): false,
		at("tls") + "/out/../other/c.pem": true, // where the link leads to, and from there
		at("tls") + "/out/../tls/a.pem":   true, at("tls") + "/out/../tlsmore/d.pem": false,
		"tls/a.pem": false, "": false, "/": false, "/etc/passwd": false,
	} {
		if got := may(path); got != want {
			t.Errorf("%s: %v", strings.TrimPrefix(path, top), got)
		}
	}
	if Below(nil) != nil {
		t.Error("files may be named where no directory was given")
	}
}

// A Secret that is bound to one Service is not shown by another, of which status,
// metrics, the doctor and the log say so.
func TestARouteThatLacksSomethingIsSeen(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"mine.example", "other.example"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, leaf, leaf, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: der})
	pem.Encode(&text, &pem.Block{Type: "PRIVATE KEY", Bytes: private})
	value, err := json.Marshal(text.String())
	if err != nil {
		t.Fatal(err)
	}
	cfg := at(t.TempDir())
	cfg.Documents = []json.RawMessage{fmt.Appendf(nil, `{"kind": "Secret", "metadata": {"name": "cert"}, "spec": {"bind": {"services": ["mine"]}}, "data": {"value": %s}}`, value)}
	for _, name := range []string{"mine", "other"} {
		cfg.Documents = append(cfg.Documents, fmt.Appendf(nil, `{"kind": "Service", "metadata": {"name": %q}, "spec": {"mode": "TCP", "port": %d, "isPublic": true, "isTLS": true, "isAnonymous": true,
			"public": {"hosts": ["%s.example"], "certificate": {"fromSecret": "cert"}}, "config": {"upstream": {"url": "tcp://127.0.0.1:1"}}}}`, name, port, name))
	}
	cfg.Documents = append(cfg.Documents, fmt.Appendf(nil, `{"kind": "Service", "metadata": {"name": "own"}, "spec": {"mode": "TCP", "port": %d, "isPublic": true, "isTLS": true,
		"public": {"hosts": ["own.example"]}, "config": {"upstream": {"url": "tcp://127.0.0.1:1"}}}}`, port))
	while(t, cfg, func(h *house) {
		for name, want := range map[string]string{"mine.default": "True", "other.default": "False"} {
			c := h.status(api.Key{Group: api.GroupCore, Kind: api.KindService, Name: name}).Condition(api.ConditionResolved)
			if c == nil || c.Status != want || want == "False" && !strings.Contains(c.Message, "is bound (spec.bind)") {
				t.Errorf("%s: %+v", name, c)
			}
		}
		w := httptest.NewRecorder()
		h.metricsHandler().ServeHTTP(w, httptest.NewRequest("GET", "/metrics", nil))
		for _, line := range []string{
			`cardea_object_condition{kind="Service",name="mine.default",type="ResolvedRefs"} 1`,
			`cardea_object_condition{kind="Service",name="other.default",type="ResolvedRefs"} 0`,
			`cardea_object_condition{kind="Service",name="other.default",type="Accepted"} 1`,
			`cardea_object_condition{kind="Service",name="other.default",type="Listening"} 1`,
		} {
			if !strings.Contains(w.Body.String(), line+"\n") {
				t.Errorf("there is no %s in\n%s", line, w.Body)
			}
		}
		found := false
		for _, c := range h.health(t.Context()) {
			if c.Name == "routing" {
				found = true
				if c.OK || !c.Warning || c.Words != "1 of 3 objects are not in force, or refer to what is missing or expired" || c.Hint != "cardea check says which" {
					t.Errorf("%+v", c)
				}
			}
		}
		if !found {
			t.Error("the doctor does not look at the routing")
		}
		come := func(name string) (*tls.Conn, error) {
			d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 30 * time.Second}, Config: &tls.Config{ServerName: name, RootCAs: h.authority.Pool(), MaxVersion: tls.VersionTLS12}}
			c, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				return nil, err
			}
			return c.(*tls.Conn), nil
		}
		// The cluster's CA vouches for the name, and then the client has no Session.
		if _, err := come("own.example"); err == nil || strings.Contains(err.Error(), "x509") {
			t.Errorf("own.example: %v", err)
		}
		if _, err := come("other.example"); err == nil {
			t.Error("other.example is served")
		}
		seen := map[string]api.ReasonType{}
		for rec, err := range h.journal.Records(t.Context(), audit.Query{Type: api.LogDenied, Follow: true}) {
			if err != nil {
				t.Fatal(err)
			}
			c := rec.Entry.Common
			if c.ServiceRef == nil || c.Route == nil || c.Route.Listener != fmt.Sprintf("127.0.0.1:%d", port) || c.IsAnonymous == (c.ServiceRef.Name == "own.default") {
				t.Errorf("%+v", c)
				break
			}
			if seen[c.ServiceRef.Name] = c.Reason.Type; len(seen) == 2 {
				break
			}
		}
		if seen["own.default"] != api.ReasonHandshake || seen["other.default"] != api.ReasonRouteRefused {
			t.Errorf("%v", seen)
		}
	})
}

func TestObjectLabels(t *testing.T) {
	for want, key := range map[[2]string]api.Key{
		{"", "other"}:                  {},
		{"Service", "db.prod"}:         {Group: api.GroupCore, Kind: api.KindService, Name: "db.prod"},
		{"TCPMapping", "prod/db"}:      {Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Namespace: "prod", Name: "db"},
		{"ClusterConfig", "the-house"}: {Kind: api.KindClusterConfig, Name: "the-house"},
	} {
		if kind, name := objectLabels(key); [2]string{kind, name} != want {
			t.Errorf("%+v is %q %q", key, kind, name)
		}
	}
}

// Files that are not there are judged by where they would be.
func TestBelowOfWhatIsNotThere(t *testing.T) {
	in := Below([]string{"/etc/tls", "/var/tls/"})
	for path, want := range map[string]bool{
		"/etc/tls/a.pem": true, "/var/tls/x/a.pem": true, "/etc/tls/../shadow": false, "/etc/tlsx/a.pem": false, "etc/tls/a.pem": false, "/etc/passwd": false,
	} {
		if got := in(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
}
