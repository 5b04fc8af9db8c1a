// Package docs_test holds the documentation to what the program accepts.
package docs_test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"cardea/api"
	"cardea/manifest"
	"cardea/policy/local"
)

// A block is a fenced block of YAML; isDocument matches one that is a resource.
// An expression is the last cell of a row about a field of ctx.
var (
	block      = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")
	isDocument = regexp.MustCompile(`(?m)^kind:`)
	expression = regexp.MustCompile("(?m)^\\| `ctx\\..*\\| `([^`|]+)` \\|$")
)

// Whoever copies an example must be able to apply it, without an error and
// without a warning.
func TestExamplesAreAccepted(t *testing.T) {
	files, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, name := range append(files, "../README.md") {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range block.FindAllSubmatch(text, -1) {
			if isDocument.Match(m[1]) {
				found++
				check(t, name, m[1])
			}
		}
	}
	if found == 0 {
		t.Error("no example was found")
	}
}

// check reports what a document in a file is refused or warned for.
func check(t *testing.T, name string, yaml []byte) {
	t.Helper()
	docs, found := manifest.Decode(name, yaml)
	for _, d := range found {
		t.Errorf("%s: %s, in:\n%s", name, d, yaml)
	}
	for _, d := range docs {
		if d.Object == nil {
			continue
		}
		var p api.Problems
		local.Check(&p, d.Object)
		for _, x := range p.List {
			t.Errorf("%s: %s, in:\n%s", name, x, yaml)
		}
	}
}

// Each field of ctx is shown with an expression that can be written so.
func TestExpressionsAreAccepted(t *testing.T) {
	text, err := os.ReadFile("policies.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := expression.FindAllSubmatch(text, -1)
	if len(rows) == 0 {
		t.Error("no expression was found")
	}
	for _, m := range rows {
		var p api.Problems
		local.Check(&p, &api.Policy{Spec: api.PolicySpec{Rules: []api.Rule{{Condition: api.Condition{Match: string(m[1])}}}}})
		for _, x := range p.List {
			t.Errorf("%s: %s", m[1], x)
		}
	}
}
