package control

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"iter"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/audit"
	"cardea/cert"
	"cardea/identity/certificate"
	"cardea/policy/local"
	"cardea/secret"
	"cardea/store"
	"cardea/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testDomain = "cardea.internal"

// A world is a Server with real neighbours, in memory.
type world struct {
	*Server
	t       testing.TB
	handler http.Handler
	journal *journal
	conns   *connections
	clock   *clock
	network *gateways
}

// gateways are those of the private network.
type gateways struct {
	mu      sync.Mutex
	list    []api.GatewayPlace
	changed chan struct{}
}

func (g *gateways) Gateways() []api.GatewayPlace {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.list
}

func (g *gateways) Changed() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.changed
}

func (g *gateways) set(list ...api.GatewayPlace) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.list = list
	close(g.changed)
	g.changed = make(chan struct{})
}

// clock is a clock that stands still unless it is told otherwise.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// journal is an access log in memory.
type journal struct {
	mu   sync.Mutex
	recs []api.AccessLog
	fail error
}

func (j *journal) Append(_ context.Context, recs ...*api.AccessLog) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.fail != nil {
		return j.fail
	}
	for _, r := range recs {
		if err := audit.Check(r); err != nil {
			return err
		}
		j.recs = append(j.recs, *r)
	}
	return nil
}

func (j *journal) Records(_ context.Context, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return func(yield func(api.AccessLog, error) bool) {
		for _, r := range j.all() {
			if q.Match(&r) && !yield(r, nil) {
				return
			}
		}
	}
}

func (j *journal) Verify(context.Context) (api.VerifyReport, error) {
	return api.VerifyReport{OK: true, Records: int64(len(j.all()))}, nil
}

func (j *journal) all() []api.AccessLog {
	j.mu.Lock()
	defer j.mu.Unlock()
	return append([]api.AccessLog(nil), j.recs...)
}

// last returns the latest record.
func (j *journal) last(t testing.TB) api.AccessLog {
	t.Helper()
	all := j.all()
	if len(all) == 0 {
		t.Fatal("the log is empty")
	}
	return all[len(all)-1]
}

// connections is a registry of live connections.
type connections struct{ list []api.Connection }

func (c *connections) List() api.Connections { return api.Connections{Items: c.list} }

func (c *connections) Kill(id, _ string) bool {
	for i, x := range c.list {
		if x.ID == id {
			c.list = append(c.list[:i:i], c.list[i+1:]...)
			return true
		}
	}
	return false
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// newWorld returns a world in which nobody has logged in, and root's token.
func newWorld(t testing.TB) (*world, string) {
	t.Helper()
	return newWorldOn(t, memory.New())
}

// newWorldOn is newWorld with a store.
func newWorldOn(t testing.TB, st store.Store) (*world, string) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	c := &clock{t: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	keeper, err := secret.New(bytes.Repeat([]byte{7}, secret.KeySize))
	if err != nil {
		t.Fatal(err)
	}
	authority, err := cert.Open(ctx, st, keeper, testDomain, c.now)
	if err != nil {
		t.Fatal(err)
	}
	verifier := &certificate.Verifier{Roots: authority.Pool}
	decider := &local.Decider{Store: st, Identity: verifier, Log: quiet(), Now: c.now}
	w := &world{t: t, journal: new(journal), conns: new(connections), clock: c, network: &gateways{changed: make(chan struct{})}}
	w.Server = &Server{
		Domain: testDomain, Store: st, Decider: decider, Explainer: decider, Await: decider.Await, Check: local.Check,
		Keeper: keeper, Authority: authority, Verifier: verifier,
		Conns: w.conns, Logs: w.journal, Audit: w.journal, Log: quiet(), Now: c.now, Network: w.network,
	}
	w.handler = w.Handler()
	token, err := w.Bootstrap(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() { decider.Run(ctx) })
	running.Go(func() {
		if err := w.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		st.Close()
	})
	if err := errors.Join(decider.Ready(ctx), w.Ready(ctx)); err != nil {
		t.Fatal(err)
	}
	return w, token
}

// newRoot returns a world and root, logged in.
func newRoot(t testing.TB) (*world, *person) {
	t.Helper()
	w, token := newWorld(t)
	return w, w.login(token)
}

// A person is a key and perhaps a certificate for it.
type person struct {
	key     *ecdsa.PrivateKey
	leaf    []byte
	session string // its name
}

func newPerson(t testing.TB) *person {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &person{key: key}
}

func (p *person) csr(t testing.TB) []byte {
	t.Helper()
	b, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// login returns the bearer of a token, logged in.
func (w *world) login(token string) *person {
	w.t.Helper()
	p := newPerson(w.t)
	var out api.LoginResponse
	w.must(nil, "POST", "/api/login", api.LoginRequest{Token: token, CSR: p.csr(w.t)}, &out)
	p.leaf, p.session = out.Certificate, out.Session
	return p
}

// request makes a call as somebody; nil is nobody.
func (w *world) request(who *person, method, path string, in any) *httptest.ResponseRecorder {
	w.t.Helper()
	out := httptest.NewRecorder()
	w.handler.ServeHTTP(out, w.newRequest(who, method, path, in))
	return out
}

// newRequest returns a call as it arrives.
func (w *world) newRequest(who *person, method, path string, in any) *http.Request {
	w.t.Helper()
	var body []byte
	switch in := in.(type) {
	case nil:
	case string:
		body = []byte(in)
	default:
		var err error
		if body, err = json.Marshal(in); err != nil {
			w.t.Fatal(err)
		}
	}
	r := httptest.NewRequest(method, "https://api."+testDomain+path, bytes.NewReader(body))
	if in != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13}
	if who != nil {
		leaf, err := x509.ParseCertificate(who.leaf)
		if err != nil {
			w.t.Fatal(err)
		}
		r.TLS.PeerCertificates = []*x509.Certificate{leaf}
	}
	return r
}

// do makes a call and decodes the answer; a failure is an *api.Error.
func (w *world) do(who *person, method, path string, in, out any) error {
	w.t.Helper()
	res := w.request(who, method, path, in)
	if res.Code != http.StatusOK {
		e := new(api.Error)
		if err := json.Unmarshal(res.Body.Bytes(), e); err != nil {
			w.t.Fatalf("%s %s: %d: %q", method, path, res.Code, res.Body)
		}
		return e
	}
	if out != nil {
		if err := json.Unmarshal(res.Body.Bytes(), out); err != nil {
			w.t.Fatalf("%s %s: %v: %q", method, path, err, res.Body)
		}
	}
	return nil
}

// must makes a call that succeeds.
func (w *world) must(who *person, method, path string, in, out any) {
	w.t.Helper()
	if err := w.do(who, method, path, in, out); err != nil {
		w.t.Fatalf("%s %s: %v", method, path, err)
	}
}

// apply applies documents, each JSON with single quotes for double ones.
func (w *world) apply(who *person, docs ...string) (api.ApplyResponse, error) {
	w.t.Helper()
	var out api.ApplyResponse
	return out, w.do(who, "POST", "/api/apply", api.ApplyRequest{Documents: documents(docs...)}, &out)
}

func (w *world) mustApply(who *person, docs ...string) api.ApplyResponse {
	w.t.Helper()
	out := api.ApplyResponse{}
	w.must(who, "POST", "/api/apply", api.ApplyRequest{Documents: documents(docs...)}, &out)
	return out
}

func documents(docs ...string) (raw []json.RawMessage) {
	for _, d := range docs {
		raw = append(raw, json.RawMessage(strings.ReplaceAll(d, "'", `"`)))
	}
	return raw
}

// get returns an Object as it is stored.
func get[T api.Object](w *world, kind, name string) T {
	w.t.Helper()
	var o T
	err := w.Store.View(w.t.Context(), func(r store.Reader) (err error) {
		o, err = store.Get[T](r, api.Key{Group: api.GroupCore, Kind: kind, Name: name})
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

// exists reports whether an Object is stored.
func (w *world) exists(kind, name string) bool {
	w.t.Helper()
	err := w.Store.View(w.t.Context(), func(r store.Reader) error {
		_, err := r.Get(api.Key{Group: api.GroupCore, Kind: kind, Name: name})
		return err
	})
	if err != nil && !api.HasCode(err, api.CodeNotFound) {
		w.t.Fatal(err)
	}
	return err == nil
}

// revision returns that of the store: it tells whether anything was written.
func (w *world) revision() (r api.Revision) {
	w.t.Helper()
	err := w.Store.View(w.t.Context(), func(s store.Reader) error { r = s.Revision(); return nil })
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// user makes a User whose authorization names policies and who is logged in.
func (w *world) user(root *person, name string, policies ...string) *person {
	w.t.Helper()
	list, _ := json.Marshal(policies)
	if policies == nil {
		list = []byte("[]")
	}
	w.mustApply(root,
		`{'kind':'User','metadata':{'name':'`+name+`'},'spec':{'type':'HUMAN','authorization':{'policies':`+string(list)+`}}}`,
		`{'kind':'Credential','metadata':{'name':'`+name+`'},'spec':{'user':'`+name+`'}}`)
	return w.login(w.token(root, name))
}

// token makes a new token of a Credential.
func (w *world) token(root *person, credential string) string {
	w.t.Helper()
	var out api.TokenResponse
	w.must(root, "POST", "/api/core/v1/credentials/"+credential+"/token", nil, &out)
	return out.Token
}

// problems returns what an error complains of, one line each.
func problems(err error) (lines []string) {
	if e, ok := errors.AsType[*api.Error](err); ok {
		for _, p := range e.Problems {
			lines = append(lines, p.String())
		}
	}
	return lines
}

const (
	group1  = `{'kind':'Group','metadata':{'name':'group-1'}}`
	alice   = `{'kind':'User','metadata':{'name':'alice'},'spec':{'type':'HUMAN','groups':['group-1']}}`
	service = `{'kind':'Service','metadata':{'name':'nats'},'spec':{'mode':'TCP','config':{'upstream':{'url':'tcp://127.0.0.1:4222'}},
		'authorization':{'inlinePolicies':[{'spec':{'rules':[{'effect':'ALLOW','condition':{'match':'ctx.user.metadata.name == \u0022alice\u0022'}}]}}]}}}`
)

// selfSigned returns a certificate that names a Session and that no CA signed.
func selfSigned(p *person, uid string) ([]byte, error) {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC),
		URIs: []*url.URL{certificate.SessionURI(uid)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	return x509.CreateCertificate(rand.Reader, template, template, p.key.Public(), p.key)
}
