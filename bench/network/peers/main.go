// Command peers is many devices at once, for bench/network: each has a Session by
// /api/login, a place in the private network by /api/connect, whose answer it goes on
// hearing, and a WireGuard of which only the handshake is there. Each has an address of
// its own of a network that must be local to this machine.
//
//	peers -n 10000 -from 10.200.0.0 -cluster HOST:PORT -name API-NAME -ca FILE -token TOKEN -wireguard HOST:PORT -key BASE64
//
// It does what it reads, a word a line, and answers each with a line of JSON:
//
//	login      Sessions and places, with their calls open
//	handshake  a handshake of each, until all have succeeded
//	hangup     the calls end, the places stay
//	back       handshake and login's call anew, as devices do that have lost the gateway:
//	           each notices at some time within two seconds
package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/rpc"
)

// loader is all that the devices have in common.
type loader struct {
	n                     int
	from                  netip.Addr
	cluster, name, ca     string
	token, wireguard, key string
	roots                 *x509.CertPool
	peers                 []*peer
	cookies, again        atomic.Int64
	failures              failures
}

// failures counts devices that failed, and knows why the first did.
type failures struct {
	mu  sync.Mutex
	n   int
	why string
}

func (f *failures) add(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.n++; f.n == 1 {
		f.why = err.Error()
	}
}

// An answer says what became of a word. Packets and Calls are the seconds after which
// each device had them back.
type answer struct {
	Seconds        float64
	Failed         int
	Why            string    `json:",omitempty"`
	Cookies, Again int64     // what was answered by a cookie, and calls that had to be made again
	Packets, Calls []float64 `json:",omitempty"`
}

// answer returns what has happened since the last one.
func (l *loader) answer(begin time.Time) answer {
	f := &l.failures
	f.mu.Lock()
	defer f.mu.Unlock()
	a := answer{Seconds: time.Since(begin).Seconds(), Failed: f.n, Why: f.why, Cookies: l.cookies.Swap(0), Again: l.again.Swap(0)}
	f.n, f.why = 0, ""
	return a
}

// peer is a device.
type peer struct {
	*loader
	at   netip.Addr
	init *initiator
	cert tls.Certificate
	call context.CancelFunc
	over chan struct{} // closed when the call has ended
}

func main() {
	l := new(loader)
	flag.IntVar(&l.n, "n", 1000, "devices")
	from := flag.String("from", "10.200.0.0", "the address before that of the first device")
	flag.StringVar(&l.cluster, "cluster", "", "HOST:PORT of the API")
	flag.StringVar(&l.name, "name", "", "host name of the API")
	flag.StringVar(&l.ca, "ca", "", "file with the CA")
	flag.StringVar(&l.token, "token", "", "token of a Credential")
	flag.StringVar(&l.wireguard, "wireguard", "", "HOST:PORT of WireGuard")
	flag.StringVar(&l.key, "key", "", "public key of the gateway, base64")
	flag.Parse()
	if err := l.run(context.Background(), *from); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func (l *loader) run(ctx context.Context, from string) error {
	text, err := os.ReadFile(l.ca)
	if err != nil {
		return err
	}
	l.roots = x509.NewCertPool()
	l.roots.AppendCertsFromPEM(text)
	key, err := base64.StdEncoding.DecodeString(l.key)
	if err != nil {
		return err
	}
	if l.from, err = netip.ParseAddr(from); err != nil {
		return err
	}
	at := l.from
	for range l.n {
		at = at.Next()
		i, err := newInitiator(key)
		if err != nil {
			return err
		}
		l.peers = append(l.peers, &peer{loader: l, at: at, init: i})
	}
	for words := bufio.NewScanner(os.Stdin); words.Scan(); {
		var a answer
		switch words.Text() {
		case "login":
			a = l.each(64, func(p *peer) error {
				if err := p.login(ctx); err != nil {
					return err
				}
				return p.connect(ctx)
			})
		case "handshake":
			a = l.each(32, func(p *peer) error { return p.handshake() })
		case "hangup":
			a = l.each(64, func(p *peer) error {
				p.call()
				<-p.over
				return nil
			})
		case "back":
			a = l.back(ctx)
		default:
			return fmt.Errorf("what is %q?", words.Text())
		}
		if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
			return err
		}
	}
	return nil
}

// each has every device do something, so many at a time.
func (l *loader) each(many int, do func(*peer) error) answer {
	var next atomic.Int64
	begin := time.Now()
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			for n := next.Add(1); n <= int64(len(l.peers)); n = next.Add(1) {
				if err := do(l.peers[n-1]); err != nil {
					l.failures.add(err)
				}
			}
		})
	}
	all.Wait()
	return l.answer(begin)
}

// back has every device find its way back.
func (l *loader) back(ctx context.Context) answer {
	const (
		notice = 2 * time.Second
		first  = 100 * time.Millisecond // before a call is made again, and twice that the next time
		most   = 5 * time.Minute
	)
	packets, calls := make([]float64, len(l.peers)), make([]float64, len(l.peers))
	begin := time.Now()
	var all sync.WaitGroup
	for i, p := range l.peers {
		late := mathrand.N(notice)
		all.Go(func() {
			time.Sleep(late)
			if err := p.handshake(); err != nil {
				l.failures.add(err)
			}
			packets[i] = time.Since(begin).Seconds()
		})
		all.Go(func() {
			time.Sleep(late)
			for wait := first; ; wait = min(2*wait, notice) {
				err := p.connect(ctx)
				if err == nil {
					break
				}
				if time.Since(begin) > most {
					l.failures.add(err)
					break
				}
				l.again.Add(1)
				time.Sleep(wait/2 + mathrand.N(wait))
			}
			calls[i] = time.Since(begin).Seconds()
		})
	}
	all.Wait()
	a := l.answer(begin)
	a.Packets, a.Calls = packets, calls
	return a
}

// api returns how the device calls the cluster, with its certificate if it has one.
func (p *peer) api() *rpc.Client {
	config := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: p.roots, ServerName: p.name}
	if p.cert.Certificate != nil {
		config.Certificates = []tls.Certificate{p.cert}
	}
	dialer := &net.Dialer{LocalAddr: &net.TCPAddr{IP: p.at.AsSlice()}, Timeout: 30 * time.Second}
	return &rpc.Client{Base: "https://" + p.name, HTTP: &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", p.cluster)
		},
		TLSClientConfig: config, TLSHandshakeTimeout: 30 * time.Second, DisableKeepAlives: true,
		ReadBufferSize: 1 << 10, WriteBufferSize: 1 << 10,
	}}}
}

// login makes a Session.
func (p *peer) login(ctx context.Context) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return err
	}
	var out api.LoginResponse
	err = p.api().Do(ctx, http.MethodPost, "/api/login", api.LoginRequest{Token: p.token, CSR: csr}, &out)
	p.cert = tls.Certificate{Certificate: [][]byte{out.Certificate}, PrivateKey: key}
	return err
}

// connect takes the place of the Session, and returns when it has heard what that is.
func (p *peer) connect(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	heard, over := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var failed error
	go func() {
		defer close(over)
		failed = p.api().Stream(ctx, http.MethodPost, "/api/connect", api.ConnectRequest{PublicKey: base64.StdEncoding.EncodeToString(p.init.own.PublicKey().Bytes())},
			func(json.RawMessage) error {
				once.Do(func() { close(heard) })
				return nil
			})
	}()
	select {
	case <-heard:
		p.call, p.over = cancel, over
		return nil
	case <-over:
		cancel()
		if failed == nil {
			failed = fmt.Errorf("the call ended")
		}
		return failed
	}
}

// handshake makes one, again and again until it succeeds.
func (p *peer) handshake() error {
	const tries, again = 60, 5 * time.Second // as WireGuard does, with up to a third of a second more
	to, err := netip.ParseAddrPort(p.wireguard)
	if err != nil {
		return err
	}
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: p.at.AsSlice()}, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return err
	}
	defer c.Close()
	var b [2048]byte
	for range tries {
		m, err := p.init.initiation()
		if err != nil {
			return err
		}
		c.Write(m) // it may be that nobody is there yet
		c.SetReadDeadline(time.Now().Add(again + mathrand.N(time.Second/3)))
		for {
			n, err := c.Read(b[:])
			if e, ok := err.(net.Error); ok && e.Timeout() {
				break
			}
			if err != nil { // nobody is there: ask again when it is time
				continue
			}
			kind, first := p.init.answered(b[:n])
			if kind == response {
				_, err := c.Write(first)
				return err
			}
			if kind == cookie {
				p.cookies.Add(1) // the next one has it
			}
		}
	}
	return fmt.Errorf("no handshake in %d tries", tries)
}
