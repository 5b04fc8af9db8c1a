// Command reset measures how long it takes from sending a write that takes rights
// away until the clients see their resets: of 1, 1,000 and 9,000 live connections,
// 1, 1,000 and all lose theirs. Beside it a bare program resets as many of the
// same sockets when it is told to, without any decision.
//
//	go run ./bench/reset [-rows 1/1,1/1000,1000/1000,1/9000,1000/9000,9000/9000] [-rounds 5]
//
// Connections that must stay are counted after each round: all of them must.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cardea/api"
	"cardea/client"
	"cardea/rpc"
	"cardea/test/cluster"
)

func main() {
	rows := flag.String("rows", "1/1,1/1000,1000/1000,1/9000,1000/9000,9000/9000", "how many go, of how many, each a row")
	rounds := flag.Int("rounds", 5, "rounds of each row")
	bare := flag.String("bare", "", "be the bare program in front of that address")
	flag.Parse()
	var err error
	if *bare != "" {
		err = resetter(*bare, os.Stdin, os.Stdout)
	} else {
		err = run(context.Background(), strings.Split(*rows, ","), *rounds)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// The sources of connections that stay, and of those that go.
const stays, goes = "127.0.0.1", "127.0.0.2"

// A system is what resets connections.
type system struct {
	name    string
	address string
	revoke  func(ctx context.Context) error // returns when the system has answered
	restore func(ctx context.Context) error
}

func run(ctx context.Context, rows []string, rounds int) (err error) {
	dir, err := os.MkdirTemp("", "cardea-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	upstream, stop, err := cluster.Echo()
	if err != nil {
		return err
	}
	defer stop()
	c, ours, err := cardea(ctx, dir, upstream)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop(ctx)) }()
	cmd, theirs, err := bareProgram(upstream)
	if err != nil {
		return err
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()

	fmt.Printf("%d rounds; p50/slowest round of: the last client that sees its reset, the p99 client, the answer to the write\n", rounds)
	fmt.Printf("%-14s  %-22s  %20s  %20s  %20s\n", "go / live", "", "last reset", "p99 of the clients", "the write's own answer")
	for _, row := range rows {
		k, n, err := counts(row)
		if err != nil {
			return err
		}
		for _, s := range []*system{ours, theirs} {
			var last, p99, answer []time.Duration
			for range rounds {
				r, err := round(ctx, s, k, n)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", s.name, row, err)
				}
				last, p99, answer = append(last, r.last), append(p99, r.p99), append(answer, r.answer)
			}
			fmt.Printf("%-14s  %-22s  %20s  %20s  %20s\n", row, s.name, both(last), both(p99), both(answer))
		}
	}
	out, err := c.Run(ctx, "root", nil, "logs", "verify")
	fmt.Printf("cardea logs verify: %s", out)
	return err
}

func counts(row string) (k, n int, err error) {
	a, b, ok := strings.Cut(row, "/")
	k, err = strconv.Atoi(a)
	if err == nil {
		n, err = strconv.Atoi(b)
	}
	if !ok || err != nil || k < 1 || k > n {
		return 0, 0, fmt.Errorf("%q is not GO/LIVE", row)
	}
	return k, n, nil
}

func both(d []time.Duration) string {
	d = slices.Sorted(slices.Values(d))
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return fmt.Sprintf("%.1f / %.1f ms", ms(d[len(d)/2]), ms(d[len(d)-1]))
}

type result struct{ last, p99, answer time.Duration }

// round opens n connections, has k of them reset, and measures.
func round(ctx context.Context, s *system, k, n int) (result, error) {
	conns := make([]net.Conn, n)
	defer func() {
		for _, c := range conns {
			if c != nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		}
	}()
	for i := range conns {
		from := stays
		if i < k {
			from = goes
		}
		c, err := dial(ctx, from, s.address)
		if err != nil {
			return result{}, fmt.Errorf("connection %d: %w", i+1, err)
		}
		conns[i] = c
	}
	seen := make([]time.Time, k)
	wrong := make([]error, k)
	var all sync.WaitGroup
	var ready sync.WaitGroup
	for i := range k {
		ready.Add(1)
		all.Go(func() {
			b := make([]byte, 1)
			ready.Done()
			_, err := conns[i].Read(b)
			seen[i] = time.Now()
			if !errors.Is(err, syscall.ECONNRESET) {
				wrong[i] = fmt.Errorf("a connection that had to be reset: %v", err)
			}
		})
	}
	ready.Wait()
	begin := time.Now()
	if err := s.revoke(ctx); err != nil {
		return result{}, err
	}
	answer := time.Since(begin)
	all.Wait()
	if err := errors.Join(wrong...); err != nil {
		return result{}, err
	}
	slices.SortFunc(seen, time.Time.Compare)
	r := result{last: seen[k-1].Sub(begin), p99: seen[(k-1)*99/100].Sub(begin), answer: answer}
	for _, c := range conns[k:] {
		if err := ping(c); err != nil {
			return r, fmt.Errorf("a connection that had to stay: %w", err)
		}
	}
	return r, s.restore(ctx)
}

func dial(ctx context.Context, from, to string) (net.Conn, error) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: 10 * time.Second}
	c, err := d.DialContext(ctx, "tcp", to)
	if err != nil {
		return nil, err
	}
	return c, ping(c)
}

func ping(c net.Conn) error {
	b := []byte{7}
	if _, err := c.Write(b); err != nil {
		return err
	}
	_, err := io.ReadFull(c, b)
	return err
}

// cardea starts a cluster with a public Service that some sources may reach.
func cardea(ctx context.Context, dir, upstream string) (*cluster.Cluster, *system, error) {
	bin, err := cluster.Build(ctx, dir)
	if err != nil {
		return nil, nil, err
	}
	var port [2]int
	for i := range port {
		if port[i], err = cluster.FreePort(); err != nil {
			return nil, nil, err
		}
	}
	c := &cluster.Cluster{Bin: bin, Dir: dir, Listen: fmt.Sprintf("127.0.0.1:%d", port[0])}
	if err := c.Start(ctx); err != nil {
		return nil, nil, err
	}
	root, err := client.Open(ctx, c.Home("root"))
	if err != nil {
		return nil, nil, errors.Join(err, c.Stop(ctx))
	}
	call, err := root.API(ctx)
	if err != nil {
		return nil, nil, errors.Join(err, c.Stop(ctx))
	}
	allow := func(ips ...string) func(context.Context) error {
		return func(ctx context.Context) error { return apply(ctx, call, upstream, port[1], ips) }
	}
	s := &system{name: "cardea", address: fmt.Sprintf("127.0.0.1:%d", port[1]), revoke: allow(stays), restore: allow(stays, goes)}
	if err := s.restore(ctx); err != nil {
		return nil, nil, errors.Join(err, c.Stop(ctx))
	}
	return c, s, nil
}

// apply writes the Service so that those sources may reach it.
func apply(ctx context.Context, call *rpc.Client, upstream string, port int, ips []string) error {
	svc := &api.Service{Spec: api.ServiceSpec{Mode: api.ModeTCP, Port: port, IsPublic: true, IsAnonymous: true,
		Limits: &api.ServiceLimits{ConnectionsPerSecond: 1_000_000},
		Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://" + upstream}}, Attrs: api.Attrs{"sources": ips},
		Authorization: api.Authorization{EnableAnonymous: true, InlinePolicies: []api.InlinePolicy{{Spec: api.PolicySpec{Rules: []api.Rule{{
			Effect: api.Allow, Condition: api.Condition{Match: "ctx.request.ip in ctx.service.spec.attrs.sources"},
		}}}}}}}}
	svc.Metadata.Name = "echo"
	svc.Default()
	doc, err := json.Marshal(svc)
	if err != nil {
		return err
	}
	return call.Do(ctx, http.MethodPost, "/api/apply", api.ApplyRequest{Documents: []json.RawMessage{doc}}, nil)
}

// bareProgram starts this program as the one to compare with.
func bareProgram(upstream string) (*exec.Cmd, *system, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.Command(self, "-bare", upstream)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	answers := bufio.NewScanner(out)
	if !answers.Scan() {
		return nil, nil, errors.New("the bare program does not start")
	}
	return cmd, &system{name: "a bare program", address: answers.Text(),
		revoke: func(context.Context) error {
			if _, err := io.WriteString(in, "reset\n"); err != nil {
				return err
			}
			if !answers.Scan() {
				return errors.New("the bare program ended")
			}
			return nil
		},
		restore: func(context.Context) error { return nil },
	}, nil
}

// plainCopy copies without splice, which takes two more descriptors.
func plainCopy(to, from net.Conn) { io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from}) }

// resetter relays connections to an upstream, and at each line of in resets those
// that came from one address, both legs, by four goroutines.
func resetter(upstream string, in io.Reader, out io.Writer) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Fprintln(out, l.Addr())
	var mu sync.Mutex
	live := map[*net.TCPConn]*net.TCPConn{}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				up, err := net.Dial("tcp", upstream)
				if err != nil {
					c.Close()
					return
				}
				a, b := c.(*net.TCPConn), up.(*net.TCPConn)
				if a.RemoteAddr().(*net.TCPAddr).IP.String() == goes {
					mu.Lock()
					live[a] = b
					mu.Unlock()
				}
				var both sync.WaitGroup
				both.Go(func() { plainCopy(b, a); b.CloseWrite() })
				plainCopy(a, b)
				a.CloseWrite()
				both.Wait()
				a.Close()
				b.Close()
				mu.Lock()
				delete(live, a)
				mu.Unlock()
			}()
		}
	}()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		mu.Lock()
		pairs := make(chan [2]*net.TCPConn, len(live))
		for a, b := range live {
			pairs <- [2]*net.TCPConn{a, b}
		}
		clear(live)
		mu.Unlock()
		close(pairs)
		var all sync.WaitGroup
		for range 4 {
			all.Go(func() {
				for p := range pairs {
					for _, c := range p {
						c.SetLinger(0)
						c.Close()
					}
				}
			})
		}
		all.Wait()
		fmt.Fprintln(out, "done")
	}
	return lines.Err()
}
