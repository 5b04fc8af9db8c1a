package control

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/identity/token"
)

func TestLogin(t *testing.T) {
	w, rootToken := newWorld(t)
	p := newPerson(t)
	var out api.LoginResponse
	w.must(nil, "POST", "/api/login", api.LoginRequest{Token: rootToken, CSR: p.csr(t)}, &out)
	if out.Domain != testDomain || out.User != "root" || len(out.CA) != 1 || !out.NotAfter.After(w.Now()) {
		t.Errorf("got %+v", out)
	}
	name, six, ok := strings.Cut(out.Session, "-")
	if !ok || name != "root" || len(six) != 6 || strings.Trim(six, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		t.Errorf("the Session's name is %q", out.Session)
	}
	p.leaf, p.session = out.Certificate, out.Session

	var self api.Self
	w.must(p, "GET", "/api/self", nil, &self)
	s := self.Session
	if self.Domain != testDomain || self.User.Metadata.Name != "root" || s.Metadata.Name != out.Session || self.Revision != w.revision() {
		t.Errorf("self is %+v", self)
	}
	if got := s.Spec.ExpiresAt.Sub(w.Now()); s.Spec.State != api.SessionActive || got != 21*time.Hour {
		t.Errorf("the Session is %s for %s", s.Spec.State, got)
	}
	if s.Status.UserRef.Name != "root" || s.Status.CredentialRef.Name != rootLogin || s.Status.KeySHA256 == "" {
		t.Errorf("the Session has the status %+v", s.Status)
	}
	if c := get[*api.Credential](w, api.KindCredential, rootLogin); c.Status.TotalAuthentications != 1 || !c.Status.LastAuthenticationAt.Equal(w.Now()) {
		t.Errorf("the Credential has the status %+v", c.Status)
	}
	rec := w.journal.last(t)
	if i := rec.Entry.Info.API; i == nil || i.Verb != "login" || i.Name != out.Session || rec.Entry.Common.Status != api.StatusAllowed ||
		rec.Entry.Common.UserRef.Name != "root" || !rec.Entry.Common.IsAuthenticated {
		t.Errorf("the record is %+v", rec.Entry)
	}
}

func TestWorkloadSession(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'User','metadata':{'name':'robot'},'spec':{'type':'WORKLOAD'}}`,
		`{'kind':'Credential','metadata':{'name':'robot'},'spec':{'user':'robot','authorization':{'policies':['allow-all']}}}`)
	p := w.login(w.token(root, "robot"))
	s := get[*api.Session](w, api.KindSession, p.session)
	if got := s.Spec.ExpiresAt.Sub(w.Now()); got != 90*24*time.Hour {
		t.Errorf("the Session lasts %s", got)
	}
	if got := s.Spec.Authorization.Policies; len(got) != 1 || got[0] != "allow-all" {
		t.Errorf("the Session has the policies %v of its Credential", got)
	}
}

func TestLoginRefused(t *testing.T) {
	const cred = `{'kind':'Credential','metadata':{'name':'alice'},'spec':{'user':'alice'`
	unused := func(*world, *person) {}
	for _, tc := range []struct {
		name   string
		spec   string // more of the Credential
		before func(w *world, root *person)
		token  func(string) string
		reason string // in the log
	}{
		{"used too often", `,'maxAuthentications':1`, func(w *world, root *person) {
			// The test's own login below is the second.
			w.mustApply(root, cred+`,'maxAuthentications':2}}`)
		}, nil, "as often as it may"},
		{"expired", `,'expiresAt':'2026-03-01T13:00:00Z'`, func(w *world, _ *person) { w.clock.advance(time.Hour) }, nil, "has expired"},
		{"Credential disabled", "", func(w *world, root *person) { w.mustApply(root, cred+`,'isDisabled':true}}`) }, nil, "Credential alice is disabled"},
		{"User disabled", "", func(w *world, root *person) {
			w.mustApply(root, `{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'HUMAN','isDisabled':true}}`)
		}, nil, "User alice is disabled"},
		{"Credential deleted", "", func(w *world, root *person) {
			w.must(root, "DELETE", "/api/core/v1/credentials/alice", nil, nil)
		}, nil, "there is no Credential"},
		{"User deleted", "", func(w *world, root *person) { w.must(root, "DELETE", "/api/core/v1/users/alice", nil, nil) }, nil, "there is no Credential"},
		{"a newer token", "", func(w *world, root *person) { w.token(root, "alice") }, nil, "not that of Credential alice"},
		{"another secret", "", unused, func(s string) string {
			uid, _, _ := token.Parse(s)
			forged, _ := token.New(uid)
			return forged
		}, "not that of Credential alice"},
		{"cut", "", unused, func(s string) string { return s[:len(s)-1] }, "not a token"},
		{"empty", "", unused, func(string) string { return "" }, "not a token"},
		{"endless", "", unused, func(s string) string { return strings.Repeat(s, 300) }, "not a token"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, root := newRoot(t)
			w.mustApply(root, `{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'HUMAN'}}`, cred+tc.spec+"}}")
			secret := w.token(root, "alice")
			w.login(secret)
			tc.before(w, root)
			if tc.name == "used too often" {
				w.login(secret)
			}
			if tc.token != nil {
				secret = tc.token(secret)
			}
			before := w.revision()
			err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: secret, CSR: newPerson(t).csr(t)}, nil)
			e, ok := errors.AsType[*api.Error](err)
			if !ok || e.Code != api.CodeUnauthenticated || e.Error() != "the token is not valid: ask for a new one" || e.DecisionID != "" {
				t.Errorf("the stranger is told %v", err)
			}
			if w.revision() != before {
				t.Error("a refused login wrote to the store")
			}
			rec := w.journal.last(t)
			c := rec.Entry.Common
			if c.Status != api.StatusDenied || c.IsAuthenticated || !strings.Contains(c.Reason.Words, tc.reason) {
				t.Errorf("the record says %+v, want %q", c.Reason, tc.reason)
			}
		})
	}
}

func TestLoginBadCSR(t *testing.T) {
	w, rootToken := newWorld(t)
	p := newPerson(t)
	bent := p.csr(t)
	bent[len(bent)-1] ^= 1
	for name, csr := range map[string][]byte{"none": nil, "garbage": []byte("csr"), "signature": bent} {
		err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: rootToken, CSR: csr}, nil)
		if !api.HasCode(err, api.CodeInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	w.login(rootToken) // was not used up
}

// TestTokenOnce lets many use a token that can be used once, at the same time.
func TestTokenOnce(t *testing.T) {
	w, rootToken := newWorld(t)
	csr := newPerson(t).csr(t)
	codes := make(chan int)
	for range 8 {
		go func() {
			codes <- w.request(nil, "POST", "/api/login", api.LoginRequest{Token: rootToken, CSR: csr}).Code
		}()
	}
	in := 0
	for range 8 {
		if <-codes == 200 {
			in++
		}
	}
	if in != 1 {
		t.Errorf("%d got in, want 1", in)
	}
}

func TestNoLoginWithoutRecord(t *testing.T) {
	w, rootToken := newWorld(t)
	w.journal.fail = errors.New("the disk is full")
	before := w.revision()
	err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: rootToken, CSR: newPerson(t).csr(t)}, nil)
	if !api.HasCode(err, api.CodeUnavailable) || strings.Contains(err.Error(), "disk") {
		t.Errorf("got %v", err)
	}
	if w.revision() != before {
		t.Error("a login that could not be recorded happened")
	}
}

func TestRenew(t *testing.T) {
	w, root := newRoot(t)
	renew := func(p *person, csr []byte) (api.LoginResponse, error) {
		var out api.LoginResponse
		return out, w.do(p, "POST", "/api/renew", api.RenewRequest{CSR: csr}, &out)
	}
	bob := w.user(root, "bob")

	// With a certificate that is valid, and with one that is not any more.
	for _, later := range []time.Duration{time.Hour, 10 * time.Hour} {
		w.clock.advance(later)
		var out api.LoginResponse
		w.must(bob, "POST", "/api/renew", api.RenewRequest{CSR: bob.csr(t)}, &out)
		if out.Session != bob.session || !out.NotAfter.After(w.Now()) {
			t.Fatalf("after %s: %+v", later, out)
		}
		fresh := &person{key: bob.key, leaf: out.Certificate}
		w.must(fresh, "GET", "/api/self", nil, nil)
	}
	// The old one renews, and does nothing else.
	if err := w.do(bob, "GET", "/api/self", nil, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("an expired certificate: %v", err)
	}

	if _, err := renew(nil, bob.csr(t)); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := renew(bob, newPerson(t).csr(t)); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("for another key: %v", err)
	}
	// A certificate of another key that names bob's Session.
	thief := newPerson(t)
	uid := get[*api.Session](w, api.KindSession, bob.session).Metadata.UID
	var err error
	if thief.leaf, _, err = w.Authority.SessionCertificate(thief.csr(t), uid, w.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := renew(thief, thief.csr(t)); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("by another key: %v", err)
	}
	// Root's Session is still there; its User may not renew once it is disabled.
	root = w.login(must(w.Recover(t.Context(), false)))
	w.mustApply(root, `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN','isDisabled':true}}`)
	if _, err := renew(bob, bob.csr(t)); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("of a disabled User: %v", err)
	}
	w.mustApply(root, `{'kind':'User','metadata':{'name':'bob'},'spec':{'type':'HUMAN'}}`)
	w.clock.advance(10 * time.Hour) // 21 in all
	if _, err := renew(bob, bob.csr(t)); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("of a Session at its end: %v", err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestNewToken(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'HUMAN'}}`,
		`{'kind':'Credential','metadata':{'name':'alice'},'spec':{'user':'alice','maxAuthentications':1}}`)
	for range 2 { // each may be used as often as the Credential says
		w.login(w.token(root, "alice"))
	}
	rec := w.journal.all()
	for _, r := range rec {
		if i := r.Entry.Info.API; strings.Contains(string(i.Before)+string(i.After), "tokenSHA256") {
			t.Errorf("a record has the hash of a token: %s", i.After)
		}
	}
	if err := w.do(root, "POST", "/api/core/v1/credentials/nobody/token", nil, nil); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("of no Credential: %v", err)
	}
	if err := w.do(root, "POST", "/api/core/v1/credentials/root-login/token", nil, nil); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("of the system's: %v", err)
	}
}

func TestLoginIsAwaited(t *testing.T) {
	w, rootToken := newWorld(t)
	var waited api.Revision
	await := w.Await
	w.Await = func(ctx context.Context, r api.Revision) error { waited = r; return await(ctx, r) }
	w.handler = w.Handler()
	w.login(rootToken)
	if waited != w.revision() || waited == (api.Revision{}) {
		t.Errorf("waited for %s, written was %s", waited, w.revision())
	}
}

func TestLoginLimit(t *testing.T) {
	w, _ := newWorld(t)
	in := api.LoginRequest{Token: "x", CSR: newPerson(t).csr(t)}
	for range loginBurst {
		if err := w.do(nil, "POST", "/api/login", in, nil); !api.HasCode(err, api.CodeUnauthenticated) {
			t.Fatal(err)
		}
	}
	if err := w.do(nil, "POST", "/api/login", in, nil); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("one too many: %v", err)
	}
	w.clock.advance(time.Second)
	if err := w.do(nil, "POST", "/api/login", in, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("a second later: %v", err)
	}
}

func TestLimiter(t *testing.T) {
	c := &clock{t: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)}
	l := newLimiter(c.now)
	drain := func(ip string) (n int) {
		for l.allow(ip) {
			n++
		}
		return n
	}
	if n := drain("192.0.2.1"); n != loginBurst {
		t.Errorf("%d at once, want %d", n, loginBurst)
	}
	if n := drain("192.0.2.2"); n != loginBurst {
		t.Errorf("another address: %d, want %d", n, loginBurst)
	}
	drain("2001:db8::1")
	if l.allow("2001:db8::2") {
		t.Error("another address of the same IPv6 network has a limit of its own")
	}
	c.advance(-time.Hour)
	if l.allow("192.0.2.1") {
		t.Error("a clock that goes back lets more in")
	}
	c.advance(time.Second / 2) // nor does it keep anybody out
	if n := drain("192.0.2.1"); n != loginRate/2 {
		t.Errorf("%d after half a second, want %d", n, loginRate/2)
	}

	// Memory is bounded; networks that have been quiet make room.
	for a := netip.MustParseAddr("10.0.0.0"); len(l.buckets) < maxNetworks; a = a.Next() {
		l.allow(a.String())
	}
	if l.allow("198.51.100.1") {
		t.Error("there is no bound on networks")
	}
	c.advance(loginBurst * time.Second / loginRate)
	if !l.allow("198.51.100.1") {
		t.Error("networks that have been quiet are not forgotten")
	}
}

// TestSessionEndsItself is about a User who may do nothing else.
func TestSessionEndsItself(t *testing.T) {
	w, root := newRoot(t)
	bob := w.user(root, "bob")
	other := w.user(root, "carol")
	if err := w.do(bob, "DELETE", "/api/core/v1/sessions/"+other.session, nil, nil); !api.HasCode(err, api.CodePermissionDenied) {
		t.Errorf("another's Session: %v", err)
	}
	w.must(bob, "GET", "/api/core/v1/sessions/"+bob.session, nil, nil)
	w.must(bob, "POST", "/api/logout", nil, nil)
	if w.exists(api.KindSession, bob.session) {
		t.Error("the Session is still there")
	}
	if err := w.do(bob, "GET", "/api/self", nil, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("afterwards: %v", err)
	}
}
