package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"cardea/api"
	"cardea/relay"
	"cardea/tunnel"
	tunneltls "cardea/tunnel/tls"
	"cardea/tunnel/wireguard"
)

const testDomain = "cardea.test"

// A fakeCluster answers as the API does, and has a real gateway of WireGuard on loopback.
type fakeCluster struct {
	t       *testing.T
	home    string
	gateway *wireguard.Gateway

	mu      sync.Mutex
	calls   []api.ConnectRequest
	say     chan api.ConnectEvent // to the call that is open; nil breaks it off
	goodbye int
	refuse  *api.Error // what every call to connect gets
}

func newFakeCluster(t *testing.T) *fakeCluster {
	t.Helper()
	c := &fakeCluster{t: t, home: t.TempDir()}
	c.serve()
	return c
}

// serve serves the API, and puts a Session into the home.
func (c *fakeCluster) serve() {
	c.t.Helper()
	caKey, ca := c.certify(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, nil, nil)
	serverKey, server := c.certify(&x509.Certificate{DNSNames: []string{tunneltls.APIName(testDomain)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}, caKey, ca)
	key, leaf := c.certify(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, caKey, ca)

	mux := http.NewServeMux()
	mux.HandleFunc("POST /api/connect", c.connect)
	mux.HandleFunc("GET /api/connect", func(w http.ResponseWriter, _ *http.Request) { // of a plan that no machine can have
		json.NewEncoder(w).Encode(api.NetworkState{Services: []string{"127.0.0.0/12"}, MTU: 1280})
	})
	mux.HandleFunc("POST /api/disconnect", func(w http.ResponseWriter, _ *http.Request) {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.goodbye++
		io.WriteString(w, "{}")
	})
	s := httptest.NewUnstartedServer(mux)
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{server.Raw}, PrivateKey: serverKey}}, ClientAuth: tls.RequireAnyClientCert}
	s.StartTLS()
	c.t.Cleanup(s.Close)
	st := &state{record: record{Address: s.Listener.Addr().String(), Domain: testDomain, User: "alice", Session: "alice-1", CA: [][]byte{ca.Raw}}, key: key}
	if err := st.check(leaf.Raw); err != nil {
		c.t.Fatal(err)
	}
	if err := save(c.t.Context(), c.home, st); err != nil {
		c.t.Fatal(err)
	}
}

func (c *fakeCluster) certify(template *x509.Certificate, caKey *ecdsa.PrivateKey, ca *x509.Certificate) (*ecdsa.PrivateKey, *x509.Certificate) {
	c.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template.SerialNumber, template.Subject = big.NewInt(time.Now().UnixNano()), pkix.Name{CommonName: "test"}
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	if ca == nil {
		caKey, ca = key, template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		c.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		c.t.Fatal(err)
	}
	return key, cert
}

// connect answers a call as long as say says something.
func (c *fakeCluster) connect(w http.ResponseWriter, r *http.Request) {
	var in api.ConnectRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		c.t.Error(err)
	}
	say := make(chan api.ConnectEvent)
	c.mu.Lock()
	refuse := c.refuse
	if refuse == nil {
		c.calls, c.say = append(c.calls, in), say
	}
	c.mu.Unlock()
	if refuse != nil {
		w.WriteHeader(http.StatusNotFound)
		json.NewEncoder(w).Encode(refuse)
		return
	}
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	for {
		select {
		case e := <-say:
			if e.Type == "" {
				panic(http.ErrAbortHandler)
			}
			json.NewEncoder(w).Encode(e)
			w.(http.Flusher).Flush()
			if e.Type == api.ConnectEnded {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// awaitCall waits for the so many-th call.
func (c *fakeCluster) awaitCall(n int) api.ConnectRequest {
	c.t.Helper()
	for range ticks(c.t) {
		c.mu.Lock()
		got := len(c.calls)
		c.mu.Unlock()
		if got >= n {
			break
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.calls[n-1]
}

// tell says something to the call that is open. "" breaks it off.
func (c *fakeCluster) tell(e api.ConnectEvent) {
	c.t.Helper()
	c.mu.Lock()
	say := c.say
	c.mu.Unlock()
	select {
	case say <- e:
	case <-c.t.Context().Done():
		c.t.Fatal("nobody listens")
	}
}

// ticks yields now and then, for 20 seconds at most.
func ticks(t *testing.T) <-chan struct{} {
	out := make(chan struct{})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			select {
			case out <- struct{}{}:
			case <-ctx.Done():
			}
			pause(ctx, 5*time.Millisecond)
		}
	}()
	return out
}

// until waits for something to be so.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for range ticks(t) {
		if is() {
			return
		}
	}
	t.Fatal("never: " + what)
}

// Arrive implements tunnel.Handler: it sends back what it gets.
func (c *fakeCluster) Arrive(a api.Arrival) {
	if relay.IsDatagram(a.Conn) {
		go func() {
			defer a.Conn.Close()
			b := make([]byte, relay.MaxDatagram)
			for {
				n, err := a.Conn.Read(b)
				if err != nil {
					return
				}
				a.Conn.Write(b[:n])
			}
		}()
		return
	}
	go func() {
		io.Copy(a.Conn, a.Conn)
		a.Conn.Close()
	}()
}

// Refused implements tunnel.Handler.
func (c *fakeCluster) Refused(api.Refusal) {}

// answer answers for echo.default, which is at 100.64.0.16, TCP and UDP port 80.
func (c *fakeCluster) answer(_ context.Context, _ string, query []byte, _ bool) []byte {
	var m dnsmessage.Message
	if err := m.Unpack(query); err != nil {
		return nil
	}
	m.Response, m.RCode = true, dnsmessage.RCodeNameError
	q := m.Questions[0]
	head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 5}
	if q.Name.String() == "echo.default.svc."+testDomain+"." {
		m.RCode = dnsmessage.RCodeSuccess
		switch q.Type {
		case dnsmessage.TypeA:
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.AResource{A: [4]byte{100, 64, 0, 16}}}}
		case dnsmessage.TypeSRV:
			m.Answers = []dnsmessage.Resource{{Header: head, Body: &dnsmessage.SRVResource{Port: 80, Target: q.Name}}}
		}
	}
	b, err := m.Pack()
	if err != nil {
		c.t.Error(err)
	}
	return b
}

// up makes the gateway.
func (c *fakeCluster) up() { c.gateway = c.newGateway() }

// newGateway makes a gateway, and runs it until the end of the test.
func (c *fakeCluster) newGateway() *wireguard.Gateway {
	c.t.Helper()
	g := &wireguard.Gateway{
		Handler: c, Answer: c.answer,
		Find: func(to netip.AddrPort, _ string) (string, bool) {
			return "echo.default", to.String() == "100.64.0.16:80"
		},
		Ports:    func() []int { return []int{80} },
		Services: prefixes("100.64.0.0/12"), Sessions: prefixes("100.80.0.0/12"), DNS: []netip.Addr{netip.MustParseAddr("100.64.0.1")},
		Key: wireguard.NewKey(), Log: slog.New(slog.DiscardHandler),
	}
	if err := g.Open(); err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); g.Run(ctx) }()
	c.t.Cleanup(func() {
		cancel()
		<-done
		g.Close()
	})
	return g
}

func prefixes(list ...string) (all []netip.Prefix) {
	for _, x := range list {
		all = append(all, netip.MustParsePrefix(x))
	}
	return all
}

// state is what the cluster says.
func (c *fakeCluster) state() api.ConnectEvent {
	return api.ConnectEvent{Type: api.ConnectState, State: &api.NetworkState{
		Session: api.Ref{Name: "alice-1"}, Domain: testDomain, Addresses: api.Addresses{IPv4: "100.80.0.7"},
		Services: []string{"100.64.0.0/12"}, DNS: []string{"100.64.0.1"}, MTU: 1280,
		Gateways: []api.GatewayPlace{placeOf("one", c.gateway)},
	}}
}

// placeOf is what the cluster says of a gateway.
func placeOf(name string, g *wireguard.Gateway) api.GatewayPlace {
	return api.GatewayPlace{Name: name, Addresses: []string{"127.0.0.1"}, WireGuardPort: g.Port(), PublicKey: g.Key.Public().Text(), Services: []string{"100.64.0.0/12"}}
}

// admit makes the device of a call a peer of the gateway.
func (c *fakeCluster) admit(in api.ConnectRequest) { c.admitAt(c.gateway, in) }

func (c *fakeCluster) admitAt(g *wireguard.Gateway, in api.ConnectRequest) {
	c.t.Helper()
	key, err := wireguard.ParseKey(in.PublicKey)
	if err == nil {
		err = g.Put(wireguard.Peer{Session: "s-1", PublicKey: key, Addresses: []netip.Addr{netip.MustParseAddr("100.80.0.7")}})
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// network runs a Network, and returns a way to wait for its end.
func (c *fakeCluster) network(o NetworkOptions) (n *Network, stop context.CancelFunc, wait func() error) {
	c.t.Helper()
	me := &Client{Home: c.home}
	n = &Network{Client: me, Options: o, Log: slog.New(slog.DiscardHandler)}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	var once sync.Once
	var err error
	wait = func() error {
		once.Do(func() { err = <-ended })
		return err
	}
	c.t.Cleanup(func() { stop(); wait(); me.Close() })
	return n, stop, wait
}

func stackOptions() NetworkOptions { return NetworkOptions{Tunnel: TunnelWireGuard} }

// connected runs a Network up to where it is connected.
func (c *fakeCluster) connected() (n *Network, stop context.CancelFunc, wait func() error) {
	c.t.Helper()
	c.up()
	n, stop, wait = c.network(stackOptions())
	c.admit(c.awaitCall(1))
	c.tell(c.state())
	select {
	case <-n.Up():
	case <-c.t.Context().Done():
		c.t.Fatal("it is never up")
	}
	return n, stop, wait
}

// talk expects a Service to send back what it is sent.
func talk(t *testing.T, conn net.Conn) {
	t.Helper()
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	b := []byte("hello")
	if _, err := conn.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "hello" {
		t.Fatalf("got %q, %v", b, err)
	}
}

// TestNetworkStack reaches a Service through WireGuard, without any privilege.
func TestNetworkStack(t *testing.T) {
	c := newFakeCluster(t)
	n, stop, wait := c.connected()
	conn, err := n.Dialer().Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := conn.(tunnel.Conn); !ok {
		t.Errorf("a %T is no tunnel.Conn", conn)
	}
	talk(t, conn)
	flow, err := n.Dialer().(flowDialer).DialDatagrams(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	if !relay.IsDatagram(flow) {
		t.Errorf("a %T keeps no boundaries", flow)
	}
	talk(t, flow)
	if _, err := n.Dialer().Dial(t.Context(), "nothing"); !api.HasCode(err, api.CodePermissionDenied) {
		t.Errorf("a Service that is not there: %v", err)
	}
	s := n.Status()
	if s.Form != FormStack || s.Session != "alice-1" || s.Addresses.IPv4 != "100.80.0.7" || s.Since.IsZero() || len(s.Gateways) != 1 {
		t.Errorf("status: %+v", s)
	}
	if g := s.Gateways[0]; g.Transport != TunnelWireGuard || g.LatencyMilliseconds <= 0 || g.HandshakeAt.IsZero() || g.SentBytes == 0 || !strings.HasPrefix(g.Address, "127.0.0.1:") {
		t.Errorf("gateway: %+v", g)
	}
	stop()
	if err := wait(); err != nil {
		t.Error(err)
	}
	if c.goodbye != 1 {
		t.Errorf("the cluster was told %d times of the end", c.goodbye)
	}
	if _, err := n.Dialer().Dial(t.Context(), "echo"); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("after the end: %v", err)
	}
}

// TestNetworkEnds shows that the end of a Session ends all at once, with the reason.
func TestNetworkEnds(t *testing.T) {
	c := newFakeCluster(t)
	n, _, wait := c.connected()
	conn, err := n.Dialer().Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	c.tell(api.ConnectEvent{Type: api.ConnectEnded, Ended: &api.Error{Code: api.CodeUnauthenticated, Message: "the Session alice-1 was deleted"}})
	end, ok := errors.AsType[*EndedError](wait())
	if !ok || end.Reason.Code != api.CodeUnauthenticated || !strings.Contains(end.Error(), "was deleted") {
		t.Errorf("got %v", end)
	}
	if c.goodbye != 0 {
		t.Error("a place that is gone was given up")
	}
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("the connection has outlived the tunnel")
	}
}

// TestNetworkListensAgain breaks the call to the cluster off: what is connected goes on,
// with the same key.
func TestNetworkListensAgain(t *testing.T) {
	c := newFakeCluster(t)
	n, _, _ := c.connected()
	conn, err := n.Dialer().Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	c.tell(api.ConnectEvent{})
	first, second := c.awaitCall(1), c.awaitCall(2)
	if first.PublicKey == "" || second.PublicKey != first.PublicKey {
		t.Errorf("connected with %q, and then with %q", first.PublicKey, second.PublicKey)
	}
	if s := n.Status(); !s.Since.IsZero() || s.Problem == "" {
		t.Errorf("meanwhile: %+v", s)
	}
	c.tell(c.state())
	until(t, "the cluster is listened to", func() bool { return !n.Status().Since.IsZero() })
	talk(t, conn)
}

// TestNetworkHearsOfGateways has one go and another come.
func TestNetworkHearsOfGateways(t *testing.T) {
	c := newFakeCluster(t)
	n, _, _ := c.connected()
	e := c.state()
	e.State.Gateways[0].Name = "two"
	c.tell(e)
	until(t, "gateway two carries", func() bool {
		s := n.Status()
		return len(s.Gateways) == 1 && s.Gateways[0].Name == "two" && s.Gateways[0].Transport == TunnelWireGuard
	})
	conn, err := n.Dialer().Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	talk(t, conn)
}

// TestNetworkOfTwoGateways has a second gateway come and the first one go: connections stay
// where they are while that is there, and none needs a new call to the cluster.
func TestNetworkOfTwoGateways(t *testing.T) {
	c := newFakeCluster(t)
	n, _, _ := c.connected()
	conn, err := n.Dialer().Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	carried := func(names ...string) func() bool {
		return func() bool {
			s := n.Status()
			ok := len(s.Gateways) == len(names)
			for i := range min(len(s.Gateways), len(names)) {
				g := s.Gateways[i]
				ok = ok && g.Name == names[i] && g.Transport == TunnelWireGuard && !g.HandshakeAt.IsZero()
			}
			return ok
		}
	}
	another := c.newGateway()
	c.admitAt(another, c.awaitCall(1))
	e := c.state()
	e.State.Gateways = []api.GatewayPlace{placeOf("another", another), placeOf("one", c.gateway)}
	c.tell(e)
	until(t, "both carry", carried("another", "one"))
	talk(t, conn) // which it could not by a gateway that does not know it

	e = c.state()
	e.State.Gateways = []api.GatewayPlace{placeOf("another", another)}
	c.tell(e)
	until(t, "the other carries alone", carried("another"))
	if conn, err = n.Dialer().Dial(t.Context(), "echo"); err != nil {
		t.Fatal(err)
	}
	talk(t, conn)
	if len(c.calls) != 1 {
		t.Errorf("the cluster was called %d times", len(c.calls))
	}
}

// TestNetworkIsNotUp shows that a Network through which nothing gets is none: it ends, says
// why, and gives its place up.
func TestNetworkIsNotUp(t *testing.T) {
	for name, tc := range map[string]struct {
		tunnel Tunnel
		spoil  func(*fakeCluster, *api.NetworkState)
		words  []string
	}{
		"UDP does not pass": {TunnelWireGuard, func(c *fakeCluster, s *api.NetworkState) {
			s.Gateways[0].WireGuardPort = deafPort(c.t)
		}, []string{"not connected: gateway one cannot be reached", "probes by UDP were not answered"}},
		"the gateway does not know the device": {TunnelWireGuard, func(*fakeCluster, *api.NetworkState) {}, []string{"not connected: gateway one is reached by WireGuard (UDP), and nothing comes back through the tunnel"}},
		"there is no QUIC": {TunnelQUIC, func(*fakeCluster, *api.NetworkState) {},
			[]string{"not connected: gateway one", "no gateway of the cluster has QUIC now"}},
		"QUIC does not pass": {TunnelQUIC, func(c *fakeCluster, s *api.NetworkState) {
			s.Gateways[0].QUICPort = deafPort(c.t)
		}, []string{"not connected: gateway one", "QUIC did not answer"}},
		"there is no gateway": {TunnelWireGuard, func(_ *fakeCluster, s *api.NetworkState) {
			s.Gateways = nil
		}, []string{"not connected: the cluster has no gateway now"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newFakeCluster(t)
			c.up()
			me := &Client{Home: c.home}
			defer me.Close()
			n := &Network{Client: me, Options: NetworkOptions{Tunnel: tc.tunnel}, Log: slog.New(slog.DiscardHandler), within: pipeTime + time.Second}
			ended := make(chan error, 1)
			go func() { ended <- n.Run(t.Context()) }()
			c.awaitCall(1)
			e := c.state()
			tc.spoil(c, e.State)
			c.tell(e)
			err := <-ended
			if !api.HasCode(err, api.CodeUnavailable) {
				t.Fatalf("got %v", err)
			}
			for _, w := range tc.words {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("got %q, want %q in it", err, w)
				}
			}
			select {
			case <-n.Up():
				t.Error("it was up")
			default:
			}
			if c.goodbye != 1 {
				t.Errorf("the cluster was told %d times of the end", c.goodbye)
			}
		})
	}
}

// deafPort returns a port of UDP at which nobody answers.
func deafPort(t *testing.T) int {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.LocalAddr().(*net.UDPAddr).Port
}

// TestDaemonTakesOverLast shows that a connect that cannot be is refused before the
// cluster is asked for the place, which another connect of the Session may have.
func TestDaemonTakesOverLast(t *testing.T) {
	c := newFakeCluster(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	me := &Client{Home: c.home}
	defer me.Close()
	log := slog.New(slog.DiscardHandler)
	d := &Daemon{Home: c.home, Client: me, Ports: &Ports{Dialer: me, Log: log}, Log: log, Now: time.Now}
	ctx, stop := context.WithCancel(t.Context())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- d.Run(ctx, func() { close(ready) }) }()
	<-ready
	for name, w := range map[string]Wish{
		"a port is taken":        {Ports: []Port{{Service: "echo.default", Network: "tcp", Address: taken.Addr().String()}}, Network: stackOptions()},
		"the interface overlaps": {Network: NetworkOptions{Interface: "cardea-test0"}}, // which loopback has, or there may be none
	} {
		if _, err := d.Connect(t.Context(), w); err == nil {
			t.Errorf("%s: it is connected", name)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(c.calls) != 0 || c.goodbye != 0 {
		t.Errorf("the cluster was asked for the place %d times, and told of the end %d times", len(c.calls), c.goodbye)
	}
}

func TestNetworkTellsOfRefusals(t *testing.T) {
	c := newFakeCluster(t)
	n, _, _ := c.connected()
	for range keepRefusals + 3 {
		c.tell(api.ConnectEvent{Type: api.ConnectRefused, Refused: &api.NetworkRefusal{Service: "echo.default", Words: "no"}})
	}
	c.tell(api.ConnectEvent{Type: "LATER"}) // of a later version
	c.tell(api.ConnectEvent{Type: api.ConnectAlive})
	until(t, "they are shown", func() bool { r := n.Status().Refusals; return len(r) == keepRefusals && r[0].Words == "no" })
}

// TestNetworkIsRefused shows that what cannot begin says why.
func TestNetworkIsRefused(t *testing.T) {
	c := newFakeCluster(t)
	c.refuse = &api.Error{Code: api.CodeNotFound, Message: "this cluster has no private network"}
	_, _, wait := c.network(stackOptions())
	if err := wait(); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("got %v", err)
	}
}

// TestNetworkOfAnotherLogin shows that a Network does not go over to another Session.
func TestNetworkOfAnotherLogin(t *testing.T) {
	c := newFakeCluster(t)
	_, _, wait := c.connected()
	s, _, err := load(t.Context(), c.home)
	if err != nil {
		t.Fatal(err)
	}
	s.Session = "alice-2"
	if err := save(t.Context(), c.home, s); err != nil {
		t.Fatal(err)
	}
	c.tell(api.ConnectEvent{})
	if err := wait(); err == nil || !strings.Contains(err.Error(), "alice-2") {
		t.Errorf("got %v", err)
	}
}

// The home is read while others look for the login in it.
func TestHomeIsFoundOnce(t *testing.T) {
	c := &Client{Home: t.TempDir()}
	defer c.Close()
	c.current(t.Context()) // there is none
	var looking sync.WaitGroup
	looking.Go(func() { c.current(t.Context()) })
	if c.home != c.Home {
		t.Errorf("it is %q", c.home)
	}
	looking.Wait()
}
