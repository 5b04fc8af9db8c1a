package rig

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/test/cluster"
)

// A Dial opens a connection to a proxy, or through it.
type Dial = func(context.Context) (net.Conn, error)

// A Cardea is a cluster of the program as users run it, its log on.
type Cardea struct {
	*cluster.Cluster
	Name     string // with the engine, if the program has several
	profiler string // its address; "" if there is none
	opened   atomic.Int64
	stopped  bool
}

// Retention is the part of a ClusterConfig's spec by which a log keeps all that a
// measurement writes.
const Retention = "audit: {retention: {maxSizeMegabytes: 50000}}"

// EngineNames returns the engines of Options that the program has, one "" if it
// knows no such switch.
func (r *Rig) EngineNames(ctx context.Context) ([]string, error) {
	has, err := cluster.Engines(ctx, r.Bin)
	if err != nil || has[0] == "" {
		return has, err
	}
	want := strings.Split(r.Engines, ",")
	return slices.DeleteFunc(has, func(e string) bool { return !slices.Contains(want, e) }), nil
}

// Cardea starts one with an engine, whose root has logged in.
func (r *Rig) Cardea(ctx context.Context, engine string) (*Cardea, error) {
	c := &Cardea{Name: "cardea"}
	var args []string
	if engine != "" {
		c.Name, args = fmt.Sprintf("cardea (%s)", engine), []string{"--engine", engine}
	}
	prefix := r.prefix
	if r.Profile != "" {
		port, err := cluster.FreePort()
		if err != nil {
			return nil, err
		}
		c.profiler = At(port)
		prefix = append([]string{"env", ProfilerAddress + "=" + c.profiler}, prefix...)
	}
	port, err := cluster.FreePort()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(r.Dir, fmt.Sprintf("cardea%d", len(r.cardeas)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	c.Cluster = &cluster.Cluster{Bin: r.Bin, Dir: dir, Listen: At(port), Args: args, Prefix: prefix}
	if err := c.Start(ctx); err != nil {
		return nil, err
	}
	r.cardeas = append(r.cardeas, c)
	return c, nil
}

// Target returns one of it. sink may be nil.
func (c *Cardea) Target(road string, echo, sink Dial) *Target {
	t := &Target{Name: c.Name + road, PID: PID(c.PID()), Echo: c.Counted(echo)}
	if c.profiler != "" {
		t.Profilers = map[string]Dial{"": Plain(c.profiler)}
	}
	if sink != nil {
		t.Sink = c.Counted(sink)
	}
	return t
}

// Counted returns a Dial whose connections the log must have an END of.
func (c *Cardea) Counted(dial Dial) Dial {
	return func(ctx context.Context) (net.Conn, error) {
		conn, err := dial(ctx)
		if err == nil {
			c.opened.Add(1)
		}
		return conn, err
	}
}

// Verify makes sure that the log is whole, and has an END for each connection that
// was opened. All of them must be
// closed at the client.
func (c *Cardea) Verify(ctx context.Context) error {
	if err := c.quiet(ctx); err != nil {
		return err
	}
	out, err := c.Run(ctx, "root", nil, "logs", "verify")
	if err != nil {
		return fmt.Errorf("%s: logs verify: %w\n%s", c.Name, err, out)
	}
	ends, err := c.ends(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%s: %d connections were opened, the log has %d ENDs; logs verify: %s", c.Name, c.opened.Load(), ends, out)
	if ends != c.opened.Load() {
		return fmt.Errorf("the log of %s does not have an END for each connection", c.Name)
	}
	return nil
}

// quiet returns when no connection is open any more.
func (c *Cardea) quiet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		out, err := c.Run(ctx, "root", nil, "conns", "-o", "json")
		if err != nil {
			return err
		}
		var live api.Connections
		if err := json.Unmarshal([]byte(out), &live); err != nil {
			return err
		}
		if len(live.Items) == 0 {
			return nil
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%s: %d connections do not end", c.Name, len(live.Items))
		}
	}
}

// ends counts the ENDs in the log.
func (c *Cardea) ends(ctx context.Context) (n int64, err error) {
	cmd := exec.CommandContext(ctx, c.Bin, "logs", "--type", "END", "-o", "json")
	cmd.Env = append(os.Environ(), "CARDEA_HOME="+c.Home("root"))
	cmd.Stderr = os.Stderr
	records, err := cmd.StdoutPipe()
	if err != nil {
		return 0, err
	}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	for lines := bufio.NewReaderSize(records, 1<<20); ; n++ {
		if _, err := lines.ReadSlice('\n'); err != nil {
			return n, cmd.Wait()
		}
	}
}

// End verifies the log, and ends it.
func (c *Cardea) End(ctx context.Context) error { return errors.Join(c.Verify(ctx), c.Stop(ctx)) }

// Stop ends it, once.
func (c *Cardea) Stop(ctx context.Context) error {
	if c.stopped {
		return nil
	}
	c.stopped = true
	return c.Cluster.Stop(context.WithoutCancel(ctx))
}

// verify has every Cardea that runs verify its log.
func (r *Rig) verify(ctx context.Context) error {
	var errs []error
	for _, c := range r.cardeas {
		if !c.stopped {
			errs = append(errs, c.Verify(ctx))
		}
	}
	return errors.Join(errs...)
}
