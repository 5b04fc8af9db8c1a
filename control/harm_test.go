package control

import (
	"slices"
	"strings"
	"testing"

	"cardea/api"
)

// TestHarm: who changes or deletes what others use is told which of them are not in
// force now.
func TestHarm(t *testing.T) {
	w, root := newRoot(t)
	broken := map[string]string{} // by key: the condition that is False
	w.Live = func(o api.Object) api.Object {
		s, isService := o.(*api.Service)
		if _, ok := o.(api.Routable); !ok && !isService {
			return o
		}
		c := broken[o.Header().Key().String()]
		if isService {
			x := *s
			x.Status.Conditions = []api.StatusCondition{{Type: c, Status: "False", Message: "so it is"}}
			return &x
		}
		x := api.Clone(o).(api.Routable)
		if c != "" {
			x.RouteStatus().Set(c, false, "", "so it is", w.Now())
		}
		return x
	}
	w.handler = w.Handler()
	host := `{'apiVersion':'getambassador.io/v2','kind':'Host','metadata':{'name':'web','namespace':'prod'},'spec':{'hostname':'*.shop.test','tlsContext':{'name':'ctx'}}}`
	w.mustApply(root, tlsSecret("prod", "tls"), tlsSecret("prod", "unused"), tlsContext("prod", "ctx", "tls"), host,
		mapping("prod", "by-host", `,'host':'db.example.com'`), mapping("prod", "by-tls", `,'tls':'ctx'`), mapping("test", "far", `,'tls':'ctx.prod'`),
		mapping("prod", "by-both", `,'host':'a.shop.test'`), mapping("prod", "fine", `,'tls':'ctx'`), mapping("prod", "raw", ""), mapping("prod", "else", `,'host':'else.test'`),
		`{'kind':'Secret','metadata':{'name':'own'},'data':{'value':'x'}}`,
		`{'kind':'Service','metadata':{'name':'web'},'spec':{'mode':'TCP','isPublic':true,'isTLS':true,'public':{'hosts':['a.example.com'],'certificate':{'fromSecret':'own'}},'config':{'upstream':{'url':'tcp://a:1'}}}}`)
	for _, k := range []string{"TCPMapping/prod/by-host", "TCPMapping/prod/by-tls", "TCPMapping/test/far", "TCPMapping/prod/by-both", "TCPMapping/prod/raw", "TCPMapping/prod/else", "TLSContext/prod/ctx", "Host/prod/web"} {
		broken[k] = api.ConditionResolved
	}
	broken["TCPMapping/prod/by-tls"] = api.ConditionAccepted
	broken["Service/web.default"] = api.ConditionResolved
	expect := func(what string, got []api.Problem, want ...string) {
		t.Helper()
		var lines []string
		for _, p := range got {
			if !p.Warning {
				t.Errorf("%s: no warning: %v", what, p)
			}
			lines = append(lines, strings.TrimSuffix(p.String(), ": so it is"))
		}
		slices.Sort(lines)
		slices.Sort(want)
		if !slices.Equal(lines, want) {
			t.Errorf("%s:\ngot  %q\nwant %q", what, lines, want)
		}
	}
	mappings := []string{"TCPMapping/prod/by-host refuses connections now", "TCPMapping/prod/by-tls is not in force now",
		"TCPMapping/test/far refuses connections now", "TCPMapping/prod/by-both refuses connections now"}
	all := append([]string{"TLSContext/prod/ctx is not complete now", "Host/prod/web is not complete now"}, mappings...)

	// A Secret that changes; one that nobody uses; one of ours.
	out := w.mustApply(root, group1, strings.Replace(tlsSecret("prod", "tls"), "'hunter2'", "'hunter3'", 1))
	expect("apply a Secret", out.Warnings, all...)
	if out.Warnings[0].Document != 1 {
		t.Errorf("got %+v", out.Warnings[0])
	}
	expect("apply it again", w.mustApply(root, strings.Replace(tlsSecret("prod", "tls"), "'hunter2'", "'hunter3'", 1)).Warnings)
	expect("apply one of ours", w.mustApply(root, `{'kind':'Secret','metadata':{'name':'own'},'data':{'value':'y'}}`).Warnings, "Service/web.default refuses connections now")
	var one api.WriteResponse
	w.must(root, "DELETE", "/api/kubernetes/v1/secrets/unused?namespace=prod", nil, &one)
	expect("delete one that is not used", one.Warnings)

	// A context that covers a host no more.
	other := strings.Replace(tlsContext("prod", "ctx", "tls"), "db.example.com", "other.test", 1)
	got := w.mustApply(root, other).Warnings
	expect("a context", got, append([]string{"metadata.name: is not complete", "Host/prod/web is not complete now"}, mappings...)...)
	w.mustApply(root, tlsContext("prod", "ctx", "tls"))

	// Whoever may not see them learns that they are.
	w.mustApply(root, onAPI("secrets", "a.kind == ^KubernetesSecret^"))
	bob := w.user(root, "bob", "secrets")
	one = api.WriteResponse{}
	w.must(bob, "DELETE", "/api/kubernetes/v1/secrets/tls?namespace=prod&dryRun=true", nil, &one)
	expect("a dry run", one.Warnings)
	w.must(bob, "DELETE", "/api/kubernetes/v1/secrets/tls?namespace=prod", nil, &one)
	expect("delete what others may not see", one.Warnings, "what you may not see uses it and is not in force now")

	// Deleting.
	one = api.WriteResponse{}
	w.must(root, "DELETE", ambassador+"hosts/web?namespace=prod", nil, &one)
	expect("delete a Host", one.Warnings, "TCPMapping/prod/by-both refuses connections now")
	one = api.WriteResponse{}
	w.must(root, "DELETE", ambassador+"tlscontexts/ctx?namespace=prod", nil, &one)
	expect("delete a context", one.Warnings, "TCPMapping/prod/by-host refuses connections now", "TCPMapping/prod/by-tls is not in force now", "TCPMapping/test/far refuses connections now")
	w.mustSet(root, "one", tlsContext("prod", "ctx", "tls"))
	pruned := w.mustSet(root, "one", group1)
	expect("prune", pruned.Warnings, "TCPMapping/prod/by-host refuses connections now", "TCPMapping/prod/by-tls is not in force now", "TCPMapping/test/far refuses connections now")
	if pruned.Warnings[0].Document != noDocument {
		t.Errorf("got %+v", pruned.Warnings[0])
	}
}
