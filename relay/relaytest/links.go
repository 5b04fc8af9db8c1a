package relaytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"testing"
	"time"

	"cardea/relay"
)

// patience bounds every read and write of a test's peer, so that a relay that
// hangs fails its test with a line number.
const patience = 60 * time.Second

// link makes one connected stream: the end that a test plays the peer with, and
// the end that it hands to the engine.
type link struct {
	name string
	open func(*testing.T) (peer, given net.Conn)
}

var (
	tcp4  = link{"tcp4", func(t *testing.T) (net.Conn, net.Conn) { return dialTCP(t, "tcp4", "127.0.0.1:0") }}
	tcp6  = link{"tcp6", func(t *testing.T) (net.Conn, net.Conn) { return dialTCP(t, "tcp6", "[::1]:0") }}
	tls13 = link{"tls", dialTLS}
	// secured is a dialled TLS connection behind a type of its own, as that of an
	// upstream is.
	secured = link{"secured", func(t *testing.T) (net.Conn, net.Conn) {
		given, peer := dialTLS(t)
		return peer, &overTLS{given.(*tls.Conn)}
	}}
	pipe = link{"pipe", func(*testing.T) (net.Conn, net.Conn) { return both(Pipe()) }}
	// peeked is one whose first bytes have been read already.
	peeked = link{"peeked", dialPeeked}
	// plain can neither be half-closed nor reset.
	plain = link{"plain", func(*testing.T) (net.Conn, net.Conn) { return net.Pipe() }}
)

// joint is what a relay joins.
type joint struct{ client, upstream link }

// joints are the pairs of streams that every promise is tried on.
var joints = []joint{{tcp4, tcp4}, {tcp6, tcp6}, {peeked, tcp4}, {tcp4, secured}, {tls13, tcp4}, {tcp6, pipe}, {pipe, tcp4}, {pipe, secured}}

func (j joint) String() string { return j.client.name + "-" + j.upstream.name }

func both(a, b *PipeEnd) (net.Conn, net.Conn) { return a, b }

func dialTCP(t *testing.T, network, address string) (peer, given net.Conn) {
	t.Helper()
	listener, err := net.Listen(network, address)
	if err != nil {
		t.Skipf("no %s here: %v", network, err)
	}
	defer listener.Close()
	peer, err = net.Dial(network, listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	given, err = listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return peer, given
}

// dialTLS returns two ends that have shaken hands.
func dialTLS(t *testing.T) (peer, given net.Conn) {
	t.Helper()
	peerTCP, givenTCP := dialTCP(t, "tcp4", "127.0.0.1:0")
	server := tls.Server(givenTCP, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
	client := tls.Client(peerTCP, &tls.Config{InsecureSkipVerify: true}) // a test of bytes, not of names
	shaken := make(chan error, 1)
	go func() { shaken <- server.Handshake() }()
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-shaken; err != nil {
		t.Fatal(err)
	}
	return client, server
}

func certificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "relaytest"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// closeWrite half-closes a peer.
func closeWrite(t *testing.T, c net.Conn) {
	t.Helper()
	if err := c.(relay.CloseWriter).CloseWrite(); err != nil {
		t.Fatalf("CloseWrite: %v", err)
	}
}

// overTLS is a TLS connection that tells its reset to the socket beneath.
type overTLS struct{ *tls.Conn }

// Reset implements relay.Resetter.
func (c *overTLS) Reset(reason string) error {
	err := relay.Reset(c.Conn.NetConn(), relay.Reason(reason))
	c.Conn.Close()
	return err
}

// prefix is what the peer of a peeked link has sent before the relay starts; part of
// it was read ahead, by two who looked one after the other.
const prefix = "hello, "

func dialPeeked(t *testing.T) (peer, given net.Conn) {
	t.Helper()
	peer, given = tcp4.open(t)
	if _, err := io.WriteString(peer, prefix); err != nil {
		t.Fatal(err)
	}
	unread := make([]byte, len(prefix)-2)
	if _, err := io.ReadFull(given, unread); err != nil {
		t.Fatal(err)
	}
	return peer, &ahead{&ahead{given, unread[3:]}, unread[:3]}
}

// ahead is a relay.Transparent.
type ahead struct {
	net.Conn
	unread []byte
}

func (a *ahead) NetConn() net.Conn { return a.Conn }

func (a *ahead) Unread() []byte {
	b := a.unread
	a.unread = nil
	return b
}
