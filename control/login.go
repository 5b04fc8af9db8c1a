package control

import (
	"crypto/rand"
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

// How long the Session of a User lasts.
const (
	humanSession    = 21 * time.Hour
	workloadSession = 90 * 24 * time.Hour
)

// maxLogin is the size in bytes of the largest request that a stranger can make.
const maxLogin = 64 << 10

// An Authority issues the certificates of Sessions: see [cert.Authority].
type Authority interface {
	SessionCertificate(csr []byte, sessionUID string, notAfter time.Time) (der []byte, spkiSHA256 string, err error)
	Roots() []*x509.Certificate
}

// refused says why a stranger was not let in: for the log, never for the
// stranger.
type refused string

func (r refused) Error() string { return string(r) }

// login answers POST /api/login.
func (c *call) login(limit *limiter) (any, error) {
	if !limit.allow(c.facts.IP) {
		e := api.Errorf(api.CodeUnavailable, "too many logins from your network")
		e.Hint = "try again in a second"
		return nil, e
	}
	c.r.Body = http.MaxBytesReader(c.w, c.r.Body, maxLogin)
	var in api.LoginRequest
	if err := rpc.Read(c.r, &in); err != nil {
		return nil, err
	}
	_, key, err := cert.ParseCSR(in.CSR)
	if err != nil {
		return nil, err
	}
	uid, hash, err := token.Parse(in.Token)
	if err != nil {
		return nil, c.turnAway(err)
	}

	ctx := c.r.Context()
	// Strangers take no turn among the writers: first it is looked at without.
	admit := func(r store.Reader) (*api.Credential, *api.User, error) {
		cred, user, err := c.admit(r, uid, hash)
		if err == nil && in.User != "" && user.Metadata.Name != in.User {
			err = api.Errorf(api.CodeConflict, "the token is of User %s, not of %s", user.Metadata.Name, in.User)
		}
		return cred, user, err
	}
	err = c.Store.View(ctx, func(r store.Reader) error {
		_, _, err := admit(r)
		return err
	})
	var out api.LoginResponse
	var rev api.Revision
	if err == nil {
		rev, err = c.Store.Update(ctx, actorSystem, func(tx store.Tx) error {
			cred, user, err := admit(tx)
			if err != nil {
				return err
			}
			s, err := c.open(tx, user, cred, key)
			if err != nil {
				return err
			}
			if out, err = c.certify(in.CSR, s); err != nil {
				return err
			}
			return c.append(ctx, []*api.AccessLog{c.loginRecord(s)})
		})
	}
	if why, ok := errors.AsType[refused](err); ok {
		return nil, c.turnAway(why)
	}
	if err != nil {
		return nil, err
	}
	return out, c.await(ctx, rev)
}

// turnAway records a login that was refused, with the reason, and returns what
// the stranger is told: always the same.
func (c *call) turnAway(why error) error {
	c.Log.Info("a login was refused", "reason", why, "source", c.facts.IP)
	d := api.Decision{Effect: api.Deny, Reason: api.ReasonUnauthenticated, Words: why.Error()}
	c.deny(c.r.Context(), d, api.APIFacts{Verb: verbLogin, Kind: api.KindSession})
	return api.Errorf(api.CodeUnauthenticated, "the token is not valid: ask for a new one")
}

// admit returns the Credential of that uid and its User, if the token of that
// hash is its own and may be used now. Otherwise the error is a refused.
func (c *call) admit(r store.Reader, uid, hash string) (*api.Credential, *api.User, error) {
	cred, err := byUID[*api.Credential](r, api.KindCredential, uid)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case cred == nil:
		return nil, nil, refused("there is no Credential of uid " + uid)
	case !token.Matches(cred, hash):
		return nil, nil, refused("the token is not that of Credential " + cred.Metadata.Name)
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
		return nil, nil, refused("Credential " + cred.Metadata.Name + " " + why)
	}
	user, err := store.Get[*api.User](r, api.Key{Group: api.GroupCore, Kind: api.KindUser, Name: cred.Spec.User})
	switch {
	case api.HasCode(err, api.CodeNotFound):
		return nil, nil, refused("there is no User " + cred.Spec.User)
	case err != nil:
		return nil, nil, err
	case user.Spec.IsDisabled:
		return nil, nil, refused("User " + cred.Spec.User + " is disabled")
	}
	return cred, user, nil
}

// byUID returns the Object of a kind that has that uid, and nil if there is none.
func byUID[T api.Object](r store.Reader, kind, uid string) (none T, err error) {
	var key api.Key
	for rec, err := range r.List(api.GroupCore, kind) {
		if err != nil {
			return none, err
		}
		if rec.UID == uid {
			key = rec.Key
			break
		}
	}
	if key.Name == "" {
		return none, nil
	}
	return store.Get[T](r, key)
}

// open counts a use of cred and makes a Session of user that is bound to a key.
func (c *call) open(tx store.Tx, user *api.User, cred *api.Credential, key string) (*api.Session, error) {
	now := c.Now().UTC()
	cred.Status.TotalAuthentications++
	cred.Status.LastAuthenticationAt = now
	if err := put(tx, cred); err != nil {
		return nil, err
	}
	life := humanSession
	if user.Spec.Type == api.UserWorkload {
		life = workloadSession
	}
	s := new(api.Session)
	s.Metadata = api.Metadata{UID: newUID(), ResourceVersion: newVersion(), CreatedAt: now, UpdatedAt: now}
	s.Spec = api.SessionSpec{State: api.SessionActive, ExpiresAt: now.Add(life), Authorization: cred.Spec.Authorization}
	credRef := cred.Ref()
	s.Status = api.SessionStatus{Type: "CLIENT", UserRef: user.Ref(), CredentialRef: &credRef, KeySHA256: key}
	s.Default()
	for {
		s.Metadata.Name = user.Metadata.Name + "-" + sixRandom()
		other, err := stored(tx, s.Key())
		if err != nil {
			return nil, err
		}
		if other == nil {
			return s, put(tx, s)
		}
	}
}

// sixRandom returns six characters of [a-z0-9]. They are no secret.
func sixRandom() string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	b := make([]byte, 6)
	rand.Read(b) // never fails
	for i := range b {
		b[i] = digits[int(b[i])%len(digits)]
	}
	return string(b)
}

// certify issues a certificate for the key of a Session.
func (c *call) certify(csr []byte, s *api.Session) (api.LoginResponse, error) {
	der, key, err := c.Authority.SessionCertificate(csr, s.Metadata.UID, s.Spec.ExpiresAt)
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
	}
	for _, ca := range c.Authority.Roots() {
		out.CA = append(out.CA, ca.Raw)
	}
	return out, nil
}

// loginRecord is the record of a login.
func (c *call) loginRecord(s *api.Session) *api.AccessLog {
	ref := s.Ref()
	d := api.Decision{Effect: api.Allow, Lease: 1, Reason: api.ReasonPolicyMatch, Words: "a valid token",
		Subject: api.Subject{Session: &ref, User: &s.Status.UserRef}}
	return c.record(d, about(verbLogin, s.Key()), nil, s)
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
	s, err := c.session(claim.SessionUID)
	if err != nil {
		return nil, err
	}
	if s == nil {
		return nil, c.notRenewed(refused("there is no Session of uid " + claim.SessionUID))
	}
	if claim.KeySHA256 == "" || claim.KeySHA256 != s.Status.KeySHA256 {
		return nil, c.notRenewed(refused("Session " + s.Metadata.Name + " is bound to another key"))
	}
	// Whether it is active, not at its end, and its User enabled, is decided like
	// everything else.
	c.verified = s.Metadata.UID
	if _, err := c.may(verbRenew, s.Key()); err != nil {
		return nil, err
	}
	var in api.RenewRequest
	if err := rpc.Read(c.r, &in); err != nil {
		return nil, err
	}
	return c.certify(in.CSR, s)
}

// session returns the Session of that uid, and nil if there is none.
func (c *call) session(uid string) (s *api.Session, err error) {
	err = c.Store.View(c.r.Context(), func(r store.Reader) error {
		s, err = byUID[*api.Session](r, api.KindSession, uid)
		return err
	})
	return s, err
}

// notRenewed records a renewal that was refused, with the reason.
func (c *call) notRenewed(why error) error {
	d := api.Decision{Effect: api.Deny, Reason: api.ReasonUnauthenticated, Words: why.Error()}
	c.deny(c.r.Context(), d, api.APIFacts{Verb: verbRenew, Kind: api.KindSession})
	return stranger()
}

// newToken answers POST /api/core/v1/credentials/{name}/token. The token may be
// used as often as the Credential says, however often the old one was.
func (c *call) newToken() (any, error) {
	who, err := c.who()
	if err != nil {
		return nil, err
	}
	name, err := c.name("name")
	if err != nil {
		return nil, err
	}
	k := api.Key{Group: api.GroupCore, Kind: api.KindCredential, Name: name}
	d, err := c.may(verbUpdate, k)
	if err != nil {
		return nil, err
	}
	var out api.TokenResponse
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
		out.Token, cred.Status.TokenSHA256 = token.New(cred.Metadata.UID)
		cred.Status.TotalAuthentications = 0
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
