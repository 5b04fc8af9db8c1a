package control

import (
	"bytes"
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"cardea/api"
	"cardea/manifest"
)

// yamlBlock is a fenced block of YAML in a document of ours.
var yamlBlock = regexp.MustCompile("(?ms)^```yaml\n(.*?)^```$")

// documented returns the resources of the one example of docs/policies.md that has
// the text, as they stand there.
func documented(t *testing.T, text string) (raw []json.RawMessage) {
	t.Helper()
	page, err := os.ReadFile("../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range yamlBlock.FindAllSubmatch(page, -1) {
		if !bytes.Contains(m[1], []byte(text)) {
			continue
		}
		if raw != nil {
			t.Fatalf("there are two examples with %q", text)
		}
		docs, found := manifest.Decode("policies.md", m[1])
		if len(found) > 0 {
			t.Fatal(found)
		}
		for _, d := range docs {
			raw = append(raw, must(json.Marshal(d.Object)))
		}
	}
	if raw == nil {
		t.Fatalf("there is no example with %q", text)
	}
	return raw
}

// TestHelpDesk applies the example of the documentation, does what it promises, and
// tries every way that its rights may open to more.
func TestHelpDesk(t *testing.T) {
	w, root := newRoot(t)
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: documented(t, "name: help-desk")}, nil)
	w.mustApply(root, `{'kind':'User','metadata':{'name':'helper'},'spec':{'type':'HUMAN','groups':['help-desk']}}`,
		`{'kind':'Credential','metadata':{'name':'helper'},'spec':{'user':'helper'}}`,
		`{'kind':'Credential','metadata':{'name':'staff-spare'},'spec':{'user':'root'}}`,
		`{'kind':'User','metadata':{'name':'staff-bound'},'spec':{'type':'HUMAN','authorization':`+denyInline+`}}`,
		`{'kind':'Group','metadata':{'name':'admins'},'spec':{'authorization':{'policies':['api-full-access']}}}`)
	helper := w.login(w.token(root, "helper"))

	// Its work.
	staff := func(spec string) string {
		return `{'kind':'User','metadata':{'name':'staff-ann'},'spec':{'type':'HUMAN'` + spec + `}}`
	}
	w.mustApply(helper, staff(`,'groups':['staff'],'email':'ann@x.io'`), `{'kind':'Credential','metadata':{'name':'staff-ann'},'spec':{'user':'staff-ann'}}`)
	ann := w.login(w.token(helper, "staff-ann"))
	w.must(helper, "PATCH", "/api/core/v1/sessions/"+ann.session, `{"spec":{"state":"REJECTED"}}`, nil)
	w.must(helper, "PATCH", "/api/core/v1/sessions/"+ann.session, `{"spec":{"state":"ACTIVE"}}`, nil)
	w.mustApply(helper, staff(`,'groups':['staff'],'email':'ann@x.io','isDisabled':true`))
	w.mustApply(helper, staff(`,'groups':['staff'],'email':'ann@x.io'`))
	w.bind(ann, "linux-aaaaaaaa", "staff-ann")

	const api1 = "/api/core/v1/"
	for _, tc := range []struct{ name, method, path, body, want, pointer string }{
		{"an inline policy", "PATCH", "users/staff-ann", `{"spec":{"authorization":{"inlinePolicies":[{"spec":{"rules":[{"effect":"ALLOW","condition":{"matchAny":true}}]}}]}}}`,
			"escalate User staff-ann", "/spec/authorization/inlinePolicies/0"},
		{"a Policy", "PATCH", "users/staff-ann", `{"spec":{"authorization":{"policies":["api-full-access"]}}}`, "attach Policy api-full-access", "/spec/authorization/policies/0"},
		{"a Group", "PATCH", "users/staff-ann", `{"spec":{"groups":["admins"]}}`, "join Group admins", "/spec/groups/0"},
		{"a new User with an inline policy", "POST", "users", `{"kind":"User","metadata":{"name":"staff-new"},"spec":{"type":"HUMAN","authorization":{"inlinePolicies":[{"spec":{"rules":[{"effect":"ALLOW","condition":{"matchAny":true}}]}}]}}}`,
			"escalate User staff-new", "/spec/authorization/inlinePolicies/0"},
		{"a Credential with an inline policy", "POST", "credentials", `{"kind":"Credential","metadata":{"name":"staff-new"},"spec":{"user":"staff-ann","authorization":{"inlinePolicies":[{"spec":{"rules":[{"effect":"ALLOW","condition":{"matchAny":true}}]}}]}}}`,
			"escalate Credential staff-new", "/spec/authorization/inlinePolicies/0"},
		{"a Credential of root", "POST", "credentials", `{"kind":"Credential","metadata":{"name":"staff-root"},"spec":{"user":"root"}}`, "impersonate User root", "/spec/user"},
		{"a token of root", "POST", "credentials/staff-spare/token", ``, "impersonate User root", "/spec/user"},
		{"labels", "PATCH", "users/staff-ann", `{"metadata":{"labels":{"team":"ops"}}}`, "escalate User staff-ann", "/metadata/labels"},
		{"attrs", "PATCH", "users/staff-ann", `{"spec":{"attrs":{"level":9}}}`, "escalate User staff-ann", "/spec/attrs"},
		{"another address", "PATCH", "users/staff-ann", `{"spec":{"email":"root@x.io"}}`, "escalate User staff-ann", "/spec/email"},
		{"a new User with labels", "POST", "users", `{"kind":"User","metadata":{"name":"staff-new","labels":{"team":"ops"}},"spec":{"type":"HUMAN"}}`, "escalate User staff-new", "/metadata/labels"},
		{"attrs of a Device", "PATCH", "devices/linux-aaaaaaaa", `{"spec":{"attrs":{"managed":true}}}`, "escalate Device linux-aaaaaaaa", "/spec/attrs"},
		{"a policy of his own Session", "PATCH", "sessions/" + helper.session, `{"spec":{"authorization":{"policies":["allow-all"]}}}`, "attach Policy allow-all", "/spec/authorization/policies/0"},
		{"an inline policy of his own Session", "PATCH", "sessions/" + helper.session, `{"spec":{"authorization":{"inlinePolicies":[{"spec":{"rules":[{"effect":"ALLOW","condition":{"matchAny":true}}]}}]}}}`,
			"escalate Session " + helper.session, "/spec/authorization/inlinePolicies/0"},
		{"longer Sessions", "PATCH", "users/staff-ann", `{"spec":{"session":{"clientDuration":{"months":12}}}}`, "approve User staff-ann", "/spec/session"},
		{"a workload's Sessions", "PATCH", "users/staff-ann", `{"spec":{"type":"WORKLOAD"}}`, "escalate User staff-ann", "/spec/type"},
		{"what denies, taken away", "PATCH", "users/staff-bound", `{"spec":{"authorization":null}}`, "escalate User staff-bound", "/spec/authorization/inlinePolicies"},
		{"what denies, deleted", "DELETE", "users/staff-bound", ``, "escalate User staff-bound", ""},
	} {
		before := w.revision()
		var body any
		if tc.body != "" {
			body = tc.body
		}
		t.Run(tc.name, func(t *testing.T) {
			needs(t, w.do(helper, tc.method, api1+tc.path, body, nil), tc.want, tc.pointer)
			if w.revision() != before {
				t.Error("something was written")
			}
		})
	}
	for _, doc := range []string{ // what it may not write at all
		onAPI("help-desk", "true"), onAPI("mine", "true"),
		`{'kind':'Group','metadata':{'name':'staff'},'spec':{'authorization':{'policies':['help-desk']}}}`,
		`{'kind':'User','metadata':{'name':'helper'},'spec':{'type':'HUMAN','groups':['help-desk'],'authorization':` + allowInline + `}}`,
		`{'kind':'User','metadata':{'name':'root'},'spec':{'type':'HUMAN','isDisabled':true}}`,
	} {
		if _, err := w.apply(helper, doc); !api.HasCode(err, api.CodePermissionDenied) {
			t.Errorf("%s: %v", doc, err)
		}
	}
	w.must(helper, "DELETE", api1+"users/staff-ann", nil, nil)
	if w.exists(api.KindSession, ann.session) {
		t.Error("a Session outlives its User")
	}
}
