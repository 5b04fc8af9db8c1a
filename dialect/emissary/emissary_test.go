package emissary

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cardea/api"
)

var update = flag.Bool("update", false, "write the golden files")

// Each NAME.yaml of testdata comes to NAME.txt.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no input was found", err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			got := render(Compile(parseT(t, string(text))))
			golden := strings.TrimSuffix(f, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("%s\n%s", golden, difference(string(want), got))
			}
		})
	}
}

// The five examples of the TCPMapping document, each alone with its Secrets: no Host is
// needed.
func TestDocument(t *testing.T) {
	for name, want := range map[string]string{
		"1-ssh": `route *:2222 of TCPMapping/ssh
    100 TCPMapping/ssh
        tcp://upstream:22 families=[IPv4]
`,
		"2-cockroach": `route *:26257 of TCPMapping/cockroach
    100 TCPMapping/cockroach
        tcp://cockroach:26257 families=[IPv4]
`,
		"3-host": `route *:2222 sni=my-host-1 of TCPMapping/my-host-1
    terminate cert=Secret/supersecret
    100 TCPMapping/my-host-1
        tcp://upstream-host-1:9999 families=[IPv4]
route *:2222 sni=my-host-2 of TCPMapping/my-host-2
    terminate cert=Secret/supersecret
    100 TCPMapping/my-host-2
        tcp://upstream-host-2:9999 families=[IPv4]
`,
		"4-host-and-tls": `route *:2222 sni=my-host-1 of TCPMapping/test-1
    terminate cert=Secret/supersecret
    100 TCPMapping/test-1
        tcp://upstream-host-1:9999 families=[IPv4]
        tls name=upstream-host-1 verification=REPORT
route *:2222 sni=my-host-2 of TCPMapping/test-2
    terminate cert=Secret/supersecret
    100 TCPMapping/test-2
        tcp://upstream-host-2:9999 families=[IPv4]
        tls own=Secret/othersecret name=upstream-host-2 verification=REPORT
`,
		"5-tls": `route *:2222 of TCPMapping/test
    100 TCPMapping/test
        tcp://upstream-host:9999 families=[IPv4]
        tls name=upstream-host verification=REPORT
`,
	} {
		t.Run(name, func(t *testing.T) {
			out := Compile(document(t, name+".yaml"))
			if got := render(api.Routes{Routes: out.Routes}); got != want {
				t.Errorf("%s", difference(want, got))
			}
			for k, s := range out.Status {
				if s.Summary() != "OK" {
					t.Errorf("%s: %s", k, s.Summary())
				}
			}
		})
	}
}

// All five examples at once: of those that share address, port and host and not tls
// the later one is not accepted and names the earlier; the rest serves.
func TestDocumentTogether(t *testing.T) {
	in := document(t, "*-*.yaml")
	if n := len(in.TLSContexts); n != 4 {
		t.Fatalf("there are %d TLSContexts, of which two are there twice", n)
	}
	out := Compile(in)
	var rows []string
	for _, r := range out.Routes {
		rows = append(rows, fmt.Sprintf("%s %q %s", r.Bind, r.Match.SNI, r.Owner.Name))
		if r.Refused != "" || len(r.Members) != 1 {
			t.Errorf("%v", r)
		}
	}
	want := []string{`*:2222 "" ssh`, `*:2222 "my-host-1" my-host-1`, `*:2222 "my-host-2" my-host-2`, `*:26257 "" cockroach`}
	if !slices.Equal(rows, want) {
		t.Errorf("rows %q", rows)
	}
	if len(out.Status) != 9 {
		t.Errorf("%d Objects have a status", len(out.Status))
	}
	loses := map[string]string{"test": "TCPMapping/ssh", "test-1": "TCPMapping/my-host-1", "test-2": "TCPMapping/my-host-2"}
	for k, s := range out.Status {
		c := s.Condition(api.ConditionAccepted)
		if to := loses[k.Name]; to == "" {
			if s.Summary() != "OK" || strings.Contains(strings.Join(s.Notes, " "), "more than one") {
				t.Errorf("%s: %v", k, s)
			}
		} else if c.Status != "False" || c.Reason != ReasonConflict || !strings.Contains(c.Message, to+",") {
			t.Errorf("%s: %v", k, c)
		}
	}
}

// document returns examples of the document with their Secrets.
func document(t *testing.T, pattern string) Input {
	t.Helper()
	files, err := filepath.Glob("testdata/seed/" + pattern)
	if err != nil || len(files) == 0 {
		t.Fatal("no such example", err)
	}
	var all []byte
	for _, f := range append(files, "testdata/seed/secrets.yaml") {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		all = append(append(all, text...), "\n---\n"...)
	}
	return parseT(t, string(all))
}

// Two documents of one identity count once; that they differ is said.
func TestTwice(t *testing.T) {
	const one = "{apiVersion: getambassador.io/v2, kind: TCPMapping, metadata: {name: a}, spec: {port: 1, service: a}}\n---\n"
	for _, x := range []struct {
		text  string
		notes int
	}{{one + one, 0}, {one + strings.Replace(one, "service: a", "service: b", 1), 1}} {
		out := Compile(parseT(t, x.text))
		k := api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping, Name: "a"}
		if len(out.Routes) != 1 || len(out.Routes[0].Members) != 1 || len(out.Status[k].Notes) != x.notes {
			t.Errorf("%s", render(out))
		}
	}
}

// Verification is the ClusterConfig's, then the annotation's, then that of the CA.
func TestVerification(t *testing.T) {
	for _, x := range []struct {
		cluster    api.Verification
		annotation string
		tls        string
		want       api.Verification
	}{
		{"", "", "true", api.VerificationReport},
		{"", "", "ca", api.VerificationRequire},
		{"", "", "plain", api.VerificationReport},
		{"", "REQUIRE", "true", api.VerificationRequire},
		{"", "report", "ca", api.VerificationReport},
		{api.VerificationReport, "", "ca", api.VerificationRequire},
		{api.VerificationRequire, "", "true", api.VerificationRequire},
		{api.VerificationRequire, "report", "ca", api.VerificationRequire},
	} {
		annotations := "{}"
		if x.annotation != "" {
			annotations = "{cardea/upstream-verification: " + x.annotation + "}"
		}
		in := parseT(t, `
{apiVersion: v1, kind: Secret, metadata: {name: s}, data: {tls.crt: "", tls.key: ""}}
---
{apiVersion: getambassador.io/v2, kind: TLSContext, metadata: {name: ca}, spec: {ca_secret: s}}
---
{apiVersion: getambassador.io/v2, kind: TLSContext, metadata: {name: plain}, spec: {secret: s}}
---
{apiVersion: getambassador.io/v2, kind: TCPMapping, metadata: {name: m, annotations: `+annotations+`}, spec: {port: 1, service: a, tls: `+x.tls+`}}
`)
		in.Verification = x.cluster
		if got := Compile(in).Routes[0].Members[0].Config.TLS.Verification; got != x.want {
			t.Errorf("%+v: %s", x, got)
		}
	}
}

// difference shows the lines that are in one text only.
func difference(want, got string) string {
	var b strings.Builder
	in := func(text, line string) bool { return strings.Contains("\n"+text, "\n"+line) }
	for l := range strings.Lines(want) {
		if !in(got, l) {
			b.WriteString("- " + l)
		}
	}
	for l := range strings.Lines(got) {
		if !in(want, l) {
			b.WriteString("+ " + l)
		}
	}
	return b.String()
}
