package control

import (
	"slices"
	"strings"
	"testing"

	"cardea/api"
	"cardea/store"
)

// bind makes a Device of a User and binds a Session to it, as registering does.
func (w *world) bind(p *person, device, user string) {
	w.t.Helper()
	rev, err := w.Store.Update(w.t.Context(), "test", func(tx store.Tx) error {
		d := &api.Device{Head: api.Head{Metadata: api.Metadata{Name: device, UID: newUID(), ResourceVersion: newVersion()}}}
		d.Status.UserRef = api.Ref{Kind: api.KindUser, Name: user}
		d.Default()
		if err := put(tx, d); err != nil {
			return err
		}
		s, err := store.Get[*api.Session](tx, coreKey(api.KindSession, p.session))
		if err != nil {
			return err
		}
		ref := d.Ref()
		s.Status.DeviceRef = &ref
		return put(tx, s)
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.Await(w.t.Context(), rev); err != nil {
		w.t.Fatal(err)
	}
}

func TestSecretsInUse(t *testing.T) {
	w, root := newRoot(t)
	for _, s := range []string{"s1", "s2", "s3", "s4"} {
		w.mustApply(root, `{'kind':'Secret','metadata':{'name':'`+s+`'},'data':{'value':'a'}}`)
	}
	const db = `{'kind':'Service','metadata':{'name':'db'},'spec':{'mode':'TCP','config':{'upstream':{'url':'tls://db.example:1'},'tls':{'clientCertificate':{'fromSecret':'s1'}}},
		'dynamicConfig':{'configs':[{'name':'old','upstream':{'url':'tls://old.example:1'},'clientCertificate':{'fromSecret':'s2'}}]}}}`
	const cc = `{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'collector':{'url':'grpc://otel.example:4317','headers':[{'name':'a','value':'b'},{'name':'k','fromSecret':'s3'}]}}}`
	w.mustApply(root, db, cc)
	for doc, want := range map[string]string{
		strings.Replace(db, "'s1'", "'s9'", 1): `spec.config.tls.clientCertificate.fromSecret: must name a Secret that exists, found "s9"; allowed: s1, s2, s3, s4`,
		strings.Replace(db, "'s2'", "'s9'", 1): `spec.dynamicConfig.configs[0].clientCertificate.fromSecret: must name a Secret that exists, found "s9"`,
		strings.Replace(cc, "'s3'", "'s9'", 1): `spec.collector.headers[1].fromSecret: must name a Secret that exists, found "s9"`,
	} {
		_, err := w.apply(root, doc)
		if got := problems(err); !api.HasCode(err, api.CodeInvalid) || len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	for secret, by := range map[string]string{"s1": "Service/db.default", "s2": "Service/db.default", "s3": "ClusterConfig/default"} {
		if err := w.do(root, "DELETE", "/api/core/v1/secrets/"+secret, nil, nil); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "is in use by "+by) {
			t.Errorf("%s: %v", secret, err)
		}
	}
	w.must(root, "DELETE", "/api/core/v1/secrets/s4", nil, nil)

	// A Secret may be bound to a Service that is made later.
	out := w.mustApply(root, `{'kind':'Secret','metadata':{'name':'s5'},'spec':{'bind':{'services':['db','later']}},'data':{'value':'a'}}`)
	if len(out.Warnings) != 0 {
		t.Errorf("got %+v", out.Warnings)
	}
	// The cluster's own Secrets are there, and for nobody to name or to hear of.
	_, err := w.apply(root, strings.Replace(cc, "'s3'", "'cluster-ca'", 1))
	if got := problems(err); len(got) != 1 || !strings.Contains(got[0], "must name a Secret that exists") || strings.Contains(strings.Join(got, ""), "allowed: cluster") {
		t.Errorf("the cluster's own Secret: %v", err)
	}
}

func TestDeviceAndItsSessions(t *testing.T) {
	w, root := newRoot(t)
	alice, bob := w.user(root, "alice"), w.user(root, "bob")
	w.bind(alice, "linux-aaaaaaaa", "alice")
	w.bind(bob, "linux-bbbbbbbb", "bob")
	w.must(root, "PATCH", "/api/core/v1/devices/linux-bbbbbbbb", `{"spec":{"authorization":{"policies":["deny-all"]}}}`, nil)
	w.must(root, "DELETE", "/api/core/v1/devices/linux-bbbbbbbb", nil, nil)
	if w.exists(api.KindSession, bob.session) || !w.exists(api.KindUser, "bob") || !w.exists(api.KindSession, alice.session) {
		t.Error("with a Device go its Sessions, and nothing else")
	}
	w.must(root, "DELETE", "/api/core/v1/users/alice", nil, nil)
	if w.exists(api.KindDevice, "linux-aaaaaaaa") || w.exists(api.KindSession, alice.session) {
		t.Error("with a User go his Devices")
	}
	w.must(root, "DELETE", "/api/core/v1/users/bob", nil, nil)
}

// TestClaims is about what only one Object may have.
func TestClaims(t *testing.T) {
	w, root := newRoot(t)
	public := func(name, port, url string) string {
		return `{'kind':'Service','metadata':{'name':'` + name + `'},'spec':{'mode':'TCP','isPublic':true,'isAnonymous':true,` + port + `'config':{'upstream':{'url':'` + url + `'}}}}`
	}
	user := func(name, email string) string {
		return `{'kind':'User','metadata':{'name':'` + name + `'},'spec':{'type':'HUMAN','email':'` + email + `'}}`
	}
	w.mustApply(root, public("web", "", "tcp://a.example:8080"), strings.Replace(service, "4222", "8080", 1), user("alice", "a.b@x.io"),
		`{'kind':'Namespace','metadata':{'name':'prod'}}`)
	for _, tc := range []struct {
		name string
		docs []string
		want []string
	}{
		{"a port", []string{public("web2", "'port':8080,", "tcp://b.example:1")}, []string{`spec.port: must be a port that no other public Service has, found "8080" (it is that of Service web.default)`}},
		{"a port of the URL", []string{public("web2", "", "tcp://b.example:8080")}, []string{`spec.port: must be a port`}},
		{"two at once", []string{public("web3", "", "tcp://b.example:99"), public("web4", "", "tcp://b.example:99")},
			[]string{`spec.port: must be a port that no other public Service has, found "99" (it is that of Service web4.default)`, `spec.port: must be a port that no other public Service has, found "99" (it is that of Service web3.default)`}},
		{"an address", []string{user("bob", "a.b@x.io")}, []string{`spec.email: must be an address that no other User has, found "a.b@x.io" (it is that of User alice)`}},
		{"a Service as a Namespace", []string{tcpService("prod", "")}, []string{`metadata.name: must not be that of the Namespace prod, found "prod"`}},
		{"a Namespace as a Service", []string{`{'kind':'Namespace','metadata':{'name':'nats'}}`}, []string{`metadata.name: must not be that of the Service nats.default, found "nats"`}},
		{"both at once", []string{`{'kind':'Namespace','metadata':{'name':'twin'}}`, tcpService("twin", "")}, []string{`metadata.name: must not be that of the Service twin.default`, `metadata.name: must not be that of the Namespace twin`}},
		{"twice", []string{user("bob", "b@x.io"), group1, user("bob", "c@x.io")}, []string{`metadata.name: must not be there twice: document 1 of the request is this User too, found "bob"`}},
	} {
		before := w.revision()
		_, err := w.apply(root, tc.docs...)
		if got := problems(err); !api.HasCode(err, api.CodeInvalid) || !slices.EqualFunc(got, tc.want, strings.HasPrefix) {
			t.Errorf("%s: got %q of %v", tc.name, got, err)
		}
		if w.revision() != before {
			t.Errorf("%s: something was written", tc.name)
		}
	}
	w.mustApply(root, user("bob", "a-b@x.io"), tcpService("prod.prod", ""), public("web2", "", "tcp://b.example:8081"))
	w.mustApply(root, user("alice", "a-b@x.io"), user("bob", "a.b@x.io")) // they swap
	w.mustApply(root, public("web", "", "tcp://c.example:8080"))
	var many []string // more than are looked for one by one
	for i := range 200 {
		many = append(many, user("user-"+strings.Repeat("a", i%30+1)+string(rune('a'+i/30)), "a.b@x.io"))
	}
	if _, err := w.apply(root, many...); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("got %v", err)
	}
}

// TestNobodyElseIsTheAPI is about Services in the Namespace of the system.
func TestNobodyElseIsTheAPI(t *testing.T) {
	w, root := newRoot(t)
	for _, doc := range []string{tcpService("api.cardea", ""), tcpService("mine.cardea", "")} {
		if _, err := w.apply(root, doc); !api.HasCode(err, api.CodeInvalid) {
			t.Errorf("%s: %v", doc, err)
		}
	}
}

func TestDeniedServices(t *testing.T) {
	w, root := newRoot(t)
	policy := func(name, rules string) string {
		return strings.Replace(tcpService(name, ""), "'spec':{", "'spec':{'authorization':{'inlinePolicies':[{'spec':{'rules':["+rules+"]}}]},", 1)
	}
	const bobs = `{'effect':'ALLOW','condition':{'match':'ctx.user.metadata.name == \u0022carol\u0022'}}`
	w.mustApply(root, tcpService("far", ""), policy("near", bobs), policy("no", `{'effect':'DENY','message':'ask ops','condition':{'matchAny':true}}`),
		policy("open", `{'effect':'ALLOW','condition':{'matchAny':true}}`), policy("hidden", bobs),
		strings.Replace(policy("off", `{'effect':'ALLOW','condition':{'matchAny':true}}`), "'spec':{", "'spec':{'isDisabled':true,", 1),
		onAPI("lookers", "a.verb == ^get^ && a.kind == ^Service^ && a.name != ^hidden.default^"))
	bob, nobody := w.user(root, "bob", "lookers"), w.user(root, "nobody")
	var out api.Reachable
	w.must(bob, "GET", "/api/self/services?denied=true", nil, &out)
	want := []api.DeniedService{
		{Name: "off.default", Mode: api.ModeTCP, Reason: api.ReasonServiceDisabled},
		{Name: "near.default", Mode: api.ModeTCP, Reason: api.ReasonNoPolicyMatch},
		{Name: "no.default", Mode: api.ModeTCP, Reason: api.ReasonPolicyMatch, Message: "ask ops"},
		{Name: "far.default", Mode: api.ModeTCP, Reason: api.ReasonNoPolicyMatch},
	}
	if !slices.Equal(out.Denied, want) || len(out.Items) != 1 || out.Items[0].Name != "open.default" || out.Domain != testDomain {
		t.Errorf("got %+v", out)
	}
	for who, path := range map[*person]string{bob: "/api/self/services", nobody: "/api/self/services?denied=true"} {
		out = api.Reachable{}
		w.must(who, "GET", path, nil, &out)
		if out.Denied != nil || len(out.Items) != 1 {
			t.Errorf("%s: %+v", path, out)
		}
	}
}

func TestWhyAnonymous(t *testing.T) {
	w, root := newRoot(t)
	const web = `{'kind':'Service','metadata':{'name':'web'},'spec':{'mode':'TCP','isPublic':true,'isAnonymous':true,'config':{'upstream':{'url':'tcp://127.0.0.1:80'}}}}`
	w.mustApply(root, web, service)
	var x api.Explanation
	w.must(root, "POST", "/api/why", api.WhyRequest{Subject: "anonymous", Service: "web"}, &x)
	if !x.Decision.Allowed() || x.Decision.Reason != api.ReasonAnonymous || x.Hypothetical {
		t.Errorf("got %+v", x)
	}
	x = api.Explanation{}
	w.must(root, "POST", "/api/why", api.WhyRequest{Subject: "anonymous", Service: "nats"}, &x)
	if x.Decision.Allowed() || len(x.Hints) == 0 {
		t.Errorf("got %+v", x)
	}
}
