package emissary_test

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"cardea/api"
	"cardea/test/cluster"
)

// A backend is a service of the documents: it has an address of its own, and says
// who it is and what it sees.
type backend struct {
	service string // as the documents name it
	host    string
	ports   map[int]speech

	mu        sync.Mutex
	now, most int           // requests that are held now, and at most at once
	letThemGo chan struct{} // closed when held requests are answered
}

// A speech is what a port of a backend speaks.
type speech string

const (
	clear  speech = "cleartext"
	secure speech = "TLS"
	first  speech = "banner" // it speaks first, and then sends back what it gets
)

// A seen is what a backend answers.
type seen struct {
	Backend string `json:"backend"`
	Port    int    `json:"port"`
	TLS     bool   `json:"tls"`
	SNI     string `json:"sni"`
	Client  string `json:"client"` // common name of the client's certificate
}

// held is the path of requests that are answered when the test says so.
const held = "/held"

func (b *backend) serve(port int, w http.ResponseWriter, r *http.Request) {
	s := seen{Backend: b.service, Port: port, TLS: r.TLS != nil}
	if r.TLS != nil {
		s.SNI = r.TLS.ServerName
		if len(r.TLS.PeerCertificates) > 0 {
			s.Client = r.TLS.PeerCertificates[0].Subject.CommonName
		}
	}
	if r.URL.Path == held {
		b.mu.Lock()
		b.now++
		b.most = max(b.most, b.now)
		b.mu.Unlock()
		select {
		case <-b.letThemGo:
		case <-r.Context().Done():
		}
		b.mu.Lock()
		b.now--
		b.mu.Unlock()
	}
	json.NewEncoder(w).Encode(s)
}

// banner is what a backend says that speaks first.
func (b *backend) banner(port int) string { return fmt.Sprintf("BANNER of %s:%d\r\n", b.service, port) }

// startBackends starts every service that the documents name, in the namespace
// outside.
func (g *game) startBackends() {
	g.backends = map[string]*backend{}
	add := func(service string) *backend {
		b := g.backends[service]
		if b == nil {
			b = &backend{service: service, host: fmt.Sprintf("10.77.1.%d", len(g.backends)+1), ports: map[int]speech{}, letThemGo: make(chan struct{})}
			g.backends[service] = b
		}
		return b
	}
	for _, s := range g.c.Backends {
		b := add(s.Service)
		for port, words := range s.Ports {
			b.ports[port] = clear
			if strings.HasPrefix(words, "TLS") {
				b.ports[port] = secure
			}
		}
	}
	for _, o := range g.objects {
		text, ok := o.Spec["service"].(string)
		if o.Kind != api.KindTCPMapping || !ok || strings.HasPrefix(g.c.ID, "crd-") {
			continue
		}
		if _, rest, ok := strings.Cut(text, "://"); ok {
			text = rest
		}
		name, port, _ := strings.Cut(text, ":")
		if name == "localhost" { // the cluster itself
			continue
		}
		b := add(name)
		if n, err := strconv.Atoi(port); err == nil && b.ports[n] == "" {
			b.ports[n] = clear
		}
		for n, s := range map[int]speech{80: clear, 443: secure} {
			if b.ports[n] == "" {
				b.ports[n] = s
			}
		}
	}
	// What the probes say of a port is more than what its number does.
	for _, p := range g.c.Probes {
		name, port, _ := strings.Cut(p.Expect.Backend, ":")
		n, err := strconv.Atoi(port)
		if b := g.backends[name]; b != nil && err == nil {
			switch {
			case p.Expect.Bytes != "":
				b.ports[n] = first
			case p.Expect.BackendSeesTLS != nil && *p.Expect.BackendSeesTLS:
				b.ports[n] = secure
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(g.backends)) {
		b := g.backends[name]
		if err := g.outside.ip("address", "add", b.host+"/16", "dev", "wire"); err != nil {
			g.Fatal(err)
		}
		for port, s := range b.ports {
			g.listen(b, port, s)
		}
	}
}

// listen serves one port of a backend until the test is over.
func (g *game) listen(b *backend, port int, s speech) {
	var l net.Listener
	if err := g.outside.do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(b.host, strconv.Itoa(port)))
		return err
	}); err != nil {
		g.Fatal(err)
	}
	var serving sync.WaitGroup
	if s == first {
		g.Cleanup(func() { l.Close(); serving.Wait() })
		serving.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				serving.Go(func() {
					defer c.Close()
					io.WriteString(c, b.banner(port))
					cluster.EchoBack(c)
				})
			}
		})
		return
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { b.serve(port, w, r) }), ErrorLog: log.New(io.Discard, "", 0)}
	if s == secure {
		l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{g.papers.of(backendName(b.service)).pair()}, ClientAuth: tls.RequestClientCert})
	}
	g.Cleanup(func() { srv.Close(); serving.Wait() })
	serving.Go(func() { srv.Serve(l) })
}

// backendName is the name in the certificate of a backend.
func backendName(service string) string { return "backend-" + service }
