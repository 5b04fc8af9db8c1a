package emissary_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// An answer is what a client found.
type answer struct {
	status int
	seen   seen
	tls    *tls.ConnectionState // nil for cleartext
}

// patience is how long a client waits for anything.
const patience = 30 * time.Second

// playProbe plays one probe of the index.
func (g *game) playProbe(i int, p probe) error {
	if f := overrides[g.c.ID]; f != nil {
		f(i, &p)
	}
	switch {
	case p.Connect != nil && p.Connect.Concurrent > 0:
		return g.concurrent(p)
	case p.Connect != nil && p.Connect.Count > 0:
		return g.split(p)
	case p.Connect != nil && p.Expect.Bytes != "":
		return g.bothWays(p)
	case p.Connect != nil:
		for _, host := range []string{clusterHost, clusterHost6} {
			if err := g.connect(p, host); err != nil {
				return fmt.Errorf("%s, port %d: %w", host, p.Connect.Port, err)
			}
		}
		return nil
	case p.Diagnostics != nil && g.refusedWhole():
		return g.refusals(p)
	case p.Diagnostics != nil:
		return g.diagnostics(p)
	case p.Config != nil:
		return g.configuration(p.Config)
	case strings.HasPrefix(g.c.ID, "crd-"):
		return g.roundTrip()
	case assertions[g.c.ID] != nil:
		return assertions[g.c.ID](g)
	}
	return fmt.Errorf("nobody plays this assertion: %s", p.Assert)
}

// connect plays a probe of one connection to an address of the cluster.
func (g *game) connect(p probe, host string) error {
	a, err := g.exchange(g.outside, host, p)
	if len(p.Expect.Errors) > 0 {
		if err == nil {
			return fmt.Errorf("it was answered, by %s; want one of %q", a.seen.Backend, p.Expect.Errors)
		}
		if !fails(err, p.Expect.Errors) {
			return fmt.Errorf("it failed with %q; want one of %q", err, p.Expect.Errors)
		}
		return nil
	}
	if err != nil {
		return err
	}
	return g.found(a, p)
}

// found compares what a client found with what it must find.
func (g *game) found(a *answer, p probe) error {
	e := p.Expect
	var wrong []error
	differ := func(what string, got, want any) {
		if got != want {
			wrong = append(wrong, fmt.Errorf("%s is %v, want %v", what, got, want))
		}
	}
	if e.HTTPStatus != 0 {
		differ("the HTTP status", a.status, e.HTTPStatus)
	}
	if e.Backend != "" {
		name, port, ok := strings.Cut(e.Backend, ":")
		differ("the backend", a.seen.Backend, name)
		if ok {
			differ("the backend's port", strconv.Itoa(a.seen.Port), port)
		}
	}
	if e.BackendSeesTLS != nil {
		differ("whether the backend sees TLS", a.seen.TLS, *e.BackendSeesTLS)
	}
	if e.BackendSeesSNI != "" {
		differ("the SNI that the backend sees", a.seen.SNI, e.BackendSeesSNI)
	}
	switch want := e.BackendSeesClient.(type) {
	case bool:
		differ("whether the backend sees a client certificate", a.seen.Client != "", want)
	case string:
		differ("the client certificate that the backend sees", a.seen.Client, want)
	}
	if e.ServerCert != "" {
		name, _, _ := strings.Cut(e.ServerCert, " ")
		if err := g.served(a, name, p.Connect.SNI); err != nil {
			wrong = append(wrong, err)
		}
	}
	if strings.Contains(e.Note, "backend's own certificate") {
		if err := g.served(a, backendName(a.seen.Backend), ""); err != nil {
			wrong = append(wrong, err)
		}
	}
	if e.Negotiated != "" {
		version, _, _ := strings.Cut(e.Negotiated, " ")
		differ("the version of TLS", strings.ReplaceAll(tls.VersionName(a.tls.Version), " ", ""), version)
	}
	return errors.Join(wrong...)
}

// served fails unless the client was shown the certificate of that name, and it
// verifies for what the client asked for.
func (g *game) served(a *answer, name, asked string) error {
	want := g.papers.of(name).leaf
	if a.tls == nil || len(a.tls.PeerCertificates) == 0 {
		return errors.New("no certificate was served")
	}
	got := a.tls.PeerCertificates[0]
	if !got.Equal(want) {
		return fmt.Errorf("the certificate served is that of %s, want that of %s", got.Subject.CommonName, name)
	}
	roots := x509.NewCertPool()
	roots.AddCert(want)
	_, err := got.Verify(x509.VerifyOptions{DNSName: asked, Roots: roots})
	return err
}

// config returns the client's side of TLS.
func (g *game) config(p probe) (*tls.Config, error) {
	c := &tls.Config{ServerName: p.Connect.SNI, InsecureSkipVerify: true, // what is served is compared with what must be
		MinVersion: tls.VersionTLS10}
	var err error
	version := func(at *uint16, text string) {
		number := regexp.MustCompile(`1\.[0-3]`).FindString(text)
		if text == "" {
			return
		}
		if number == "" {
			err = fmt.Errorf("no version of TLS: %q", text)
			return
		}
		*at = tls.VersionTLS10 + uint16(number[2]-'0')
	}
	version(&c.MinVersion, p.Connect.MinVersion)
	version(&c.MaxVersion, p.Connect.MaxVersion)
	for _, between := range []string{p.Connect.Versions, p.Expect.ClientVersions} {
		least, most, _ := strings.Cut(between, "-")
		version(&c.MinVersion, least)
		version(&c.MaxVersion, most)
	}
	for _, name := range []string{p.Connect.Ciphers, p.Expect.ClientCiphers} {
		if name == "" {
			continue
		}
		// The index leaves out what IANA's names begin with and have in the middle.
		kx, rest, _ := strings.Cut(name, "_AES128_")
		iana := "TLS_" + kx + "_WITH_AES_128_" + rest
		for _, s := range tls.CipherSuites() {
			if s.Name == iana {
				c.CipherSuites = []uint16{s.ID}
			}
		}
		if c.CipherSuites == nil {
			err = fmt.Errorf("no cipher suite: %q", name)
		}
	}
	switch p.Connect.Curves {
	case "":
	case "X25519":
		c.CurvePreferences = []tls.CurveID{tls.X25519}
	default:
		err = fmt.Errorf("no curve: %q", p.Connect.Curves)
	}
	names := []string{p.Expect.ClientCert}
	if p.Connect.ClientCert != nil {
		names = append(names, *p.Connect.ClientCert)
	}
	for _, name := range names {
		if name, _, _ := strings.Cut(name, " "); name != "" {
			pair := g.papers.of(name).pair()
			// It is shown whatever the server says that it takes.
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
	}
	return c, err
}

// dial connects from a namespace to a port of the cluster.
func (g *game) dial(from *space, host string, port int) (c net.Conn, err error) {
	ctx, cancel := context.WithTimeout(g.Context(), patience)
	defer cancel()
	err = from.do(func() error {
		var d net.Dialer
		c, err = d.DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		return err
	})
	if err == nil {
		c.SetDeadline(time.Now().Add(patience))
	}
	return c, err
}

// exchange connects, asks, and returns what it is told.
func (g *game) exchange(from *space, host string, p probe) (*answer, error) {
	c, err := g.dial(from, host, p.Connect.Port)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	a := new(answer)
	if p.Connect.TLS {
		config, err := g.config(p)
		if err != nil {
			return nil, err
		}
		s := tls.Client(c, config)
		if err := s.HandshakeContext(g.Context()); err != nil {
			return nil, err
		}
		state := s.ConnectionState()
		c, a.tls = s, &state
	}
	_, path, _ := strings.Cut(p.Expect.Request, " ")
	if path == "" {
		path = "/"
	}
	return a, ask(c, path, a)
}

// ask has one exchange of HTTP.
func ask(c net.Conn, path string, a *answer) error {
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: backend\r\nConnection: close\r\n\r\n", path); err != nil {
		return err
	}
	r, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return err
	}
	if a.status = r.StatusCode; a.status != http.StatusOK {
		return nil
	}
	return json.Unmarshal(body, &a.seen)
}

// fails reports whether an error is one of those that are wanted. A name of an
// alert wants that alert; other words want a connection that is refused, reset or
// ended, or a handshake that fails.
func fails(err error, wanted []string) bool {
	for _, w := range wanted {
		if code := regexp.MustCompile(`alert (\w+)(\(\d+\))?`).FindStringSubmatch(w); code != nil {
			if strings.Contains(err.Error(), "remote error: "+alertWords(code[1])) {
				return true
			}
			continue
		}
		switch {
		case strings.Contains(w, "protocol version"):
			if strings.Contains(err.Error(), alertWords("protocol_version")) {
				return true
			}
		case strings.Contains(w, "refused"):
			if errors.Is(err, syscall.ECONNREFUSED) {
				return true
			}
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
			return true
		case strings.Contains(w, "handshake fails"):
			var record tls.RecordHeaderError
			if strings.Contains(err.Error(), "remote error: tls:") || errors.As(err, &record) {
				return true
			}
		}
	}
	return false
}

// alertWords returns what crypto/tls calls an alert (RFC 8446, section 6).
func alertWords(name string) string {
	number, ok := map[string]uint8{"handshake_failure": 40, "protocol_version": 70, "certificate_required": 116,
		// crypto/tls has one alert for whatever a verifier of the server's own refuses:
		// bad_certificate. RFC 8446 allows it where it wants to say no more.
		"certificate_revoked": 42}[name]
	if !ok {
		return "an alert that is not known here: " + name
	}
	return tls.AlertError(number).Error()
}

// split plays a probe of many connections, one after the other.
func (g *game) split(p probe) error {
	got := map[string]int{}
	for i := range p.Connect.Count {
		a, err := g.exchange(g.outside, clusterHost, p)
		if err != nil {
			return fmt.Errorf("connection %d: %w", i+1, err)
		}
		got[a.seen.Backend]++
	}
	for name, want := range p.Expect.Split {
		if n := got[name]; n < want-p.Expect.Tolerance || n > want+p.Expect.Tolerance {
			return fmt.Errorf("of %d connections %v, want %v ± %d", p.Connect.Count, got, p.Expect.Split, p.Expect.Tolerance)
		}
	}
	return nil
}

// bothWays plays a probe of a server that speaks first, and sends back what it
// gets: the client says nothing until it has heard the server.
func (g *game) bothWays(p probe) error {
	name, port, _ := strings.Cut(p.Expect.Backend, ":")
	n, err := strconv.Atoi(port)
	if err != nil {
		return err
	}
	c, err := g.dial(g.outside, clusterHost, p.Connect.Port)
	if err != nil {
		return err
	}
	defer c.Close()
	want := []byte(g.backends[name].banner(n))
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		return fmt.Errorf("the server, which speaks first, said %q: %v", got, err)
	}
	sent := make([]byte, 4<<20)
	rand.Read(sent)
	back := make([]byte, len(sent))
	var writing sync.WaitGroup
	var failed error
	writing.Go(func() {
		if _, failed = c.Write(sent); failed == nil {
			failed = c.(*net.TCPConn).CloseWrite()
		}
	})
	_, err = io.ReadFull(c, back)
	c.SetDeadline(time.Now().Add(patience))
	if err == nil {
		if n, end := c.Read(make([]byte, 1)); n != 0 || end != io.EOF {
			err = fmt.Errorf("after all bytes came %d more, and %w", n, end)
		}
	}
	writing.Wait()
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	if !bytes.Equal(sent, back) {
		return errors.New("the bytes that came back are not those that were sent")
	}
	return nil
}

// concurrent plays a probe of many connections at once, at a backend that answers
// none of them before all others have failed: with max_connections C and
// max_pending_requests P exactly C are open at once, P wait for one, and the rest
// is refused.
func (g *game) concurrent(p probe) error {
	limit := g.limits(p.Connect.Port)
	refused := 0
	if limit.bounded {
		refused = p.Connect.Concurrent - limit.connections - limit.pending
	}
	if between := p.Expect.FailuresBetween; len(between) == 2 && (refused <= between[0] || refused >= between[1]) {
		return fmt.Errorf("the documents allow %d failures, and the index wants more than %d and fewer than %d", refused, between[0], between[1])
	}
	if n := p.Expect.Failures; n != nil && *n != refused {
		return fmt.Errorf("the documents allow %d failures, and the index wants %d", refused, *n)
	}
	b := g.backends[limit.service]
	results := make(chan error, p.Connect.Concurrent)
	for range p.Connect.Concurrent {
		go func() {
			c, err := g.dial(g.outside, clusterHost, p.Connect.Port)
			if err == nil {
				err = ask(c, held, new(answer))
				c.Close()
			}
			results <- err
		}()
	}
	failed, done := 0, 0
	take := func() {
		err := <-results
		if done++; err != nil {
			failed++
		}
	}
	if !limit.bounded { // all of them are there at once
		waiting := time.Now().Add(patience)
		for b.openNow() < p.Connect.Concurrent && time.Now().Before(waiting) {
			<-time.After(time.Millisecond)
		}
	}
	for done < refused {
		take()
	}
	close(b.letThemGo)
	for done < p.Connect.Concurrent {
		take()
	}
	if failed != refused {
		return fmt.Errorf("%d of %d failed, want %d", failed, p.Connect.Concurrent, refused)
	}
	if limit.bounded && b.most != limit.connections {
		return fmt.Errorf("%d were open at once, want %d", b.most, limit.connections)
	}
	return nil
}

// openNow returns how many requests are held.
func (b *backend) openNow() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.now
}
