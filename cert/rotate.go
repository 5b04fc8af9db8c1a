package cert

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"cardea/api"
	"cardea/store"
)

// overlap is how long a CA and the one that replaces it are both good, at least.
const overlap = 7 * 24 * time.Hour

// until returns when an old root ends. Its cross certificate lasts a little
// longer, for clocks that are ahead.
func (r *root) until() time.Time { return r.cross.NotAfter.Add(-skew) }

// issuer returns the root that signs server certificates, and what is shown above
// them. While two roots overlap it is the old one: clients that pinned it know
// nothing of the new, and those that pinned the new one find the old one's cross
// certificate, by the new, above the leaf.
func (s *state) issuer() (by *root, above [][]byte) {
	if s.old == nil {
		return &s.root, [][]byte{s.root.cert.Raw}
	}
	return s.old, [][]byte{s.old.cross.Raw, s.old.cert.Raw, s.root.cert.Raw}
}

func newState(r root, old *root) *state {
	s := &state{root: r, old: old, pool: x509.NewCertPool()}
	s.pool.AddCert(r.cert)
	if old != nil {
		s.pool.AddCert(old.cert)
	}
	return s
}

// current returns the state as it stands now: an overlap ends by itself.
func (a *Authority) current() *state {
	s := a.state.Load()
	if s.old == nil || a.now().Before(s.old.until()) {
		return s
	}
	a.moving.Lock()
	defer a.moving.Unlock()
	if now := a.state.Load(); now != s {
		return now
	}
	s = newState(s.root, nil)
	a.state.Store(s)
	return s
}

// read returns the roots that are stored; old is nil if there is none, or its
// time is over.
func (a *Authority) read(r store.Reader) (newest root, old *root, err error) {
	key, chain, err := a.keys.keeper.Signer(r, caSecret)
	switch {
	case err != nil:
		return root{}, nil, fmt.Errorf("cert: the cluster's CA: %w", err)
	case len(chain) != 1 || !chain[0].IsCA:
		return root{}, nil, fmt.Errorf("cert: the Secret %s must hold a private key and the certificate of a CA, in PEM", caSecret)
	}
	newest = root{key: key, cert: chain[0]}
	key, chain, err = a.keys.keeper.Signer(r, oldCASecret)
	switch {
	case api.HasCode(err, api.CodeNotFound):
		return newest, nil, nil
	case err != nil:
		return root{}, nil, fmt.Errorf("cert: the CA that is being replaced: %w", err)
	case len(chain) != 2 || chain[1].CheckSignatureFrom(newest.cert) != nil:
		return root{}, nil, fmt.Errorf("cert: the Secret %s must hold the key of a CA, its certificate, and one by the CA that replaces it", oldCASecret)
	}
	old = &root{key: key, cert: chain[0], cross: chain[1]}
	if !a.now().Before(old.until()) {
		old = nil
	}
	return newest, old, nil
}

// load takes the roots from the store.
func (a *Authority) load(ctx context.Context) error {
	a.moving.Lock()
	defer a.moving.Unlock()
	return a.keys.store.View(ctx, func(r store.Reader) error {
		newest, old, err := a.read(r)
		if err != nil {
			return err
		}
		if now := a.state.Load(); now != nil && now.root.cert.Equal(newest.cert) && (now.old == nil) == (old == nil) {
			return nil // what was issued, and verified, stays
		}
		a.state.Store(newState(newest, old))
		return nil
	})
}

// RotateCA makes a new CA. For an overlap of seven days, and not less than the
// certificates of Sessions are good for, both count: Sessions get certificates of
// the new one and learn it when they renew, servers show a chain that whoever
// pinned either of the two accepts. Then the old one is no CA any more, without a
// restart. [Authority.Fingerprint] is that of the new one from now on.
//
// It is a CONFLICT while another overlap lasts.
func (a *Authority) RotateCA(ctx context.Context) (api.RotateResponse, error) {
	var out api.RotateResponse
	life, err := a.longest(ctx)
	if err != nil {
		return out, err
	}
	_, err = a.keys.store.Update(ctx, actor, func(tx store.Tx) error {
		before, old, err := a.read(tx)
		if err != nil {
			return err
		}
		if old != nil {
			e := api.Errorf(api.CodeConflict, "the CA was rotated, and the one before it counts until %s", old.until().UTC().Format(time.RFC3339))
			e.Hint = "rotate it again after that"
			return e
		}
		key, cert, err := a.newCA(1)
		if err != nil {
			return err
		}
		template := a.caTemplate(0)
		template.RawSubject, template.SubjectKeyId = before.cert.RawSubject, before.cert.SubjectKeyId
		template.NotAfter = a.now().Add(max(overlap, life) + skew)
		if before.cross, err = a.certify(before.key.Public(), template, cert, key); err != nil {
			return err
		}
		out = api.RotateResponse{What: "ca", KeyID: hex.EncodeToString(cert.SubjectKeyId), CASHA256: fingerprint(cert), Overlap: before.until().UTC()}
		return errors.Join(
			a.keys.put(tx, oldCASecret, "The CA that is being replaced.", before.key, before.cert, before.cross),
			a.keys.put(tx, caSecret, "The key and the certificate of the cluster's CA.", key, cert))
	})
	if err != nil {
		return api.RotateResponse{}, fmt.Errorf("cert: rotate the CA: %w", err)
	}
	return out, a.load(ctx)
}

// longest returns the longest time that a certificate of a Session may be good.
func (a *Authority) longest(ctx context.Context) (life time.Duration, err error) {
	err = a.keys.store.View(ctx, func(r store.Reader) error {
		for s, err := range store.All[*api.Session](r, api.KindSession) {
			if err != nil {
				return err
			}
			left := s.Spec.ExpiresAt.Sub(a.now())
			life = max(life, min(left, time.Duration(s.Status.CertificateSeconds)*time.Second))
		}
		return nil
	})
	return life, err
}

// reloadPause is after how long a CA that cannot be read is tried again, if it does not
// change.
const reloadPause = 5 * time.Second

// Run follows the store until ctx is done: a CA that another process has rotated
// counts here too. It deletes the key of an old CA when its time is over. A CA that
// cannot be read is told of in the log, and the one that was there stays; only a store
// that does not say any more what changes is an error.
func (a *Authority) Run(ctx context.Context) error {
	for told := false; ctx.Err() == nil; {
		var from api.Revision
		if err := a.keys.store.View(ctx, func(r store.Reader) error { from = r.Revision(); return nil }); err != nil {
			return ended(ctx, err)
		}
		broken := ended(ctx, errors.Join(a.load(ctx), a.tidy(ctx)))
		if broken != nil && !told && a.Log != nil {
			a.Log.Error("the cluster's CA cannot be read; the one that was there stays, and it is tried again", "error", broken)
		}
		changed, err := a.follow(ctx, from, broken != nil)
		if err != nil && !errors.Is(err, store.ErrCompacted) {
			return ended(ctx, err)
		}
		told = broken != nil && !changed
	}
	return nil
}

// ended returns err, unless ctx is the reason for it.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// follow returns when the CA was changed in the store, which it reports, or an overlap
// has ended, or it is time to try again what is broken.
func (a *Authority) follow(ctx context.Context, from api.Revision, broken bool) (changed bool, err error) {
	if s := a.current(); s.old != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.old.until().Sub(a.now()))
		defer cancel()
	}
	if broken {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, reloadPause)
		defer cancel()
	}
	for c, err := range a.keys.store.Watch(ctx, from) {
		if err != nil {
			return false, err
		}
		for _, x := range c.Changes {
			if x.Key == secretKey(caSecret) || x.Key == secretKey(oldCASecret) {
				return true, nil
			}
		}
	}
	return false, nil
}

// tidy deletes the key of an old CA whose time is over.
func (a *Authority) tidy(ctx context.Context) error {
	_, err := a.keys.store.Update(ctx, actor, func(tx store.Tx) error {
		if _, err := tx.Get(secretKey(oldCASecret)); api.HasCode(err, api.CodeNotFound) {
			return nil
		}
		_, old, err := a.read(tx)
		if err != nil || old != nil {
			return err
		}
		return tx.Delete(secretKey(oldCASecret))
	})
	return err
}
