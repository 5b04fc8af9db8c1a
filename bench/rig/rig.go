// Package rig is what measurements beside other proxies need: upstreams, proxies
// as processes of their own on cores of their own, ways to measure them, and
// tables. Rounds are interleaved: each round measures every proxy once. What a
// table shows are medians, and the spread from the least to the most in percent
// of the median.
package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"cardea/test/cluster"
)

// A Rig is a machine set up for measurements.
type Rig struct {
	Dir    string        // everything is below it
	Each   time.Duration // how long each measurement lasts
	Prefix []string      // what runs a proxy: taskset, say
	Up     *Upstreams

	started []*exec.Cmd
	files   []*os.File
}

// Pin has this process run on the cores of the load, and says what runs a proxy on
// the others. If it had to begin again for that, done is true and err is how the
// second self ended. Pinned says that this is the second self: the flag that Pin
// adds to the arguments.
func Pin(ctx context.Context, pinned bool) (prefix []string, done bool, err error) {
	taskset, lookErr := exec.LookPath("taskset")
	if lookErr != nil || (!pinned && runtime.NumCPU() < 4) {
		return nil, false, nil
	}
	if pinned {
		return []string{taskset, "-c", "0,1"}, false, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, true, err
	}
	cmd := exec.CommandContext(ctx, taskset, append([]string{"-c", "2,3", self, "-pinned"}, os.Args[1:]...)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	return nil, true, cmd.Run()
}

// New returns a Rig in a directory, with its upstreams running. Close ends all
// that it started.
func New(dir string, each time.Duration, prefix []string) (*Rig, error) {
	up, err := newUpstreams()
	return &Rig{Dir: dir, Each: each, Prefix: prefix, Up: up}, err
}

// Where says in words what runs where.
func (r *Rig) Where() string {
	if r.Prefix != nil {
		return "proxies on cores 0 and 1, load and upstreams on 2 and 3"
	}
	return "proxies, load and upstreams share all cores"
}

// Start starts a proxy that is not ours.
func (r *Rig) Start(name string, args ...string) (PID, error) {
	argv := append(append([]string{}, r.Prefix...), append([]string{name}, args...)...)
	cmd := exec.Command(argv[0], argv[1:]...)
	f, err := os.Create(filepath.Join(r.Dir, fmt.Sprintf("%s%d.out", filepath.Base(name), len(r.started))))
	if err != nil {
		return 0, err
	}
	cmd.Stdout, cmd.Stderr = f, f
	r.files = append(r.files, f)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	r.started = append(r.started, cmd)
	return PID(cmd.Process.Pid), nil
}

// Said returns what the proxies have printed.
func (r *Rig) Said() (text string) {
	for _, f := range r.files {
		b, _ := os.ReadFile(f.Name())
		text += string(b)
	}
	return text
}

// Close ends the proxies and the upstreams.
func (r *Rig) Close() {
	for i, cmd := range r.started {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait() // they end by the signal
		r.files[i].Close()
	}
	r.Up.close()
}

// Write writes a file into the directory of the Rig and returns its path.
func (r *Rig) Write(name, text string) (string, error) {
	path := filepath.Join(r.Dir, name)
	return path, os.WriteFile(path, []byte(text), 0o600)
}

// Ports returns free ports of loopback.
func Ports(n int) ([]int, error) {
	var list []int
	for range n {
		p, err := cluster.FreePort()
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}

// At returns the address of a port of loopback.
func At(port int) string { return fmt.Sprintf("127.0.0.1:%d", port) }

// HAProxy returns its program, "" if it is not installed.
func HAProxy() string {
	bin, err := exec.LookPath("haproxy")
	if err != nil {
		fmt.Println("haproxy is not installed: its rows are left out")
	}
	return bin
}

// NginxStream is the module of nginx that relays.
const NginxStream = "/usr/lib/nginx/modules/ngx_stream_module.so"

// Nginx returns its program, "" if it is not installed with NginxStream.
func Nginx() string {
	bin, err := exec.LookPath("nginx")
	if _, e := os.Stat(NginxStream); err != nil || e != nil {
		fmt.Println("nginx with its stream module is not installed: its rows are left out")
		return ""
	}
	return bin
}

// Wait returns when every Target answers.
func (r *Rig) Wait(ctx context.Context, targets ...*Target) error {
	for _, t := range targets {
		if t.Echo == nil {
			continue
		}
		if err := wait(ctx, t); err != nil {
			return fmt.Errorf("%s: %w\n%s", t.Name, err, r.Said())
		}
	}
	return nil
}

func wait(ctx context.Context, t *Target) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for ctx.Err() == nil {
		var c net.Conn
		if c, err = t.Echo(ctx); err == nil {
			err = PingPong(c, make([]byte, 1))
			c.Close()
		}
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
	return errors.Join(err, ctx.Err())
}
