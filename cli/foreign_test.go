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
		{services, "prod", "web.dev", "", "-n prod is not the Namespace of web.dev"},
		{users, "", "alice", "/alice", ""},
		{users, "prod", "alice", "", "-n: a User is in no namespace"},
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
		fmt.Fprintf(&b, "--- strict %v\n%s\n%s\n%d errors\n", strict, strings.Join(x.lines, "\n"), x.summary(), x.errors)
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
		if err := refusal(&x.q, &x.a, false); err != nil {
			tell(&b, err)
		}
		b.WriteString("=====\n")
	}
	golden(t, "route.txt", b.String())
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

func TestBelow(t *testing.T) {
	in := below([]string{"/etc/tls", "/var/tls/"})
	for path, want := range map[string]bool{
		"/etc/tls/a.pem": true, "/var/tls/x/a.pem": true, "/etc/tls/../shadow": false, "/etc/tlsx/a.pem": false, "etc/tls/a.pem": false, "/etc/passwd": false,
	} {
		if got := in(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
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
	s := server.Ready{Domain: "cardea.internal", Address: "127.0.0.1:8443", CASHA256: "ffff", Connections: 1000, Listeners: []string{"*:2222 (3 routes)", "*:26257 (1 route)"}}
	r.printReady(s, "/data", "")
	s.NotInForce = 1
	r.printReady(s, "/data", "")
	s.NotInForce, s.Listeners = 2, nil
	r.printReady(s, "/data", "")
	golden(t, "ready.txt", out.String())
}

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
	place := strings.NewReplacer(file, "docs.yaml", fmt.Sprint(port), "PORT")
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
		"create tcpmapping ssh --port 1 --service x -n dev",
		"get tcpmapping ssh",
		"delete tcpmapping ssh -n dev",
		"describe tcpmapping ssh",
		"describe tm host",
		"route PORT --no-tls",
		"route PORT --sni a.example",
		"route 1",
		"check",
		"get all -o name",
		"delete tcpmapping prod/test host",
		"delete secret.v1 password",
		"check --strict",
	} {
		words := strings.NewReplacer("FILE", file, "PORT", fmt.Sprint(port)).Replace(args)
		status, out, err := root.try("", strings.Fields(words)...)
		fmt.Fprintf(&transcript, "$ cardea %s\n%s%sexit status %d\n\n", args, out, err, status)
	}
	golden(t, "foreign.txt", ours.ReplaceAllString(theirs.ReplaceAllString(place.Replace(transcript.String()), "$1$2…"), "…"))

	// An editor leaves nothing behind, unless what it wrote is refused.
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	root.env["EDITOR"] = "sed -i.bak s/127.0.0.1:22/127.0.0.1:25/"
	if out := root.run("edit", "tcpmapping", "ssh"); out != "tcpmapping/prod/ssh configured\n" {
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
