package ingress

import (
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/secret"
)

// An ending is how the TLS of a row's clients is ended, with what that takes at hand.
// As long as what it was made of stays the same, it stays from table to table, and
// TLS sessions can be resumed; when something changes there is another one, whose
// tickets are others.
type ending struct {
	version string // names what it was made of
	flaw    string // why it cannot be: it refuses
	since   time.Time
	// stale is why the files that it was made of cannot be read any more, if so.
	stale atomic.Pointer[string]

	asked     api.Termination // as the row has it
	terms     api.Termination
	own       *tls.Certificate // nil for one of the cluster
	clientCAs *x509.CertPool
	crl       *secret.Material // nil for none
	cluster   func(name string, more ...string) (*tls.Certificate, error)
	sessions  func() *x509.CertPool

	mu      sync.Mutex
	current atomic.Pointer[agreement]
}

// An agreement is a config, and what it hangs on.
type agreement struct {
	config *tls.Config
	cert   *tls.Certificate
	cas    *x509.CertPool
	key    [32]byte // of session tickets
	since  time.Time
}

// about reports whether an agreement hangs on these. a may be nil.
func (a *agreement) about(cert *tls.Certificate, cas *x509.CertPool) bool {
	return a != nil && a.cert == cert && (a.cas == cas || a.cas.Equal(cas))
}

// expirySoon is how long before its end a status says that a certificate expires.
const expirySoon = 14 * 24 * time.Hour

// ticketKeyTime is how long tickets are sealed with one key. They are good for as
// long again.
const ticketKeyTime = 24 * time.Hour

// A shelf holds the Materials that were loaded for one table, so that each is loaded
// once.
type shelf map[string]loaded

type loaded struct {
	*secret.Material
	err error
}

// load makes the endings of a table. With onlyFiles those stay that use no files.
// setting must be held. It says for which Objects that leaves rows that refuse, and
// why, when that is news.
func (r *Router) load(ctx context.Context, t *Table, onlyFiles bool) {
	now := map[string]*ending{}
	s := shelf{}
	for row := range t.each() {
		if row.Terminate == nil {
			continue
		}
		e := r.endings[row.place]
		if !onlyFiles || row.files() {
			e = r.end(ctx, row, e, s)
			row.ending.Store(e)
		}
		now[row.place] = e
	}
	r.endings = now
	r.complain(t)
}

// complain says in the log of the process which Objects have rows that refuse, and
// what is missing, when that has changed. setting must be held.
func (r *Router) complain(t *Table) {
	missing := map[api.Key][]string{}
	for row := range t.each() {
		if why := row.lacks(); why != "" {
			missing[row.Owner] = append(missing[row.Owner], why)
		}
	}
	said := make(map[api.Key]string, len(missing))
	for _, key := range slices.SortedFunc(maps.Keys(missing), compareKeys) {
		words := strings.Join(distinct(missing[key], cmp.Compare[string]), "; ")
		if said[key] = words; r.said[key] != words {
			r.Log.Warn("a route refuses its connections", "object", key.String(), "error", words)
		}
	}
	r.said = said
}

// lacks returns why a row refuses its connections, "" if it does not.
func (r *row) lacks() string {
	e := r.ending.Load()
	switch {
	case r.Refused != "" || r.Terminate == nil:
		return r.Refused
	case e == nil:
		return "its TLS cannot be ended"
	}
	return e.flaw
}

// reload looks whether files have changed that the table in force uses.
func (r *Router) reload(ctx context.Context) {
	r.setting.Lock()
	defer r.setting.Unlock()
	if t := r.table.Load(); t != nil {
		r.load(ctx, t, true)
	}
}

// files reports whether the TLS of a row is ended with what is in files.
func (r *row) files() bool {
	t := r.Terminate
	for _, m := range []*api.Material{t.Certificate, t.ClientCA, t.CRL} {
		if m != nil && m.Secret == nil {
			return true
		}
	}
	return false
}

// end returns the ending of a row: that which it has, if nothing has changed, or if
// files that were read cannot be read now, as while they are being replaced. What
// was in a Secret goes with the Secret.
func (r *Router) end(ctx context.Context, row *row, had *ending, s shelf) *ending {
	e, err := r.newEnding(ctx, *row.Terminate, s)
	if err != nil {
		e = &ending{flaw: err.Error()}
	}
	e.since = time.Now()
	switch {
	case had == nil:
	case had.version == e.version && had.flaw == e.flaw:
		had.stale.Store(nil)
		return had
	case e.flaw != "" && had.flaw == "" && row.files() && reflect.DeepEqual(had.asked, *row.Terminate):
		words := e.flaw + "; what was read before is in use"
		if had.stale.Swap(&words) == nil {
			r.Log.Warn("files of a route cannot be read", "object", row.Owner.String(), "error", words)
		}
		return had
	}
	return e
}

// newEnding makes the ending that a row asks for.
func (r *Router) newEnding(ctx context.Context, t api.Termination, s shelf) (*ending, error) {
	if _, _, _, _, err := t.Resolve(); err != nil {
		return nil, err
	}
	made := []any{t}
	load := func(m *api.Material) (*secret.Material, error) {
		if m == nil {
			return nil, nil
		}
		at := m.String() + " " + m.Key + " " + m.Service // a Secret may be bound
		x, ok := s[at]
		if !ok {
			x.Material, x.err = r.Material(ctx, m)
			s[at] = x
		}
		if x.err != nil {
			return nil, fmt.Errorf("%v: %w", m, x.err)
		}
		made = append(made, x.Version)
		return x.Material, nil
	}
	own, err := load(t.Certificate)
	if err != nil {
		return nil, err
	}
	ca, err := load(t.ClientCA)
	if err != nil {
		return nil, err
	}
	crl, err := load(t.CRL)
	if err != nil {
		return nil, err
	}
	e := &ending{asked: t, terms: t, crl: crl, cluster: r.ClusterCertificate, sessions: r.ClusterCAs}
	switch {
	case own != nil && own.Certificate == nil:
		return nil, fmt.Errorf("%v holds no certificate with its key", t.Certificate)
	case own != nil:
		e.own = own.Certificate
	case t.ClusterName == "":
		return nil, errors.New("there is no certificate for it")
	}
	if ca != nil {
		if ca.CAs == nil {
			return nil, fmt.Errorf("%v holds no CA", t.ClientCA)
		}
		e.clientCAs = ca.CAs
		if ca.CertRequired != nil {
			e.terms.RequireClientCertificate = *ca.CertRequired
		}
	}
	if crl != nil {
		if len(crl.CRLs) == 0 {
			return nil, fmt.Errorf("%v holds no revocation list", t.CRL)
		}
	}
	version, err := json.Marshal(made)
	if err != nil {
		return nil, err
	}
	e.version = string(version)
	return e, nil
}

// tell says in a status what there is to say of an ending at some time. What the
// table itself says is lacking tells more, and stays.
func (e *ending) tell(s *api.RouteStatus, now time.Time) {
	unresolved := func(reason, words string, since time.Time) {
		if c := s.Condition(api.ConditionResolved); c == nil || c.Status != "False" {
			s.Set(api.ConditionResolved, false, reason, words, since)
		}
	}
	if e.flaw != "" {
		unresolved(reasonBad, e.flaw, e.since)
	}
	if words := e.stale.Load(); words != nil {
		unresolved(reasonBad, *words, now)
	}
	lapse := func(end time.Time, of, over, means, soon string) {
		date := end.UTC().Format(time.RFC3339)
		switch note := of + soon + date; {
		case end.IsZero() || end.Sub(now) > expirySoon:
		case now.After(end):
			unresolved(reasonExpired, of+over+date+means, end)
		case !slices.Contains(s.Notes, note):
			s.Notes = append(s.Notes, note)
		}
	}
	if e.own != nil && e.own.Leaf != nil {
		of := fmt.Sprintf("the certificate in %v", e.terms.Certificate)
		lapse(e.own.Leaf.NotAfter, of, " expired on ", ": clients refuse it", " expires on ")
	}
	if e.crl != nil {
		for _, l := range e.crl.CRLs {
			of := fmt.Sprintf("the revocation list of %s in %v", l.Issuer, e.terms.CRL)
			lapse(l.NextUpdate, of, " is out of date since ", ": clients of this authority are refused", " is out of date on ")
		}
	}
}

// config returns what a handshake that begins now is made with.
func (e *ending) config(now time.Time) (*tls.Config, error) {
	cert, cas := e.own, e.clientCAs
	if cert == nil {
		var err error
		if cert, err = e.cluster(e.terms.ClusterName, e.terms.ClusterHosts...); err != nil {
			return nil, err
		}
	}
	if e.terms.Sessions {
		cas = e.sessions()
	}
	if a := e.current.Load(); a.about(cert, cas) && now.Sub(a.since) < ticketKeyTime {
		return a.config, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.current.Load()
	stays := old.about(cert, cas)
	if stays && now.Sub(old.since) < ticketKeyTime {
		return old.config, nil
	}
	a := &agreement{cert: cert, cas: cas, since: now}
	rand.Read(a.key[:])
	keys := [][32]byte{a.key}
	if stays && now.Sub(old.since) < 2*ticketKeyTime {
		keys = append(keys, old.key)
	}
	config, err := e.build(cert, cas)
	if err != nil {
		return nil, err
	}
	config.SetSessionTicketKeys(keys)
	a.config = config
	e.current.Store(a)
	return config, nil
}

// build makes the config for a certificate and the CAs of clients.
func (e *ending) build(cert *tls.Certificate, cas *x509.CertPool) (*tls.Config, error) {
	least, most, suites, curves, err := e.terms.Resolve()
	if err != nil {
		return nil, err
	}
	c := &tls.Config{
		Certificates: []tls.Certificate{*cert}, NextProtos: e.terms.ALPN,
		MinVersion: least, MaxVersion: most, CipherSuites: suites, CurvePreferences: curves,
		DynamicRecordSizingDisabled: true, // one write, one record: latency is the application's choice
	}
	if cas == nil && !e.terms.Sessions && !e.terms.RequireClientCertificate {
		return c, nil
	}
	if cas == nil { // x509 would take the system's
		cas = x509.NewCertPool()
	}
	c.ClientCAs, c.ClientAuth = cas, tls.VerifyClientCertIfGiven
	if e.terms.RequireClientCertificate {
		c.ClientAuth = tls.RequireAndVerifyClientCert
	}
	c.VerifyConnection = func(state tls.ConnectionState) error { return e.verify(state, cas) }
	return c, nil
}

// verify checks the certificate of a client, also when its TLS session is resumed:
// then crypto/tls has not asked for it, and looked at nothing but what it noted when
// the session began.
func (e *ending) verify(state tls.ConnectionState, cas *x509.CertPool) error {
	if len(state.PeerCertificates) == 0 {
		if e.terms.RequireClientCertificate {
			return errors.New("the client shows no certificate")
		}
		return nil
	}
	chains := state.VerifiedChains
	if state.DidResume {
		between := x509.NewCertPool()
		for _, c := range state.PeerCertificates[1:] {
			between.AddCert(c)
		}
		var err error
		chains, err = state.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: cas, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		if err != nil {
			return fmt.Errorf("the client's certificate does not verify any more: %w", err)
		}
	}
	if err := e.crl.Unrevoked(chains, time.Now()); err != nil {
		return fmt.Errorf("the client's certificate: %w", err)
	}
	return nil
}
