// Command cut measures the time from sending a write that takes a right away to
// the reset of the connection at the application, with one and with many
// connections live of which one must go. The others must stay.
//
//	go run ./bench/cut [-live 1,1000] [-rounds 20]
//
// The server is a process of its own, as users run it; this process is the
// administrator (who sends the write), the client's `connect` and the
// application. Beside each figure stands the write's own latency.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"cardea/api"
	"cardea/client"
	"cardea/test/cluster"
)

func main() {
	live := flag.String("live", "1,1000", "how many connections are live, each a row")
	rounds := flag.Int("rounds", 20, "rounds of each row")
	flag.Parse()
	if err := run(context.Background(), *live, *rounds); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, live string, rounds int) (err error) {
	dir, err := os.MkdirTemp("", "cardea-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	bin, err := cluster.Build(ctx, dir)
	if err != nil {
		return err
	}
	port, err := cluster.FreePort()
	if err != nil {
		return err
	}
	c := &cluster.Cluster{Bin: bin, Dir: dir, Listen: fmt.Sprintf("127.0.0.1:%d", port)}
	if err := c.Start(ctx); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Stop(ctx)) }()
	upstream, stop, err := cluster.Echo()
	if err != nil {
		return err
	}
	defer stop()
	if err := c.Apply(ctx, cluster.GroupYAML("group-1")+cluster.UserYAML("alice", "group-1")+cluster.UserYAML("bob", "group-1")+cluster.ServiceYAML("echo", upstream)); err != nil {
		return err
	}
	for _, u := range []string{"alice", "bob"} {
		if err := c.Login(ctx, u); err != nil {
			return err
		}
	}
	pctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alice, err := publish(pctx, c.Home("alice"))
	if err != nil {
		return err
	}
	bob, err := publish(pctx, c.Home("bob"))
	if err != nil {
		return err
	}
	root, err := (&client.Client{Home: c.Home("root")}).API(ctx)
	if err != nil {
		return err
	}
	put := func(user string) error {
		return root.Do(ctx, http.MethodPost, "/api/apply", api.ApplyRequest{Documents: []json.RawMessage{json.RawMessage(user)}}, new(api.ApplyResponse))
	}
	in := `{"kind":"User","metadata":{"name":"alice"},"spec":{"type":"HUMAN","groups":["group-1"]}}`
	out := `{"kind":"User","metadata":{"name":"alice"},"spec":{"type":"HUMAN"}}`

	fmt.Printf("%-10s %-26s %-26s %s\n", "live", "apply sent to reset (ms)", "apply answered (ms)", "of the others")
	fmt.Printf("%-10s %-26s %-26s\n", "", "p50 / p99 / max", "p50 / p99 / max")
	for _, s := range strings.Split(live, ",") {
		n, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		var others []net.Conn
		for range n - 1 {
			o, err := open(bob)
			if err != nil {
				return err
			}
			others = append(others, o)
		}
		var resets, answers []time.Duration
		for range rounds {
			if err := put(in); err != nil {
				return err
			}
			conn, err := open(alice)
			if err != nil {
				return err
			}
			reset := make(chan error, 1)
			var sent, seen time.Time
			go func() {
				_, err := conn.Read(make([]byte, 1))
				seen = time.Now()
				reset <- err
			}()
			sent = time.Now()
			if err := put(out); err != nil {
				return err
			}
			answers = append(answers, time.Since(sent))
			if err := <-reset; !errors.Is(err, syscall.ECONNRESET) {
				return fmt.Errorf("the application saw %v, not a reset", err)
			}
			resets = append(resets, seen.Sub(sent))
			conn.Close()
		}
		stayed := 0
		for _, o := range others {
			if say(o) == nil {
				stayed++
			}
			o.Close()
		}
		fmt.Printf("%-10d %-26s %-26s %d of %d stayed\n", n, quantiles(resets), quantiles(answers), stayed, len(others))
		if stayed != len(others) {
			return errors.New("connections were cut that must stay")
		}
	}
	return nil
}

// publish makes the Service a port of loopback.
func publish(ctx context.Context, home string) (string, error) {
	p := &client.Ports{Dialer: &client.Client{Home: home}, Log: slog.New(slog.DiscardHandler)}
	want, err := client.ParsePort("echo:0")
	if err != nil {
		return "", err
	}
	got, err := p.Publish(ctx, want)
	if err != nil {
		return "", err
	}
	return got[0].Address, nil
}

// open opens a connection that has carried something.
func open(address string) (net.Conn, error) {
	c, err := net.Dial("tcp", address)
	if err != nil {
		return nil, err
	}
	return c, say(c)
}

func say(c net.Conn) error {
	if _, err := io.WriteString(c, "hello\n"); err != nil {
		return err
	}
	_, err := bufio.NewReader(c).ReadString('\n')
	return err
}

func quantiles(d []time.Duration) string {
	slices.Sort(d)
	ms := func(q float64) float64 {
		return float64(d[min(int(q*float64(len(d))), len(d)-1)].Microseconds()) / 1000
	}
	return fmt.Sprintf("%.2f / %.2f / %.2f", ms(0.5), ms(0.99), ms(1))
}
