package control

import (
	"errors"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/policy/local"
	"cardea/store"
)

func TestBootstrap(t *testing.T) {
	w, first := newWorld(t)
	// What the first start makes is what a person could have written.
	for _, o := range w.founding("a-region") {
		p := new(api.Problems)
		o.Validate(p)
		local.Check(p, o)
		if len(p.List) > 0 {
			t.Errorf("%s: %v", o.Header().Key(), p.List)
		}
		var got api.Object
		err := w.Store.View(t.Context(), func(r store.Reader) (err error) {
			got, err = store.Get[api.Object](r, o.Header().Key())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if m := got.Header().Metadata; !m.IsSystem || m.UID == "" || m.ResourceVersion == "" || m.CreatedAt.IsZero() {
			t.Errorf("%s has the metadata %+v", o.Header().Key(), m)
		}
	}
	cc := get[*api.ClusterConfig](w, api.KindClusterConfig, api.ClusterConfigName)
	if cc.Status.Domain != testDomain || cc.Status.RegionUID == "" {
		t.Errorf("the ClusterConfig has the status %+v", cc.Status)
	}

	// Until root has logged in, each start has a token, the latest of which counts.
	second, err := w.Bootstrap(t.Context())
	if err != nil || second == "" || second == first {
		t.Fatalf("second start: %q, %v", second, err)
	}
	if got := get[*api.ClusterConfig](w, api.KindClusterConfig, api.ClusterConfigName); got.Metadata.UID != cc.Metadata.UID {
		t.Error("the second start replaced the ClusterConfig")
	}
	old := api.LoginRequest{Token: first, CSR: newPerson(t).csr(t)}
	if err := w.do(nil, "POST", "/api/login", old, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("the first token: %v", err)
	}
	w.login(second)
	if third, err := w.Bootstrap(t.Context()); third != "" || err != nil {
		t.Errorf("a start after root logged in: %q, %v", third, err)
	}
	w.clock.advance(24 * time.Hour)
	if third, err := w.Bootstrap(t.Context()); third != "" || err != nil {
		t.Errorf("a start a day later: %q, %v", third, err)
	}

	w.Domain = "other.example"
	if _, err := w.Bootstrap(t.Context()); err == nil || !strings.Contains(err.Error(), testDomain) {
		t.Errorf("another domain: %v", err)
	}
}

func TestRecover(t *testing.T) {
	w, root := newRoot(t)
	w.must(root, "POST", "/api/apply?allowLockout=true", api.ApplyRequest{Documents: documents(
		`{'kind':'User','metadata':{'name':'root'},'spec':{'type':'HUMAN','isDisabled':true}}`)}, nil)
	if err := w.do(root, "GET", "/api/self", nil, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Fatalf("a disabled User: %v", err)
	}
	done, err := w.Recover(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	token := done.Token
	if err := w.Await(t.Context(), w.revision()); err != nil {
		t.Fatal(err)
	}
	if len(done.Changes) != 2 || !strings.Contains(done.Changes[0], "root was disabled") || !strings.Contains(done.Changes[1], "api-full-access") {
		t.Errorf("it says that it changed %q", done.Changes)
	}
	recs := w.journal.all()
	for i, name := range []string{api.RootUser, rootLogin} {
		r := recs[len(recs)-2+i]
		if a := r.Entry.Info.API; a.Verb != verbUpdate || a.Name != name || r.Metadata.ActorRef != nil ||
			!strings.Contains(r.Entry.Common.Reason.Words, "cardea recover") || strings.Contains(string(a.After), "tokenSHA256") {
			t.Errorf("the record of %s is %+v", name, r.Entry)
		}
	}
	w.mustApply(w.login(token), group1)
	if err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: token, CSR: newPerson(t).csr(t)}, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("the token a second time: %v", err)
	}
}

// obstructed puts everything into root's way that people can put there.
func obstructed(t *testing.T) *world {
	w, root := newRoot(t)
	w.Proposed = proposed(t, w)
	w.must(root, "POST", "/api/apply?allowLockout=true", api.ApplyRequest{Documents: documents(
		group1,
		`{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'authorization':{'policies':['deny-all'],
			'inlinePolicies':[{'name':'freeze','spec':{'rules':[{'effect':'DENY','condition':{'matchAny':true}}]}}]}}}`,
		`{'kind':'User','metadata':{'name':'root'},'spec':{'type':'HUMAN','groups':['group-1'],'authorization':{'policies':['deny-all']}}}`)}, nil)
	return w
}

func TestRecoverReset(t *testing.T) {
	w := obstructed(t)
	before, records := w.revision(), len(w.journal.all())
	if _, err := w.Recover(t.Context(), false); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("without reset: %v", err)
	}
	if w.revision() != before || len(w.journal.all()) != records {
		t.Error("a recovery that failed left something behind")
	}
	done, err := w.Recover(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Join(done.Changes, "\n")
	for _, want := range []string{
		"User root did not name the Policy api-full-access, and does again.",
		"ClusterConfig default named the Policy deny-all, and does not any more.",
		"ClusterConfig default had the inline policy 1 freeze, and does not any more.",
		"User root was in the Group group-1, and is not any more.",
		"User root named the Policy deny-all, and does not any more.",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("it does not say %q: %s", want, all)
		}
	}
	if got := len(w.journal.all()) - records; len(done.Changes) != 5 || got != 3 {
		t.Errorf("it says %d changes and made %d records: %s", len(done.Changes), got, all)
	}
	if err := w.Await(t.Context(), w.revision()); err != nil {
		t.Fatal(err)
	}
	w.mustApply(w.login(done.Token), group1)
}

// TestRecoverUnrecorded: what cannot be recorded does not happen; without a log
// there is nothing to record in.
func TestRecoverUnrecorded(t *testing.T) {
	w, _ := newRoot(t)
	before := w.revision()
	w.journal.fail = errors.New("the disk is full")
	if _, err := w.Recover(t.Context(), false); err == nil || w.revision() != before {
		t.Errorf("got %v", err)
	}
	w.Audit = nil
	if done, err := w.Recover(t.Context(), false); err != nil || done.Token == "" {
		t.Errorf("without a log: %+v, %v", done, err)
	}
}

// TestBootstrapOfAnEarlierVersion starts on what an earlier version founded.
func TestBootstrapOfAnEarlierVersion(t *testing.T) {
	w, root := newRoot(t)
	change(w, api.KindService, api.APIService, func(s *api.Service) { s.Spec.Authorization = api.Authorization{} })
	change(w, api.KindPolicy, api.PolicyAPIReadOnly, func(p *api.Policy) { p.Spec.Rules[0].Condition.Match = "false" })
	w.config(root, `{'dns':{'hosts':{'nats':['127.0.0.1']}}}`)
	uid := get[*api.Policy](w, api.KindPolicy, api.PolicyAPIReadOnly).Metadata.UID
	_, err := w.Store.Update(t.Context(), "test", func(tx store.Tx) error {
		return tx.Delete(api.Key{Group: api.GroupCore, Kind: api.KindRegion, Name: api.DefaultRegion})
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	cc := get[*api.ClusterConfig](w, api.KindClusterConfig, api.ClusterConfigName)
	if r := get[*api.Region](w, api.KindRegion, api.DefaultRegion); r.Metadata.UID != cc.Status.RegionUID || !r.Metadata.IsSystem {
		t.Errorf("the Region is %+v, and the ClusterConfig knows %s", r.Metadata, cc.Status.RegionUID)
	}
	if len(cc.Spec.DNS.Hosts) != 1 {
		t.Error("what a person wrote was undone")
	}
	if p := get[*api.Policy](w, api.KindPolicy, api.PolicyAPIReadOnly); p.Spec.Rules[0].Condition.Match == "false" || p.Metadata.UID != uid {
		t.Errorf("a built-in Policy is %+v", p)
	}
	if err := w.Await(t.Context(), w.revision()); err != nil {
		t.Fatal(err)
	}
	w.must(w.user(root, "bob"), "GET", "/api/self", nil, nil) // by the rules of the API's Service
	after := w.revision()
	if _, err := w.Bootstrap(t.Context()); err != nil || w.revision() != after {
		t.Errorf("a start that had nothing to do wrote something (%v)", err)
	}
}
