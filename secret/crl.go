package secret

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrRevoked is in the error of [Material.Unrevoked] if a certificate is revoked.
var ErrRevoked = errors.New("it is revoked")

// parseList reads a revocation list. One with a critical extension is not whole: a
// delta, or a list of some certificates only (RFC 5280, section 5.2).
func parseList(der []byte) (*x509.RevocationList, error) {
	l, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, errors.New("has a revocation list that cannot be parsed")
	}
	for _, e := range l.Extensions {
		if e.Critical {
			return nil, fmt.Errorf("has a revocation list with a critical extension (%s): give one that is complete, not a delta or a part", e.Id)
		}
	}
	return l, nil
}

// A revocations is what revocation lists say, made to be asked often.
type revocations struct {
	list    *x509.RevocationList
	serials map[string]bool

	mu     sync.Mutex
	issued map[[32]byte]bool // by certificate of an issuer: whether the list is its own
}

// maxIssuers is of how many certificates it is remembered whether a list is theirs.
const maxIssuers = 64

func newRevocations(l *x509.RevocationList) *revocations {
	r := &revocations{list: l, serials: make(map[string]bool, len(l.RevokedCertificateEntries)), issued: map[[32]byte]bool{}}
	for _, e := range l.RevokedCertificateEntries {
		r.serials[string(e.SerialNumber.Bytes())] = true
	}
	return r
}

// isOf reports whether the list was signed by that issuer.
func (r *revocations) isOf(issuer *x509.Certificate) bool {
	if string(r.list.RawIssuer) != string(issuer.RawSubject) {
		return false
	}
	k := sha256.Sum256(issuer.Raw)
	r.mu.Lock()
	defer r.mu.Unlock()
	is, known := r.issued[k]
	if !known {
		is = r.list.CheckSignatureFrom(issuer) == nil
		if len(r.issued) >= maxIssuers {
			clear(r.issued)
		}
		r.issued[k] = is
	}
	return is
}

// Unrevoked returns nil if the revocation lists let one of the chains stand, or if
// there are no lists. The chains are as crypto/x509 verified them, the root last.
// Each certificate but the last must have a list of its issuer, signed by it and not
// outdated (RFC 5280, section 6.3, for complete lists), and be on none. The error is
// words about the first chain; [ErrRevoked] is in it if a certificate is revoked.
//
// m may be nil.
func (m *Material) Unrevoked(chains [][]*x509.Certificate, now time.Time) error {
	if m == nil || len(m.CRLs) == 0 {
		return nil
	}
	m.once.Do(func() {
		for _, l := range m.CRLs {
			m.lists = append(m.lists, newRevocations(l))
		}
	})
	if len(chains) == 0 {
		return errors.New("no chain of certificates was verified, so that none can be looked up in the revocation lists")
	}
	var first error
	for _, chain := range chains {
		err := m.chainUnrevoked(chain, now)
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

func (m *Material) chainUnrevoked(chain []*x509.Certificate, now time.Time) error {
	for i := range len(chain) - 1 {
		c, issuer := chain[i], chain[i+1]
		found, outdated := false, false
		for _, r := range m.lists {
			if !r.isOf(issuer) {
				continue
			}
			if r.serials[string(c.SerialNumber.Bytes())] {
				return fmt.Errorf("the certificate %.100q (serial %x): %w", c.Subject.String(), c.SerialNumber, ErrRevoked)
			}
			late := !r.list.NextUpdate.IsZero() && now.After(r.list.NextUpdate)
			outdated = outdated || late
			found = found || !late && !now.Before(r.list.ThisUpdate)
		}
		switch {
		case found:
		case outdated:
			return fmt.Errorf("the revocation list of %.100q is outdated: fetch the next one", issuer.Subject.String())
		default:
			return fmt.Errorf("there is no revocation list of %.100q, so that it cannot be told whether its certificates are good", issuer.Subject.String())
		}
	}
	return nil
}
