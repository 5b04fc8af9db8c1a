// Package l4_test loads the routing table of the program as it is built: new
// connections at full rate, while all that routes are made of changes.
package l4_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"cardea/api"
	"cardea/test/cluster"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(endpointVariable); what != "" {
		fmt.Fprintln(os.Stderr, "endpoint:", endpointMain(what))
		os.Exit(1)
	}
	goleak.VerifyTestMain(m)
}

var (
	lasts   = flag.Duration("load", 10*time.Second, "how long TestLoad loads")
	callers = flag.Int("callers", 8, "how many connect at once to each port of TestLoad")
)

// The names of TestLoad.
const (
	serverName = "load.example.com"
	members    = 3 // of each port of mappings
	sides      = 2 // endpoints of each member, of which it has one at a time
	held       = 4 // connections of each port of mappings that live as long as the load
)

// No new connection fails that could succeed, and none that lives, while weights,
// endpoints, certificates and unrelated mappings change, each of them every second;
// while endpoints of a Service are killed and come back, and others of it refuse, are
// slow, reset or say nothing; and while the process is replaced, twice. Within each
// version of the table every member has its share of the connections, to within one;
// and each START has its END, whichever process wrote them.
//
//	go test ./test/l4 -run TestLoad -load 10m -timeout 30m
func TestLoad(t *testing.T) {
	w := newWorld(t)
	ctx, stop := context.WithTimeout(t.Context(), *lasts)
	defer stop()
	begin := time.Now()
	var clients sync.WaitGroup
	for range held {
		clients.Go(func() { w.hold(ctx, w.secure) })
		clients.Go(func() { w.hold(ctx, w.plain) })
	}
	for range *callers {
		for _, port := range []int{w.secure, w.plain, w.service} {
			clients.Go(func() { w.call(ctx, port) })
		}
	}
	clients.Go(func() { w.disturb(ctx) })
	rounds, upgrades := 0, 0
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for ctx.Err() == nil {
		rounds++
		w.change(ctx, rounds)
		if third := *lasts / 3; time.Since(begin) >= time.Duration(upgrades+1)*third && upgrades < 2 {
			upgrades++
			w.upgrade(ctx)
		}
		select {
		case <-every.C:
		case <-ctx.Done():
		}
	}
	clients.Wait()

	opened := w.opened.Load()
	t.Logf("%d connections in %s, %.0f a second; %d rounds of changes, %d versions, %d upgrades", opened, *lasts, float64(opened)/lasts.Seconds(), rounds, len(w.weights), upgrades)
	if opened == 0 || upgrades != 2 {
		t.Errorf("%d connections, %d upgrades", opened, upgrades)
	}
	w.compare()
}

// A world is a cluster, its upstreams and what the test knows of both.
type world struct {
	t             *testing.T
	cluster       *cluster.Cluster
	ca            authority
	secure, plain int         // the ports of mappings; one ends TLS
	upstream      int         // the port of all their upstreams
	service       int         // the public port of a Service
	endpoints     []*endpoint // of the Service

	opened   atomic.Int64
	serial   atomic.Int64        // of the certificate that a client saw last
	answered [sides]atomic.Int64 // answers of the first, and of the second endpoints of members
	heard    [10]atomic.Int64    // answers of the endpoints of the Service, by number
	mu       sync.Mutex
	failures []failure

	// weights are those of each version, by PORT VERSION: member to share and sum.
	weights map[string]map[string][2]int
	names   map[int][]string // the members of each port
}

// A failure is a connection that failed.
type failure struct {
	at   time.Time
	port int
	from int // its own port
	err  error
}

func (f failure) String() string {
	return fmt.Sprintf("%s port %d, from port %d: %v", f.at.Format(time.RFC3339Nano), f.port, f.from, f.err)
}

func newWorld(t *testing.T) *world {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w := &world{t: t, ca: newAuthority(t), weights: map[string]map[string][2]int{}, names: map[int][]string{}}
	var ports []int
	for range 5 {
		p, err := cluster.FreePort()
		if err != nil {
			t.Fatal(err)
		}
		ports = append(ports, p)
	}
	w.secure, w.plain, w.upstream, w.service = ports[0], ports[1], ports[2], ports[4]
	for member := range members {
		for side := range sides {
			w.serve(member, side)
		}
	}
	w.cluster = startCluster(t, fmt.Sprintf("127.0.0.1:%d", ports[3]))
	w.startEndpoints()
	w.apply(w.hosts(0) + w.certificate(1) + w.balanced(0) +
		fmt.Sprintf("---\napiVersion: getambassador.io/v3alpha1\nkind: TLSContext\nmetadata: {name: load, namespace: default}\nspec: {hosts: [%s], secret: load}\n", serverName) +
		w.mappings(w.secure, []int{50, 30, 20}) + w.mappings(w.plain, []int{50, 30, 20}))
	w.learn(w.secure)
	w.learn(w.plain)
	w.checked(ctx)
	return w
}

// address returns where an endpoint is.
func (w *world) address(member, side int) string {
	return fmt.Sprintf("127.0.%d.%d", member+1, side+1)
}

// serve runs an endpoint until the test is over: it answers a byte with its side.
func (w *world) serve(member, side int) {
	l, err := net.Listen("tcp", net.JoinHostPort(w.address(member, side), strconv.Itoa(w.upstream)))
	if err != nil {
		w.t.Fatal(err)
	}
	var serving sync.WaitGroup
	w.t.Cleanup(func() { l.Close(); serving.Wait() })
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				b := make([]byte, 1)
				for {
					if _, err := io.ReadFull(c, b); err != nil {
						return
					}
					b[0] = byte(side)
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			})
		}
	})
}

// call opens connections to a port, one after the other, until ctx is done. One
// that has begun is brought to its end.
func (w *world) call(ctx context.Context, port int) {
	for ctx.Err() == nil {
		w.opened.Add(1)
		c, from, err := w.open(port)
		if err == nil {
			err = w.exchange(c, port)
		}
		w.close(c, failure{time.Now(), port, from, err})
	}
}

// hold opens a connection, which lives until ctx is done.
func (w *world) hold(ctx context.Context, port int) {
	w.opened.Add(1)
	c, from, err := w.open(port)
	for err == nil {
		if err = w.exchange(c, port); err == nil && ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
		}
	}
	w.close(c, failure{time.Now(), port, from, err})
}

// open opens a connection, and returns the port that it comes from. It may return a
// connection beside an error.
func (w *world) open(port int) (c net.Conn, from int, err error) {
	c, from, err = dial(port)
	if err != nil || port != w.secure {
		return c, from, err
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	s := tls.Client(c, &tls.Config{ServerName: serverName, RootCAs: w.ca.pool})
	if err := s.Handshake(); err != nil {
		return c, from, err
	}
	w.serial.Store(s.ConnectionState().PeerCertificates[0].SerialNumber.Int64())
	return s, from, nil
}

// dial connects to a port of loopback, and returns the port that it comes from also
// if it fails: a reset can come before the connection is there, and the log knows more.
func dial(port int) (c net.Conn, from int, err error) {
	same := -1 // another descriptor of the socket
	d := net.Dialer{Timeout: time.Minute, ControlContext: func(_ context.Context, _, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { same, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
		return errors.Join(err, failed)
	}}
	c, err = d.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port))
	if same >= 0 {
		if at, e := unix.Getsockname(same); e == nil {
			from = at.(*unix.SockaddrInet4).Port
		}
		unix.Close(same)
	}
	return c, from, err
}

// exchange has one answer.
func (w *world) exchange(c net.Conn, port int) error {
	c.SetDeadline(time.Now().Add(time.Minute))
	b := []byte{255}
	if _, err := c.Write(b); err != nil {
		return err
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	counts := w.answered[:]
	if port == w.service {
		counts = w.heard[:]
	}
	if int(b[0]) >= len(counts) {
		return fmt.Errorf("answered with %d", b[0])
	}
	counts[b[0]].Add(1)
	return nil
}

// close ends a connection, and keeps how it failed, if it did.
func (w *world) close(c net.Conn, f failure) {
	if c != nil {
		below := c
		if s, ok := c.(*tls.Conn); ok {
			below = s.NetConn()
		}
		below.(*net.TCPConn).SetLinger(0) // the test must not run out of ports
		c.Close()
	}
	if f.err != nil {
		w.mu.Lock()
		w.failures = append(w.failures, f)
		w.mu.Unlock()
	}
}

// change changes everything once, and waits until each change is seen to be in
// force.
func (w *world) change(ctx context.Context, round int) {
	weights := [][]int{someWeights(), someWeights()}
	w.apply(w.mappings(w.secure, weights[0]) + w.mappings(w.plain, weights[1]))
	w.learn(w.secure)
	w.learn(w.plain)

	side := round % sides
	w.apply(w.hosts(side) + w.balanced(round))
	before := w.answered[side].Load()
	w.wait(ctx, "endpoints", func() bool { return w.answered[side].Load() > before })

	w.apply(w.certificate(int64(round + 1)))
	w.wait(ctx, "certificate", func() bool { return w.serial.Load() == int64(round+1) })
	w.learn(w.secure)

	w.apply(w.unrelated(round))
	if round%3 == 0 {
		if _, err := w.cluster.Run(w.t.Context(), "root", nil, "delete", "tcpmapping", "unrelated-1", "-n", "default"); err != nil {
			w.t.Error(err)
		}
	}
	w.learn(w.secure)
	w.learn(w.plain)
}

// wait returns when done reports true. That a change never comes into force is a
// failure; while the clients are ending there is nothing to see any more.
func (w *world) wait(ctx context.Context, what string, done func() bool) {
	deadline := time.After(time.Minute)
	for !done() {
		select {
		case <-ctx.Done():
			return
		case <-deadline:
			w.t.Errorf("a change of %s is not in force after a minute", what)
			return
		case <-time.After(time.Millisecond):
		}
	}
}

// someWeights returns weights of all members, of which the sum is 100. One may be 0.
func someWeights() []int {
	a, b := mrand.IntN(101), mrand.IntN(101)
	a, b = min(a, b), max(a, b)
	return []int{a, b - a, 100 - b}
}

func (w *world) apply(yaml string) {
	w.t.Helper()
	if err := w.cluster.Apply(w.t.Context(), yaml); err != nil {
		w.t.Fatal(err)
	}
}

// mappings are the members of a port.
func (w *world) mappings(port int, weights []int) string {
	var b strings.Builder
	w.names[port] = nil
	for i, weight := range weights {
		name, host := fmt.Sprintf("plain-%d", i), ""
		if port == w.secure {
			name, host = fmt.Sprintf("secure-%d", i), ", host: "+serverName
		}
		w.names[port] = append(w.names[port], name)
		fmt.Fprintf(&b, "---\napiVersion: getambassador.io/v3alpha1\nkind: TCPMapping\nmetadata: {name: %s, namespace: default}\nspec: {address: 127.0.0.1, port: %d, weight: %d, service: \"member-%d:%d\"%s}\n",
			name, port, weight, i, w.upstream, host)
	}
	return b.String()
}

// hosts is the ClusterConfig in which every member has its endpoint of a side.
func (w *world) hosts(side int) string {
	var hosts []string
	for i := range members {
		hosts = append(hosts, fmt.Sprintf("member-%d: [%s], member-%d.default: [%s]", i, w.address(i, side), i, w.address(i, side)))
	}
	return fmt.Sprintf("---\nkind: ClusterConfig\nmetadata: {name: default}\nspec: {dns: {hosts: {%s}}, audit: {retention: {maxSizeMegabytes: 50000}}}\n", strings.Join(hosts, ", "))
}

// certificate is the Secret of the port that ends TLS.
func (w *world) certificate(serial int64) string {
	cert, key := w.ca.issue(w.t, serial)
	return fmt.Sprintf("---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: load, namespace: default}\nstringData:\n  tls.crt: %q\n  tls.key: %q\n", cert, key)
}

// unrelated are mappings of other names at the same port, which come, change and go.
func (w *world) unrelated(round int) string {
	var b strings.Builder
	for i := range 2 {
		fmt.Fprintf(&b, "---\napiVersion: getambassador.io/v3alpha1\nkind: TCPMapping\nmetadata: {name: unrelated-%d, namespace: default, annotations: {cardea/tls: passthrough}}\nspec: {address: 127.0.0.1, port: %d, host: other-%d.example.com, service: \"member-%d:%d\"}\n",
			i, w.secure, i, round%members, w.upstream)
	}
	return b.String()
}

// learn asks which version of a port's row is in force, and what its weights are.
func (w *world) learn(port int) {
	w.t.Helper()
	args := []string{"route", strconv.Itoa(port), "-o", "json", "--no-tls"}
	if port == w.secure {
		args = []string{"route", strconv.Itoa(port), "-o", "json", "--sni", serverName}
	}
	out, err := w.cluster.Run(w.t.Context(), "root", nil, args...)
	if err != nil {
		w.t.Fatal(err)
	}
	var a api.RouteAnswer
	if err := json.Unmarshal([]byte(out), &a); err != nil {
		w.t.Fatal(err)
	}
	shares := map[string][2]int{}
	for _, m := range a.Members {
		shares[m.Object.Name] = [2]int{m.Weight, m.Of}
	}
	if a.Version == "" || a.Refused != "" || len(shares) == 0 {
		w.t.Fatalf("route %d: %s", port, out)
	}
	key := versionKey(port, a.Version)
	if known := w.weights[key]; known != nil && !maps.Equal(known, shares) {
		w.t.Errorf("version %s of port %d had the weights %v and has %v", a.Version, port, known, shares)
	}
	w.weights[key] = shares
}

func versionKey(port int, version string) string { return fmt.Sprintf("%d %s", port, version) }

// compare reads the log, and compares it with what the clients and the table say.
func (w *world) compare() {
	w.t.Helper()
	ctx := w.t.Context()
	w.wait(ctx, "the connections, which have ended,", func() bool {
		out, err := w.cluster.Run(ctx, "root", nil, "conns", "-o", "json")
		if err != nil {
			w.t.Fatal(err)
		}
		var live api.Connections
		if err := json.Unmarshal([]byte(out), &live); err != nil {
			w.t.Fatal(err)
		}
		return len(live.Items) == 0
	})
	counts := map[string]map[string]int{} // PORT VERSION, member
	begun := map[string]bool{}            // by id; false when it has ended
	ends := map[int][]*api.AccessLogCommon{}
	for _, f := range w.failures {
		ends[f.from] = nil
	}
	retried := 0
	err := w.read(ctx, func(rec *api.AccessLog) error {
		tcp, common := rec.Entry.Info.TCP, &rec.Entry.Common
		if tcp == nil {
			return nil // a call of the API, or how an endpoint does
		}
		r := common.Route
		if r == nil || r.Version == "" {
			return fmt.Errorf("a %s of %+v has no version of a route", tcp.Type, common.ServiceRef)
		}
		switch _, known := begun[common.ConnectionID]; {
		case tcp.Type == api.LogStart && !known:
			begun[common.ConnectionID] = true
		case tcp.Type == api.LogEnd && begun[common.ConnectionID]:
			begun[common.ConnectionID] = false
			retried += r.Retries
			if _, ok := ends[common.Facts.Port]; ok {
				ends[common.Facts.Port] = append(ends[common.Facts.Port], common)
			}
			return nil
		default:
			w.t.Errorf("a %s of connection %s, which had begun: %v", tcp.Type, common.ConnectionID, known)
			return nil
		}
		_, port, err := net.SplitHostPort(r.Listener)
		if err != nil {
			return fmt.Errorf("listener %q: %w", r.Listener, err)
		}
		if port == strconv.Itoa(w.service) {
			return nil // one Object has it all
		}
		key := port + " " + r.Version
		if counts[key] == nil {
			counts[key] = map[string]int{}
		}
		counts[key][common.ServiceRef.Name]++
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	started := int64(len(begun))
	if opened := w.opened.Load(); started != opened {
		w.t.Errorf("the clients opened %d connections, the log has %d", opened, started)
	}
	w.judge(ends)
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		shares, got := w.weights[key], counts[key]
		if shares == nil {
			w.t.Errorf("the log has %v of version %s, which route has never said", got, key)
			continue
		}
		k := 0
		for name, n := range got {
			if k += n; shares[name] == [2]int{} {
				w.t.Errorf("version %s: %d connections of %s, which is not of it", key, n, name)
			}
		}
		for name, share := range shares {
			// |n − k·w| ≤ 1, in whole numbers.
			n, weight, of := got[name], share[0], share[1]
			if off := n*of - k*weight; off > of || -off > of {
				w.t.Errorf("version %s: %s has %d of %d connections, its share is %d of %d", key, name, n, k, weight, of)
			}
		}
	}
	for id, open := range begun {
		if open {
			w.t.Errorf("connection %s began and did not end", id)
		}
	}
	w.t.Logf("the log has %d connections of %d versions, and %d retries", started, len(counts), retried)
	if out, err := w.cluster.Run(ctx, "root", nil, "logs", "verify"); err != nil {
		w.t.Errorf("logs verify: %v\n%s", err, out)
	}
}

// judge says which failures are none of Cardea's: those of connections to an endpoint
// that was killed while they lived, as the log says.
func (w *world) judge(ends map[int][]*api.AccessLogCommon) {
	w.t.Helper()
	killed, shown := 0, 0
	for _, f := range w.failures {
		var words []string
		excused := slices.ContainsFunc(ends[f.from], func(end *api.AccessLogCommon) bool {
			life := span{end.StartedAt, end.EndedAt}
			if f.at.Before(life.from) || f.at.After(life.to.Add(10*time.Second)) {
				return false // another one, from the same port
			}
			words = append(words, fmt.Sprintf("its END: upstream %s, from %s to %s", end.Upstream, life.from.Format(time.RFC3339Nano), life.to.Format(time.RFC3339Nano)))
			return slices.ContainsFunc(w.endpoints, func(e *endpoint) bool {
				// Of a full queue the kernel drops what ends a handshake: to the client it
				// is connected, and the server never hears of it.
				lost := e.kind == slow && life.to.Sub(life.from) > time.Minute-time.Second
				return e.address == end.Upstream && (e.diedIn(life) || lost)
			})
		})
		if excused {
			killed++
		} else if shown++; shown <= 20 {
			w.t.Errorf("a connection failed: %s\n%s", f, strings.Join(words, "\n"))
		}
	}
	if shown > 20 {
		w.t.Errorf("and %d more", shown-20)
	}
	w.t.Logf("%d connections ended with the endpoint that they led to", killed)
}

// read has f see each record of the log, as it is read.
func (w *world) read(ctx context.Context, f func(*api.AccessLog) error) error {
	cmd := exec.CommandContext(ctx, w.cluster.Bin, "logs", "-o", "json")
	cmd.Env = append(os.Environ(), "CARDEA_HOME="+w.cluster.Home("root"))
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	d := json.NewDecoder(out)
	for err == nil {
		var rec api.AccessLog
		if err = d.Decode(&rec); err == nil {
			err = f(&rec)
		}
	}
	if errors.Is(err, io.EOF) {
		return cmd.Wait()
	}
	cmd.Process.Kill()
	return errors.Join(err, cmd.Wait())
}

// An authority issues the certificates of the port that ends TLS.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T) authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "load"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := authority{key: key, pool: x509.NewCertPool()}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue returns a certificate for the server, and its key, PEM.
func (a authority) issue(t *testing.T, serial int64) (cert, key []byte) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: []string{serverName}, NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}
