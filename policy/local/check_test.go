package local

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"cardea/api"
	"cardea/policy/policytest"
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
		`true and true`,
		`true & true`,
		`ctx.user.metadata.name == "x`,
		`ctx.user.metadata.name.matches("\d+")`,
		`ctx.user.metadata.name == “x”`,
		`"'a' in ctx.user.spec.groups"`,
		// Names.
		`ctx.user.spec.grops == []`,
		`ctx.user.spec.colour == "red"`,
		`ctx.usr.spec.type == "HUMAN"`,
		`ctx.groups.exists(g, g.metadata.nam == "x")`,
		`ctx.groups[0].metadata.labls == {}`,
		`user.spec.type == "HUMAN"`,
		`ctz.user.spec.type == "HUMAN"`,
		`sise(ctx.groups) > 0`,
		`ctx.user.metadata.name == alice`,
		`allowed(ctx.user)`,
		`ctx.service.spec.config.http == 1`,
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
		`ctx.device.spec.state == "ACTIVE" && ctx.device.status.osType == "BEOS"`,
		`ctx.device.status.reported.hostname == "x" && ctx.device.spec.attrs.owner == "y"`,
		`has(ctx.device) && ctx.device.status.osType == "LINUX"`,
	}
	var b strings.Builder
	check := NewChecker()
	for _, e := range expressions {
		var p api.Problems
		check(&p, &api.Policy{Spec: api.PolicySpec{
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

// What may be absent depends on who may ask, and what becomes of it on where it is
// read.
func TestCheckWarnings(t *testing.T) {
	const expression = `ctx.user.metadata.name == "x" && ctx.groups.size() > 0 && ctx.device.metadata.name == "d"`
	condition := api.Condition{Match: expression}
	service := func(anonymous, enabled bool) *api.Service {
		s := &api.Service{Spec: api.ServiceSpec{IsAnonymous: anonymous, Authorization: policytest.Inline(api.Rule{Effect: api.Allow, Condition: condition})}}
		s.Spec.Authorization.EnableAnonymous = enabled
		return s
	}
	dynamic := func(anonymous bool) *api.Service {
		s := service(anonymous, false)
		s.Spec.Authorization = api.Authorization{}
		s.Spec.DynamicConfig = &api.DynamicConfig{Rules: []api.ConfigRule{{Condition: condition}}}
		return s
	}
	const (
		rule    = "an ALLOW then does not match, and a DENY does"
		enforce = "no ALLOW of the policy then counts, and every DENY does"
		config  = "the request then is denied"
	)
	for _, c := range []struct {
		name string
		o    api.Object
		then string
		want []string
	}{
		{"a Policy", policytest.Policy("x", policytest.Allow(expression)), rule, []string{"ctx.device"}},
		{"enforcement", &api.Policy{Spec: api.PolicySpec{EnforcementRules: []api.EnforcementRule{{Effect: api.Enforce, Condition: condition}}}}, enforce, []string{"ctx.device"}},
		{"a Service", service(false, false), rule, []string{"ctx.device"}},
		{"a Service that is open to everyone", service(true, false), rule, []string{"ctx.device"}},
		{"a Service of which policies decide who comes", service(true, true), rule, []string{"ctx.user", "ctx.groups", "ctx.device"}},
		{"dynamicConfig", dynamic(false), config, []string{"ctx.device"}},
		{"dynamicConfig of an anonymous Service", dynamic(true), config, []string{"ctx.user", "ctx.groups", "ctx.device"}},
	} {
		var p api.Problems
		Check(&p, c.o)
		var got []string
		for _, x := range p.List {
			if !x.Warning || !strings.HasSuffix(x.Rule, "may be absent: "+c.then) || x.Hint != "guard it with has("+x.Found+")" {
				t.Errorf("%s: %s", c.name, x)
			}
			got = append(got, x.Found)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: warned of %v, want %v", c.name, got, c.want)
		}
	}
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
