package script_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rogpeppe/go-internal/testscript"
)

// documents DIR first|second: writes a directory of 200 documents of every kind
// that people write. The second differs from the first in every way: some are
// gone, some new, some changed, and what is referred to by what has moved.
func documents(ts *testscript.TestScript, _ bool, args []string) {
	second := args[1] == "second"
	dir := ts.MkAbs(args[0])
	ts.Check(os.MkdirAll(dir, 0o700))
	for file, docs := range writeDocuments(second) {
		if len(docs) > 0 {
			ts.Check(os.WriteFile(filepath.Join(dir, file+".yaml"), []byte(strings.Join(docs, "---\n")), 0o600))
		}
	}
}

// writeDocuments returns the documents of each file. Files are in an order in
// which what is referred to often comes later: apply is one transaction.
func writeDocuments(second bool) map[string][]string {
	const per = 28 // of each of 7 sorts, with 3 Secrets and the ClusterConfig: 200
	files := map[string][]string{}
	add := func(file, format string, values ...any) {
		files[file] = append(files[file], fmt.Sprintf(format, values...))
	}
	// The second lacks every seventh, has as many others, and changes every third.
	names := func(prefix string) (list []string) {
		for i := range per {
			n := i
			if second && i%7 == 6 {
				n += 100
			}
			list = append(list, fmt.Sprintf("%s-%d", prefix, n))
		}
		return list
	}
	words := func(i int) string {
		if second && i%3 == 0 {
			return "changed"
		}
		return "as it was"
	}
	policies, groups, users, spaces := names("policy"), names("group"), names("user"), names("space")
	if second { // whoever refers now refers to another
		for _, l := range [][]string{policies, groups, users, spaces} {
			slices.Reverse(l)
		}
	}
	for i, name := range policies {
		add("z-policies", "kind: Policy\nmetadata: {name: %s, description: %s}\nspec:\n  rules:\n    - effect: ALLOW\n      condition: {match: '%q in ctx.user.spec.groups'}\n    - effect: DENY\n      priority: 1\n      condition: {all: {of: [{not: 'ctx.user.spec.type == \"HUMAN\"'}, {matchAny: true}]}}\n",
			name, words(i), groups[i])
	}
	for i, name := range groups {
		add("y-groups", "kind: Group\nmetadata: {name: %s, labels: {row: r%d}}\nspec:\n  attrs: {level: %d, words: %s}\n  authorization: {policies: [%s]}\n", name, i%4, i, words(i), policies[i])
	}
	for i, name := range users {
		typ := []string{"HUMAN", "WORKLOAD"}[i%2]
		add("x-users", "kind: User\nmetadata: {name: %s, displayName: %s}\nspec:\n  type: %s\n  groups: [%s, %s]\n  session: {clientDuration: {hours: %d}}\n", name, words(i), typ, groups[i], groups[(i+1)%per], i+1)
	}
	for i, name := range spaces {
		add("w-spaces", "kind: Namespace\nmetadata: {name: %s, description: %s}\nspec:\n  authorization: {policies: [%s]}\n", name, words(i), policies[(i+3)%per])
	}
	for i, name := range names("svc") {
		space := ""
		if i%2 == 0 {
			space = "." + spaces[i]
		}
		add("a-services", `kind: Service
metadata: {name: %s%s}
spec:
  mode: TCP
  config:
    upstream: {url: "tls://127.0.0.1:%d"}
    tls: {serverName: up.internal, clientCertificate: {fromSecret: secret-%d}}
  dynamicConfig:
    configs:
      - {name: far, parent: default, upstream: {loadbalance: {endpoints: [{url: "tls://127.0.0.2:%d"}, {url: "tls://[::1]:%d"}]}}}
    rules:
      - {condition: {any: {of: [{match: '%q in ctx.user.spec.groups'}]}}, configName: far}
  limits: {connectionsPerSession: %d, idleTimeout: {minutes: 5}}
  authorization:
    policies: [%s]
    inlinePolicies:
      - spec: {rules: [{effect: ALLOW, condition: {matchAny: true}, message: %q}]}
`, name, space, 9000+i, i%3, 9000+i, 9000+i, groups[i], i+1, policies[i], words(i))
	}
	for i, name := range names("cred") {
		add("b-credentials", "kind: Credential\nmetadata: {name: %s, description: %s}\nspec: {type: AUTH_TOKEN, user: %s, maxAuthentications: %d}\n", name, words(i), fmt.Sprintf("user-%d", i%6), i+1)
	}
	for i, name := range names("closed") {
		add("c-closed", "kind: Service\nmetadata: {name: %s}\nspec:\n  isDisabled: %t\n  mode: TCP\n  port: 80\n  config: {upstream: {url: \"postgres://db-%d\"}}\n", name, words(i) == "changed", i)
	}
	for i := range 3 {
		add("v-secrets", "kind: Secret\nmetadata: {name: secret-%d, description: %s}\nspec: {}\ndata: {value: value-%d}\n", i, words(i), i)
	}
	add("clusterconfig", "kind: ClusterConfig\nmetadata: {name: default}\nspec:\n  session: {human: {maxPerUser: %d}}\n  dns: {hosts: {up.internal: [127.0.0.1]}}\n  attrs: {words: %s}\n", 10+len(words(0)), words(0))
	return files
}
