package local

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"cardea/api"
)

var update = flag.Bool("update", false, "write the golden files")

// The words that people see when they write a condition that is wrong, or that
// reads what may be absent.
func TestCheckMessages(t *testing.T) {
	expressions := []string{
		// What is right, and needs no word.
		`ctx.user.spec.type == "HUMAN"`,
		`"friends" in ctx.user.spec.groups && ctx.request.port > 1024`,
		`ctx.groups.exists(g, g.metadata.name == "friends")`,
		`has(ctx.request.tls) && ctx.request.tls.sni == "x"`,
		`has(ctx.request.tls.clientCertificate) && ctx.request.tls.clientCertificate.sha256 == "x"`,
		`has(ctx.user.spec.attrs.level) && ctx.user.spec.attrs.level > 3`,
		`"a-b" in ctx.user.metadata.labels && ctx.user.metadata.labels["a-b"] == "c"`,
		`ctx.request.api.verb in ["get", "list"]`,
		`now() < timestamp("2030-01-01T00:00:00Z")`,
		`net.isIPInRange(ctx.request.ip, "10.0.0.0/8")`,
		`ctx.service.spec.mode == "API"`,
		`attrs.known == 3`,
		`ctx.user.spec.email.split("@")[1] == "example.com"`,
		`ctx.service.metadata.name == "ssh.default"`,
		`ctx.namespace.metadata.name == "default" && ctx.user.metadata.name != ctx.service.metadata.name`,
		// Syntax.
		`ctx.user.spec.type ==`,
		`ctx.user.spec.type = "HUMAN"`,
		`(true`,
		// Names.
		`ctx.user.spec.grops == []`,
		`ctx.user.spec.colour == "red"`,
		`ctx.usr.spec.type == "HUMAN"`,
		`ctx.groups.exists(g, g.metadata.nam == "x")`,
		`ctx.groups[0].metadata.labls == {}`,
		`user.spec.type == "HUMAN"`,
		`ctz.user.spec.type == "HUMAN"`,
		`sise(ctx.groups) > 0`,
		`ctx.service.spec.isPublic`,
		"true &&\n  ctx.user.spec.tipe == \"HUMAN\"",
		// Types.
		`ctx.user.metadata.name`,
		`1`,
		`ctx.request.port == "80"`,
		`ctx.user == ctx.session`,
		`"a".replace("a", "b") == "b"`,
		`ctx.user.metadata.name.matches("(")`,
		`now() > timestamp("yesterday")`,
		`cardea.User{} == ctx.user`,
		// Enums.
		`ctx.user.spec.type == "HUMEN"`,
		`"ROBOT" != ctx.user.spec.type`,
		`ctx.user.spec.type in ["HUMAN", "PERSON"]`,
		`ctx.service.spec.mode == "HTTP"`,
		// Names of Services.
		`ctx.service.metadata.name == "ssh1"`,
		`"ssh1" != ctx.service.metadata.name`,
		`ctx.service.metadata.name in ["ssh1", "ssh2.default", "ssh3"]`,
		// What may be absent.
		`ctx.request.tls.sni == "x"`,
		`ctx.request.tls.clientCertificate.sha256 == "x"`,
		`ctx.user.spec.attrs.level > 3`,
		`attrs.unheard == 3`,
		`ctx.user.metadata.labels["a-b"] == "c"`,
		`ctx.session.status.credentialRef.name == "x"`,
	}
	var b strings.Builder
	for _, e := range expressions {
		var p api.Problems
		Check(&p, &api.Policy{Spec: api.PolicySpec{
			Attrs: api.Attrs{"known": 3},
			Rules: []api.Rule{{Effect: api.Allow, Condition: api.Condition{Match: e}}},
		}})
		b.WriteString(e + "\n")
		for _, x := range p.List {
			if x.Pointer != "/spec/rules/0/condition/match" {
				t.Errorf("%s: pointer %s", e, x.Pointer)
			}
			x.Pointer = ""
			word := "error"
			if x.Warning {
				word = "warning"
			}
			b.WriteString("    " + word + ": " + x.String() + "\n")
		}
	}
	golden(t, "check.txt", b.String())
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; run go test -update and read the difference. Got:\n%s", path, got)
	}
}
