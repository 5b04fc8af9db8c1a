package emissary

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"cardea/api"
)

// A tlsContext is a TLSContext: what ends TLS for its hosts, and what a mapping names
// for TLS to its service.
type tlsContext struct {
	*object
	spec *api.TLSContextSpec
	parts
	used bool
	// lent is set if a Host gives it the certificate that it lacks.
	lent bool
}

// parts are what settings of TLS come to.
type parts struct {
	cert, ca, crl ref
	terms         api.TLSTerms
	alpn          []string
	required      bool    // who shows no certificate is refused
	sni           string  // that the service is asked for
	wrong         problem // why the Object is not accepted
}

// missing returns why what the settings refer to is not there.
func (p *parts) missing() problem { return first(p.cert.problem, p.ca.problem, p.crl.problem) }

// terminate returns how TLS is ended with the parts.
func (p *parts) terminate() *api.Termination {
	return &api.Termination{
		Certificate: p.cert.material, ClientCA: p.ca.material, CRL: p.crl.material, RequireClientCertificate: p.required,
		ALPN: p.alpn, TLSTerms: p.terms,
	}
}

// uses returns the Secrets of the parts.
func (p *parts) uses() (keys []api.Key) {
	for _, r := range []ref{p.cert, p.ca, p.crl} {
		if r.material != nil && r.material.Secret != nil {
			keys = join(keys, *r.material.Secret)
		}
	}
	return keys
}

// notes returns what a person should know of the Secrets of the parts.
func (p *parts) notes() (notes []string) {
	for _, r := range []ref{p.cert, p.ca, p.crl} {
		if r.note != "" && !slices.Contains(notes, r.note) {
			notes = append(notes, r.note)
		}
	}
	return notes
}

// parts reads settings of an Object. cert is the certificate that the Object names in
// another way than by files, and field says where.
func (c *compiler) parts(o *object, s *api.TLSSettings, cert ref, field string, dots bool) parts {
	p := parts{cert: cert, sni: canonical(s.SNI)}
	var wrong []string
	switch {
	case cert.named() && (s.CertChainFile != "" || s.PrivateKeyFile != ""):
		wrong = append(wrong, "it has both "+field+" and files for its certificate: exactly one is allowed")
	case s.CertChainFile != "" && s.PrivateKeyFile == "":
		wrong = append(wrong, "cert_chain_file needs private_key_file")
	case s.CertChainFile == "" && s.PrivateKeyFile != "":
		wrong = append(wrong, "private_key_file needs cert_chain_file")
	case s.CertChainFile != "":
		p.cert = c.file("cert_chain_file", s.CertChainFile, s.PrivateKeyFile)
	}
	wrong = append(wrong, c.trust(&p, o, s, dots)...)
	t := c.termsOf(s)
	p.terms, wrong = t.terms, append(wrong, t.wrong...)
	if len(s.CipherSuites) > len(p.terms.CipherSuites) && len(t.wrong) == 0 {
		o.note("cipher_suites: the suites of TLS 1.3 cannot be chosen; all of them may be used")
	}
	var err error
	if p.alpn, err = protocols(s.ALPNProtocols); err != nil {
		wrong = append(wrong, "alpn_protocols "+err.Error())
	}
	if p.sni != "" && !isName(p.sni) {
		wrong = append(wrong, fmt.Sprintf("sni must be a host name, not %q", short(s.SNI)))
	}
	p.required = s.CertRequired != nil && *s.CertRequired
	if s.RedirectCleartextFrom != nil && *s.RedirectCleartextFrom != 0 {
		o.note("redirect_cleartext_from has no effect on TCP")
	}
	p.wrong = invalid(wrong)
	return p
}

// trust reads by what certificates of peers are verified, and says what is wrong with
// it.
func (c *compiler) trust(p *parts, o *object, s *api.TLSSettings, dots bool) (wrong []string) {
	crlSecret := cmp.Or(s.CRLSecret, s.V3CRLSecret)
	p.ca = c.secret("ca_secret", s.CASecret, o.ns, dots, forAuthority)
	p.crl = c.secret("crl_secret", crlSecret, o.ns, dots, forRevocation)
	if s.CACertChainFile != "" {
		if s.CASecret != "" {
			wrong = append(wrong, "it has both ca_secret and cacert_chain_file: at most one is allowed")
		}
		p.ca = c.file("cacert_chain_file", s.CACertChainFile, "")
	}
	if s.CRLFile != "" {
		if crlSecret != "" {
			wrong = append(wrong, "it has both crl_secret and crl_file: at most one is allowed")
		}
		p.crl = c.file("crl_file", s.CRLFile, "")
	}
	if !p.ca.named() && p.cert.root {
		p.ca = ref{material: p.cert.material, note: p.cert.note}
	}
	if p.crl.named() && !p.ca.named() {
		o.note("crl_secret has no effect on certificates of clients without a CA to verify them")
	}
	return wrong
}

// terms are what settings say of versions, suites and curves, and what is wrong with it.
type terms struct {
	terms api.TLSTerms
	wrong []string
}

func (c *compiler) termsOf(s *api.TLSSettings) terms {
	key := fmt.Sprintf("%q %q %q %q", s.MinTLSVersion, s.MaxTLSVersion, s.CipherSuites, s.ECDHCurves)
	t, known := c.terms[key]
	if !known {
		var problems []api.Problem
		t.terms, problems = s.Terms()
		for _, x := range problems {
			t.wrong = append(t.wrong, x.String())
		}
		c.terms[key] = t
	}
	return t
}

// checkTermination says why certificates of clients cannot be asked for as the parts
// say.
func (p *parts) checkTermination(field string) problem {
	switch {
	case !p.cert.named():
		return problemf(ReasonInvalid, "it is for hosts and has no certificate: name a Secret with tls.crt and tls.key in %s, or files", field)
	case p.required && !p.ca.named():
		return problem{ReasonInvalid, "it has cert_required and no CA to verify certificates of clients: name one in ca_secret"}
	}
	return problem{}
}

// dots reports whether a dot in the name of a Secret begins a Namespace.
func (c *compiler) dots(own *bool) bool {
	if own != nil {
		return *own
	}
	return c.defaults.SecretNamespacing
}

func (c *compiler) readContexts() {
	var all []*tlsContext
	take(c, c.TLSContexts, func(x *api.TLSContext) *api.Installations { return &x.Spec.Installations }, func(x *api.TLSContext, o *object) {
		t := &tlsContext{object: o, spec: &x.Spec}
		all = append(all, t)
		c.contexts.add(t)
	})
	for _, h := range c.Hosts {
		if h != nil && h.Spec.TLSContext != nil && h.Spec.TLSSecret != nil && h.Spec.Include(c.id) {
			if t, ok := c.contexts.find(h.Spec.TLSContext.Name, c.hostNamespace(h, h.Spec.TLSContext)); ok {
				t.lent = true
			}
		}
	}
	for _, t := range all {
		c.readContext(t)
	}
}

func (c *compiler) readContext(t *tlsContext) {
	s := t.spec
	dots := c.dots(s.SecretNamespacing)
	t.parts = c.parts(t.object, &s.TLSSettings, c.secret("secret", s.Secret, t.ns, dots, forCertificate), "secret", dots)
	for _, n := range t.notes() {
		t.note("%s", n)
	}
	lent := t.lent && !t.cert.named()
	if len(s.Hosts) > 0 && !lent {
		t.wrong = first(t.wrong, t.checkTermination("secret"))
	}
	if len(s.Hosts) == 0 && !t.cert.named() && !lent && t.wrong.ok() {
		t.note("it has no certificate, so it can only be used for TLS to a service")
	}
	if !t.wrong.ok() {
		t.reject(t.wrong)
	}
	if t.cert.named() || t.ca.named() || t.crl.named() {
		t.resolved(t.missing())
	}
	if keys := t.uses(); keys != nil {
		c.out.Uses[t.key] = keys
	}
	if lent {
		return // the Host is what its names are served by
	}
	p := &provider{object: t.object, terminate: t.terminate(), uses: c.out.Uses[t.key], notes: t.notes(), used: &t.used}
	p.problem = first(t.inUse(), t.missing())
	for _, h := range s.Hosts {
		name := canonical(h)
		if !isPattern(name) {
			t.note(noPattern, "hosts", short(h))
		}
		c.providers.add(name, p)
	}
}

// noPattern is the note of names that TCP cannot match.
const noPattern = "%s: %q stands for no name of TCP's: those are NAME, *.DOMAIN and *"

// inUse returns why somebody who uses a context cannot.
func (t *tlsContext) inUse() problem {
	if t.wrong.ok() {
		return problem{}
	}
	return problemf(ReasonContext, "%s is not accepted: %s", t.key, t.wrong.words)
}

// A host is a Host.
type host struct {
	*object
	name string
	used bool
}

// hostNamespace returns where a Host means an Object that it names to be.
func (c *compiler) hostNamespace(h *api.Host, named *api.HostSecret) string {
	if named.Namespace != "" {
		return named.Namespace
	}
	return c.namespaceOf(h)
}

func (c *compiler) readHosts() {
	take(c, c.Hosts, func(h *api.Host) *api.Installations { return &h.Spec.Installations }, func(x *api.Host, o *object) {
		h := &host{object: o, name: canonical(x.Spec.Hostname)}
		if h.name == "" {
			h.name = "*"
		}
		c.hosts = append(c.hosts, h)
		p := c.readHost(x, h)
		if p == nil {
			return
		}
		if !isPattern(h.name) {
			o.note(noPattern, "hostname", short(x.Spec.Hostname))
		}
		c.providers.add(h.name, p)
	})
}

// readHost returns how TLS is ended for a Host, nil if it says nothing of it.
func (c *compiler) readHost(x *api.Host, h *host) *provider {
	var settings api.TLSSettings
	if x.Spec.TLS != nil {
		settings = x.Spec.TLS.Settings()
	}
	says := func(n *api.HostSecret) bool { return n != nil && n.Name != "" }
	if !says(x.Spec.TLSSecret) && !says(x.Spec.TLSContext) && settings.CertChainFile == "" && settings.PrivateKeyFile == "" {
		if x.Spec.TLS != nil {
			h.note("tls has no effect without tlsSecret or a certificate in files")
		}
		return nil
	}
	var cert ref
	if says(x.Spec.TLSSecret) {
		ns := c.hostNamespace(x, x.Spec.TLSSecret)
		cert = c.secretAt("tlsSecret", place{ns, x.Spec.TLSSecret.Name}, forCertificate, x.Spec.TLSSecret.Namespace == "")
	}
	var p parts
	var broken problem
	var uses []api.Key
	if says(x.Spec.TLSContext) {
		name := x.Spec.TLSContext.Name
		if t, ok := c.contexts.find(name, c.hostNamespace(x, x.Spec.TLSContext)); ok {
			t.used, uses = true, []api.Key{t.key}
			p, broken = t.parts, t.inUse()
			p.wrong = c.joinHost(h, t, &p, cert)
		} else {
			p.cert, broken = cert, c.noContext("tlsContext", name)
		}
		if x.Spec.TLS != nil {
			p.wrong = first(p.wrong, problem{ReasonInvalid, "it has both tlsContext and tls: at most one is allowed; put the settings into the TLSContext"})
		}
	} else {
		p = c.parts(h.object, &settings, cert, "tlsSecret", c.dots(nil))
	}
	if p.wrong.ok() && broken.ok() {
		p.wrong = p.checkTermination("tlsSecret")
	}
	result := &provider{object: h.object, terminate: p.terminate(), isHost: true, used: &h.used, uses: append(uses, p.uses()...), notes: p.notes()}
	for _, n := range result.notes {
		h.note("%s", n)
	}
	if !p.wrong.ok() {
		h.reject(p.wrong)
		result.problem = problemf(ReasonContext, "%s is not accepted: %s", h.key, p.wrong.words)
	}
	broken = first(broken, p.missing())
	h.resolved(broken)
	result.problem = first(result.problem, broken)
	if result.uses != nil {
		c.out.Uses[h.key] = result.uses
	}
	return result
}

// joinHost gives the parts of a context the certificate of the Host that names it.
func (c *compiler) joinHost(h *host, t *tlsContext, p *parts, cert ref) problem {
	if len(t.spec.Hosts) > 0 && !slices.ContainsFunc(t.spec.Hosts, func(n string) bool { return canonical(n) == h.name }) {
		h.note("%s, which tlsContext names, does not list %s in its hosts", t.key, h.name)
	}
	if !cert.named() {
		return problem{}
	}
	before := p.cert
	p.cert = cert
	if a, b := before.material, cert.material; before.named() && (a != nil || b != nil) && (a == nil || b == nil || a.String() != b.String()) {
		return problemf(ReasonConflict, "its tlsSecret is not the secret of %s, which tlsContext names: leave one of them out", t.key)
	}
	return problem{}
}

// noContext says that a context is not there.
func (c *compiler) noContext(field, name string) problem {
	if c.elsewhere == nil {
		c.elsewhere = map[string]bool{}
		for _, x := range c.TLSContexts {
			if x != nil && !x.Spec.Include(c.id) {
				c.elsewhere[x.Metadata.Name] = true
			}
		}
	}
	if c.elsewhere[name] {
		return problemf(ReasonNoContext, "%s names TLSContext %q, which is for another ambassador_id than %q", field, short(name), c.id)
	}
	near := c.contexts.near(name)
	if strings.EqualFold(name, "true") || strings.EqualFold(name, "false") {
		near = fmt.Sprintf(" (did you mean %s without quotes?)", strings.ToLower(name))
	}
	return problemf(ReasonNoContext, "%s names TLSContext %q, which is not there%s: apply it, or correct the name", field, short(name), near)
}
