package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/client"
	"cardea/manifest"
	"cardea/rpc"
	"cardea/server"
)

func raw(t *testing.T, o api.Object) json.RawMessage {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// mapping returns a TCPMapping.
func mapping(namespace, name string) *api.TCPMapping {
	port := 2222
	m := &api.TCPMapping{Spec: api.TCPMappingSpec{Port: &port, Service: "upstream:22"}}
	m.Metadata.Namespace, m.Metadata.Name = namespace, name
	m.Default()
	return m
}

// TestTarget finds what a person means by a name.
func TestTarget(t *testing.T) {
	var list api.List
	for _, at := range [][2]string{{"", "bare"}, {"default", "ssh"}, {"default", "web"}, {"prod", "web"}, {"", "both"}, {"prod", "both"}} {
		list.Items = append(list.Items, raw(t, mapping(at[0], at[1])))
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Path != "/api/getambassador.io/v3alpha1/tcpmappings" {
			http.NotFound(w, q)
			return
		}
		json.NewEncoder(w).Encode(list)
	}))
	defer s.Close()
	defer s.Client().CloseIdleConnections()
	call := &rpc.Client{HTTP: s.Client(), Base: s.URL}
	mappings := client.Objects{API: call, Kind: foreignKind(api.GroupAmbassador, api.KindTCPMapping)}
	services := client.Objects{API: call, Kind: kindOf(api.KindService)}
	users := client.Objects{API: call, Kind: kindOf(api.KindUser)}
	for _, tc := range []struct {
		o                          client.Objects
		namespace, word, want, err string
	}{
		{mappings, "", "ssh", "default/ssh", ""},
		{mappings, "", "bare", "/bare", ""},
		{mappings, "", "nothing", "/nothing", ""}, // the cluster says that there is none
		{mappings, "", "web", "", "there are several tcpmappings of the name web: default/web, prod/web"},
		{mappings, "", "both", "", "there are several tcpmappings of the name both: /both, prod/both"},
		{mappings, "prod", "web", "prod/web", ""},
		{mappings, "", "prod/web", "prod/web", ""},
		{mappings, "", "/both", "/both", ""},
		{mappings, "prod", "prod/web", "prod/web", ""},
		{mappings, "prod", "default/web", "", "-n prod is not the namespace of default/web"},
		{services, "", "web", "/web", ""},
		{services, "prod", "web", "/web.prod", ""},
		{services, "prod", "web.prod", "/web.prod", ""},
		{services, "", "prod/web", "/web.prod", ""}, // as others' names are printed
		{services, "dev", "prod/web", "", "-n dev is not the namespace of prod/web"},
		{services, "prod", "web.dev", "", "-n prod is not the Namespace of web.dev"},
		{users, "", "alice", "/alice", ""},
		{users, "", "prod/alice", "", `a User is in no namespace, found "prod"`},
		{users, "prod", "alice", "", `a User is in no namespace, found "prod"`},
	} {
		ns, name, err := target(t.Context(), tc.o, tc.namespace, tc.word)
		got := ns + "/" + name
		if err != nil {
			if got = ""; err.Error() != tc.err {
				t.Errorf("%s -n %q: %v, want %q", tc.word, tc.namespace, err, tc.err)
			}
		}
		if got != tc.want {
			t.Errorf("%s -n %q: got %q, want %q", tc.word, tc.namespace, got, tc.want)
		}
	}
}

// TestWantedOf reads the ways in which what is meant is typed.
func TestWantedOf(t *testing.T) {
	for args, want := range map[string]string{
		"tm ssh edge/web":                   "tcpmapping ssh, tcpmapping edge/web",
		"tcpmapping/ssh":                    "tcpmapping ssh",
		"tm/default/ssh secret.v1/edge/x":   "tcpmapping default/ssh, secret.v1 edge/x",
		"service/nats user/alice secret/pw": "service nats, user alice, secret pw",
		"":                                  "error: name a kind and what is meant, or KIND/NAME",
		"tm":                                "error: name the TCPMapping that is meant",
		"tm/":                               `error: "tm/" must be KIND/NAME, as what is before it`,
		"tm/ssh web":                        `error: "web" must be KIND/NAME, as what is before it`,
		"default/ssh":                       `error: there is no kind "default"`,
	} {
		all, err := wantedOf(strings.Fields(args))
		var got []string
		for _, w := range all {
			got = append(got, typed(w.kind, w.kind.Name)+" "+w.name)
		}
		words := strings.Join(got, ", ")
		if err != nil {
			words = "error: " + err.Error()
		}
		if words != want {
			t.Errorf("%q: %s, want %s", args, words, want)
		}
	}
}

// TestKindNames: every kind can be typed as it is printed, and is then that kind.
func TestKindNames(t *testing.T) {
	for _, k := range api.Kinds() {
		for _, word := range []string{typed(k, k.Name), typed(k, k.Plural)} {
			if got, ok := api.FindKind(word); !ok || got.Path("") != k.Path("") {
				t.Errorf("%s is %s, not %s", word, got.Path(""), k.Path(""))
			}
		}
	}
	for word, want := range map[string]string{
		"tcpmaping": "did you mean tcpmapping?", "secrets.v2": "did you mean secrets.v1?", "gizmo": "the kinds are clusterconfig, ",
	} {
		_, err := findKind(word)
		if u, ok := err.(usageError); !ok || !strings.HasPrefix(u.hint, want) {
			t.Errorf("%s: %#v, want the hint %q", word, err, want)
		}
	}
	if _, err := findKind("idp"); err == nil || err.Error() != "the kind IdentityProvider is not yet available" {
		t.Errorf("idp: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	m := mapping("default", "my-host-1")
	m.Metadata.Annotations = map[string]string{"cardea/alpn": "proto-a"}
	m.Metadata.CreatedAt, m.Metadata.UpdatedAt = when(), when()
	m.Spec.Host = "my-host-1"
	m.Status.Set(api.ConditionAccepted, true, "Accepted", "", when())
	m.Status.Set(api.ConditionResolved, false, "SecretNotFound", "there is no Secret default/supersecret", when().Add(3*time.Hour))
	m.Status.Set(api.ConditionUpstreamVerified, false, "Unknown", "it is\nself-signed", when().Add(4*time.Hour-time.Second))
	m.Status.Notes = []string{"circuit_breakers: max_retries has no effect on TCP"}
	secret := &api.KubernetesSecret{Type: "kubernetes.io/tls", Status: api.KubernetesSecretStatus{Keys: []string{"tls.crt", "tls.key"}}}
	secret.Metadata.Name = "supersecret"
	secret.Default()
	var b strings.Builder
	for _, o := range []api.Object{m, secret} {
		if err := describeObject(&b, raw(t, o), when().Add(4*time.Hour)); err != nil {
			t.Fatal(err)
		}
		b.WriteString("=====\n")
	}
	golden(t, "describe.txt", b.String())
}

func TestAge(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 59*time.Second + time.Millisecond: "59s", 90 * time.Second: "1m", 3*time.Hour + 4*time.Minute: "3h04m", 72 * time.Hour: "3d",
	} {
		if got := age(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}

// A fakeTable has statuses.
type fakeTable map[api.Key]*api.RouteStatus

func (f fakeTable) Status(k api.Key) *api.RouteStatus         { return f[k] }
func (f fakeTable) Ask(api.RouteQuestion) (a api.RouteAnswer) { return a }

// TestExamination shows what check says of documents, with and without --strict.
func TestExamination(t *testing.T) {
	docs, found := manifest.Decode("ssh.yaml", []byte(`apiVersion: getambassador.io/v2
kind: TCPMapping
metadata:
  name: ssh
  namespace: default
spec: {port: 2222, service: "upstream:22"}
---
apiVersion: getambassador.io/v2
kind: TCPMapping
metadata:
  name: test
spec: {port: 2222, service: "https://upstream"}
---
apiVersion: getambassador.io/v2
kind: TLSContext
metadata:
  name: lacking
spec: {hosts: [a.example], secret: nothing}
---
kind: Group
metadata:
  name: ops
---
apiVersion: getambassador.io/v2
kind: TCPMapping
metadata:
  name: elsewhere
spec: {port: 2222, service: "upstream:22", ambassador_id: other}
---
apiVersion: getambassador.io/v2
kind: TCPMapping
metadata:
  name: reported
spec: {port: 2223, tls: true, service: upstream}
---
kind: Service
metadata:
  name: private
spec: {mode: TCP, config: {upstream: {url: "tcp://host:1"}}}
---
kind: Service
metadata:
  name: open
spec: {mode: TCP, isPublic: true, isAnonymous: true, config: {upstream: {url: "tcp://host:1"}}}
`))
	if err := found.Err(); err != nil {
		t.Fatal(err)
	}
	status := func(kind string, ok bool, words string) *api.RouteStatus {
		s := new(api.RouteStatus)
		s.Set(api.ConditionAccepted, true, "", "", when())
		s.Set(kind, ok, "", words, when())
		return s
	}
	var keys []api.Key
	for _, d := range docs {
		keys = append(keys, d.Object.Header().Key())
	}
	table := fakeTable{
		keys[0]: status(api.ConditionAccepted, true, ""),
		keys[1]: status(api.ConditionAccepted, false, "TCPMapping default/ssh has the same address, port and host, and another tls"),
		keys[2]: status(api.ConditionResolved, false, "there is no Secret nothing"),
		keys[4]: {Conditions: []api.StatusCondition{{Type: api.ConditionAccepted, Status: "False", Reason: otherInstallation, Message: "it is for another"}}},
		keys[5]: {Conditions: []api.StatusCondition{{Type: api.ConditionAccepted, Status: "True"}, {Type: api.ConditionUpstreamVerified, Status: "Unknown", Message: "nobody asks"}}},
		keys[7]: status(api.ConditionUpstreamVerified, false, "it is self-signed"),
	}
	table[keys[0]].Notes = []string{"a scheme is honoured"}
	var b strings.Builder
	for _, strict := range []bool{false, true} {
		x := &examination{strict: strict}
		x.documents(docs, table)
		fmt.Fprintf(&b, "--- strict %v\n", strict)
		for _, f := range x.found {
			fmt.Fprintln(&b, f)
		}
		fmt.Fprintf(&b, "%s\n%d errors\n", x.summary(), x.errors)
	}
	x := &examination{}
	x.documents([]manifest.Document{docs[3], docs[6]}, table)
	fmt.Fprintf(&b, "--- nothing\n%s\n", x.summary())
	golden(t, "examination.txt", b.String())
}

// TestAnswer shows where connections go, for a person.
func TestAnswer(t *testing.T) {
	owner := mapping("default", "my-host-1").Key()
	other := mapping("default", "canary").Key()
	one := api.RouteAnswer{
		Listener: "*:2222", Open: true, Match: "sni my-host-1", Owner: &owner, Version: "v3", TLS: "TLS ended here",
		Steps:   []string{"*:2222 listens at port 2222", `the server name "my-host-1" is that of TCPMapping default/my-host-1`},
		Members: []api.RouteShare{{Object: owner, Weight: 1, Of: 1, Endpoints: []string{"upstream-host-1:9999"}, TLS: "cleartext to the upstream"}},
	}
	two := one
	two.Members = []api.RouteShare{
		{Object: owner, Weight: 70, Of: 100, Endpoints: []string{"upstream-host-1:9999", "upstream-host-3:9999"}, TLS: "cleartext to the upstream"},
		{Object: other, Weight: 30, Of: 100, Endpoints: []string{"upstream-host-2:9999"}, TLS: "TLS to the upstream", Notes: []string{"not\nverified"}},
	}
	closed := one
	closed.Open = false
	lacking := api.RouteAnswer{Listener: "*:2222", Open: true, Owner: &owner, Refused: "there is no Secret default/supersecret", Steps: one.Steps}
	lacking.Members = two.Members
	nobody := api.RouteAnswer{Listener: "*:2222", Open: true, Refused: `nothing at *:2222 takes the server name "other"`, Steps: one.Steps[:1]}
	nowhere := api.RouteAnswer{Refused: "nothing listens at port 2223"}
	var b bytes.Buffer
	for _, x := range []struct {
		q api.RouteQuestion
		a api.RouteAnswer
	}{
		{api.RouteQuestion{Port: 2222, SNI: "my-host-1"}, one},
		{api.RouteQuestion{Port: 2222, Address: "::1", From: "192.0.2.1", ALPN: []string{"a", "b"}}, two},
		{api.RouteQuestion{Port: 2222, SNI: "my-host-1"}, closed},
		{api.RouteQuestion{Port: 2222, SNI: "my-host-1"}, lacking},
		{api.RouteQuestion{Port: 2222, SNI: "ot\nher"}, nobody},
		{api.RouteQuestion{Port: 2223, NoTLS: true}, nowhere},
	} {
		printAnswer(&b, &x.q, &x.a)
		if err := refusal(&x.q, &x.a, func() string { return "look there" }); err != nil {
			tell(&b, err)
		}
		b.WriteString("=====\n")
	}
	golden(t, "route.txt", b.String())
}

// TestWhereToLook names the listing that fits a refusal.
func TestWhereToLook(t *testing.T) {
	var mappings, services api.List
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		list := &services
		if strings.Contains(q.URL.Path, "tcpmappings") {
			list = &mappings
		}
		json.NewEncoder(w).Encode(list)
	}))
	defer s.Close()
	defer s.Client().CloseIdleConnections()
	call := &rpc.Client{HTTP: s.Client(), Base: s.URL}
	ssh := raw(t, mapping("default", "ssh")) // at 2222
	public := func(port int, is bool) json.RawMessage {
		x := &api.Service{Spec: api.ServiceSpec{IsPublic: is}, Status: api.ServiceStatus{Port: port}}
		x.Kind, x.Metadata.Name = api.KindService, "x.default"
		return raw(t, x)
	}
	owner := mapping("default", "ssh").Key()
	for _, tc := range []struct {
		mappings, services []json.RawMessage
		answer             api.RouteAnswer
		want               string
	}{
		{nil, nil, api.RouteAnswer{Owner: &owner}, "cardea describe tcpmapping default/ssh says how it stands"},
		{[]json.RawMessage{ssh}, []json.RawMessage{public(443, true)}, api.RouteAnswer{Listener: "*:2222"}, "cardea get tcpmappings lists what *:2222 takes"},
		{[]json.RawMessage{ssh}, []json.RawMessage{public(2222, true)}, api.RouteAnswer{Listener: "*:2222"}, "cardea get tcpmappings, and cardea get services -o wide, list what *:2222 takes"},
		{nil, []json.RawMessage{public(2222, true)}, api.RouteAnswer{Listener: "*:2222"}, "cardea get services -o wide lists what *:2222 takes"},
		{[]json.RawMessage{ssh}, []json.RawMessage{public(443, false)}, api.RouteAnswer{}, "cardea get tcpmappings lists who listens where"},
		{nil, nil, api.RouteAnswer{}, "cardea get tcpmappings, and cardea get services -o wide, list who listens where"},
	} {
		mappings.Items, services.Items = tc.mappings, tc.services
		if got := whereToLook(t.Context(), call, 2222, &tc.answer); got != tc.want {
			t.Errorf("got %q, want %q", got, tc.want)
		}
	}
}

// TestVariables: a flag wins over Cardea's variable, and that over Ambassador's.
func TestVariables(t *testing.T) {
	for want, tc := range map[string]struct {
		args []string
		env  map[string]string
	}{
		"default": {},
		"theirs":  {env: map[string]string{"AMBASSADOR_ID": "theirs"}},
		"ours":    {env: map[string]string{"AMBASSADOR_ID": "theirs", "CARDEA_AMBASSADOR_ID": "ours"}},
		"flag":    {args: []string{"--ambassador-id", "flag"}, env: map[string]string{"AMBASSADOR_ID": "theirs"}},
	} {
		p := newPerson(t)
		p.env = tc.env
		r := &run{Program: p.program(nil, os.Stdout, os.Stderr)}
		c := r.check()
		if err := c.ParseFlags(tc.args); err != nil {
			t.Fatal(err)
		}
		if err := r.environment(c); err != nil {
			t.Fatal(err)
		}
		if got := c.Flag("ambassador-id").Value.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestDirectories: a variable has several directories as PATH does.
func TestDirectories(t *testing.T) {
	p := newPerson(t)
	p.env["CARDEA_TLS_FILES"] = "/etc/tls:/var/tls::"
	r := &run{Program: p.program(nil, os.Stdout, os.Stderr)}
	c := r.check()
	if err := r.environment(c); err != nil {
		t.Fatal(err)
	}
	if got := c.Flag("tls-files").Value.String(); got != "[/etc/tls,/var/tls]" {
		t.Errorf("got %s", got)
	}
}

// TestSecretsOfDocuments: a Secret that is not there is told once, and one whose values
// are elsewhere is not taken for one that holds nothing.
func TestSecretsOfDocuments(t *testing.T) {
	const docs = `apiVersion: getambassador.io/v2
kind: TCPMapping
metadata: {name: one, namespace: edge}
spec: {port: 7001, host: a.example, service: "x:1"}
---
apiVersion: getambassador.io/v2
kind: TCPMapping
metadata: {name: two, namespace: edge, annotations: {cardea/upstream-verification: REQUIRE}}
spec: {port: 7002, host: a.example, service: "x:1", tls: ctx}
---
apiVersion: getambassador.io/v2
kind: TLSContext
metadata: {name: ctx, namespace: edge}
spec: {hosts: [a.example], secret: %s}
---
kind: Service
metadata: {name: web}
spec: {mode: TCP, isPublic: true, isAnonymous: true, isTLS: true, public: {address: "*", certificate: {fromSecret: %s}}, config: {upstream: {url: "tcp://host:1"}}}
`
	const printed = `---
apiVersion: v1
kind: Secret
metadata: {name: printed, namespace: edge}
type: kubernetes.io/tls
---
apiVersion: core/v1
kind: Secret
metadata: {name: shown}
spec: {}
`
	for _, tc := range []struct {
		docs   string
		status int
		out    []string
		words  []string
	}{
		{fmt.Sprintf(docs, "nothing", "nought"), ExitFailed, []string{
			"error: Secret edge/nothing is not there, and TCPMapping edge/one, TCPMapping edge/two and TLSContext edge/ctx need it: apply it",
			"error: Service web.default: ResolvedRefs=False: ",
		}, []string{"hint: " + onlyInCluster}},
		{fmt.Sprintf(docs, "printed", "shown") + printed, ExitDone, []string{
			"note: Secret edge/printed: its values are not in the file",
			"note: Secret shown: its values are not in the file",
		}, nil},
		{fmt.Sprintf(docs, "printed", "shown") + printed + "---\napiVersion: v1\nkind: Secrte\nmetadata: {name: x}\n", ExitFailed, nil,
			[]string{"error: kind: the document is skipped: a Kubernetes Secrte has no meaning here", "error: check found 1 error"}},
	} {
		status, out, words := newPerson(t).try(tc.docs, "check", "--strict", "-f", "-")
		if status != tc.status {
			t.Errorf("exit %d, want %d\n%s%s", status, tc.status, out, words)
		}
		for _, w := range tc.out {
			if strings.Count(out, w) != 1 {
				t.Errorf("not once %q:\n%s", w, out)
			}
		}
		for _, w := range tc.words {
			if strings.Count(words, w) != 1 {
				t.Errorf("not once %q:\n%s", w, words)
			}
		}
		if tc.status == ExitDone && words != "" {
			t.Errorf("it says %s", words)
		}
	}
	status, _, words := newPerson(t).try(fmt.Sprintf(docs, "nothing", "nought"), "route", "*:7001", "--sni", "a.example", "-f", "-")
	if status != ExitFailed || !strings.Contains(words, "hint: "+onlyInCluster) {
		t.Errorf("route: exit %d, %s", status, words)
	}
}

// TestSkipped: documents of other systems are warned of, and the rest is checked.
func TestSkipped(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "a.yaml")
	const skipped = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: x}\n---\napiVersion: getambassador.io/v2\nkind: Mapping\nmetadata: {name: y}\n"
	if err := os.WriteFile(file, []byte(skipped+"---\nkind: Group\nmetadata: {name: ops}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, words := newPerson(t).try("", "check", file)
	if status != ExitDone || out != "1 document: valid\n" || strings.Count(words, "warning: ") != 2 || !strings.Contains(words, "a.yaml:5:") && !strings.Contains(words, "a.yaml:6:") {
		t.Errorf("exit %d\n%s%s", status, out, words)
	}
	if err := os.WriteFile(file, []byte(skipped), 0o600); err != nil {
		t.Fatal(err)
	}
	status, out, words = newPerson(t).try("", "check", file)
	if status != ExitFailed || out != "" || strings.Count(words, "warning: ") != 2 || !strings.Contains(words, "error: there are no documents in ") {
		t.Errorf("exit %d\n%s%s", status, out, words)
	}
}

// TestReady shows what up prints once it serves.
func TestReady(t *testing.T) {
	var out strings.Builder
	r := &run{Program: newPerson(t).program(nil, &out, os.Stderr)}
	s := server.Ready{Domain: "cardea.internal", Address: "127.0.0.1:8443", CASHA256: "ffff", Connections: 1000, Network: "userspace, as the cluster listens on loopback alone; WireGuard at 51820/udp, QUIC at 8443/udp, MTU 1280", Listeners: []string{"*:2222 (3 routes)", "*:26257 (1 route)"}}
	r.printReady(r.Out, s, "/data", "")
	s.NotInForce = 1
	r.printReady(r.Out, s, "/data", "")
	s.NotInForce, s.Listeners = 2, nil
	r.printReady(r.Out, s, "/data", "")
	for _, s.Listeners = range [][]string{
		{"*:1 (1 route)", "*:2 (1 route)", "*:3 (1 route)", "*:4 (2 routes)"},
		{"*:2222 (3 routes)", "*:26257 (1 route), not open: the address is in use"},
	} {
		r.printReady(r.Out, s, "/data", "")
	}
	golden(t, "ready.txt", out.String())
}

// needed are documents of which the first is referred to.
const needed = `kind: Namespace
metadata: {name: tools}
---
kind: Service
metadata: {name: web.tools}
spec: {mode: TCP, config: {upstream: {url: "tcp://192.0.2.1:80"}}}
---
apiVersion: getambassador.io/v2
kind: TLSContext
metadata: {name: plain, namespace: prod}
spec: {alpn_protocols: h2}
`

// TestForeign takes resources of another system through the verbs that write and
// read, and asks where connections go, offline and of a cluster.
func TestForeign(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port // free, once it is closed
	l.Close()
	docs := fmt.Sprintf(`apiVersion: getambassador.io/v2
kind: TCPMapping
metadata: {name: ssh, namespace: prod, labels: {team: ops}}
spec: {address: 127.0.0.1, port: %[1]d, service: "127.0.0.1:22"}
---
apiVersion: getambassador.io/v3alpha1
kind: TCPMapping
metadata: {name: host}
spec: {address: 127.0.0.1, port: %[1]d, host: a.example, service: "127.0.0.1:23"}
---
apiVersion: getambassador.io/v2
kind: TCPMapping
metadata: {name: test, namespace: prod}
spec: {address: 127.0.0.1, port: %[1]d, service: "127.0.0.1:24", tls: true}
---
apiVersion: getambassador.io/v2
kind: Mapping
metadata: {name: http}
spec: {prefix: /, service: x}
---
apiVersion: v1
kind: Secret
metadata: {name: password, namespace: prod}
stringData: {word: s3cret}
---
kind: Secret
metadata: {name: password}
data: {value: s3cret}
`, port)
	file := filepath.Join(t.TempDir(), "docs.yaml")
	if err := os.WriteFile(file, []byte(docs), 0o600); err != nil {
		t.Fatal(err)
	}
	ready, _ := up(t, filepath.Join(t.TempDir(), "data"))
	root := newPerson(t)
	root.login(ready, ready.Token)
	some := filepath.Join(t.TempDir(), "some.yaml")
	if err := os.WriteFile(some, []byte(needed), 0o600); err != nil {
		t.Fatal(err)
	}
	_, clusterPort, _ := net.SplitHostPort(ready.Address)
	place := strings.NewReplacer(file, "docs.yaml", some, "some.yaml", fmt.Sprint(port), "PORT", ready.Address, "ADDRESS", clusterPort, "CLUSTER")
	// What others say, and what is of this run, is left out.
	theirs := regexp.MustCompile(`((?:=False|refused|not in force|not complete): )[^\n]*|(listening on|\d\.) [^\n]*`)
	ours := regexp.MustCompile(`for \d+s +|[0-9a-f-]{36}|20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ|session/[a-z0-9-]+|Session root-[a-z0-9]+`)
	var transcript strings.Builder
	for _, args := range []string{
		"check -f FILE",
		"route PORT --no-tls -f FILE",
		"apply -f FILE",
		"apply -f FILE",
		"diff -f FILE",
		"get tm",
		"get tcpmapping ssh -o name",
		"get tcpmappings -n prod -o name",
		"get tcpmappings -l team=ops -o name",
		"get tcpmapping prod/ssh host -o name",
		"get tcpmapping nothing",
		"get secret.v1",
		"get secret",
		"get -A tm -o name",
		"get tm -A -n prod",
		"get secret -n prod",
		"get users -n prod",
		"get tcpmapping/prod/ssh secret.v1/prod/password secret/password",
		"get tcpmapping/prod/ssh user/nobody -o name",
		"create secret.v1 onlytheirs --file word=FILE -n prod",
		"get secret onlytheirs",
		"describe secret onlytheirs",
		"delete secret onlytheirs",
		"delete secret.v1/prod/onlytheirs",
		"delete secret.v1/prod/onlytheirs",
		"delete --ignore-not-found secret.v1/prod/onlytheirs secret/onlytheirs",
		"create tcpmapping ssh --port 1 --service x -n dev",
		"get tcpmapping ssh",
		"delete tcpmapping ssh -n dev",
		"describe tcpmapping ssh",
		"describe tm host",
		"describe tcpmapping/prod/ssh secret/password -n prod",
		"route PORT --no-tls",
		"route PORT --sni a.example",
		"route 127.0.0.1:PORT --no-tls",
		"route PORT --sni b.example",
		"route 1",
		"route CLUSTER",
		"route ADDRESS",
		"check",
		"get all -o name",
		"delete tcpmapping prod/test host",
		"delete secret.v1 password",
		"check --strict",
		"apply -f SOME",
		"delete -f SOME -n prod",
		"delete -f SOME",
		"delete -f SOME",
		"delete -f SOME --ignore-not-found",
	} {
		words := strings.NewReplacer("FILE", file, "SOME", some, "PORT", fmt.Sprint(port), "CLUSTER", clusterPort, "ADDRESS", ready.Address).Replace(args)
		status, out, err := root.try("", strings.Fields(words)...)
		fmt.Fprintf(&transcript, "$ cardea %s\n%s%sexit status %d\n\n", args, out, err, status)
	}
	golden(t, "foreign.txt", ours.ReplaceAllString(theirs.ReplaceAllString(place.Replace(transcript.String()), "$1$2…"), "…"))

	// An editor leaves nothing behind, unless what it wrote is refused.
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	root.env["EDITOR"] = "sed -i.bak s/127.0.0.1:22/127.0.0.1:25/"
	if out := root.run("edit", "tcpmapping/prod/ssh"); out != "tcpmapping/prod/ssh configured\n" {
		t.Errorf("edit: %s", out)
	}
	empty(t, tmp)
	if _, out, words := root.try("", "edit", "tcpmapping", "prod/ssh"); out+words != "tcpmapping/prod/ssh was not changed\n" {
		t.Errorf("edit again: %s%s", out, words)
	}
	empty(t, tmp)
	root.env["EDITOR"] = "sed -i s/port/prot/"
	if status, _, words := root.try("", "edit", "tcpmapping", "ssh"); status != ExitFailed || !strings.Contains(words, "(did you mean port?)") ||
		!strings.Contains(words, "hint: your text is in "+tmp) {
		t.Errorf("edit, wrongly: exit %d, %s", status, words)
	}

	// What people wrote can be applied as it is printed.
	all := root.run("get", "all", "-o", "yaml")
	if out := root.pipe(all, "apply", "-"); strings.Count(out, " unchanged\n") != 2 || strings.Count(out, "\n") != 2 {
		t.Errorf("apply of\n%s\n%s", all, out)
	}
}
