package network_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.zx2c4.com/wireguard/tun"

	"cardea/api"
	"cardea/client"
	"cardea/rpc"
	tunneltls "cardea/tunnel/tls"
	"cardea/tunnel/wireguard"
)

// certificate returns what a person has who has logged in with --cert-out dir.
func certificate(t *testing.T, dir string) tls.Certificate {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, client.ExportedCertificate), filepath.Join(dir, client.ExportedKey))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// caller returns what calls the API as a person who has logged in with --cert-out dir.
func caller(t *testing.T, p *person, dir string) *rpc.Client {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(dir, client.ExportedCA))
	if err != nil {
		t.Fatal(err)
	}
	cert := certificate(t, dir)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	at := netip.AddrPortFrom(p.Gateway.IPv4, 8443)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{cert}},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return p.host.Dial(ctx, network, at)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &rpc.Client{HTTP: &http.Client{Transport: transport}, Base: "https://" + tunneltls.APIName("cardea.internal")}
}

// A peer is a client of WireGuard that sends whatever packets it likes.
type peer struct {
	api.NetworkState
	key   wireguard.Key
	ended chan error // gives the reason when its place is gone

	tun *rawTUN
}

// raw logs a User in and connects him with a key of his own, as a peer.
func (w *world) raw(p *person, key wireguard.Key) (*peer, error) {
	w.Helper()
	call := caller(w.T, p, p.home+"-cert")
	ctx, cancel := context.WithCancel(w.Context())
	x := &peer{key: key, ended: make(chan error, 1), tun: newRawTUN()}
	first := make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := call.Stream(ctx, http.MethodPost, "/api/connect", api.ConnectRequest{PublicKey: key.Public().Text()}, func(line json.RawMessage) error {
			var e api.ConnectEvent
			if err := json.Unmarshal(line, &e); err != nil {
				return err
			}
			switch e.Type {
			case api.ConnectState:
				if x.Addresses == (api.Addresses{}) {
					x.NetworkState = *e.State
					first <- nil
				}
			case api.ConnectEnded:
				return e.Ended
			}
			return nil
		})
		select {
		case first <- err:
		default:
		}
		x.ended <- err
	}()
	w.Cleanup(func() {
		cancel()
		<-done
	})
	if err := <-first; err != nil {
		return nil, err
	}
	remote, err := wireguard.ParseKey(x.Gateways[0].PublicKey)
	if err != nil {
		w.Fatal(err)
	}
	c := &wireguard.Client{Key: key, TUN: x.tun, Log: slog.New(slog.DiscardHandler)}
	p.host.Do(func() {
		err = errors.Join(c.Open(), c.Set([]wireguard.Remote{{
			Name: "gateway", PublicKey: remote, Endpoint: netip.AddrPortFrom(w.Gateway.IPv4, uint16(x.Gateways[0].WireGuardPort)),
			Allowed: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		}}))
	})
	if err != nil {
		w.Fatal(err)
	}
	w.Cleanup(func() { c.Close() })
	return x, nil
}

// from returns the peer's own address of the family of another, with a port.
func (x *peer) from(to netip.Addr, port uint16) netip.AddrPort {
	text := x.Addresses.IPv4
	if to.Is6() {
		text = x.Addresses.IPv6
	}
	return netip.AddrPortFrom(netip.MustParseAddr(text), port)
}

// A rawTUN is a network interface whose packets are a test's.
type rawTUN struct {
	out    chan []byte // to the tunnel
	in     chan []byte // from it
	events chan tun.Event
	once   sync.Once
	closed chan struct{}
}

func newRawTUN() *rawTUN {
	return &rawTUN{out: make(chan []byte, 64), in: make(chan []byte, 1024), events: make(chan tun.Event), closed: make(chan struct{})}
}

func (r *rawTUN) File() *os.File           { return nil }
func (r *rawTUN) MTU() (int, error)        { return 1280, nil }
func (r *rawTUN) Name() (string, error)    { return "raw", nil }
func (r *rawTUN) Events() <-chan tun.Event { return r.events }
func (r *rawTUN) BatchSize() int           { return 1 }

func (r *rawTUN) Close() error {
	r.once.Do(func() {
		close(r.closed)
		close(r.events)
	})
	return nil
}

func (r *rawTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-r.out:
		sizes[0] = copy(bufs[0][offset:], p)
		return 1, nil
	case <-r.closed:
		return 0, os.ErrClosed
	}
}

func (r *rawTUN) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		select {
		case r.in <- append([]byte(nil), b[offset:]...):
		default: // nobody looks any more
		}
	}
	return len(bufs), nil
}

// Packets, made here and not by the code that is tested.

// sum is the checksum of the internet (RFC 1071).
func sum(parts ...[]byte) uint16 {
	var s uint32
	for _, b := range parts {
		for i := 0; i < len(b); i += 2 {
			if i+1 < len(b) {
				s += uint32(b[i])<<8 | uint32(b[i+1])
			} else {
				s += uint32(b[i]) << 8
			}
		}
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return ^uint16(s)
}

const (
	protocolICMP, protocolTCP, protocolUDP, protocolGRE = 1, 6, 17, 47

	extensionHopByHop, extensionRouting, extensionFragment, extensionDestination = 0, 43, 44, 60
)

// ip makes a packet. options, of IPv4, and extension, a header of IPv6 and its kind, may
// be nil.
func ip(from, to netip.Addr, protocol byte, payload, options []byte, kind byte, extension []byte) []byte {
	if to.Is4() {
		b := []byte{byte(0x45 + len(options)/4), 0, 0, 0, 0, 7, 0, 0, 64, protocol, 0, 0}
		binary.BigEndian.PutUint16(b[2:], uint16(20+len(options)+len(payload)))
		b = append(append(append(b, from.AsSlice()...), to.AsSlice()...), options...)
		binary.BigEndian.PutUint16(b[10:], sum(b))
		return append(b, payload...)
	}
	b := []byte{0x60, 0, 0, 0, 0, 0, protocol, 64}
	binary.BigEndian.PutUint16(b[4:], uint16(len(extension)+len(payload)))
	if extension != nil {
		b[6], extension[0] = kind, protocol
	}
	return append(append(append(append(b, from.AsSlice()...), to.AsSlice()...), extension...), payload...)
}

// plain makes a packet without options.
func plain(from, to netip.Addr, protocol byte, payload []byte) []byte {
	return ip(from, to, protocol, payload, nil, 0, nil)
}

// segment makes a TCP segment that asks for a connection.
func segment(from, to netip.AddrPort) []byte {
	b := make([]byte, 20)
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], 1000)
	b[12], b[13] = 5<<4, 0x02 // SYN
	binary.BigEndian.PutUint16(b[14:], 65535)
	binary.BigEndian.PutUint16(b[16:], sum(from.Addr().AsSlice(), to.Addr().AsSlice(), []byte{0, protocolTCP, 0, byte(len(b))}, b))
	return b
}

// datagram makes a UDP datagram.
func datagram(from, to netip.AddrPort, words string) []byte {
	b := make([]byte, 8, 8+len(words))
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(words)))
	b = append(b, words...)
	binary.BigEndian.PutUint16(b[6:], sum(from.Addr().AsSlice(), to.Addr().AsSlice(), []byte{0, protocolUDP, 0, byte(len(b))}, b))
	return b
}

// syn makes a whole packet that asks for a connection.
func syn(from, to netip.AddrPort) []byte {
	return plain(from.Addr(), to.Addr(), protocolTCP, segment(from, to))
}

// udp makes a whole packet of a datagram.
func udp(from, to netip.AddrPort) []byte {
	return plain(from.Addr(), to.Addr(), protocolUDP, datagram(from, to, "mallory"))
}

// isAnswer reports whether a packet comes from an address and port, and the flags of TCP
// that it has.
func isAnswer(p []byte, from netip.AddrPort) (flags byte, ok bool) {
	header, source, protocol := 20, []byte(nil), byte(0)
	if len(p) >= 40 && p[0]>>4 == 4 {
		source, protocol = p[12:16], p[9]
	} else if len(p) >= 60 && p[0]>>4 == 6 {
		header, source, protocol = 40, p[8:24], p[6]
	}
	a, _ := netip.AddrFromSlice(source)
	if protocol != protocolTCP || a != from.Addr() || binary.BigEndian.Uint16(p[header:]) != from.Port() {
		return 0, false
	}
	return p[header+13], true
}
