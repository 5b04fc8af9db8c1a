package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"cardea/bench/rig"
	"cardea/test/cluster"
	"cardea/test/network/lab"
)

// A holder stands where lab wants a test: what would end the test ends the measurement.
type holder struct {
	testing.TB // what is not here is not called
	ctx        context.Context
	undo       []func()
}

// A failure is what ended it, a lack what it cannot be without.
type (
	failure string
	lack    string
)

func (h *holder) Helper()                        {}
func (h *holder) Context() context.Context       { return h.ctx }
func (h *holder) Cleanup(f func())               { h.undo = append(h.undo, f) }
func (h *holder) Errorf(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }
func (h *holder) Fatal(a ...any)                 { panic(failure(fmt.Sprint(a...))) }
func (h *holder) Fatalf(format string, a ...any) { panic(failure(fmt.Sprintf(format, a...))) }
func (h *holder) Skip(a ...any)                  { panic(lack(fmt.Sprint(a...))) }
func (h *holder) Skipf(format string, a ...any)  { panic(lack(fmt.Sprintf(format, a...))) }

// within makes a lab, has f measure in it, and removes it.
func within(ctx context.Context, r *rig.Rig, f func(*bench) error) (err error) {
	own := *r // with a directory of its own
	if own.Dir, err = os.MkdirTemp(r.Dir, "lab"); err != nil {
		return err
	}
	h := &holder{ctx: ctx}
	defer func() {
		switch why := recover().(type) {
		case nil:
		case failure:
			err = errors.New(string(why))
		case lack:
			fmt.Printf("the private network is left out: %s\n", why)
		default:
			panic(why)
		}
		for len(h.undo) > 0 {
			last := h.undo[len(h.undo)-1]
			h.undo = h.undo[:len(h.undo)-1]
			last()
		}
	}()
	b := &bench{Rig: &own, holder: h, fast: map[*rig.Target]string{}, runs: map[rig.PID]*exec.Cmd{}}
	b.Lab = lab.New(h, lab.Config{Clients: 1})
	for _, h := range []*lab.Host{b.Clients[0], b.NAT, b.Gateway, b.Upstream} {
		// Some close their connections and some reset them: nobody shall run out of ports
		// for what others have left in TIME_WAIT.
		h.Set("net/ipv4/ip_local_port_range", "15000 65000")
		h.Set("net/ipv4/tcp_tw_reuse", "1")
	}
	b.load = b.openers(b.Clients[0])
	if err := b.upstreams(); err != nil {
		return err
	}
	return f(b)
}

// bench is a lab and what runs in it.
type bench struct {
	*rig.Rig
	*lab.Lab
	*holder
	load openers
	fast map[*rig.Target]string // where iperf3 goes to
	logs string                 // where HAProxy writes its log to
	ran  int                    // programs
	runs map[rig.PID]*exec.Cmd
}

// Ports of what the load goes to, at the upstream and at whatever leads there.
const (
	iperfPort  = 5201
	echoPort   = 5007
	udpPort    = 5008 // sends datagrams back
	publicPort = 5009 // of Cardea, of UDP for everybody
)

// upstreams starts what the load goes to: at the upstream, and for what has no proxy at
// the gateway; and what takes the logs of others.
func (b *bench) upstreams() error {
	for _, h := range []*lab.Host{b.Upstream, b.Gateway} {
		l, err := h.Listen("tcp", netip.AddrPortFrom(netip.IPv4Unspecified(), echoPort))
		if err != nil {
			return err
		}
		b.Cleanup(func() { l.Close() })
		go func() { // ends with l
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { // ends with its client
					defer c.Close()
					cluster.EchoBack(c)
				}()
			}
		}()
		if _, err := b.start(h, nil, "iperf3", "-s", "-p", fmt.Sprint(iperfPort)); err != nil {
			return err
		}
		if err := b.sendBack(h); err != nil {
			return err
		}
	}
	b.logs = filepath.Join(b.Dir, "log")
	logs, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: b.logs, Net: "unixgram"})
	if err != nil {
		return err
	}
	b.Cleanup(func() { logs.Close() })
	go func() {
		for p := make([]byte, 64<<10); ; {
			if _, err := logs.Read(p); err != nil {
				return
			}
		}
	}()
	return nil
}

// start runs a program at a host until the end of the measurement.
func (b *bench) start(h *lab.Host, env []string, name string, args ...string) (rig.PID, error) {
	b.ran++
	out, err := os.Create(filepath.Join(b.Dir, fmt.Sprintf("%s%d.out", filepath.Base(name), b.ran)))
	if err != nil {
		return 0, err
	}
	cmd := h.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return 0, errors.Join(err, out.Close())
	}
	b.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		late := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
		cmd.Wait() // it ends by the signal
		late.Stop()
		out.Close()
	})
	pid := rig.PID(cmd.Process.Pid)
	b.runs[pid] = cmd
	return pid, nil
}

// kill kills a program that start has started, and returns when it is gone.
func (b *bench) kill(pid rig.PID) {
	b.runs[pid].Process.Kill()
	b.runs[pid].Wait() // it was killed
}

// said returns what the programs have said.
func (b *bench) said() (text string) {
	files, _ := filepath.Glob(filepath.Join(b.Dir, "*.out"))
	for _, f := range files {
		p, _ := os.ReadFile(f)
		text += filepath.Base(f) + ":\n" + string(p)
	}
	return text
}

// ready returns when every Target answers.
func (b *bench) ready(ctx context.Context, targets ...*rig.Target) error {
	if err := b.Wait(ctx, targets...); err != nil {
		return fmt.Errorf("%w\n%s", err, b.said())
	}
	return nil
}

// run runs a program at a host, and returns what it says.
func (b *bench) run(h *lab.Host, stdin string, env []string, name string, args ...string) (string, error) {
	cmd := h.Command(name, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(name), strings.Join(args, " "), err, errs.String())
	}
	return string(out), err
}

// build builds a program of this module, or of those that it needs.
func (b *bench) build(ctx context.Context, pkg string) (string, error) {
	bin := filepath.Join(b.Dir, filepath.Base(pkg))
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", pkg, err, out)
	}
	return bin, nil
}

// openers are threads at a host that open connections.
type openers chan func()

func (b *bench) openers(h *lab.Host) openers {
	const threads = 64
	o := make(openers)
	for range threads {
		go h.Do(func() {
			for open := range o {
				open()
			}
		})
	}
	b.Cleanup(func() { close(o) })
	return o
}

// dial returns how connections from the host to an address of TCP are opened.
func (o openers) dial(address string) rig.Dial { return o.there(rig.Plain(address)) }

// dialUDP returns how sockets of the host for datagrams to an address are opened.
func (o openers) dialUDP(address string) rig.Dial {
	return o.there(func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "udp", address) })
}

// there has what opens connections do so at the host.
func (o openers) there(plain rig.Dial) rig.Dial {
	return func(ctx context.Context) (c net.Conn, err error) {
		done := make(chan struct{})
		o <- func() {
			c, err = plain(ctx)
			close(done)
		}
		<-done
		return c, err
	}
}

// target is one that is reached at a host and two ports.
func (b *bench) target(name, host string, iperf, echo int, pid rig.PID, with ...rig.PID) *rig.Target {
	at := func(port int) string { return net.JoinHostPort(host, fmt.Sprint(port)) }
	t := &rig.Target{Name: name, PID: pid, With: with, Echo: b.load.dial(at(echo))}
	b.fast[t] = at(iperf)
	return t
}

// iperf returns a Measure of GB/s and CPU seconds per GB, of the processes of both ends
// and of the whole machine, as iperf3 moves bytes up or down.
func (b *bench) iperf(streams int, down bool) rig.Measure {
	return func(ctx context.Context, t *rig.Target) ([]float64, error) {
		host, port, err := net.SplitHostPort(b.fast[t])
		if err != nil {
			return nil, err
		}
		args := []string{"-J", "-c", host, "-p", port, "-P", fmt.Sprint(streams), "-t", fmt.Sprint(max(int(b.Each.Seconds()), 1))}
		if down {
			args = append(args, "-R")
		}
		const tries = 20 // its server is busy until it has noticed that the last one is over
		for n := 1; ; n++ {
			used := rig.From(t)
			text, err := b.run(b.Clients[0], "", nil, "iperf3", args...)
			var said struct {
				Error string
				End   struct {
					Received struct{ Bytes, Seconds float64 } `json:"sum_received"`
				}
			}
			if e := json.Unmarshal([]byte(text), &said); e != nil {
				return nil, errors.Join(err, e)
			}
			if got := said.End.Received; said.Error == "" && got.Bytes > 0 {
				own, all := used.Per(got.Bytes / 1e9)
				return []float64{got.Bytes / 1e9 / got.Seconds, own.Seconds(), all.Seconds()}, nil
			}
			if !strings.Contains(said.Error, "busy") || n == tries {
				return nil, fmt.Errorf("iperf3: %s", said.Error)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}
