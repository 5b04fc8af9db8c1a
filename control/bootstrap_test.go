package control

import (
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
	for _, o := range w.founding() {
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
	token, err := w.Recover(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Await(t.Context(), w.revision()); err != nil {
		t.Fatal(err)
	}
	w.mustApply(w.login(token), group1)
	if err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: token, CSR: newPerson(t).csr(t)}, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("the token a second time: %v", err)
	}
}
