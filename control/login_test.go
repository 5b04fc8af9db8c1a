package control

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/identity/token"
	"cardea/store"
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
			if !ok || e.Code != api.CodeUnauthenticated || !strings.HasPrefix(e.Message, "the token is not valid: it was used up, has expired") || e.DecisionID != "" {
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
	const many = 100
	for i := range many {
		go func() { codes <- w.loginFrom(i, rootToken, csr).Code }()
	}
	in := 0
	for range many {
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
	if thief.leaf, _, err = w.Authority.SessionCertificate(thief.csr(t), uid, time.Hour, w.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	if _, err := renew(thief, thief.csr(t)); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("by another key: %v", err)
	}
	// Root's Session is still there; its User may not renew once it is disabled.
	root = w.login(must(w.Recover(t.Context(), false)).Token)
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

// loginFrom logs in from the n-th of many networks: each has a limit of its own.
func (w *world) loginFrom(n int, token string, csr []byte) *httptest.ResponseRecorder {
	body, _ := json.Marshal(api.LoginRequest{Token: token, CSR: csr})
	r := httptest.NewRequest("POST", "https://api."+testDomain+"/api/login", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	r.RemoteAddr = fmt.Sprintf("10.0.%d.%d:4000", n/250, n%250+1)
	r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13}
	out := httptest.NewRecorder()
	w.handler.ServeHTTP(out, r)
	return out
}

// config writes the spec of the ClusterConfig.
func (w *world) config(root *person, spec string) {
	w.t.Helper()
	w.mustApply(root, `{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':`+spec+`}`)
}

// change changes an Object as the system would, and waits for decisions on it.
func change[T api.Object](w *world, kind, name string, f func(T)) {
	w.t.Helper()
	rev, err := w.Store.Update(w.t.Context(), "test", func(tx store.Tx) error {
		o, err := store.Get[T](tx, api.Key{Group: api.GroupCore, Kind: kind, Name: name})
		if err != nil {
			return err
		}
		f(o)
		return put(tx, o)
	})
	if err == nil {
		err = w.Await(w.t.Context(), rev)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func TestTerms(t *testing.T) {
	for _, tc := range []struct {
		name, cluster, user string // specs, of the User beside its type
		kind                string
		life, certificate   time.Duration
		state               api.SessionState
	}{
		{"by default, a person", `{}`, ``, "HUMAN", 21 * time.Hour, 4 * time.Hour, api.SessionActive},
		{"by default, a workload", `{}`, ``, "WORKLOAD", 90 * 24 * time.Hour, 4 * time.Hour, api.SessionActive},
		{"by the cluster", `{'session':{'human':{'clientDuration':{'hours':2},'accessTokenDuration':{'minutes':30},'defaultState':'PENDING'}}}`, ``,
			"HUMAN", 2 * time.Hour, 30 * time.Minute, api.SessionPending},
		{"by the cluster, for others", `{'session':{'human':{'clientDuration':{'hours':2}}}}`, ``, "WORKLOAD", 90 * 24 * time.Hour, 4 * time.Hour, api.SessionActive},
		{"each by whoever says it", `{'session':{'human':{'clientDuration':{'hours':2},'accessTokenDuration':{'minutes':30},'defaultState':'PENDING'}}}`,
			`,'session':{'clientDuration':{'days':3},'defaultState':'ACTIVE'}`, "HUMAN", 72 * time.Hour, 30 * time.Minute, api.SessionActive},
		{"shorter than a certificate", `{}`, `,'session':{'clientDuration':{'hours':1}}`, "HUMAN", time.Hour, 4 * time.Hour, api.SessionActive},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w, root := newRoot(t)
			w.config(root, tc.cluster)
			w.mustApply(root, `{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'`+tc.kind+`'`+tc.user+`}}`,
				`{'kind':'Credential','metadata':{'name':'alice'},'spec':{'user':'alice'}}`)
			var out api.LoginResponse
			p := newPerson(t)
			w.must(nil, "POST", "/api/login", api.LoginRequest{Token: w.token(root, "alice"), CSR: p.csr(t)}, &out)
			s := get[*api.Session](w, api.KindSession, out.Session)
			if got := s.Spec.ExpiresAt.Sub(w.Now()); got != tc.life {
				t.Errorf("the Session lasts %s, want %s", got, tc.life)
			}
			if got := time.Duration(s.Status.CertificateSeconds) * time.Second; got != tc.certificate {
				t.Errorf("its certificates are good for %s, want %s", got, tc.certificate)
			}
			if want := min(tc.life, tc.certificate); out.NotAfter.Sub(w.Now()) != want {
				t.Errorf("the certificate is good for %s, want %s", out.NotAfter.Sub(w.Now()), want)
			}
			if out.State != tc.state || s.Spec.State != tc.state || !out.Now.Equal(w.Now()) {
				t.Errorf("told %s at %s; stored is %s", out.State, out.Now, s.Spec.State)
			}
			if tc.state != api.SessionActive {
				return
			}
			// A renewed one is as long, whatever the cluster says by now.
			w.config(root, `{'session':{'human':{'accessTokenDuration':{'minutes':1}}}}`)
			p.leaf = out.Certificate
			w.must(p, "POST", "/api/renew", api.RenewRequest{CSR: p.csr(t)}, &out)
			if want := min(tc.life, tc.certificate); out.NotAfter.Sub(w.Now()) != want || out.State != api.SessionActive || !out.Now.Equal(w.Now()) {
				t.Errorf("the renewed certificate is good for %s, want %s: %+v", out.NotAfter.Sub(w.Now()), want, out)
			}
		})
	}
}

// TestPending is about a Session that waits for approval: it is there, and reaches
// nothing.
func TestPending(t *testing.T) {
	w, root := newRoot(t)
	w.config(root, `{'session':{'human':{'defaultState':'PENDING'}}}`)
	bob := w.user(root, "bob", "api-full-access")
	if err := w.do(bob, "GET", "/api/core/v1/users", nil, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("before: %v", err)
	}
	if err := w.do(bob, "GET", "/api/self", nil, nil); err == nil || !strings.Contains(err.Error(), bob.session+" is not active") {
		t.Errorf("the bearer is told %v", err)
	}
	if r := w.journal.last(t).Entry.Common; r.Reason.Type != api.ReasonSessionNotActive || r.SessionRef.Name != bob.session {
		t.Errorf("the record says %+v", r.Reason)
	}
	if err := w.do(bob, "POST", "/api/renew", api.RenewRequest{CSR: bob.csr(t)}, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("renewed before: %v", err)
	}
	change(w, api.KindSession, bob.session, func(s *api.Session) { s.Spec.State = api.SessionActive })
	w.must(bob, "GET", "/api/core/v1/users", nil, nil)
	change(w, api.KindSession, bob.session, func(s *api.Session) { s.Spec.State = api.SessionRejected })
	if err := w.do(bob, "GET", "/api/core/v1/users", nil, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("rejected: %v", err)
	}
}

func TestSessionsPerUser(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'HUMAN','session':{'maxPerUser':3}}}`,
		`{'kind':'User','metadata':{'name':'alice-b'},'spec':{'type':'HUMAN'}}`,
		`{'kind':'Credential','metadata':{'name':'alice'},'spec':{'user':'alice','maxAuthentications':50}}`,
		`{'kind':'Credential','metadata':{'name':'alice-b'},'spec':{'user':'alice-b'}}`)
	w.login(w.token(root, "alice-b")) // counts for another
	secret := w.token(root, "alice")
	csr := newPerson(t).csr(t)
	codes := make(chan int)
	for i := range 20 {
		go func() { codes <- w.loginFrom(i, secret, csr).Code }()
	}
	got := map[int]int{}
	for range 20 {
		got[<-codes]++
	}
	if got[http.StatusOK] != 3 || got[http.StatusConflict] != 17 {
		t.Fatalf("the answers are %v", got)
	}
	if n := get[*api.Credential](w, api.KindCredential, "alice").Status.TotalAuthentications; n != 3 {
		t.Errorf("the token was used %d times", n)
	}
	before := w.revision()
	err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: secret, CSR: csr}, nil)
	e, _ := errors.AsType[*api.Error](err)
	if e == nil || e.Code != api.CodeConflict || !strings.Contains(e.Message, "has 3 Sessions") || !strings.Contains(e.Hint, "cardea delete session") {
		t.Errorf("the bearer is told %+v", e)
	}
	if w.revision() != before {
		t.Error("it wrote to the store")
	}
	if c := w.journal.last(t).Entry.Common; c.Status != api.StatusDenied || c.Reason.Type != api.ReasonLimit || c.UserRef.Name != "alice" {
		t.Errorf("the record is %+v", c)
	}
	// A wrong token learns nothing of that.
	uid, _, _ := token.Parse(secret)
	wrong, _ := token.New(uid)
	if err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: wrong, CSR: csr}, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("another token: %v", err)
	}
	w.clock.advance(21 * time.Hour) // they have ended, and nobody has deleted them yet
	w.login(secret)
}

// TestRecoveryIsNeverShut: whoever owns the data gets in, whatever was written.
func TestRecoveryIsNeverShut(t *testing.T) {
	w, root := newRoot(t)
	w.config(root, `{'session':{'human':{'defaultState':'PENDING','maxPerUser':1}}}`)
	p := w.login(must(w.Recover(t.Context(), false)).Token)
	w.mustApply(p, group1)
}

func TestAutoDelete(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'HUMAN'}}`,
		`{'kind':'Credential','metadata':{'name':'alice'},'spec':{'user':'alice','maxAuthentications':2,'autoDelete':true}}`)
	secret := w.token(root, "alice")
	w.login(secret)
	if !w.exists(api.KindCredential, "alice") {
		t.Fatal("it was deleted with one use left")
	}
	p := w.login(secret)
	if w.exists(api.KindCredential, "alice") {
		t.Error("it is still there")
	}
	w.must(p, "GET", "/api/self", nil, nil) // the Session stays
	rec := w.journal.all()
	i := slices.IndexFunc(rec, func(r api.AccessLog) bool {
		i := r.Entry.Info.API
		return i != nil && i.Verb == verbDelete && i.Kind == api.KindCredential && i.Name == "alice"
	})
	if i < 0 || rec[i].Metadata.ActorRef.Name != p.session || strings.Contains(string(rec[i].Entry.Info.API.Before), "tokenSHA256") {
		t.Errorf("no record of the deletion, or a wrong one: %d", i)
	}
	if err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: secret, CSR: newPerson(t).csr(t)}, nil); !api.HasCode(err, api.CodeUnauthenticated) {
		t.Errorf("the token afterwards: %v", err)
	}
}

func TestRotationsAreCounted(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'Credential','metadata':{'name':'spare'},'spec':{'user':'root'}}`)
	for n := range 3 {
		w.clock.advance(time.Minute)
		w.token(root, "spare")
		s := get[*api.Credential](w, api.KindCredential, "spare").Status
		if s.TotalRotations != n+1 || !s.LastRotationAt.Equal(w.Now()) {
			t.Errorf("after %d: %+v", n+1, s)
		}
	}
}

// TestRevokedCredential: what a Credential let in stays; nobody else gets in.
func TestRevokedCredential(t *testing.T) {
	for name, revoke := range map[string]func(*world, *person){
		"disabled": func(w *world, root *person) {
			w.mustApply(root, `{'kind':'Credential','metadata':{'name':'bob'},'spec':{'user':'bob','isDisabled':true}}`)
		},
		"deleted": func(w *world, root *person) { w.must(root, "DELETE", "/api/core/v1/credentials/bob", nil, nil) },
		"made again": func(w *world, root *person) {
			w.must(root, "DELETE", "/api/core/v1/credentials/bob", nil, nil)
			w.mustApply(root, `{'kind':'Credential','metadata':{'name':'bob'},'spec':{'user':'bob'}}`)
			w.token(root, "bob")
		},
	} {
		t.Run(name, func(t *testing.T) {
			w, root := newRoot(t)
			bob := w.user(root, "bob")
			secret := w.token(root, "bob")
			revoke(w, root)
			if err := w.do(nil, "POST", "/api/login", api.LoginRequest{Token: secret, CSR: bob.csr(t)}, nil); !api.HasCode(err, api.CodeUnauthenticated) {
				t.Errorf("the token: %v", err)
			}
			w.must(bob, "GET", "/api/self", nil, nil)
		})
	}
}

// TestStolen is about what somebody may have got hold of: refused, and in the log.
func TestStolen(t *testing.T) {
	w, root := newRoot(t)
	bob := w.user(root, "bob")
	once := `{'kind':'Credential','metadata':{'name':'once'},'spec':{'user':'bob','maxAuthentications':1,'expiresAt':'2026-03-01T13:00:00Z'}}`
	w.mustApply(root, once)
	used := w.token(root, "once")
	w.login(used)
	w.mustApply(root, strings.Replace(once, "'once'", "'late'", 1))
	late := w.token(root, "late")
	// A certificate that was issued before the Session was bound to another key.
	rebound := &person{key: bob.key, leaf: w.login(w.token(root, "bob")).leaf}
	leaf := must(x509.ParseCertificate(rebound.leaf))
	other := strings.TrimPrefix(leaf.URIs[0].Path, "/")
	for rec := range each(w, api.KindSession) {
		if rec.UID == other {
			change(w, api.KindSession, rec.Key.Name, func(s *api.Session) { s.Status.KeySHA256 = strings.Repeat("0", 64) })
		}
	}

	login := func(token string) func() error {
		return func() error {
			return w.do(nil, "POST", "/api/login", api.LoginRequest{Token: token, CSR: newPerson(t).csr(t)}, nil)
		}
	}
	for _, tc := range []struct {
		name  string
		try   func() error
		words string // of the log
	}{
		{"a token that was used", login(used), "as often as it may"},
		{"a token that is late", func() error {
			w.clock.advance(time.Hour)
			return login(late)()
		}, "has expired"},
		{"the old certificate of a Session with a new key", func() error { return w.do(rebound, "GET", "/api/self", nil, nil) }, "another key"},
		{"to renew with it", func() error {
			return w.do(rebound, "POST", "/api/renew", api.RenewRequest{CSR: rebound.csr(t)}, nil)
		}, "another key"},
		{"an old certificate of a key whose certificate was renewed", func() error {
			w.clock.advance(3*time.Hour + 6*time.Minute) // it is good for 4 hours, and 5 minutes of skew
			return w.do(bob, "GET", "/api/self", nil, nil)
		}, "the clocks differ"},
	} {
		records := len(w.journal.all())
		if err := tc.try(); !api.HasCode(err, api.CodeUnauthenticated) {
			t.Errorf("%s: %v", tc.name, err)
		}
		recs := w.journal.all()[records:]
		if len(recs) != 1 || recs[0].Entry.Common.Status != api.StatusDenied || recs[0].Entry.Common.IsAuthenticated ||
			!strings.Contains(recs[0].Entry.Common.Reason.Words, tc.words) {
			t.Errorf("%s: the log says %+v", tc.name, recs)
		}
	}
}

// each calls for each Object of a kind.
func each(w *world, kind string) iter.Seq[store.Record] {
	return func(yield func(store.Record) bool) {
		var all []store.Record
		err := w.Store.View(w.t.Context(), func(r store.Reader) error {
			for rec, err := range r.List(api.GroupCore, kind) {
				if err != nil {
					return err
				}
				all = append(all, rec)
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
		for _, rec := range all {
			if !yield(rec) {
				return
			}
		}
	}
}

// TestTokenOfAnother: whoever makes a token of a Credential can log in as its
// User, so it takes more than to write Credentials.
func TestTokenOfAnother(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, `{'kind':'Policy','metadata':{'name':'tokens'},'spec':{'rules':[{'effect':'ALLOW','condition':{'match':
			'ctx.request.api.kind == \u0022Credential\u0022 && ctx.request.api.verb == \u0022update\u0022'}}]}}`,
		`{'kind':'Policy','metadata':{'name':'as-robot'},'spec':{'rules':[{'effect':'ALLOW','condition':{'match':
			'ctx.request.api.verb == \u0022impersonate\u0022 && ctx.request.api.kind == \u0022User\u0022 && ctx.request.api.name == \u0022robot\u0022'}}]}}`,
		`{'kind':'User','metadata':{'name':'robot'},'spec':{'type':'WORKLOAD'}}`,
		`{'kind':'Credential','metadata':{'name':'robot'},'spec':{'user':'robot'}}`,
		`{'kind':'Credential','metadata':{'name':'spare'},'spec':{'user':'root'}}`,
		`{'kind':'Credential','metadata':{'name':'asleep'},'spec':{'user':'root','isDisabled':true}}`)
	bob := w.user(root, "bob", "tokens", "as-robot")
	ask := func(credential string) error {
		return w.do(bob, "POST", "/api/core/v1/credentials/"+credential+"/token", nil, nil)
	}
	for _, of := range []string{"spare", "asleep"} {
		before := w.revision()
		if err := ask(of); !api.HasCode(err, api.CodePermissionDenied) {
			t.Errorf("of root's %s: %v", of, err)
		}
		if r := w.journal.last(t).Entry; r.Common.Status != api.StatusDenied || r.Info.API.Verb != verbImpersonate || r.Info.API.Name != "root" {
			t.Errorf("of root's %s: the record is %+v", of, r)
		}
		if w.revision() != before {
			t.Errorf("of root's %s: it was made", of)
		}
	}
	for _, of := range []string{"bob", "robot"} {
		if err := ask(of); err != nil {
			t.Errorf("of %s: %v", of, err)
		}
	}
}
