package control

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/manifest"
)

// pair returns a self-signed certificate for a name and its key, PEM.
func pair(t testing.TB, name string) (certificate, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

// diagnose returns what the documents of a file come to.
func diagnose(t testing.TB, text string) *Diagnosis {
	t.Helper()
	docs, found := manifest.Decode("a.yaml", []byte(text))
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	var objects []api.Object
	for _, d := range docs {
		if d.Object != nil {
			objects = append(objects, d.Object)
		}
	}
	return Diagnose(objects, DiagnoseOptions{Domain: testDomain, Now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)})
}

func condition(d *Diagnosis, k api.Key, kind string) string {
	s := d.Table.Status(k)
	if s == nil || s.Condition(kind) == nil {
		return "unknown"
	}
	return s.Condition(kind).Status
}

// TestDiagnose: the documents alone tell where connections would go, and what is
// missing for them.
func TestDiagnose(t *testing.T) {
	certificate, key := pair(t, "db.example.com")
	indent := strings.NewReplacer("\n", "\n    ").Replace
	const context = `
---
apiVersion: getambassador.io/v2
kind: TLSContext
metadata: {name: ctx}
spec: {hosts: [db.example.com], secret: tls}
---
apiVersion: getambassador.io/v2
kind: TCPMapping
metadata: {name: db}
spec: {port: 5432, host: db.example.com, service: "db:5432"}
---
apiVersion: getambassador.io/v2
kind: TCPMapping
metadata: {name: other}
spec: {port: 5433, service: "db:5432", ambassador_id: other}
`
	theirs := "apiVersion: v1\nkind: Secret\nmetadata: {name: tls}\nstringData:\n  tls.crt: |\n    " + indent(certificate) + "\n  tls.key: |\n    " + indent(key) + context
	ours := "kind: Secret\nmetadata: {name: tls}\ndata:\n  value: |\n    " + indent(certificate+key) + context
	at := func(name string) api.Key { return foreign(api.GroupAmbassador, api.KindTCPMapping, "default", name) }
	ask := api.RouteQuestion{Port: 5432, SNI: "db.example.com"}
	for name, text := range map[string]string{"a Secret of Kubernetes": theirs, "a Secret of ours": ours} {
		d := diagnose(t, text)
		if got := condition(d, at("db"), api.ConditionAccepted) + condition(d, at("db"), api.ConditionResolved); got != "TrueTrue" {
			t.Errorf("%s: %s, %+v", name, got, d.Table.Status(at("db")))
		}
		if a := d.Table.Ask(ask); a.Refused != "" || len(a.Members) != 1 || a.Members[0].Object != at("db") || !slices.Equal(a.Members[0].Endpoints, []string{"db:5432"}) {
			t.Errorf("%s: %+v", name, a)
		}
		if got := condition(d, at("other"), api.ConditionAccepted); got != "False" {
			t.Errorf("%s: a mapping of another installation: %s", name, got)
		}
	}
	d := diagnose(t, context)
	if got := condition(d, at("db"), api.ConditionAccepted) + condition(d, at("db"), api.ConditionResolved); got != "TrueFalse" {
		t.Errorf("without the Secret: %s", got)
	}
	if a := d.Table.Ask(ask); a.Refused == "" {
		t.Errorf("without the Secret: %+v", a)
	}
	// The Objects stay as they are.
	docs, _ := manifest.Decode("a.yaml", []byte(theirs))
	Diagnose([]api.Object{docs[0].Object}, DiagnoseOptions{})
	if docs[0].Object.(*api.KubernetesSecret).Status.Keys != nil {
		t.Error("a document was written to")
	}
}

// TestRoutingObjects: what changes the table is known by its key, and of our
// Services and Secrets those are taken that can be part of it.
func TestRoutingObjects(t *testing.T) {
	public, private := &api.Service{Spec: api.ServiceSpec{IsPublic: true}}, &api.Service{}
	own := &api.Secret{Head: api.Head{Metadata: api.Metadata{IsSystem: true}}}
	var r RoutingObjects
	for _, o := range []api.Object{public, private, own, &api.Secret{}, &api.User{}, &api.ClusterConfig{Spec: api.ClusterConfigSpec{Routing: api.ClusterRouting{UpstreamVerification: api.VerificationRequire}}}} {
		r.Add(o)
	}
	if len(r.Services) != 1 || len(r.Ambassador.Own) != 1 || r.Routing.UpstreamVerification != api.VerificationRequire {
		t.Errorf("got %+v", r)
	}
	for _, k := range api.Kinds() {
		want := k.IsForeign() || slices.Contains([]string{api.KindService, api.KindSecret, api.KindClusterConfig}, k.Name)
		if IsRouting(keyIn(k, "", "a")) != want {
			t.Errorf("%s: want %t", k.Name, want)
		}
		if !k.IsForeign() || k.Later {
			continue
		}
		var r RoutingObjects
		r.Add(blank(keyIn(k, "", "a")))
		in := r.Ambassador
		if n := len(in.TCPMappings) + len(in.TLSContexts) + len(in.Hosts) + len(in.Listeners) + len(in.Modules) + len(in.Resolvers) + len(in.Secrets); n != 1 {
			t.Errorf("a %s is there %d times", k.Name, n)
		}
	}
}

// FuzzDiagnose: whatever documents say, there is a table of them, which answers.
func FuzzDiagnose(f *testing.F) {
	f.Add([]byte("kind: Secret\nmetadata: {name: tls}\ndata: {value: no certificate}\n---\n" +
		"apiVersion: getambassador.io/v2\nkind: TLSContext\nmetadata: {name: ctx}\nspec: {hosts: [a.example.com, '*.b'], secret: tls}\n---\n" +
		"apiVersion: getambassador.io/v2\nkind: TCPMapping\nmetadata: {name: m, annotations: {cardea/sources: '::1/128'}}\nspec: {port: 1, host: a.example.com, service: 'https://a.b:1', tls: ctx, weight: 10}\n"))
	f.Add([]byte("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {tls.crt: x, crl.pem: y}\n---\n" +
		"apiVersion: getambassador.io/v3alpha1\nkind: Module\nmetadata: {name: ambassador}\nspec: {config: {circuit_breakers: [{max_connections: 1}], resolver: c, enable_ipv6: 1}}\n---\n" +
		"kind: Service\nmetadata: {name: web}\nspec: {mode: TCP, isPublic: true, isTLS: true, public: {hosts: ['*']}, config: {upstream: {url: 'tcp://a:1'}}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		docs, _ := manifest.Decode("a.yaml", data)
		var objects []api.Object
		for _, d := range docs {
			if d.JSON != nil {
				objects = append(objects, d.Object)
			}
		}
		d := Diagnose(objects, DiagnoseOptions{Domain: testDomain, Now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)})
		for _, o := range objects {
			if _, ok := o.(api.Routable); !ok {
				continue
			}
			if s := d.Table.Status(o.Header().Key()); s == nil || len(s.Conditions) == 0 {
				t.Errorf("nothing is said of %s", o.Header().Key())
			}
		}
		d.Table.Ask(api.RouteQuestion{Port: 1, SNI: "a.example.com"})
	})
}

// TestDiagnoseNamespaces: what names no namespace is of that of Ambassador, and one
// Object spelt in two ways is told of.
func TestDiagnoseNamespaces(t *testing.T) {
	const one = "apiVersion: getambassador.io/v2\nkind: TCPMapping\nmetadata: {name: db}\nspec: {port: 5432, service: 'db:1'}\n"
	edge := strings.Replace(one, "name: db", "name: db, namespace: edge", 1)
	read := func(text string) *Diagnosis {
		docs, _ := manifest.Decode("a.yaml", []byte(text))
		objects := []api.Object{nil}
		for _, d := range docs {
			objects = append(objects, d.Object)
		}
		return Diagnose(objects, DiagnoseOptions{AmbassadorNamespace: "edge", Now: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)})
	}
	ask := api.RouteQuestion{Port: 5432, NoTLS: true}
	k := foreign(api.GroupAmbassador, api.KindTCPMapping, "edge", "db")
	d := read(one)
	for _, key := range []api.Key{k, foreign(api.GroupAmbassador, api.KindTCPMapping, "", "db")} {
		if got := condition(d, key, api.ConditionAccepted); got != "True" {
			t.Errorf("%s: %s", key, got)
		}
	}
	if len(d.Problems) != 0 || d.Objects[0] != nil || d.Objects[1].Header().Key() != k {
		t.Errorf("got %v, %v", d.Problems, d.Objects)
	}
	for name, tc := range map[string]struct {
		text, want string
		warning    bool
	}{
		"equal":     {one + "---\n" + edge, "metadata.name: the document is skipped: it is equal to document 2 of the request", true},
		"different": {one + "---\n" + strings.Replace(edge, "db:1", "db:2", 1), "metadata.name: must not be there twice: document 2 of the request is this TCPMapping too", false},
	} {
		d := read(tc.text)
		if len(d.Problems) != 1 || !strings.HasPrefix(d.Problems[0].String(), tc.want) || d.Problems[0].Warning != tc.warning || d.Problems[0].Document != 2 {
			t.Errorf("%s: got %+v", name, d.Problems)
		}
		if a := d.Table.Ask(ask); len(a.Members) != 1 || !slices.Equal(a.Members[0].Endpoints, []string{"db:1"}) {
			t.Errorf("%s: %+v", name, a)
		}
		if (d.Objects[2] == nil) != tc.warning {
			t.Errorf("%s: %v", name, d.Objects)
		}
	}
}
