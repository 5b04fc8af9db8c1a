package cert_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/cert"
	"cardea/identity/certificate"
	"cardea/store"
	"cardea/store/memory"
)

// verifies tells whether a client that trusts these roots accepts what the server
// shows for a name at that time.
func verifies(t *testing.T, shown *tls.Certificate, name string, at time.Time, roots ...*x509.Certificate) bool {
	t.Helper()
	trusted, between := x509.NewCertPool(), x509.NewCertPool()
	for _, r := range roots {
		trusted.AddCert(r)
	}
	for _, der := range shown.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		between.AddCert(c)
	}
	_, err := shown.Leaf.Verify(x509.VerifyOptions{Roots: trusted, Intermediates: between, DNSName: name, CurrentTime: at})
	return err == nil
}

// shows returns what the server shows for the API.
func shows(t *testing.T, a *cert.Authority) *tls.Certificate {
	t.Helper()
	c, err := a.ServerCertificate(&tls.ClientHelloInfo{ServerName: "api." + domain})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// contains tells whether a chain has the certificate of that fingerprint.
func contains(shown *tls.Certificate, fingerprint string) bool {
	return slices.ContainsFunc(shown.Certificate[1:], func(der []byte) bool {
		sum := sha256.Sum256(der)
		return hex.EncodeToString(sum[:]) == fingerprint
	})
}

// Whoever pinned the old CA goes on, and learns the new one, for a week; whoever
// pins the new one can log in at once; afterwards the old one is nobody.
func TestRotateCA(t *testing.T) {
	c := newClock()
	st := newStore(t)
	a := open(t, st, c)
	old := a.Roots()[0]
	oldPool, oldPrint := a.Pool(), a.Fingerprint()
	if a.Pool() != oldPool {
		t.Error("the pool is another each time: nothing that was verified is remembered")
	}
	key := ecKey(t, elliptic.P256())
	csr := newCSR(t, key, &x509.CertificateRequest{})
	before, _, err := a.SessionCertificate(csr, uid, 0, c.t.Add(30*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	shows(t, a)

	c.advance(time.Hour)
	out, err := a.RotateCA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	fresh := a.Roots()[0]
	end := c.t.Add(7 * 24 * time.Hour)
	if out.What != "ca" || out.CASHA256 != a.Fingerprint() || out.CASHA256 == oldPrint || out.KeyID == "" || !out.Overlap.Equal(end) {
		t.Errorf("rotated: %+v", out)
	}
	if roots := a.Roots(); len(roots) != 2 || !roots[1].Equal(old) || fresh.Equal(old) {
		t.Errorf("%d roots", len(roots))
	}
	if bytes.Equal(fresh.RawSubject, old.RawSubject) {
		t.Error("both CAs have one name")
	}
	if _, err := a.RotateCA(t.Context()); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("rotated again at once: %v, want CONFLICT", err)
	}

	v := &certificate.Verifier{Roots: a.Pool}
	proves := func(der []byte) bool {
		_, err := v.Verify(api.Evidence{Kind: api.EvidenceCertificate, Data: der}, c.t)
		return err == nil
	}
	during := func(a *cert.Authority) {
		t.Helper()
		shown := shows(t, a)
		for who, roots := range map[string][]*x509.Certificate{"old": {old}, "new": {fresh}, "both": {fresh, old}} {
			if !verifies(t, shown, "api."+domain, c.t, roots...) {
				t.Errorf("whoever trusts %s does not accept the server", who)
			}
		}
		if !contains(shown, oldPrint) || !contains(shown, out.CASHA256) {
			t.Error("the server does not show both CAs to those who log in")
		}
		if last := shown.Certificate[len(shown.Certificate)-1]; !bytes.Equal(last, fresh.Raw) {
			t.Error("the new CA is not the last that is shown")
		}
	}
	during(a)
	during(open(t, st, c)) // and after a restart
	if !proves(before) {
		t.Error("a Session's certificate by the old CA is not accepted")
	}
	after, _, err := a.SessionCertificate(csr, uid, 0, c.t.Add(30*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if !proves(after) {
		t.Error("a Session's new certificate is not accepted")
	}
	leaf, err := x509.ParseCertificate(after)
	if err != nil || leaf.CheckSignatureFrom(fresh) != nil {
		t.Errorf("a renewed certificate is not by the new CA: %v", err)
	}

	c.t = end.Add(-time.Second)
	during(a)
	pool := a.Pool()
	c.t = end
	if roots := a.Roots(); len(roots) != 1 || !roots[0].Equal(fresh) {
		t.Errorf("after the overlap there are %d roots", len(roots))
	}
	if a.Pool() == pool {
		t.Error("after the overlap the pool is the same")
	}
	shown := shows(t, a)
	if verifies(t, shown, "api."+domain, c.t, old) || contains(shown, oldPrint) {
		t.Error("after the overlap the old CA vouches for the server")
	}
	if !verifies(t, shown, "api."+domain, c.t, fresh) {
		t.Error("after the overlap the new CA does not vouch for the server")
	}
	if proves(before) {
		t.Error("after the overlap the old CA vouches for Sessions")
	}
	again := open(t, st, c)
	if len(again.Roots()) != 1 || again.Fingerprint() != out.CASHA256 {
		t.Error("after a restart the old CA is back")
	}

	// And once more: a root that was rotated in is rotated out.
	second, err := again.RotateCA(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if shown := shows(t, again); !verifies(t, shown, "api."+domain, c.t, fresh) || !verifies(t, shown, "api."+domain, c.t, again.Roots()[0]) || verifies(t, shown, "api."+domain, c.t, old) {
		t.Error("after the second rotation the chain is not by the last two CAs")
	}
	c.t = second.Overlap
	if shown := shows(t, again); verifies(t, shown, "api."+domain, c.t, fresh) {
		t.Error("the second overlap does not end")
	}
}

// The overlap is not shorter than the certificates of Sessions are good for.
func TestRotateCALongCertificates(t *testing.T) {
	c := newClock()
	st := newStore(t)
	a := open(t, st, c)
	for i, s := range []struct {
		seconds int
		left    time.Duration
	}{{3600, 100 * 24 * time.Hour}, {20 * 24 * 3600, 90 * 24 * time.Hour}, {80 * 24 * 3600, 10 * 24 * time.Hour}} {
		session := &api.Session{Spec: api.SessionSpec{ExpiresAt: c.t.Add(s.left)}, Status: api.SessionStatus{CertificateSeconds: s.seconds}}
		session.Default()
		session.Metadata.Name, session.Metadata.UID = fmt.Sprintf("session-%d", i), fmt.Sprintf("uid-%d", i)
		if _, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
			rec, err := store.Encode(session)
			if err != nil {
				return err
			}
			return tx.Put(rec)
		}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := a.RotateCA(t.Context())
	if err != nil || !out.Overlap.Equal(c.t.Add(20*24*time.Hour)) {
		t.Errorf("overlap until %v (%v), want 20 days", out.Overlap, err)
	}
}

// A CA without room for another below it, as the first one is, can be replaced:
// the new one vouches for the old one, and not the other way round.
func TestRotateCAPathLength(t *testing.T) {
	c := newClock()
	a := open(t, newStore(t), c)
	if first := a.Roots()[0]; first.MaxPathLen != 0 || !first.MaxPathLenZero {
		t.Fatal("the first CA may have others below it")
	}
	if _, err := a.RotateCA(t.Context()); err != nil {
		t.Fatal(err)
	}
	// The cross certificate lets the old CA sign leaves only.
	cross, err := x509.ParseCertificate(shows(t, a).Certificate[1])
	if err != nil || !cross.IsCA || !cross.MaxPathLenZero || cross.MaxPathLen != 0 || cross.CheckSignatureFrom(a.Roots()[0]) != nil {
		t.Errorf("the cross certificate is %+v (%v)", cross, err)
	}
}

// Run makes a rotation by another process count here, and deletes the old key
// when its time is over.
func TestRunFollowsRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := memory.New()
		defer st.Close()
		one, err := cert.Open(t.Context(), st, keeper(t), domain, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		other, err := cert.Open(t.Context(), st, keeper(t), domain, time.Now)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- one.Run(ctx) }()
		synctest.Wait()
		out, err := other.RotateCA(ctx)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if one.Fingerprint() != out.CASHA256 || len(one.Roots()) != 2 {
			t.Error("the rotation is not seen here")
		}
		there := func() bool {
			err := st.View(ctx, func(r store.Reader) error {
				_, err := r.Get(api.Key{Group: api.GroupCore, Kind: api.KindSecret, Name: "cluster-ca-old"})
				return err
			})
			return err == nil
		}
		if !there() {
			t.Fatal("the old key is not kept for the overlap")
		}
		time.Sleep(7*24*time.Hour + time.Second)
		synctest.Wait()
		if there() {
			t.Error("the old key is still there after the overlap")
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
	})
}

// A handshake with each of the pins, on the wire.
func TestHandshakeWhileRotating(t *testing.T) {
	c := &clock{time.Now()}
	a := open(t, newStore(t), c)
	old := a.Pool()
	if _, err := a.RotateCA(t.Context()); err != nil {
		t.Fatal(err)
	}
	fresh := x509.NewCertPool()
	fresh.AddCert(a.Roots()[0])
	for who, roots := range map[string]*x509.CertPool{"old": old, "new": fresh, "both": a.Pool()} {
		l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: a.ServerCertificate})
		if err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() {
			conn, err := l.Accept()
			if err == nil {
				err = conn.(*tls.Conn).Handshake()
				conn.Close()
			}
			served <- err
		}()
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{RootCAs: roots, ServerName: "nats.default.svc." + domain})
		if err != nil {
			t.Errorf("%s: %v", who, err)
		} else {
			conn.Close()
		}
		<-served
		l.Close()
	}
}

func TestRotateAudit(t *testing.T) {
	st := newStore(t)
	a := open(t, st, newClock())
	public := func(k crypto.Signer) ed25519.PublicKey { return k.Public().(ed25519.PublicKey) }
	first, err := a.JournalSigner(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := a.JournalKeys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("before the first rotation: %d keys, %v", len(keys), err)
	}
	want := []ed25519.PublicKey{public(first)}
	ids := map[string]bool{}
	for range 3 {
		signer, out, err := a.RotateAudit(t.Context())
		if err != nil || out.What != "audit" || out.KeyID == "" || ids[out.KeyID] {
			t.Fatalf("rotated: %+v, %v", out, err)
		}
		ids[out.KeyID] = true
		now, err := open(t, st, newClock()).JournalSigner(t.Context())
		if err != nil || !public(now).Equal(public(signer)) || public(signer).Equal(want[len(want)-1]) {
			t.Fatalf("after the rotation the key is not the new one: %v", err)
		}
		keys, err := a.JournalKeys(t.Context())
		if err != nil || !slices.EqualFunc(keys, want, func(x, y ed25519.PublicKey) bool { return x.Equal(y) }) {
			t.Fatalf("%d keys (%v), want the %d that signed before", len(keys), err, len(want))
		}
		want = append(want, public(signer))
	}
	for _, name := range []string{"journal-key", "journal-keys-old"} {
		if !stored(t, st, name).Metadata.IsSystem {
			t.Errorf("the Secret %s can be deleted", name)
		}
	}
	// A journal that was never signed has no key to be kept.
	fresh := open(t, newStore(t), newClock())
	if _, _, err := fresh.RotateAudit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if keys, err := fresh.JournalKeys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("%d keys, %v", len(keys), err)
	}
}

// What was put in the place of the old CA is refused, whoever may write there.
func TestRotationRefusesForeignRoots(t *testing.T) {
	c := newClock()
	st := newStore(t)
	a := open(t, st, c)
	if _, err := a.RotateCA(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := stored(t, st, "cluster-ca-old")
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true, NotAfter: c.t.Add(time.Hour)}, &x509.Certificate{}, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	forged, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := keeper(t).SealSigner(s, key, forged, forged); err != nil {
		t.Fatal(err)
	}
	if _, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
		rec, err := store.Encode(s)
		if err != nil {
			return err
		}
		return tx.Put(rec)
	}); err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Open(t.Context(), st, keeper(t), domain, c.now); err == nil || !strings.Contains(err.Error(), "cluster-ca-old") {
		t.Errorf("a root that the CA does not vouch for: %v", err)
	}
}

func TestNameCertificate(t *testing.T) {
	c := newClock()
	a := open(t, newStore(t), c)
	got, err := a.NameCertificate("Web.Default.svc." + domain)
	if err != nil || !slices.Equal(got.Leaf.DNSNames, []string{"web.default.svc." + domain}) {
		t.Fatalf("%v, %v", got, err)
	}
	if again, err := a.NameCertificate("web.default.svc." + domain); err != nil || again != got {
		t.Errorf("another certificate each time (%v)", err)
	}
	if !verifies(t, got, "web.default.svc."+domain, c.t, a.Roots()...) || verifies(t, got, "db.default.svc."+domain, c.t, a.Roots()...) {
		t.Error("it is not for that name alone")
	}
	for _, name := range []string{"", "api." + domain, "gateway." + domain, "web.default.svc.example.com", "*.default.svc." + domain, "a.b.c.svc." + domain, "svc." + domain} {
		if got, err := a.NameCertificate(name); err == nil {
			t.Errorf("%q: got one for %v", name, got.Leaf.DNSNames)
		}
	}
}

func TestSessionCertificateLife(t *testing.T) {
	c := newClock()
	a := open(t, newStore(t), c)
	csr := newCSR(t, ecKey(t, elliptic.P256()), &x509.CertificateRequest{})
	for life, want := range map[time.Duration]time.Duration{0: 4 * time.Hour, time.Minute: time.Minute, 9 * time.Hour: 9 * time.Hour, 48 * time.Hour: 24 * time.Hour} {
		der, _, err := a.SessionCertificate(csr, uid, life, c.t.Add(24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		leaf, err := x509.ParseCertificate(der)
		if err != nil || !leaf.NotAfter.Equal(c.t.Add(want)) || !leaf.NotBefore.Equal(c.t.Add(-5*time.Minute)) {
			t.Errorf("life %v: valid from %v to %v (%v)", life, leaf.NotBefore, leaf.NotAfter, err)
		}
	}
	if _, _, err := a.SessionCertificate(csr, uid, -time.Second, c.t.Add(time.Hour)); err == nil {
		t.Error("issued for a negative time")
	}
}
