package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

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
		{"names a Policy", self(`'staff','blocked'`, `{'policies':['clerks','no-nats','api-full-access']}`), "attach Policy api-full-access", "/spec/authorization/policies/2"},
		{"writes a policy", self(`'staff','blocked'`, `{'policies':['clerks','no-nats'],'inlinePolicies':[{'spec':{'rules':[{'effect':'ALLOW','condition':{'matchAny':true}}]}}]}`),
			"escalate User clerk", "/spec/authorization/inlinePolicies/0"},
		{"joins a Group", self(`'staff','blocked','admins'`, own), "join Group admins", "/spec/groups/2"},
		{"leaves a Group that denies", self(`'staff'`, own), "join Group blocked", "/spec/groups"},
		{"drops a Policy that denies", self(`'staff','blocked'`, `{'policies':['clerks']}`), "escalate User clerk", "/spec/authorization/policies"},
		{"gives his Group a Policy", `{'kind':'Group','metadata':{'name':'staff'},'spec':{'authorization':{'policies':['api-full-access']}}}`,
			"attach Policy api-full-access", "/spec/authorization/policies/0"},
		{"writes a policy into his Group", `{'kind':'Group','metadata':{'name':'staff'},'spec':{'authorization':` + allowInline + `}}`,
			"escalate Group staff", "/spec/authorization/inlinePolicies/0"},
		{"takes a policy out of his Group", `{'kind':'Group','metadata':{'name':'blocked'}}`, "escalate Group blocked", "/spec/authorization/inlinePolicies"},
		{"makes a User with a Policy", `{'kind':'User','metadata':{'name':'mole'},'spec':{'type':'HUMAN','authorization':{'policies':['api-full-access']}}}`,
			"attach Policy api-full-access", "/spec/authorization/policies/0"},
		{"makes a User in a Group", `{'kind':'User','metadata':{'name':'mole'},'spec':{'type':'HUMAN','groups':['admins']}}`, "join Group admins", "/spec/groups/0"},
		{"makes a Group with a Policy", `{'kind':'Group','metadata':{'name':'moles'},'spec':{'authorization':{'policies':['allow-all']}}}`,
			"attach Policy allow-all", "/spec/authorization/policies/0"},
		{"lets somebody in again", `{'kind':'User','metadata':{'name':'off'},'spec':{'type':'HUMAN'}}`, "impersonate User off", "/spec/isDisabled"},
		{"makes a Credential of root", `{'kind':'Credential','metadata':{'name':'mole'},'spec':{'user':'root'}}`, "impersonate User root", "/spec/user"},
		{"enables a Credential of root", `{'kind':'Credential','metadata':{'name':'root-spare'},'spec':{'user':'root'}}`, "impersonate User root", "/spec/user"},
		{"makes a Credential with a Policy", `{'kind':'Credential','metadata':{'name':'mole'},'spec':{'user':'clerk','authorization':{'policies':['api-full-access']}}}`,
			"attach Policy api-full-access", "/spec/authorization/policies/0"},
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
		{"PATCH", "/api/core/v1/users/clerk", `{"spec":{"groups":["staff","blocked","admins"]}}`, "join Group admins", "/spec/groups/2"},
		{"PUT", "/api/core/v1/groups/staff", `{"kind":"Group","metadata":{"name":"staff"},"spec":{"authorization":{"policies":["allow-all"]}}}`,
			"attach Policy allow-all", "/spec/authorization/policies/0"},
	} {
		needs(t, w.do(clerk, tc.method, tc.path, tc.body, nil), tc.want, tc.pointer)
	}
	needs(t, w.do(clerk, "POST", "/api/core/v1/credentials/root-spare/token", nil, nil), "impersonate User root", "/spec/user")

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
	needs(t, err, "impersonate User bob", "/spec/user")
	w.mustApply(free, more)

	// So is one that is bound to a Device with such policies.
	w.bind(free, "linux-aaaaaaaa", "bob")
	w.must(root, "PATCH", "/api/core/v1/devices/linux-aaaaaaaa", `{"spec":{"authorization":{"policies":["no-nats"]}}}`, nil)
	_, err = w.apply(free, strings.Replace(more, "more", "again", 1))
	needs(t, err, "impersonate User bob", "/spec/user")
	needs(t, w.do(free, "POST", "/api/core/v1/credentials/more/token", nil, nil), "impersonate User bob", "/spec/user")
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
		{`{'kind':'Namespace','metadata':{'name':'prod'}}`, "escalate Namespace prod", "/spec/authorization/policies"},
		{`{'kind':'Namespace','metadata':{'name':'prod'},'spec':{'authorization':{'policies':['p1','allow-all']}}}`, "attach Policy allow-all", "/spec/authorization/policies/1"},
		{`{'kind':'Namespace','metadata':{'name':'below'}}`, "escalate Namespace below", "/spec/parent"},
		{`{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'authorization':{'policies':['allow-all']}}}`, "attach Policy allow-all", "/spec/authorization/policies/0"},
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

// TestSubjects is about what policies read of those about whom they are, and about
// the terms of Sessions: somebody who may update all of it can change neither.
func TestSubjects(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, onAPI("keepers", "a.kind in [^User^, ^Group^, ^Session^, ^Device^, ^Namespace^, ^ClusterConfig^] && a.verb in [^get^, ^create^, ^update^]"),
		`{'kind':'User','metadata':{'name':'ann','tags':['t1'],'labels':{'team':'red'}},'spec':{'type':'HUMAN','email':'ann@x.io'}}`,
		`{'kind':'Credential','metadata':{'name':'ann'},'spec':{'user':'ann'}}`,
		`{'kind':'Group','metadata':{'name':'staff'}}`, `{'kind':'Namespace','metadata':{'name':'prod'}}`)
	ann := w.login(w.token(root, "ann"))
	w.bind(ann, "linux-aaaaaaaa", "ann")
	keeper := w.user(root, "keeper", "keepers")
	w.config(root, `{'collector':{'url':'http://logs.example:4318'}}`)
	session := "sessions/" + ann.session
	ends := get[*api.Session](w, api.KindSession, ann.session).Spec.ExpiresAt
	at := func(d time.Duration) string {
		return `{"spec":{"expiresAt":"` + ends.Add(d).Format(time.RFC3339) + `"}}`
	}
	for _, tc := range []struct{ path, patch, want, pointer string }{
		{"users/ann", `{"metadata":{"labels":{"team":"blue"}}}`, "escalate User ann", "/metadata/labels"},
		{"users/ann", `{"metadata":{"labels":null}}`, "escalate User ann", "/metadata/labels"},
		{"users/ann", `{"metadata":{"tags":["t1","t2"]}}`, "escalate User ann", "/metadata/tags"},
		{"users/ann", `{"metadata":{"annotations":{"k1":"v"}}}`, "escalate User ann", "/metadata/annotations"},
		{"users/ann", `{"spec":{"attrs":{"level":1}}}`, "escalate User ann", "/spec/attrs"},
		{"users/ann", `{"spec":{"email":null}}`, "escalate User ann", "/spec/email"},
		{"users/ann", `{"spec":{"type":"WORKLOAD"}}`, "escalate User ann", "/spec/type"},
		{"users/ann", `{"spec":{"session":{"maxPerUser":99}}}`, "approve User ann", "/spec/session"},
		{"groups/staff", `{"spec":{"attrs":{"level":1}}}`, "escalate Group staff", "/spec/attrs"},
		{"groups/staff", `{"metadata":{"tags":["oncall"]}}`, "escalate Group staff", "/metadata/tags"},
		{"namespaces/prod", `{"spec":{"attrs":{"pci":true}}}`, "escalate Namespace prod", "/spec/attrs"},
		{session, `{"metadata":{"labels":{"team":"blue"}}}`, "escalate Session " + ann.session, "/metadata/labels"},
		{session, at(time.Minute), "approve Session " + ann.session, "/spec/expiresAt"},
		{session, at(-time.Minute), "delete Session " + ann.session, "/spec/expiresAt"},
		{"devices/linux-aaaaaaaa", `{"metadata":{"labels":{"team":"blue"}}}`, "escalate Device linux-aaaaaaaa", "/metadata/labels"},
		{"clusterconfigs/default", `{"spec":{"session":{"human":{"maxPerUser":99}}}}`, "approve ClusterConfig default", "/spec/session"},
		{"clusterconfigs/default", `{"spec":{"device":{"human":{"defaultState":"PENDING"}}}}`, "approve ClusterConfig default", "/spec/device"},
		{"clusterconfigs/default", `{"spec":{"collector":{"url":"http://keeper.example:4318"}}}`, "logs", "/spec/collector"},
		{"clusterconfigs/default", `{"spec":{"dns":{"hosts":{"logs.example":["192.0.2.66"]}}}}`, "logs", "/spec/dns/hosts"},
		{"clusterconfigs/default", `{"spec":{"audit":{"retention":{"maxAge":{"hours":1}}}}}`, "logs", "/spec/audit"},
	} {
		needs(t, w.do(keeper, "PATCH", "/api/core/v1/"+tc.path, tc.patch, nil), tc.want, tc.pointer)
		if err := w.do(root, "PATCH", "/api/core/v1/"+tc.path+"?dryRun=true", tc.patch, nil); err != nil {
			t.Errorf("root: %s of %s: %v", tc.patch, tc.path, err)
		}
	}
	for _, tc := range []struct{ doc, want, pointer string }{
		{`{'kind':'Group','metadata':{'name':'new','tags':['oncall']}}`, "escalate Group new", "/metadata/tags"},
		{`{'kind':'User','metadata':{'name':'new'},'spec':{'type':'HUMAN','attrs':{'level':9}}}`, "escalate User new", "/spec/attrs"},
		{`{'kind':'User','metadata':{'name':'new'},'spec':{'type':'HUMAN','session':{'clientDuration':{'months':12}}}}`, "approve User new", "/spec/session"},
	} {
		_, err := w.apply(keeper, tc.doc)
		needs(t, err, tc.want, tc.pointer)
	}
	w.mustApply(keeper, `{'kind':'User','metadata':{'name':'new','displayName':'New'},'spec':{'type':'WORKLOAD','email':'new@x.io'}}`,
		`{'kind':'Namespace','metadata':{'name':'lab'},'spec':{'parent':'prod'}}`)
	w.must(keeper, "PATCH", "/api/core/v1/users/ann", `{"metadata":{"displayName":"Ann"},"spec":{"isDisabled":true}}`, nil)
}

// TestDeleteSheds is about somebody who may delete and create: what he makes again
// would be without what restricted it.
func TestDeleteSheds(t *testing.T) {
	w, root := newRoot(t)
	w.config(root, `{'session':{'workload':{'defaultState':'PENDING'}}}`)
	w.mustApply(root, onAPI("cleaners", "a.verb == ^delete^ || a.verb in [^get^, ^create^, ^update^] && a.kind in [^User^, ^Group^]"),
		`{'kind':'Group','metadata':{'name':'blocked'},'spec':{'authorization':`+denyInline+`}}`,
		`{'kind':'Policy','metadata':{'name':'no-nats'},'spec':{'rules':[{'effect':'DENY','condition':{'matchAny':true}}]}}`,
		`{'kind':'User','metadata':{'name':'off'},'spec':{'type':'HUMAN','isDisabled':true}}`,
		`{'kind':'User','metadata':{'name':'bound'},'spec':{'type':'HUMAN','authorization':{'policies':['no-nats']}}}`,
		`{'kind':'User','metadata':{'name':'kept'},'spec':{'type':'HUMAN','groups':['blocked']}}`,
		`{'kind':'User','metadata':{'name':'short'},'spec':{'type':'HUMAN','session':{'clientDuration':{'hours':1}}}}`,
		`{'kind':'User','metadata':{'name':'plain','labels':{'team':'red'}},'spec':{'type':'HUMAN'}}`,
		`{'kind':'User','metadata':{'name':'owner'},'spec':{'type':'HUMAN'}}`,
		`{'kind':'User','metadata':{'name':'robot'},'spec':{'type':'WORKLOAD'}}`,
		`{'kind':'Credential','metadata':{'name':'robot'},'spec':{'user':'robot'}}`,
		`{'kind':'Credential','metadata':{'name':'plain'},'spec':{'user':'plain'}}`,
		`{'kind':'Credential','metadata':{'name':'bound'},'spec':{'user':'owner','authorization':`+denyInline+`}}`,
		`{'kind':'Credential','metadata':{'name':'revoked'},'spec':{'user':'plain','isDisabled':true}}`)
	cleaner := w.user(root, "cleaner", "cleaners")
	plain, robot, bound := w.login(w.token(root, "plain")), w.login(w.token(root, "robot")), w.login(w.token(root, "bound"))
	w.bind(plain, "linux-aaaaaaaa", "plain")
	w.must(root, "PATCH", "/api/core/v1/devices/linux-aaaaaaaa", `{"spec":{"state":"REJECTED"}}`, nil)
	for _, tc := range []struct{ path, want string }{
		{"users/off", "impersonate User off"},
		{"users/bound", "escalate User bound"},
		{"users/kept", "join Group blocked"},
		{"users/short", "approve User short"},
		{"groups/blocked", ""}, // is in use
		{"policies/no-nats", ""},
		{"credentials/revoked", "impersonate User plain"},
		{"credentials/bound", "escalate Credential bound"},
		{"devices/linux-aaaaaaaa", "approve Device linux-aaaaaaaa"},
		{"sessions/" + robot.session, "approve Session " + robot.session},
	} {
		before := w.revision()
		err := w.do(cleaner, "DELETE", "/api/core/v1/"+tc.path, nil, nil)
		if tc.want == "" {
			if !api.HasCode(err, api.CodeConflict) {
				t.Errorf("%s: %v", tc.path, err)
			}
			continue
		}
		needs(t, err, tc.want, "")
		if w.revision() != before {
			t.Errorf("%s was deleted", tc.path)
		}
	}
	// What goes along counts, and is not named to whoever may not see it.
	for _, name := range []string{"plain", "robot", "owner"} {
		err := w.do(cleaner, "DELETE", "/api/core/v1/users/"+name, nil, nil)
		if !api.HasCode(err, api.CodePermissionDenied) || err.Error() != "not allowed: it would delete what you may not see" || !w.exists(api.KindUser, name) {
			t.Errorf("User %s: %v", name, err)
		}
	}
	// Whoever logs out is asked for nothing.
	w.must(bound, "POST", "/api/logout", nil, nil)
	w.must(root, "DELETE", "/api/core/v1/credentials/bound", nil, nil)
	w.must(cleaner, "DELETE", "/api/core/v1/users/owner", nil, nil)

	// The same by a prune.
	docs := []string{`{'kind':'Group','metadata':{'name':'old'},'spec':{'authorization':` + denyInline + `}}`, `{'kind':'Group','metadata':{'name':'keep'}}`}
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: documents(docs...), Set: "s1"}, nil)
	prune := api.ApplyRequest{Documents: documents(docs[1]), Set: "s1", Prune: true}
	needs(t, w.do(cleaner, "POST", "/api/apply", prune, nil), "escalate Group old", "")
	w.must(root, "POST", "/api/apply", prune, nil)
}

// TestRefusalsTellNothing is about Objects that the caller may not see: what he is
// told does not depend on whether they are there, and does not name them.
func TestRefusalsTellNothing(t *testing.T) {
	w, root := newRoot(t)
	public := func(name string) string {
		return `{'kind':'Service','metadata':{'name':'` + name + `'},'spec':{'mode':'TCP','isPublic':true,'isAnonymous':true,'port':9000,'config':{'upstream':{'url':'tcp://a.example:1'}}}}`
	}
	w.mustApply(root, `{'kind':'Namespace','metadata':{'name':'prod'}}`, `{'kind':'Namespace','metadata':{'name':'lab'}}`, public("hidden.prod"), tcpService("taken.default", ""),
		`{'kind':'User','metadata':{'name':'hidden'},'spec':{'type':'HUMAN'}}`,
		onAPI("labs", "a.kind == ^Service^ && a.namespace == ^lab^ || a.verb == ^publish^ || a.kind == ^Namespace^ && a.verb in [^create^, ^delete^]"))
	bob := w.user(root, "bob", "labs")
	user := func(name string) string {
		return `{'kind':'User','metadata':{'name':'` + name + `'},'spec':{'type':'WORKLOAD'}}`
	}
	for _, name := range []string{"hidden", "nobody"} {
		_, err := w.apply(bob, user(name))
		if !api.HasCode(err, api.CodePermissionDenied) || err.Error() != "not allowed: write User "+name {
			t.Errorf("User %s: %v", name, err)
		}
	}
	_, err := w.apply(bob, public("mine.lab"))
	if got := problems(err); len(got) != 1 || strings.Contains(got[0], "hidden") {
		t.Errorf("a port that is taken: %v", err)
	}
	_, err = w.apply(bob, `{'kind':'Namespace','metadata':{'name':'taken'}}`)
	if got := problems(err); len(got) != 1 || strings.Contains(got[0], "Service") {
		t.Errorf("a name that is taken: %v", err)
	}
	if err := w.do(bob, "DELETE", "/api/core/v1/namespaces/prod", nil, nil); !api.HasCode(err, api.CodeConflict) || strings.Contains(err.Error(), "hidden") {
		t.Errorf("what is in use: %v", err)
	}
	// A prune, of a set of which he may see a part.
	docs := documents(tcpService("mine.lab", ""), `{'kind':'Group','metadata':{'name':'secret-group'}}`)
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: docs, Set: "s1"}, nil)
	err = w.do(bob, "POST", "/api/apply", api.ApplyRequest{Documents: docs[:1], Set: "s1", Prune: true}, nil)
	if !api.HasCode(err, api.CodePermissionDenied) || strings.Contains(err.Error(), "secret-group") {
		t.Errorf("a prune: %v", err)
	}
	docs = documents(tcpService("other.lab", ""), `{'kind':'Namespace','metadata':{'name':'gone'}}`)
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: docs, Set: "s2"}, nil)
	var out api.ApplyResponse
	w.must(bob, "POST", "/api/apply", api.ApplyRequest{Documents: docs[:1], Set: "s2", Prune: true, Diff: true}, &out)
	if len(out.Results) != 2 || out.Results[1].Action != api.ActionDeleted || out.Results[1].Before != nil {
		t.Errorf("a prune of what he may delete and not see: %+v", out.Results)
	}
}

// TestWhyTells is about what an explanation shows to whoever may not see all.
func TestWhyTells(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1, alice, service,
		onAPI("askers", "a.verb == ^why^"), onAPI("seers", "a.verb == ^get^ && a.kind == ^User^"))
	asker, seer := w.user(root, "asker", "askers"), w.user(root, "seer", "askers", "seers")
	auditor := w.user(root, "auditor", "askers", "api-read-only")
	why := func(who *person, subject string) (x api.Explanation, err error) {
		return x, w.do(who, "POST", "/api/why", api.WhyRequest{Subject: subject, Service: "nats"}, &x)
	}
	for _, subject := range []string{"alice", "bob", "session/" + root.session, "session/root-zzzzzz"} {
		if _, err := why(asker, subject); !api.HasCode(err, api.CodeNotFound) {
			t.Errorf("about %s: %v", subject, err)
		}
	}
	for who, subject := range map[*person]string{asker: "asker", seer: "alice"} {
		x, err := why(who, subject)
		if err != nil || x.Decision.Effect == "" || x.Steps != nil || x.Decision.DependsOn != nil || x.Decision.Rule != nil || x.Decision.Config != nil || len(x.Hints) != 1 {
			t.Errorf("about %s: %+v, %v", subject, x, err)
		}
		if b := string(must(json.Marshal(x))); strings.Contains(b, "ctx.") {
			t.Errorf("it shows %s", b)
		}
	}
	if x, err := why(seer, "root"); err != nil || !x.Hypothetical {
		t.Errorf("a Session that may not be seen: %+v, %v", x, err)
	}
	if x, err := why(auditor, "alice"); err != nil || len(x.Steps) == 0 || !x.Decision.Allowed() || x.Decision.Rule == nil {
		t.Errorf("by an auditor: %+v, %v", x, err)
	}
}

// TestManyMistakes is about as many wrong names as one apply can have: only the
// first few are answered with what may have been meant.
func TestManyMistakes(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, group1)
	var docs []string
	for i := range 200 {
		docs = append(docs, fmt.Sprintf(`{'kind':'User','metadata':{'name':'user-%d'},'spec':{'type':'HUMAN','groups':['grup-%d']}}`, i, i))
	}
	_, err := w.apply(root, docs...)
	suggested := 0
	for _, p := range problems(err) {
		if strings.Contains(p, "group-1") {
			suggested++
		}
	}
	if suggested != maxMeant || len(problems(err)) < maxProblems {
		t.Errorf("%d of %d problems say what was meant", suggested, len(problems(err)))
	}
}
