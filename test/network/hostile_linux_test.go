package network_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"cardea/api"
	"cardea/client"
	"cardea/test/network/lab"
	"cardea/tunnel"
	"cardea/tunnel/wireguard"
)

// watch notes who comes to TCP and UDP of a port of a host.
func watch(t *testing.T, h *lab.Host, port uint16) *atomic.Int64 {
	t.Helper()
	count := new(atomic.Int64)
	listen(t, h, port, func(net.Conn) { count.Add(1) })
	p, err := h.ListenPacket("udp", netip.AddrPortFrom(netip.IPv6Unspecified(), port))
	if err != nil {
		t.Fatal(err)
	}
	var reading sync.WaitGroup
	reading.Go(func() {
		b := make([]byte, 100)
		for {
			if _, _, err := p.ReadFrom(b); err != nil {
				return
			}
			count.Add(1)
		}
	})
	t.Cleanup(func() {
		p.Close()
		reading.Wait()
	})
	return count
}

// TestHostileClient has a client send through its tunnel what no client should: nothing
// of it arrives anywhere, and the Gateway counts it.
func TestHostileClient(t *testing.T) {
	for form := range forms() {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			hostileClient(t, form)
		})
	}
}

func hostileClient(t *testing.T, form string) {
	w := newWorld(t, lab.Config{Clients: 2}, serviceYAML("web", 80, "tcp://10.3.0.2:8000")+serviceYAML("udp", 7, "udp://10.3.0.2:7007"), "--network", form)
	web(t, w.Upstream, 8000, "the web")
	packets(t, w.Upstream, 7007)
	alice, mallory := w.login(w.Clients[0], "alice"), w.loginRaw(w.Clients[1], "mallory")
	alice.connect()
	x, err := w.raw(mallory, wireguard.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	web4, web6 := w.at("web")
	udp4, udp6 := w.at("udp")
	own := func(to netip.AddrPort) netip.AddrPort { return x.from(to.Addr(), 40000) }

	// What it may do, it can.
	for _, to := range []netip.AddrPort{web4, web6} {
		if flags := x.answer(t, syn(own(to), to), to); flags != 0x12 { // SYN, ACK
			t.Errorf("%v answers a request for a connection with the flags %#x", to, flags)
		}
		shut := netip.AddrPortFrom(to.Addr(), 81)
		if flags := x.answer(t, syn(own(shut), shut), shut); flags&0x04 == 0 { // RST
			t.Errorf("%v, which is no port of the Service, answers with the flags %#x", shut, flags)
		}
	}

	const secret = 9999
	strangers := map[string]*atomic.Int64{}
	for _, h := range []*lab.Host{w.Gateway, w.Upstream, w.Clients[0]} {
		strangers[h.Name] = watch(t, h, secret)
	}
	alices := alice.place().Addresses
	alice4, alice6 := netip.MustParseAddr(alices.IPv4), netip.MustParseAddr(alices.IPv6)
	at := func(text string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(text), secret) }
	for _, c := range []struct {
		name, why string
		packets   [][]byte
	}{
		{"the source of another Session", "source", [][]byte{
			syn(netip.AddrPortFrom(alice4, 40001), web4), syn(netip.AddrPortFrom(alice6, 40001), web6),
			udp(netip.AddrPortFrom(alice4, 40001), udp4), udp(netip.AddrPortFrom(alice6, 40001), udp6),
		}},
		{"a source of nobody", "source", [][]byte{
			syn(at("10.3.0.2"), web4), syn(at("127.0.0.1"), web4), udp(at("203.0.113.2"), udp4), syn(at("fd10:3::2"), web6), syn(at("::1"), web6),
		}},
		{"the gateway itself", "destination", [][]byte{
			syn(own(web4), at("203.0.113.2")), syn(own(web4), at("10.3.0.1")), syn(own(web4), at("127.0.0.1")), udp(own(web4), at("10.3.0.1")),
			syn(own(web6), at("2001:db8:113::2")), syn(own(web6), at("::1")), udp(own(web6), at("fd10:3::1")),
		}},
		{"another host behind it", "destination", [][]byte{
			syn(own(web4), at("10.3.0.2")), udp(own(web4), at("10.3.0.2")), syn(own(web6), at("fd10:3::2")),
		}},
		{"another client", "destination", [][]byte{
			syn(own(web4), netip.AddrPortFrom(alice4, secret)), udp(own(web4), netip.AddrPortFrom(alice4, secret)), syn(own(web6), netip.AddrPortFrom(alice6, secret)),
		}},
		{"everybody", "destination", [][]byte{
			udp(own(web4), at("224.0.0.1")), udp(own(web4), at("255.255.255.255")), udp(own(web6), at("ff02::1")),
		}},
		{"a port of the gateway at the address of a Service", "service", [][]byte{
			syn(own(web4), netip.AddrPortFrom(web4.Addr(), secret)), udp(own(web4), netip.AddrPortFrom(web4.Addr(), secret)),
			syn(own(web6), netip.AddrPortFrom(web6.Addr(), 8443)), syn(own(web6), netip.AddrPortFrom(web6.Addr(), secret)),
		}},
		{"other protocols", "protocol", [][]byte{
			plain(own(web4).Addr(), web4.Addr(), protocolICMP, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}), plain(own(web4).Addr(), web4.Addr(), protocolGRE, make([]byte, 40)),
			plain(own(web6).Addr(), web6.Addr(), protocolGRE, make([]byte, 40)),
		}},
		{"options", "options", [][]byte{
			// Loose source routing (RFC 791) by the Upstream, and an option that does nothing.
			ip(own(web4).Addr(), web4.Addr(), protocolTCP, segment(own(web4), web4), []byte{131, 7, 4, 10, 3, 0, 2, 0}, 0, nil),
			ip(own(web4).Addr(), web4.Addr(), protocolTCP, segment(own(web4), web4), []byte{1, 1, 1, 0}, 0, nil),
			ip(own(web6).Addr(), web6.Addr(), protocolTCP, segment(own(web6), web6), nil, extensionHopByHop, []byte{0, 0, 1, 4, 0, 0, 0, 0}),
			ip(own(web6).Addr(), web6.Addr(), protocolTCP, segment(own(web6), web6), nil, extensionDestination, []byte{0, 0, 1, 4, 0, 0, 0, 0}),
			ip(own(web6).Addr(), web6.Addr(), protocolTCP, segment(own(web6), web6), nil, extensionRouting, []byte{0, 0, 0, 0, 0, 0, 0, 0}),
		}},
		{"fragments", "fragment", [][]byte{
			// The first part, of which each but the last is a multiple of 8 bytes, and the last.
			fragment(plain(own(web4).Addr(), web4.Addr(), protocolTCP, append(segment(own(web4), web4), 0, 0, 0, 0)), 0x2000),
			fragment(syn(own(web4), web4), 1),
			ip(own(web6).Addr(), web6.Addr(), protocolTCP, append(segment(own(web6), web6), 0, 0, 0, 0), nil, extensionFragment, []byte{0, 0, 0, 1, 0, 0, 0, 7}),
			ip(own(web6).Addr(), web6.Addr(), protocolTCP, segment(own(web6), web6), nil, extensionFragment, []byte{0, 0, 0, 8, 0, 0, 0, 7}),
		}},
	} {
		before := w.gateway().Status.Dropped[c.why]
		for _, p := range c.packets {
			x.tun.out <- p
		}
		w.until(c.name+" is dropped and counted", func() error {
			if n := w.gateway().Status.Dropped[c.why] - before; n < len(c.packets) {
				return fmt.Errorf("%d of %d are dropped because of %q; all that is dropped: %v", n, len(c.packets), c.why, w.gateway().Status.Dropped)
			}
			return nil
		})
	}
	if yaml := w.root("get", "gateways", "-o", "yaml"); !strings.Contains(yaml, "dropped:") {
		t.Errorf("cardea get gateways -o yaml does not show what was dropped:\n%s", yaml)
	}
	for name, count := range strangers {
		if n := count.Load(); n != 0 {
			t.Errorf("%d of these arrived at %s", n, name)
		}
	}
	if out := w.root("conns", "-o", "json"); strings.Contains(out, `"alice"`) {
		t.Errorf("there is a connection as alice:\n%s", out)
	}

	// A key is one Session's.
	bob := w.loginRaw(w.Clients[1], "bob")
	if _, err := w.raw(bob, x.key); !api.HasCode(err, api.CodeConflict) {
		t.Errorf("bob asks for a place with mallory's key: %v", err)
	}

	// Nobody is asked which address he wants.
	wish := map[string]any{"publicKey": wireguard.NewKey().Public().Text(), "addresses": alices}
	if err := caller(t, bob, bob.home+"-cert").Do(t.Context(), http.MethodPost, "/api/connect", wish, nil); !api.HasCode(err, api.CodeInvalid) {
		t.Errorf("bob asks for alice's address: %v", err)
	}

	// A deleted Session has nothing any more, and its address is nobody's for a while.
	w.root("delete", "session", w.session("mallory").Metadata.Name)
	select {
	case err := <-x.ended:
		if e, ok := errors.AsType[*api.Error](err); !ok || e.Message == "" {
			t.Errorf("mallory's Session is deleted, and what is said is: %v", err)
		}
	case <-time.After(patience):
		t.Error("mallory's Session is deleted, and nobody says so")
	}
	again := w.loginRaw(w.Clients[1], "mallory")
	y, err := w.raw(again, wireguard.NewKey())
	if err != nil {
		t.Fatal(err)
	}
	if y.Addresses.IPv4 == x.Addresses.IPv4 || y.Addresses.IPv6 == x.Addresses.IPv6 {
		t.Errorf("the addresses of a Session that was deleted a moment ago are given to another: %v", y.Addresses)
	}
	for len(x.tun.in) > 0 {
		<-x.tun.in
	}
	from := netip.AddrPortFrom(own(web4).Addr(), 40002)
	x.tun.out <- syn(from, web4)
	if flags := y.answer(t, syn(y.from(web4.Addr(), 40000), web4), web4); flags != 0x12 {
		t.Errorf("the new Session is answered with the flags %#x", flags)
	}
	for len(x.tun.in) > 0 {
		if flags, ok := isAnswer(<-x.tun.in, web4); ok {
			t.Errorf("the deleted Session is answered with the flags %#x", flags)
		}
	}
}

// TestReplay has somebody on the way write down what a client sends, and send it again
// from elsewhere: handshakes and data. None of it is taken, and the client's tunnel stays
// where it was.
func TestReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{}, serviceYAML("echo", 7, "tcp://10.3.0.2:7000")+serviceYAML("udp", 7, "udp://10.3.0.2:7007"))
	echo(t, w.Upstream, 7000)
	arrived := watch(t, w.Upstream, 7007)
	alice := w.login(w.Clients[0], "alice")
	recorded := w.NAT.Record("wan")
	alice.connect()
	live := w.hold(alice, "echo")
	v4, _ := w.at("udp")
	c, err := alice.host.Dial(t.Context(), "udp", v4)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	w.until("a datagram arrives", func() error {
		c.Write([]byte("once"))
		if arrived.Load() == 0 {
			return errors.New("not yet")
		}
		return nil
	})
	if err := say(live, "recorded", patience); err != nil {
		t.Fatal(err)
	}
	at := "dst port " + wireguardPort + " and udp[8] = "
	handshakes, data := recorded(at+"1"), recorded(at+"4")
	if len(handshakes) == 0 || len(data) < 5 {
		t.Fatalf("%d handshakes and %d packets of data were recorded: this test shows nothing", len(handshakes), len(data))
	}
	before, starts, place := arrived.Load(), w.started(), alice.place().Gateways[0]
	counted := w.gateway().Status.Dropped["handshake"]
	mallory, err := w.NAT.Dial(t.Context(), "udp", netip.AddrPortFrom(w.Gateway.IPv4, 51820))
	if err != nil {
		t.Fatal(err)
	}
	defer mallory.Close()
	const times = 3
	for range times {
		for _, p := range slices.Concat(handshakes, data) {
			if _, err := mallory.Write(p); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.until("the handshakes are counted", func() error {
		if n := w.gateway().Status.Dropped["handshake"] - counted; n != times*len(handshakes) {
			return fmt.Errorf("%d of %d", n, times*len(handshakes))
		}
		return nil
	})
	if err := say(live, "still here", patience); err != nil {
		t.Errorf("the connection that was recorded: %v", err)
	}
	mallory.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, err := mallory.Read(make([]byte, 2000)); err == nil {
		t.Errorf("who sends again is answered %d bytes", n)
	}
	if n := arrived.Load() - before; n != 0 {
		t.Errorf("%d datagrams arrived again", n)
	}
	if n := w.started() - starts; n != 0 {
		t.Errorf("%d connections were begun", n)
	}
	if now := alice.place().Gateways[0]; now.Transport != place.Transport {
		t.Errorf("the gateway was reached by %s, and is by %s", place.Transport, now.Transport)
	}
}

// TestStrangers has clients without the certificate of a Session, and with one for
// something that is not served, come by QUIC and by TLS: none is let in, and the log knows
// from where they came. One whose certificate has expired is in TestWhileConnected.
func TestStrangers(t *testing.T) {
	t.Parallel()
	w := newWorld(t, lab.Config{}, "")
	alice := w.loginRaw(w.Clients[0], "alice")
	if _, err := w.raw(alice, wireguard.NewKey()); err != nil { // packets are for who has a place
		t.Fatal(err)
	}
	own := certificate(t, alice.home+"-cert")
	for _, by := range []client.Tunnel{client.TunnelQUIC, client.TunnelTLS} {
		for _, c := range []struct {
			name, protocol string
			cert           tls.Certificate
			in             bool
		}{
			{"a Session", "cardea/1", own, true},
			{"a Session, for packets", "cardea-packets/1", own, true},
			{"nobody", "cardea/1", tls.Certificate{}, false},
			{"nobody, for packets", "cardea-packets/1", tls.Certificate{}, false},
			{"a Session of another cluster", "cardea/1", forged(t, own), false},
			{"a Session of another cluster, for packets", "cardea-packets/1", forged(t, own), false},
			{"a Session that wants what is not served", "h3", own, false},
			{"a Session that speaks of no protocol", "", own, false},
		} {
			before := w.refusals()
			err := w.knock(alice.host, by, c.protocol, c.cert)
			if in := err == nil; in != c.in {
				t.Errorf("by %s, %s: let in %t (%v)", by, c.name, in, err)
			}
			if c.in {
				continue
			}
			w.until("the log knows", func() error {
				if n := w.refusals() - before; n != 1 {
					return fmt.Errorf("by %s, %s: %d records", by, c.name, n)
				}
				return nil
			})
		}
	}
}

// refusals returns how many handshakes the log knows that were refused to the NAT.
func (w *world) refusals() (n int) {
	w.Helper()
	for line := range strings.Lines(w.root("logs", "-o", "json")) {
		if strings.Contains(line, `"HANDSHAKE"`) && strings.Contains(line, `"203.0.113.1"`) {
			n++
		}
	}
	return n
}

// knock makes a connection to the gateway, and reports why it is not let in, if so.
func (w *world) knock(h *lab.Host, by client.Tunnel, protocol string, cert tls.Certificate) error {
	w.Helper()
	config := &tls.Config{
		InsecureSkipVerify: true, ServerName: tunnel.GatewayName("cardea.internal"),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
	if protocol != "" {
		config.NextProtos = []string{protocol}
	}
	to := netip.AddrPortFrom(w.Gateway.IPv4, 8443)
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	if by == client.TunnelQUIC {
		socket, err := h.ListenPacket("udp", netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
		if err != nil {
			w.Fatal(err)
		}
		defer socket.Close()
		c, err := quic.Dial(ctx, socket, net.UDPAddrFromAddrPort(to), config, &quic.Config{EnableDatagrams: true, MaxIncomingUniStreams: 1})
		if err != nil {
			return err
		}
		defer c.CloseWithError(0, "")
		select { // in TLS 1.3 a client hears of its certificate later
		case <-c.Context().Done():
			return context.Cause(c.Context())
		case <-time.After(time.Second):
			return nil
		}
	}
	raw, err := h.Dial(ctx, "tcp", to)
	if err != nil {
		w.Fatal(err)
	}
	c := tls.Client(raw, config)
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	_, err = c.Read(make([]byte, 1))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}

// forged returns a certificate that says what another one does, by an authority of its own.
func forged(t *testing.T, of tls.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: of.Leaf.Issuer, NotBefore: of.Leaf.NotBefore, NotAfter: of.Leaf.NotAfter,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, SubjectKeyId: of.Leaf.AuthorityKeyId,
	}
	leaf := &x509.Certificate{
		SerialNumber: of.Leaf.SerialNumber, Subject: of.Leaf.Subject, NotBefore: of.Leaf.NotBefore, NotAfter: of.Leaf.NotAfter,
		URIs: of.Leaf.URIs, KeyUsage: of.Leaf.KeyUsage, ExtKeyUsage: of.Leaf.ExtKeyUsage, AuthorityKeyId: of.Leaf.AuthorityKeyId,
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// started returns how many connections the log knows.
func (w *world) started() int {
	w.Helper()
	return strings.Count(w.root("logs", "-o", "json"), `"type":"START"`)
}

// fragment sets the field of an IPv4 packet that says what part of one it is.
func fragment(p []byte, field uint16) []byte {
	p[6], p[7], p[10], p[11] = byte(field>>8), byte(field), 0, 0
	s := sum(p[:20])
	p[10], p[11] = byte(s>>8), byte(s)
	return p
}

// loginRaw is login, with the certificate beside the home.
func (w *world) loginRaw(h *lab.Host, user string) *person {
	w.Helper()
	home := w.homeOf(h, user)
	return w.login(h, user, "--cert-out", home+"-cert")
}

// answer sends a packet until one of TCP comes back from an address, and returns the
// flags of that.
func (x *peer) answer(t *testing.T, p []byte, from netip.AddrPort) byte {
	t.Helper()
	late := time.After(patience)
	for {
		x.tun.out <- p
		again := time.After(time.Second)
		for waiting := true; waiting; {
			select {
			case got := <-x.tun.in:
				if flags, ok := isAnswer(got, from); ok {
					return flags
				}
			case <-again:
				waiting = false
			case <-late:
				t.Fatalf("no answer from %v", from)
			}
		}
	}
}

// TestHostileNetwork has a host outside send to addresses of Services, and from those of
// a Session: they exist in the tunnel alone.
func TestHostileNetwork(t *testing.T) {
	t.Parallel()
	w, alice, _ := newEcho(t, lab.Config{})
	own := alice.place().Addresses
	v4, v6 := w.at("web")
	w.NAT.Run("ip", "addr", "add", own.IPv4+"/32", "dev", "lo")
	w.NAT.Run("ip", "-6", "addr", "add", own.IPv6+"/128", "dev", "lo", "nodad")
	w.NAT.Run("ip", "route", "add", v4.Addr().String(), "via", w.Gateway.IPv4.String(), "src", own.IPv4)
	w.NAT.Run("ip", "-6", "route", "add", v6.Addr().String(), "via", w.Gateway.IPv6.String(), "src", own.IPv6)
	captured := w.Gateway.Capture("eth0")
	for _, to := range []netip.AddrPort{v4, v6} {
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond) // a request for a connection and another one
		if c, err := w.NAT.Dial(ctx, "tcp", to); err == nil {
			t.Errorf("a host outside has a connection to %v as %v", to, c.LocalAddr())
			c.Close()
		}
		cancel()
		u4, u6 := w.at("udp")
		echo := map[bool]netip.AddrPort{true: u4, false: u6}[to.Addr().Is4()]
		if c, err := w.NAT.Dial(t.Context(), "udp", echo); err == nil {
			c.Write([]byte("hello"))
			c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			if n, err := c.Read(make([]byte, 10)); err == nil {
				t.Errorf("a host outside is answered %d bytes by %v", n, echo)
			}
			c.Close()
		}
	}
	if len(captured("tcp port 80")) < 2 {
		t.Error("the requests did not come to the gateway: this test shows nothing")
	}
	if got := run(t, alice.as(need(t, "curl"), "-sS", "-m", "20", "http://web")); got != "the web" {
		t.Errorf("meanwhile alice gets %q", got)
	}
	logs := w.root("logs", "-o", "json", "--service", "web")
	if n := strings.Count(logs, `"type":"START"`); n > 1 {
		t.Errorf("there were %d connections to web, and one was alice's:\n%s", n, logs)
	}
}
