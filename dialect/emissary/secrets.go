package emissary

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"cardea/api"
)

func (c *compiler) readSecrets() {
	theirs := ordered(c, c.Secrets)
	c.secrets = make(map[place]*api.KubernetesSecret, len(theirs))
	for _, s := range theirs {
		p := place{c.namespaceOf(s), s.Metadata.Name}
		// One that names its Namespace goes before one that is of ours by not naming any.
		if before := c.secrets[p]; before == nil || before.Metadata.Namespace == "" && s.Metadata.Namespace != "" {
			c.secrets[p] = s
		}
	}
	ours := ordered(c, c.Own)
	c.own = make(map[string]*api.Secret, len(ours))
	for _, s := range slices.Backward(ours) { // the first of a name counts
		c.own[s.Metadata.Name] = s
	}
}

// A purpose is what a Secret is named for.
type purpose int

const (
	forCertificate purpose = iota // a certificate and its key
	forAuthority                  // certificates of CAs
	forRevocation                 // revocation lists
)

// holds says what a Secret must have.
func (p purpose) holds() string {
	return [...]string{"tls.crt and tls.key", "tls.crt or ca.crt", "crl.pem"}[p]
}

// A ref is what a reference leads to: a material, or why there is none. The zero ref
// is that nothing was named.
type ref struct {
	material *api.Material
	problem  problem
	// root is set if the Secret of a certificate has the CAs of its peers, too, as
	// Istio's have.
	root bool
	// note is what a person should know of it: that its certificate expires.
	note string
}

func (r ref) named() bool { return r.material != nil || !r.problem.ok() }

// secret finds a Secret by what a field says: NAME, or with dots NAME.NAMESPACE.
func (c *compiler) secret(field, text, ns string, dots bool, why purpose) ref {
	if text == "" {
		return ref{}
	}
	name := text
	if i := strings.LastIndexByte(text, '.'); dots && i > 0 && i < len(text)-1 {
		name, ns = text[:i], text[i+1:]
	}
	r := c.secretAt(field, place{ns, name}, why, name == text)
	if r.problem.reason == ReasonNoSecret && name != text {
		r.problem.words += ". If the dot is part of its name, set secret_namespacing: false"
	}
	return r
}

// secretAt returns a Secret of Kubernetes or, if it may be and there is none, one of
// ours.
func (c *compiler) secretAt(field string, p place, why purpose, ours bool) ref {
	if s := c.secrets[p]; s != nil {
		key := s.Key()
		r := ref{material: &api.Material{Secret: &key}, root: s.HasKey("root-cert.pem")}
		if why == forCertificate || why == forAuthority && !s.HasKey("ca.crt") && !r.root {
			r.note = c.expiry(key, s.Status.Certificate)
		}
		if lacks := lacking(s, why); lacks != "" {
			return ref{problem: problemf(ReasonBadSecret, "%s, which %s names, %s: it must hold %s", key, field, lacks, why.holds())}
		}
		return r
	}
	if s := c.own[p.name]; ours && s != nil {
		key, facts := s.Key(), s.Status.Certificate
		switch {
		case why == forRevocation:
		case facts == nil:
			return ref{problem: problemf(ReasonBadSecret, "%s, which %s names, has no certificate", key, field)}
		case why == forCertificate && !facts.HasKey:
			return ref{problem: problemf(ReasonBadSecret, "%s, which %s names, has no key for its certificate: put both into it, PEM", key, field)}
		}
		r := ref{material: &api.Material{Secret: &key}}
		if why != forRevocation {
			r.note = c.expiry(key, facts)
		}
		return r
	}
	way := "apply it (apiVersion: v1), with " + why.holds()
	if ours && why == forCertificate && !strings.Contains(p.name, ".") {
		way += ", or a Secret of Cardea of that name with certificate and key"
	}
	return ref{problem: problemf(ReasonNoSecret, "%s names Secret %s/%s, which is not there: %s", field, short(p.ns), short(p.name), way)}
}

// soon is how long before its end it is said of a certificate that it expires.
const soon = 14 * 24 * time.Hour

// expiry says of a certificate that it has expired, or soon will; else "".
func (c *compiler) expiry(secret api.Key, facts *api.CertificateFacts) string {
	if facts == nil || facts.NotAfter.IsZero() {
		return ""
	}
	verb := "expires"
	switch left := facts.NotAfter.Sub(c.Now); {
	case left < 0:
		verb = "expired"
	case left > soon:
		return ""
	}
	return fmt.Sprintf("the certificate in %s %s on %s", secret, verb, facts.NotAfter.UTC().Format(time.DateOnly))
}

// lacking says what a Secret of Kubernetes does not have, "" if it has all.
func lacking(s *api.KubernetesSecret, why purpose) string {
	facts := s.Status.Certificate
	has := func(keys ...string) bool { return slices.ContainsFunc(keys, s.HasKey) }
	switch {
	case why == forRevocation && !has("crl.pem"):
		return "has no revocation list"
	case why == forAuthority && !has("ca.crt", "root-cert.pem") && facts == nil:
		return "has no certificate of a CA"
	case why == forCertificate && facts == nil && has("tls.crt", "cert-chain.pem"):
		return "has no certificate that can be read"
	case why == forCertificate && facts == nil:
		return "has no certificate"
	case why == forCertificate && !facts.HasKey && has("tls.key", "key.pem", "user.key"):
		return "has no key that belongs to its certificate"
	case why == forCertificate && !facts.HasKey:
		return "has no key"
	}
	return ""
}

// file returns the material of files, if they may be used.
func (c *compiler) file(field, chain, key string) ref {
	if chain == "" {
		return ref{}
	}
	for _, path := range []string{chain, key} {
		if path != "" && (c.Files == nil || !c.Files(path)) {
			return ref{problem: problemf(ReasonFile, "%s names the file %s, which may not be used: put it below a directory that --tls-files names, or use a Secret", field, short(path))}
		}
	}
	return ref{material: &api.Material{Chain: chain, Key: key}}
}
