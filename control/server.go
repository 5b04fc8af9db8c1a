// Package control is the resource API: it reads and writes Objects, lets Users
// in, and answers what is going on.
//
// The API is itself a Service (api.cardea): who may make a call is decided by
// policies, as for any other Service, and no code here asks who is an
// administrator. The only calls without a decision are those that a caller makes
// to get a Session: login, and the proof of key that begins a renewal.
//
// A write is checked as a whole before any of it is stored, is stored in one
// transaction, and is answered only after every decision is made on what it
// wrote.
package control

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/identity"
	"cardea/policy"
	"cardea/rpc"
	"cardea/store"
)

// A Server answers the API. Its fields are all that it needs; all must be set
// but those that say otherwise. Bootstrap and Recover need Store, Domain, Now
// and Log only; Recover uses Proposed and Audit too, if they are there.
type Server struct {
	Domain string
	// Names are further host names that the API answers to, beside api.DOMAIN,
	// DOMAIN, localhost and every IP address. May be nil.
	Names []string

	Store     store.Store
	Decider   policy.Decider
	Explainer policy.Explainer
	// Await returns once every decision is made on that revision or a later one.
	Await func(context.Context, api.Revision) error
	// Check compiles all expressions of an Object and reports what is wrong.
	Check func(*api.Problems, api.Object)
	// Proposed decides as the Decider would if the state were what a transaction
	// is about to commit. With it, a write after which the writer could no longer
	// write policies is refused. May be nil.
	Proposed func(context.Context, store.Reader, api.Request) (api.Decision, error)

	Keeper    Keeper
	Authority Authority
	Verifier  identity.Verifier // of certificates

	// AmbassadorNamespace is the namespace that Objects of other systems are of if they
	// name none; "" is default.
	AmbassadorNamespace string

	Conns Conns
	Logs  Logs
	// Audit takes a record of every write before it is committed, so it must not
	// wait for the Store.
	Audit audit.Log
	// Live adds what is known of an Object in this process and not stored, for
	// whoever reads it. It must not write to what it gets. May be nil.
	Live func(api.Object) api.Object
	// Refuse takes what is refused to callers of whom nothing is known, so that
	// they cannot fill the log: see refusals.Recorder. If it is nil, Audit takes it.
	Refuse func(api.Refusal)
	Log    *slog.Logger
	Now    func() time.Time

	// What follows may be nil: the calls that need it then answer NOT_FOUND, and
	// the cluster is ready as soon as it serves.

	// Route says where a connection would go.
	Route func(api.RouteQuestion) api.RouteAnswer
	// Health looks at what may be wrong with the cluster. It ends when its context
	// does.
	Health func(context.Context) []api.HealthCheck
	// Older returns how many processes of the cluster have been replaced and keep their
	// connections.
	Older func() int
	// Metrics answers in the Prometheus text format.
	Metrics http.Handler
	// Backup writes a backup of the store.
	Backup func(context.Context, io.Writer) error
	// Rotate makes a new key: "ca", "audit" or "seal".
	Rotate func(ctx context.Context, what string) (api.RotateResponse, error)
	// OpenAPI is the OpenAPI document of the API, in JSON.
	OpenAPI []byte
	// Network is the private network. It needs Run.
	Network Network

	seats seats
}

// A Keeper seals the values of Secrets: see secret.Keeper.
type Keeper interface {
	Seal(*api.Secret) error
	SealKubernetes(*api.KubernetesSecret) error
}

// Conns is the registry of live connections.
type Conns interface {
	List() api.Connections
	// Kill cuts the connection of that id, and reports whether there was one. by
	// says who wants it, for the log.
	Kill(id, by string) bool
}

// Logs is the access log, for reading.
type Logs interface {
	Records(context.Context, audit.Query) iter.Seq2[api.AccessLog, error]
	Verify(context.Context) (api.VerifyReport, error)
}

// Handler returns the API as it is served over TLS that asks for a client
// certificate and proves its key, but need not verify it.
func (s *Server) Handler() http.Handler {
	mux, readers, claims := http.NewServeMux(), newTurns(maxReaders), newTurns(1)
	handle := func(pattern string, f func(*call) (any, error)) {
		mux.HandleFunc(pattern, func(w http.ResponseWriter, r *http.Request) {
			c := s.call(w, r)
			c.readers = readers
			out, err := f(c)
			switch {
			case err != nil:
				rpc.Fail(w, err, s.Log)
			case out != nil: // nil has been answered already
				rpc.Answer(w, out)
			}
		})
	}
	e := newEntrance(s.Now)
	handle("POST /api/login", func(c *call) (any, error) { return c.login(e) })
	handle("POST /api/renew", (*call).renew)
	handle("GET /api/self", (*call).self)
	handle("GET /api/self/services", (*call).reachable)
	handle("POST /api/self/device", (*call).registerDevice)
	handle("POST /api/logout", (*call).logout)
	handle("GET /api/connect", (*call).place)
	handle("POST /api/connect", func(c *call) (any, error) { return c.connect(claims) })
	handle("POST /api/disconnect", (*call).disconnect)
	handle("POST /api/apply", (*call).apply)
	handle("GET /api/{group}/{version}/{kind}", (*call).list)
	handle("POST /api/{group}/{version}/{kind}", (*call).create)
	handle("GET /api/{group}/{version}/{kind}/{name}", (*call).get)
	handle("PUT /api/{group}/{version}/{kind}/{name}", (*call).update)
	handle("PATCH /api/{group}/{version}/{kind}/{name}", (*call).patch)
	handle("DELETE /api/{group}/{version}/{kind}/{name}", (*call).delete)
	handle("POST /api/core/v1/credentials/{name}/token", (*call).newToken)
	// What goes on.
	handle("POST /api/why", (*call).why)
	handle("GET /api/route", (*call).route)
	handle("GET /api/conns", (*call).conns)
	handle("DELETE /api/conns/{id}", (*call).kill)
	handle("GET /api/logs", (*call).logs)
	handle("POST /api/logs/verify", (*call).verifyLogs)
	// Operation.
	handle("GET /api/health", (*call).health)
	handle("GET /api/openapi.json", (*call).openAPI)
	handle("GET /api/backup", (*call).backup)
	handle("POST /api/rotate", (*call).rotate)
	handle("GET /metrics", (*call).metrics)
	mux.HandleFunc("GET /livez", live)
	mux.Handle("GET /readyz", &readiness{checks: s.Health, now: s.Now})
	handle("/", func(*call) (any, error) { return nil, api.Errorf(api.CodeNotFound, "there is no such call") })
	return s.guard(mux)
}

// guard keeps web pages out: a page must not borrow the Session of the browser
// that shows it, neither by a request across origins nor by a name of its own
// that it lets point here (DNS rebinding).
func (s *Server) guard(h http.Handler) http.Handler {
	origin := http.NewCrossOriginProtection()
	origin.SetDenyHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rpc.Fail(w, api.Errorf(api.CodePermissionDenied, "requests from other web sites are refused"), s.Log)
	}))
	h = origin.Handler(h)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.knows(r.Host) {
			rpc.Fail(w, api.Errorf(api.CodeNotFound, "this is not the host that is asked for"), s.Log)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// knows reports whether a Host header names this API. An address always does: a
// page that was loaded from it is of the same origin.
func (s *Server) knows(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil {
		return true
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return host == "localhost" || host == s.Domain || host == "api."+s.Domain || slices.Contains(s.Names, host)
}

// A call is one request to the API.
type call struct {
	*Server
	decider  policy.Decider // of the call's own rights
	w        http.ResponseWriter
	r        *http.Request
	evidence api.Evidence
	verified string // uid of a Session that has been verified already, or ""
	facts    api.Facts
	started  time.Time
	readers  *turns
}

// maxReaders is how many calls of one Session may go through all Objects of a kind
// at once: each of these costs a decision for each Object.
const maxReaders = 2

func (s *Server) call(w http.ResponseWriter, r *http.Request) *call {
	c := &call{Server: s, decider: s.Decider, w: w, r: r, started: s.Now()}
	if a, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		c.facts.IP, c.facts.Port = a.Addr().Unmap().WithZone("").String(), int(a.Port())
	}
	if a, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		c.facts.Listener = a.String()
	}
	if t := r.TLS; t != nil {
		// The certificate is evidence and no fact: here nobody has verified it.
		c.facts.TLS = &api.TLSFacts{SNI: t.ServerName, ALPN: t.NegotiatedProtocol, Version: strings.TrimPrefix(tls.VersionName(t.Version), "TLS ")}
		if len(t.PeerCertificates) > 0 {
			c.evidence = api.Evidence{Kind: api.EvidenceCertificate, Data: t.PeerCertificates[0].Raw}
		}
	}
	return c
}

// kind returns the kind that the path names.
func (c *call) kind() (api.Kind, error) {
	group, version, name := c.r.PathValue("group"), c.r.PathValue("version"), c.r.PathValue("kind")
	k, ok := api.FindKindIn(group, name)
	if ok && (slices.Contains(k.Versions, version) || !k.IsForeign() && group+"/"+version == api.Version) {
		return k, nil
	}
	e := api.Errorf(api.CodeNotFound, "there is no kind %.100q", name)
	var names []string
	for _, k := range api.Kinds() {
		if k.APIGroup() == group {
			names = append(names, k.Plural)
		}
	}
	switch {
	case names == nil:
		e.Message = fmt.Sprintf("there is no group %.100q", group)
		e.Hint = "the groups are " + strings.Join([]string{api.GroupCore, api.GroupAmbassador, api.GroupKubernetes}, ", ")
	case ok:
		e.Message = fmt.Sprintf("there is no version %.100q of %s", version, k.Plural)
		e.Hint = "they are at " + k.Path("")
	default:
		e.Hint = "the kinds are " + strings.Join(names, ", ")
	}
	return k, e
}

// key returns the key of the Object that path and query name. The name is "" if the
// path is that of the kind; the namespace then is "" if the query names none.
func (c *call) key() (api.Key, error) {
	kind, err := c.kind()
	if err != nil {
		return api.Key{}, err
	}
	name, err := c.name("name")
	if err != nil {
		return api.Key{}, err
	}
	namespace := c.r.URL.Query().Get("namespace")
	if namespace == "" && name != "" && kind.IsForeign() {
		namespace = c.standardNamespace()
	}
	switch {
	case namespace != "" && !kind.IsForeign():
		return api.Key{}, api.Errorf(api.CodeInvalid, "the query parameter namespace is for Objects of other systems: a %s has none", kind.Name)
	case len(namespace) > maxName:
		return api.Key{}, api.Errorf(api.CodeNotFound, "the namespace is longer than names are")
	}
	return keyIn(kind, namespace, api.CanonicalName(kind.Name, name)), nil
}

// keyIn returns the key of an Object of a kind.
func keyIn(k api.Kind, namespace, name string) api.Key {
	return api.Key{Group: k.APIGroup(), Kind: k.Name, Namespace: namespace, Name: name}
}

// maxName is the size in bytes of the longest name that is looked for: names get
// into the log. None that exists is longer.
const maxName = 253

// name returns a wildcard of the path.
func (c *call) name(wildcard string) (string, error) {
	name := c.r.PathValue(wildcard)
	if len(name) > maxName {
		return "", api.Errorf(api.CodeNotFound, "the name in the path is longer than names are")
	}
	return name, nil
}

// query returns the query of the URL if it has no parameters but these, each at
// most once (but label). It is asked for before anything is done.
func (c *call) query(allowed ...string) (map[string]string, error) {
	q := map[string]string{}
	for name, values := range c.r.URL.Query() {
		if !slices.Contains(allowed, name) || len(values) != 1 && name != "label" {
			e := api.Errorf(api.CodeInvalid, "the query parameter %q is not known here, or there twice", name)
			if len(allowed) > 0 {
				e.Hint = "allowed: " + strings.Join(allowed, ", ")
			}
			return nil, e
		}
		q[name] = values[0]
	}
	return q, nil
}

// boolean reads a parameter that is true, false, or absent for false.
func boolean(q map[string]string, name string) (bool, error) {
	if q[name] == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(q[name])
	if err != nil {
		return false, api.Errorf(api.CodeInvalid, "the query parameter %s must be true or false", name)
	}
	return b, nil
}

// number reads a parameter that is a whole number from 1, or absent for 0.
func number(q map[string]string, name string) (int, error) {
	if q[name] == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(q[name])
	if err != nil || n < 1 {
		return 0, api.Errorf(api.CodeInvalid, "the query parameter %s must be a number from 1", name)
	}
	return n, nil
}

// instant reads a parameter that is a time, or absent.
func instant(q map[string]string, name string) (time.Time, error) {
	if q[name] == "" {
		return time.Time{}, nil
	}
	t, err := time.Parse(time.RFC3339, q[name])
	if err != nil {
		return t, api.Errorf(api.CodeInvalid, "the query parameter %s must be a time such as 2006-01-02T15:04:05Z", name)
	}
	return t, nil
}

// encode returns an Object as JSON for a peer or the log, without its secrets.
func encode(o api.Object) (json.RawMessage, error) {
	if o == nil {
		return nil, nil
	}
	return json.Marshal(api.Redact(o))
}
