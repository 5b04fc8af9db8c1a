package control

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"cardea/api"
)

// onAPI returns a Policy that allows what an expression about ctx.request.api
// says; in it a stands for that, and ^ for a quotation mark.
func onAPI(name, expression string) string {
	expression = strings.NewReplacer("a.", "ctx.request.api.", "^", `\u0022`).Replace(expression)
	return `{'kind':'Policy','metadata':{'name':'` + name + `'},'spec':{'rules':[{'effect':'ALLOW','condition':{'match':
		'ctx.service.metadata.name == \u0022api.cardea\u0022 && (` + expression + `)'}}]}}`
}

const (
	allowInline = `{'inlinePolicies':[{'spec':{'rules':[{'effect':'ALLOW','condition':{'matchAny':true}}]}}]}`
	denyInline  = `{'inlinePolicies':[{'spec':{'rules':[{'effect':'DENY','condition':{'match':'ctx.service.metadata.name == \u0022nats.default\u0022'}}]}}]}`
)

// needs reports an error that is not the refusal of that verb on that Object.
func needs(t *testing.T, err error, what, pointer string) {
	t.Helper()
	e, ok := errors.AsType[*api.Error](err)
	if !ok || e.Code != api.CodePermissionDenied || e.Message != "not allowed: "+what || e.Hint == "" || e.DecisionID == "" {
		t.Errorf("got %v, want that %s is not allowed", err, what)
		return
	}
	if len(e.Problems) != 1 || e.Problems[0].Pointer != pointer || e.Problems[0].Rule == "" {
		t.Errorf("%s: the problem is %+v, want one of %s", what, e.Problems, pointer)
	}
}

// TestClerkCannotBecomeAdministrator is about somebody who may create and update
// Users, Groups and Credentials, and tries each way to get more.
func TestClerkCannotBecomeAdministrator(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1, onAPI("clerks", "a.kind in [^User^, ^Group^, ^Credential^] && a.verb in [^get^, ^list^, ^create^, ^update^]"),
		`{'kind':'Policy','metadata':{'name':'no-nats'},'spec':{'rules':[{'effect':'DENY','condition':{'match':'ctx.service.metadata.name == \u0022nats.default\u0022'}}]}}`,
		`{'kind':'Group','metadata':{'name':'admins'},'spec':{'authorization':{'policies':['api-full-access']}}}`,
		`{'kind':'Group','metadata':{'name':'blocked'},'spec':{'authorization':`+denyInline+`}}`,
		`{'kind':'Group','metadata':{'name':'staff'}}`,
		`{'kind':'User','metadata':{'name':'off'},'spec':{'type':'HUMAN','isDisabled':true}}`,
		`{'kind':'Credential','metadata':{'name':'root-spare'},'spec':{'user':'root','isDisabled':true}}`,
		`{'kind':'User','metadata':{'name':'clerk'},'spec':{'type':'HUMAN','groups':['staff','blocked'],'authorization':{'policies':['clerks','no-nats']}}}`,
		`{'kind':'Credential','metadata':{'name':'clerk'},'spec':{'user':'clerk'}}`)
	clerk := w.login(w.token(root, "clerk"))

	self := func(groups, authorization string) string {
		return `{'kind':'User','metadata':{'name':'clerk'},'spec':{'type':'HUMAN','groups':[` + groups + `],'authorization':` + authorization + `}}`
	}
	const own = `{'policies':['clerks','no-nats']}`
	for _, tc := range []struct{ name, doc, want, pointer string }{
		{"names a Policy", self(`'staff','blocked'`, `{'policies':['clerks','no-nats','api-full-access']}`), "escalate Policy api-full-access", "/spec/authorization/policies/2"},
		{"writes a policy", self(`'staff','blocked'`, `{'policies':['clerks','no-nats'],'inlinePolicies':[{'spec':{'rules':[{'effect':'ALLOW','condition':{'matchAny':true}}]}}]}`),
			"escalate User clerk", "/spec/authorization/inlinePolicies/0"},
		{"joins a Group", self(`'staff','blocked','admins'`, own), "escalate Group admins", "/spec/groups/2"},
		{"leaves a Group that denies", self(`'staff'`, own), "escalate Group blocked", "/spec/groups"},
		{"drops a Policy that denies", self(`'staff','blocked'`, `{'policies':['clerks']}`), "escalate Policy no-nats", "/spec/authorization/policies"},
		{"gives his Group a Policy", `{'kind':'Group','metadata':{'name':'staff'},'spec':{'authorization':{'policies':['api-full-access']}}}`,
			"escalate Policy api-full-access", "/spec/authorization/policies/0"},
		{"writes a policy into his Group", `{'kind':'Group','metadata':{'name':'staff'},'spec':{'authorization':` + allowInline + `}}`,
			"escalate Group staff", "/spec/authorization/inlinePolicies/0"},
		{"takes a policy out of his Group", `{'kind':'Group','metadata':{'name':'blocked'}}`, "escalate Group blocked", "/spec/authorization/inlinePolicies"},
		{"makes a User with a Policy", `{'kind':'User','metadata':{'name':'mole'},'spec':{'type':'HUMAN','authorization':{'policies':['api-full-access']}}}`,
			"escalate Policy api-full-access", "/spec/authorization/policies/0"},
		{"makes a User in a Group", `{'kind':'User','metadata':{'name':'mole'},'spec':{'type':'HUMAN','groups':['admins']}}`, "escalate Group admins", "/spec/groups/0"},
		{"makes a Group with a Policy", `{'kind':'Group','metadata':{'name':'moles'},'spec':{'authorization':{'policies':['allow-all']}}}`,
			"escalate Policy allow-all", "/spec/authorization/policies/0"},
		{"lets somebody in again", `{'kind':'User','metadata':{'name':'off'},'spec':{'type':'HUMAN'}}`, "escalate User off", "/spec/isDisabled"},
		{"makes a Credential of root", `{'kind':'Credential','metadata':{'name':'mole'},'spec':{'user':'root'}}`, "escalate User root", "/spec/user"},
		{"enables a Credential of root", `{'kind':'Credential','metadata':{'name':'root-spare'},'spec':{'user':'root'}}`, "escalate User root", "/spec/user"},
		{"makes a Credential with a Policy", `{'kind':'Credential','metadata':{'name':'mole'},'spec':{'user':'clerk','authorization':{'policies':['api-full-access']}}}`,
			"escalate Policy api-full-access", "/spec/authorization/policies/0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := w.revision()
			_, err := w.apply(clerk, tc.doc)
			needs(t, err, tc.want, tc.pointer)
			err = w.do(clerk, "POST", "/api/apply", api.ApplyRequest{Documents: documents(tc.doc), DryRun: true}, nil)
			needs(t, err, tc.want, tc.pointer)
			if w.revision() != before {
				t.Error("something was written")
			}
			if a := w.journal.last(t).Entry.Common.Facts.API; a.Verb+" "+a.Kind+" "+a.Name != tc.want {
				t.Errorf("the record is of %+v", a)
			}
			// An administrator notices nothing of all this.
			if err := w.do(root, "POST", "/api/apply", api.ApplyRequest{Documents: documents(tc.doc), DryRun: true}, nil); err != nil {
				t.Errorf("root: %v", err)
			}
		})
	}
	for _, tc := range []struct{ method, path, body, want, pointer string }{
		{"PATCH", "/api/core/v1/users/clerk", `{"spec":{"groups":["staff","blocked","admins"]}}`, "escalate Group admins", "/spec/groups/2"},
		{"PUT", "/api/core/v1/groups/staff", `{"kind":"Group","metadata":{"name":"staff"},"spec":{"authorization":{"policies":["allow-all"]}}}`,
			"escalate Policy allow-all", "/spec/authorization/policies/0"},
	} {
		needs(t, w.do(clerk, tc.method, tc.path, tc.body, nil), tc.want, tc.pointer)
	}
	needs(t, w.do(clerk, "POST", "/api/core/v1/credentials/root-spare/token", nil, nil), "escalate User root", "/spec/user")

	// What he may: to give what he has, and what is nobody's gain.
	w.mustApply(clerk, `{'kind':'User','metadata':{'name':'deputy'},'spec':{'type':'HUMAN','groups':['staff'],'authorization':{'policies':['clerks']}}}`,
		`{'kind':'Group','metadata':{'name':'new'}}`,
		`{'kind':'User','metadata':{'name':'off'},'spec':{'type':'HUMAN','isDisabled':true,'groups':['blocked']}}`,
		`{'kind':'Credential','metadata':{'name':'clerk-2'},'spec':{'user':'clerk'}}`)
	w.mustApply(clerk, `{'kind':'User','metadata':{'name':'deputy'},'spec':{'type':'HUMAN','groups':[]}}`)
	w.mustApply(clerk, `{'kind':'Group','metadata':{'name':'blocked','displayName':'Blocked'},'spec':{'authorization':`+denyInline+`}}`) // as it was
	w.token(clerk, "clerk-2")
}

// TestBoundSession is about a Session with policies of its own that deny: whoever
// has it cannot make himself one without them.
func TestBoundSession(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, onAPI("helpers", "a.kind == ^Credential^ && a.verb in [^create^, ^update^]"),
		`{'kind':'Policy','metadata':{'name':'no-nats'},'spec':{'rules':[{'effect':'DENY','condition':{'match':'ctx.service.metadata.name == \u0022nats.default\u0022'}}]}}`,
		`{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN','authorization':{'policies':['helpers']}}}`,
		`{'kind':'Credential','metadata':{'name':'bound'},'spec':{'user':'bob','authorization':`+denyInline+`}}`,
		`{'kind':'Credential','metadata':{'name':'free'},'spec':{'user':'bob'}}`)
	bound, free := w.login(w.token(root, "bound")), w.login(w.token(root, "free"))
	const more = `{'kind':'Credential','metadata':{'name':'more'},'spec':{'user':'bob'}}`
	_, err := w.apply(bound, more)
	needs(t, err, "escalate User bob", "/spec/user")
	w.mustApply(free, more)

	// So is one that is bound to a Device with such policies.
	w.bind(free, "linux-aaaaaaaa", "bob")
	w.must(root, "PATCH", "/api/core/v1/devices/linux-aaaaaaaa", `{"spec":{"authorization":{"policies":["no-nats"]}}}`, nil)
	_, err = w.apply(free, strings.Replace(more, "more", "again", 1))
	needs(t, err, "escalate User bob", "/spec/user")
	needs(t, w.do(free, "POST", "/api/core/v1/credentials/more/token", nil, nil), "escalate User bob", "/spec/user")
}

func TestPolicyEditor(t *testing.T) {
	w, root := newRoot(t)
	policy := func(rules string) string {
		return `{'kind':'Policy','metadata':{'name':'p1'},'spec':{'rules':[` + rules + `]}}`
	}
	const deny = `{'effect':'DENY','condition':{'matchAny':true}}`
	w.mustApply(root, policy(deny), onAPI("editors", "a.kind in [^Policy^, ^Namespace^, ^ClusterConfig^] && a.verb in [^create^, ^update^, ^delete^]"),
		`{'kind':'Namespace','metadata':{'name':'prod'},'spec':{'authorization':{'policies':['p1']}}}`,
		`{'kind':'Namespace','metadata':{'name':'below'},'spec':{'parent':'prod'}}`)
	bob := w.user(root, "bob", "editors")
	for _, tc := range []struct{ doc, want, pointer string }{
		{policy(``), "escalate Policy p1", "/spec"},
		{`{'kind':'Policy','metadata':{'name':'p1'},'spec':{'isDisabled':true,'rules':[` + deny + `]}}`, "escalate Policy p1", "/spec"},
		{`{'kind':'Namespace','metadata':{'name':'prod'}}`, "escalate Policy p1", "/spec/authorization/policies"},
		{`{'kind':'Namespace','metadata':{'name':'prod'},'spec':{'authorization':{'policies':['p1','allow-all']}}}`, "escalate Policy allow-all", "/spec/authorization/policies/1"},
		{`{'kind':'Namespace','metadata':{'name':'below'}}`, "escalate Namespace below", "/spec/parent"},
		{`{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'authorization':{'policies':['allow-all']}}}`, "escalate Policy allow-all", "/spec/authorization/policies/0"},
		{`{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'authorization':` + allowInline + `}}`, "escalate ClusterConfig default", "/spec/authorization/inlinePolicies/0"},
	} {
		_, err := w.apply(bob, tc.doc)
		needs(t, err, tc.want, tc.pointer)
	}
	// A Policy that nobody names gives nothing.
	w.mustApply(bob, strings.Replace(policy(`{'effect':'ALLOW','condition':{'matchAny':true}}`), "p1", "p2", 1),
		strings.Replace(policy(deny), "p1", "p3", 1),
		`{'kind':'Policy','metadata':{'name':'p1','displayName':'One'},'spec':{'rules':[`+deny+`]}}`)
	w.must(bob, "DELETE", "/api/core/v1/policies/p2", nil, nil)
	needs(t, w.do(bob, "DELETE", "/api/core/v1/policies/p3", nil, nil), "escalate Policy p3", "")
	needs(t, w.do(bob, "DELETE", "/api/core/v1/policies/p3?dryRun=true", nil, nil), "escalate Policy p3", "")
	if !w.exists(api.KindPolicy, "p3") {
		t.Error("p3 was deleted")
	}
}

func TestUsePublishApprove(t *testing.T) {
	w, root := newRoot(t)
	const url = `'upstream':{'url':'tls://db.example:5432'}`
	with := func(secret, more string) string {
		return `{'kind':'Service','metadata':{'name':'db'},'spec':{'mode':'TCP','config':{` + url + `,'tls':{'clientCertificate':{'fromSecret':'` + secret + `'}}}` + more + `}}`
	}
	w.mustApply(root, `{'kind':'Secret','metadata':{'name':'s1'},'data':{'value':'a'}}`, `{'kind':'Secret','metadata':{'name':'s2'},'data':{'value':'b'}}`,
		onAPI("devs", "a.kind in [^Service^, ^Session^, ^ClusterConfig^] && a.verb in [^create^, ^update^] || a.verb == ^use^ && a.name == ^s1^"))
	bob := w.user(root, "bob", "devs")
	const pointer = "/spec/config/tls/clientCertificate/fromSecret"
	_, err := w.apply(bob, with("s2", ""))
	needs(t, err, "use Secret s2", pointer)
	_, err = w.apply(bob, with("none", "")) // whether there is one is not told
	needs(t, err, "use Secret none", pointer)
	w.mustApply(bob, with("s1", ""))
	// To say where a Secret goes that somebody else has named is to use it.
	w.mustApply(root, with("s2", ""))
	_, err = w.apply(bob, strings.Replace(with("s2", ""), "db.example", "bob.example", 1))
	needs(t, err, "use Secret s2", pointer)
	_, err = w.apply(bob, strings.Replace(with("s2", ""), `'config'`, `'dynamicConfig':{'configs':[{'name':'other','parent':'default'}]},'config'`, 1))
	needs(t, err, "use Secret s2", "/spec/dynamicConfig/configs/0/tls/clientCertificate/fromSecret")
	w.mustApply(bob, with("s2", `,'isDisabled':true`)) // does not touch it
	_, err = w.apply(bob, `{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'collector':{'url':'http://bob.example:4318','headers':[{'name':'x','fromSecret':'s2'}]}}}`)
	needs(t, err, "use Secret s2", "/spec/collector/headers/0/fromSecret")

	const plain = `{'kind':'Service','metadata':{'name':'web'},'spec':{'mode':'TCP','port':9000,'config':{'upstream':{'url':'tcp://web.example:80'}}}}`
	public := strings.Replace(plain, `'port'`, `'isPublic':true,'isAnonymous':true,'port'`, 1)
	_, err = w.apply(bob, public)
	needs(t, err, "publish Service web.default", "/spec/isAnonymous")
	w.mustApply(root, public)
	_, err = w.apply(bob, strings.Replace(public, "web.example", "bob.example", 1))
	needs(t, err, "publish Service web.default", "/spec/isAnonymous")
	w.mustApply(bob, strings.Replace(public, `'name':'web'`, `'name':'web','displayName':'Web'`, 1)) // its spec is as it was
	w.mustApply(bob, plain)

	session := "/api/core/v1/sessions/" + root.session
	needs(t, w.do(bob, "PATCH", session, `{"spec":{"state":"REJECTED"}}`, nil), "approve Session "+root.session, "/spec/state")
	var out api.WriteResponse
	w.must(bob, "PATCH", session, `{"metadata":{"displayName":"Root's"}}`, &out)
	w.must(root, "PATCH", "/api/core/v1/sessions/"+bob.session, `{"spec":{"state":"PENDING"}}`, &out)
	var s api.Session
	if err := json.Unmarshal(out.Object, &s); err != nil || s.Spec.State != api.SessionPending || s.Status.UserRef.Name != "bob" {
		t.Errorf("got %s, %v", out.Object, err)
	}
}
