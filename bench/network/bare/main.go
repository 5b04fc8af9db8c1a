// Command bare relays TCP with the libraries that tunnels are made of and nothing else: no
// Services, no decisions, no log. It is what bench/network compares tunnels with.
//
//	bare quic-server LISTEN CERTIFICATE KEY UPSTREAM…
//	bare quic-client SERVER CA PORT…
//	bare wireguard-client PRIVATE PUBLIC ENDPOINT ADDRESS MTU PORT=TO…
//	bare wireguard-server PRIVATE PUBLIC LISTEN-PORT ADDRESS PEER MTU PORT=TO…
//
// The first two are the ends of one connection of quic-go, with a stream for each
// connection to the nth port, which leads to the nth upstream. The third is a wireguard-go
// with a stack of its own: keys in base64, ADDRESS its own address, and each port leads to
// an address behind the tunnel. The fourth is the other end: its ports are those of its
// stack, PEER is the address of the client, and each port leads to an upstream.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

func main() {
	err := errors.New("see the comment of the command")
	switch args := os.Args[1:]; {
	case len(args) > 4 && args[0] == "quic-server":
		err = quicServer(context.Background(), args[1], args[2], args[3], args[4:])
	case len(args) > 3 && args[0] == "quic-client":
		err = quicClient(context.Background(), args[1], args[2], args[3:])
	case len(args) > 6 && args[0] == "wireguard-client":
		err = wireguardClient(args[1], args[2], args[3], args[4], args[5], args[6:])
	case len(args) > 7 && args[0] == "wireguard-server":
		err = wireguardServer(args[1], args[2], args[3], args[4], args[5], args[6], args[7:])
	}
	fmt.Fprintln(os.Stderr, "error:", err)
	os.Exit(1)
}

// A stream is one half of what is relayed.
type stream interface {
	io.ReadWriteCloser
	CloseWrite() error
}

// relay carries bytes between two until both have ended.
func relay(a, b stream) {
	defer a.Close()
	defer b.Close()
	var ways sync.WaitGroup
	for _, w := range [][2]stream{{a, b}, {b, a}} {
		ways.Go(func() {
			if _, err := io.Copy(w[0], w[1]); err != nil {
				w[0].Close()
			}
			w[0].CloseWrite()
		})
	}
	ways.Wait()
}

// serveLocal accepts connections at a port of loopback and relays each.
func serveLocal(port string, open func() (stream, error)) error {
	l, err := net.Listen("tcp", "127.0.0.1:"+port)
	if err != nil {
		return err
	}
	return serve(l, open)
}

// serve accepts connections and relays each.
func serve(l net.Listener, open func() (stream, error)) error {
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			s, err := open()
			if err != nil {
				fmt.Fprintln(os.Stderr, "error:", err)
				c.Close()
				return
			}
			relay(c.(stream), s)
		}()
	}
}

// all runs what serves until the first has ended.
func all(serve ...func() error) error {
	ended := make(chan error)
	for _, f := range serve {
		go func() { ended <- f() }()
	}
	return <-ended
}

const protocol = "bare"

// config has the windows that cardea/tunnel/quic has.
func config() *quic.Config {
	return &quic.Config{KeepAlivePeriod: 10 * time.Second, MaxIncomingStreams: 1 << 16,
		InitialStreamReceiveWindow: 512 << 10, MaxStreamReceiveWindow: 6 << 20, InitialConnectionReceiveWindow: 15 << 20, MaxConnectionReceiveWindow: 15 << 20}
}

// A quicStream is a stream of QUIC that ends as a connection of TCP does.
type quicStream struct{ *quic.Stream }

// CloseWrite ends what is written.
func (s quicStream) CloseWrite() error { return s.Stream.Close() }

// Close ends both ways.
func (s quicStream) Close() error {
	s.CancelRead(0)
	return s.Stream.Close()
}

func quicServer(ctx context.Context, at, certificate, key string, upstreams []string) error {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		return err
	}
	l, err := quic.ListenAddr(at, &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{protocol}, MinVersion: tls.VersionTLS13}, config())
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept(ctx)
		if err != nil {
			return err
		}
		go func() {
			for {
				s, err := c.AcceptStream(ctx)
				if err != nil {
					return
				}
				go func() {
					var which [1]byte
					if _, err := io.ReadFull(s, which[:]); err != nil || int(which[0]) >= len(upstreams) {
						quicStream{s}.Close()
						return
					}
					u, err := net.Dial("tcp", upstreams[which[0]])
					if err != nil {
						quicStream{s}.Close()
						return
					}
					relay(u.(*net.TCPConn), quicStream{s})
				}()
			}
		}()
	}
}

func quicClient(ctx context.Context, server, ca string, ports []string) error {
	text, err := os.ReadFile(ca)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	c, err := quic.DialAddr(ctx, server, &tls.Config{RootCAs: roots, ServerName: "server", NextProtos: []string{protocol}, MinVersion: tls.VersionTLS13}, config())
	if err != nil {
		return err
	}
	var serving []func() error
	for i, port := range ports {
		serving = append(serving, func() error {
			return serveLocal(port, func() (stream, error) {
				s, err := c.OpenStreamSync(ctx)
				if err != nil {
					return nil, err
				}
				_, err = s.Write([]byte{byte(i)})
				return quicStream{s}, err
			})
		})
	}
	return all(serving...)
}

// hexadecimal is a key as a device wants it.
func hexadecimal(key string) string {
	b, _ := base64.StdEncoding.DecodeString(key)
	return hex.EncodeToString(b)
}

// wire runs a wireguard-go with a stack at an address.
func wire(address, mtu, settings string) (*netstack.Net, netip.Addr, error) {
	own, err := netip.ParseAddr(address)
	if err != nil {
		return nil, own, err
	}
	size, err := strconv.Atoi(mtu)
	if err != nil {
		return nil, own, err
	}
	tun, inside, err := netstack.CreateNetTUN([]netip.Addr{own}, nil, size)
	if err != nil {
		return nil, own, err
	}
	d := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	if err := d.IpcSet(settings); err != nil {
		return nil, own, err
	}
	return inside, own, d.Up()
}

func wireguardServer(private, public, listen, address, peer, mtu string, ports []string) error {
	inside, own, err := wire(address, mtu, fmt.Sprintf("private_key=%s\nlisten_port=%s\npublic_key=%s\nallowed_ip=%s/32\n", hexadecimal(private), listen, hexadecimal(public), peer))
	if err != nil {
		return err
	}
	var serving []func() error
	for _, p := range ports {
		port, to, _ := strings.Cut(p, "=")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return err
		}
		l, err := inside.ListenTCPAddrPort(netip.AddrPortFrom(own, uint16(n)))
		if err != nil {
			return err
		}
		serving = append(serving, func() error { return serve(l, func() (stream, error) { return dial(to) }) })
	}
	return all(serving...)
}

// dial opens a connection to an upstream.
func dial(to string) (stream, error) {
	c, err := net.Dial("tcp", to)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func wireguardClient(private, public, endpoint, address, mtu string, ports []string) error {
	inside, _, err := wire(address, mtu, fmt.Sprintf("private_key=%s\npublic_key=%s\nendpoint=%s\nallowed_ip=0.0.0.0/0\n", hexadecimal(private), hexadecimal(public), endpoint))
	if err != nil {
		return err
	}
	var serving []func() error
	for _, p := range ports {
		port, to, _ := strings.Cut(p, "=")
		address, err := netip.ParseAddrPort(to)
		if err != nil {
			return err
		}
		serving = append(serving, func() error {
			return serveLocal(port, func() (stream, error) { return inside.DialContextTCPAddrPort(context.Background(), address) })
		})
	}
	return all(serving...)
}
