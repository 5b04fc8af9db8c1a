package control

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"cardea/api"
	"cardea/cert"
	"cardea/identity"
	"cardea/identity/token"
	"cardea/rpc"
	"cardea/store"
)

// maxLogin is the size in bytes of the largest request that a stranger can make.
const maxLogin = 64 << 10

// An Authority issues the certificates of Sessions: see [cert.Authority].
type Authority interface {
	// SessionCertificate issues the certificate of a Session to the key of a CSR: it
	// is good for life, and not after notAfter.
	SessionCertificate(csr []byte, sessionUID string, life time.Duration, notAfter time.Time) (der []byte, spkiSHA256 string, err error)
	Roots() []*x509.Certificate
}

// refused says why a stranger was not let in: for the log, never for the
// stranger.
type refused string

func (r refused) Error() string { return string(r) }

// login answers POST /api/login.
func (c *call) login(e *entrance) (any, error) {
	if !e.limiter.allow(c.facts.IP) {
		e := api.Errorf(api.CodeUnavailable, "too many logins from your network")
		e.Hint = "try again in a second"
		return nil, e
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxLogin)
	var in api.LoginRequest
	if err := rpc.Read(c.r, &in); err != nil {
		return nil, err
	}
	_, spki, err := cert.ParseCSR(in.CSR)
	if err != nil {
		return nil, err
	}
	uid, hash, err := token.Parse(in.Token)
	if err != nil {
		return nil, c.turnAway(err)
	}

	ctx := c.r.Context()
	key, err := e.credentials.find(ctx, c.Store, uid)
	if err != nil {
		return nil, err
	}
	out, rev, err := c.enter(e, func(r store.Reader) (*admission, error) { return c.admit(r, key, uid, hash, in.User) }, in.CSR, spki)
	if why, ok := errors.AsType[refused](err); ok {
		return nil, c.turnAway(why)
	}
	if held, ok := errors.AsType[*withheld](err); ok {
		return nil, c.withhold(held)
	}
	if err != nil {
		return nil, err
	}
	return out, c.await(ctx, rev)
}

// enter makes a Session and its first certificate for whomever admit admits.
func (c *call) enter(e *entrance, admit func(store.Reader) (*admission, error), csr []byte, spki string) (out api.LoginResponse, rev api.Revision, err error) {
	ctx := c.r.Context()
	// Strangers take no turn among the writers: first it is looked at without.
	var a *admission
	err = c.Store.View(ctx, func(r store.Reader) (err error) {
		a, err = admit(r)
		return err
	})
	if err != nil {
		return out, rev, err
	}
	done, err := e.turns.take(ctx, a.user.Metadata.Name)
	if err != nil {
		return out, rev, err
	}
	defer done()
	if err := c.room(e, a); err != nil {
		return out, rev, err
	}
	rev, err = c.Store.Update(ctx, actorSystem, func(tx store.Tx) error {
		a, err := admit(tx)
		if err != nil {
			return err
		}
		recs, s, err := c.open(tx, a, spki)
		if err != nil {
			return err
		}
		if out, err = c.certify(csr, s); err != nil {
			return err
		}
		return c.append(ctx, recs)
	})
	return out, rev, err
}

// turnAway records a login that was refused, with the reason, and returns what
// the stranger is told: always the same.
func (c *call) turnAway(why error) error {
	c.Log.Info("a login was refused", "reason", why, "source", c.facts.IP)
	d := api.Decision{Effect: api.Deny, Reason: api.ReasonUnauthenticated, Words: why.Error()}
	c.deny(c.r.Context(), d, api.APIFacts{Verb: verbLogin, Kind: api.KindSession})
	e := api.Errorf(api.CodeUnauthenticated, "the token is not valid: it was used up, has expired, was replaced, or is none of this cluster")
	e.Hint = "ask for another one; who may make it: cardea create credential NAME --rotate"
	return e
}

// A withheld login is one of a valid token that lets nobody in for now. The token
// is not used up, and its bearer is told why.
type withheld struct {
	user   api.Ref
	reason api.ReasonType
	err    *api.Error
}

func (w *withheld) Error() string { return w.err.Error() }

// withhold records a login that was withheld, and returns what the bearer of the
// token is told.
func (c *call) withhold(w *withheld) error {
	d := api.Decision{Effect: api.Deny, Reason: w.reason, Words: w.err.Message, Subject: api.Subject{User: &w.user}}
	c.deny(c.r.Context(), d, api.APIFacts{Verb: verbLogin, Kind: api.KindSession})
	return w.err
}

// An admission is what a valid token proves.
type admission struct {
	credential *api.Credential
	user       *api.User
	terms      terms
}

// admit returns what the token of that hash proves, if it is that of the
// Credential of that key and uid and may be used now. Otherwise the error is a
// refused, or a withheld. want is the name of the User whom the token has to be
// of, or "".
func (c *call) admit(r store.Reader, k api.Key, uid, hash, want string) (*admission, error) {
	none := refused("there is no Credential of uid " + uid)
	if k.Name == "" {
		return nil, none
	}
	cred, err := store.Get[*api.Credential](r, k)
	switch {
	case api.HasCode(err, api.CodeNotFound):
		return nil, none
	case err != nil:
		return nil, err
	case cred.Metadata.UID != uid: // it was made again under its name
		return nil, none
	case !token.Matches(cred, hash):
		return nil, refused("the token is not that of Credential " + cred.Metadata.Name)
	}
	var why string
	n := cred.Spec.MaxAuthentications
	switch {
	case cred.Spec.IsDisabled:
		why = "is disabled"
	case !cred.Spec.ExpiresAt.IsZero() && !c.Now().Before(cred.Spec.ExpiresAt):
		why = "has expired"
	case n > 0 && cred.Status.TotalAuthentications >= n:
		why = fmt.Sprintf("has been used %d times, which is as often as it may", n)
	}
	if why != "" {
		return nil, refused("Credential " + cred.Metadata.Name + " " + why)
	}
	user, err := store.Get[*api.User](r, coreKey(api.KindUser, cred.Spec.User))
	switch {
	case api.HasCode(err, api.CodeNotFound):
		return nil, refused("there is no User " + cred.Spec.User)
	case err != nil:
		return nil, err
	case user.Spec.IsDisabled:
		return nil, refused("User " + cred.Spec.User + " is disabled")
	}
	if want != "" && user.Metadata.Name != want {
		return nil, &withheld{user.Ref(), api.ReasonUnauthenticated, api.Errorf(api.CodeConflict, "the token is of User %s, not of %s", user.Metadata.Name, want)}
	}
	t, err := termsOf(r, user)
	if err != nil {
		return nil, err
	}
	if cred.Metadata.IsSystem {
		// The token of a first start, or of recover: the way in for whoever has no
		// other. Nothing that can be written may close it.
		t.state, t.most = api.SessionActive, 0
	}
	return &admission{cred, user, t}, nil
}

// room returns a withheld if a User, whose turn it is, has as many Sessions as
// there may be.
func (c *call) room(e *entrance, a *admission) error {
	ctx, user, most := c.r.Context(), a.user.Metadata, a.terms.most
	if most == 0 {
		return nil
	}
	live, err := e.sessions.count(ctx, c.Store, user.Name)
	if err != nil || live < most {
		return err
	}
	// Some of them may have expired, and not be deleted yet.
	live = 0
	err = c.Store.View(ctx, func(r store.Reader) error {
		for s, err := range store.All[*api.Session](r, api.KindSession) {
			if err != nil {
				return err
			}
			if s.Status.UserRef.UID == user.UID && c.Now().Before(s.Spec.ExpiresAt) {
				live++
			}
		}
		return nil
	})
	if err != nil || live < most {
		return err
	}
	refusal := api.Errorf(api.CodeConflict, "User %s has %d Sessions, which is as many as there may be; the token was not used up", user.Name, live)
	refusal.Hint = fmt.Sprintf("log out where a Session is not needed (cardea logout); an administrator: cardea get sessions --user %s, cardea delete session NAME", user.Name)
	return &withheld{a.user.Ref(), api.ReasonLimit, refusal}
}

// open counts a use of the Credential and makes a Session of the User that is
// bound to a key. It returns the records of that, too.
func (c *call) open(tx store.Tx, a *admission, key string) ([]*api.AccessLog, *api.Session, error) {
	now, cred := c.Now().UTC(), a.credential
	s := new(api.Session)
	s.Metadata = api.Metadata{UID: newUID(), ResourceVersion: newVersion(), CreatedAt: now, UpdatedAt: now}
	s.Spec = api.SessionSpec{State: a.terms.state, ExpiresAt: now.Add(a.terms.life), Authorization: cred.Spec.Authorization}
	credRef := cred.Ref()
	s.Status = api.SessionStatus{
		Type: string(api.SessionClient), UserRef: a.user.Ref(), CredentialRef: &credRef, KeySHA256: key,
		CertificateSeconds: int(a.terms.certificate / time.Second),
	}
	s.Default()
	if err := giveName(tx, s, a.user.Metadata.Name, sessionRandom); err != nil {
		return nil, nil, err
	}
	if err := put(tx, s); err != nil {
		return nil, nil, err
	}
	ref := s.Ref()
	d := api.Decision{Effect: api.Allow, Lease: 1, Reason: api.ReasonPolicyMatch, Words: "a valid token",
		Subject: api.Subject{Session: &ref, User: &s.Status.UserRef}}
	recs := []*api.AccessLog{c.record(d, about(verbLogin, s.Key()), nil, s)}

	cred.Status.TotalAuthentications++
	cred.Status.LastAuthenticationAt = now
	if !cred.Spec.AutoDelete || cred.Status.TotalAuthentications < cred.Spec.MaxAuthentications {
		return recs, s, put(tx, cred)
	}
	d.Words = "used as often as it may be, and deleted then"
	return append(recs, c.record(d, about(verbDelete, cred.Key()), cred, nil)), s, tx.Delete(cred.Key())
}

// sessionRandom is how many random characters the name of a Session ends with.
const sessionRandom = 6

// giveName gives an Object a name that no other of its kind has: a prefix, and so
// many random characters of [a-z0-9].
func giveName(r store.Reader, o api.Object, prefix string, random int) error {
	for {
		o.Header().Metadata.Name = prefix + "-" + randomName(random)
		other, err := stored(r, o.Header().Key())
		if err != nil || other == nil {
			return err
		}
	}
}

// randomName returns n characters of [a-z0-9]. They are no secret.
func randomName(n int) string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	b := make([]byte, n)
	rand.Read(b) // never fails
	for i := range b {
		b[i] = digits[int(b[i])%len(digits)]
	}
	return string(b)
}

// certify issues a certificate for the key of a Session.
func (c *call) certify(csr []byte, s *api.Session) (api.LoginResponse, error) {
	life := cmp.Or(time.Duration(s.Status.CertificateSeconds)*time.Second, certificateLife)
	der, key, err := c.Authority.SessionCertificate(csr, s.Metadata.UID, life, s.Spec.ExpiresAt)
	if err != nil {
		return api.LoginResponse{}, fmt.Errorf("issue the certificate of a Session: %w", err)
	}
	if key != s.Status.KeySHA256 {
		return api.LoginResponse{}, api.Errorf(api.CodeInvalid, "the CSR must be by the key of the Session")
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return api.LoginResponse{}, fmt.Errorf("read the certificate of a Session: %w", err)
	}
	out := api.LoginResponse{
		Domain: c.Domain, User: s.Status.UserRef.Name, Session: s.Metadata.Name,
		Certificate: der, NotAfter: leaf.NotAfter.UTC(),
		State: s.Spec.State, Now: c.Now().UTC(),
	}
	for _, ca := range c.Authority.Roots() {
		out.CA = append(out.CA, ca.Raw)
	}
	return out, nil
}

// renew answers POST /api/renew. The certificate by which the caller comes may
// have expired: the key is the credential, and TLS has proved it.
func (c *call) renew() (any, error) {
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxLogin)
	claim, err := c.Verifier.Verify(c.evidence, c.Now())
	if expired, ok := errors.AsType[*identity.ExpiredError](err); ok {
		claim, err = expired.Claim, nil
	}
	if err != nil {
		return nil, c.notRenewed(err)
	}
	// Whether it is active, not at its end, and its User enabled, is decided like
	// everything else; and the Decider knows its name.
	c.verified = claim.SessionUID
	s, err := c.session()
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, c.notRenewed(refused("there is no Session of uid " + claim.SessionUID))
	}
	if claim.KeySHA256 == "" || subtle.ConstantTimeCompare([]byte(claim.KeySHA256), []byte(s.Status.KeySHA256)) != 1 {
		return nil, c.notRenewed(refused("Session " + s.Metadata.Name + " is bound to another key"))
	}
	if _, err := c.may(verbRenew, s.Key()); err != nil {
		return nil, err
	}
	var in api.RenewRequest
	if err := rpc.Read(c.r, &in); err != nil {
		return nil, err
	}
	return c.certify(in.CSR, s)
}

// session returns the Session that was verified, and nil if there is none.
func (c *call) session() (*api.Session, error) {
	d, err := c.decide(c.r.Context(), api.APIFacts{Verb: verbRenew, Kind: api.KindSession})
	if err != nil {
		return nil, undecided()
	}
	if d.Subject.Session == nil {
		return nil, nil
	}
	o, err := c.load(coreKey(api.KindSession, d.Subject.Session.Name))
	switch {
	case api.HasCode(err, api.CodeNotFound):
		return nil, nil
	case err != nil:
		return nil, err
	case o.Header().Metadata.UID != c.verified:
		return nil, nil
	}
	return o.(*api.Session), nil
}

// inactive is what the bearer of a Session is told that is there, and may not be
// used: to log in again would not help.
func inactive(session *api.Ref) error {
	e := api.Errorf(api.CodeUnauthenticated, "your Session %s is not active: it waits for approval, or was rejected", session.Name)
	e.Hint = "ask an administrator: cardea update session " + session.Name + " --approve"
	return e
}

// notRenewed records a renewal that was refused, with the reason.
func (c *call) notRenewed(why error) error {
	d := api.Decision{Effect: api.Deny, Reason: api.ReasonUnauthenticated, Words: why.Error()}
	c.deny(c.r.Context(), d, api.APIFacts{Verb: verbRenew, Kind: api.KindSession})
	return stranger()
}

// newToken answers POST /api/core/v1/credentials/{name}/token. The token may be
// used as often as the Credential says, however often the old one was. One of
// another User takes the right to let somebody log in as him.
func (c *call) newToken() (any, error) {
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	name, err := c.name("name")
	if err != nil {
		return nil, err
	}
	k := coreKey(api.KindCredential, name)
	d, err := c.may(verbUpdate, k)
	if err != nil {
		return nil, err
	}
	out := api.TokenResponse{CASHA256: pin(c.Authority)}
	ctx := c.r.Context()
	rev, err := c.Store.Update(ctx, who.Name, func(tx store.Tx) error {
		cred, err := store.Get[*api.Credential](tx, k)
		if err != nil {
			return err
		}
		if cred.Metadata.IsSystem {
			e := api.Errorf(api.CodeConflict, "Credential %q was made by the system", k.Name)
			e.Hint = "cardea recover makes a new token of it"
			return e
		}
		before := api.Clone(cred)
		enabled := api.Clone(cred) // it may become so, and the token is known then
		enabled.Spec.IsDisabled = false
		if err := c.mayLogInAs(tx, who, enabled); err != nil {
			return err
		}
		out.Token, cred.Status.TokenSHA256 = token.New(cred.Metadata.UID)
		cred.Status.TotalAuthentications = 0
		cred.Status.TotalRotations++
		cred.Status.LastRotationAt = c.Now().UTC()
		cred.Metadata.ResourceVersion, cred.Metadata.UpdatedAt, cred.Metadata.ActorRef = newVersion(), c.Now().UTC(), &who
		if err := put(tx, cred); err != nil {
			return err
		}
		return c.append(ctx, []*api.AccessLog{c.record(d, about(verbUpdate, k), before, cred)})
	})
	if err != nil {
		return nil, err
	}
	return out, c.await(ctx, rev)
}

// pin returns the SHA-256 of the newest CA, in hex: what those who log in pin.
func pin(a Authority) string {
	roots := a.Roots()
	if len(roots) == 0 {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256(roots[0].Raw))
}
