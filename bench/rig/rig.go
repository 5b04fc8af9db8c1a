// Package rig is what measurements beside other proxies need: upstreams, proxies
// as processes of their own on cores of their own, ways to measure them, and
// tables. Rounds are interleaved: each round measures every proxy once. What a
// table shows are medians, and half the spread from the least to the most in percent
// of the median; ratios are those of one round each: their median, least and most.
package rig

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"cardea/test/cluster"
)

// Options say what is measured, and how. They are the flags of every measurement.
type Options struct {
	Rounds  int
	Each    time.Duration // how long each measurement lasts
	Rows    string        // names, with commas; "" is all
	Targets string        // parts of names, with commas; "" is all
	Engines string        // of Cardea, with commas
	Profile string        // a directory for profiles of Cardea; "" makes none
	Results string        // a file whose section of this measurement is written; "" is none

	// What a program sets, and no flag does:
	Shared bool   // nothing has cores of its own
	Part   string // of bench/run, whose results are written by it; "" is none

	defaults Defaults
	quick    bool
	pinned   bool
}

// Defaults are what stands where no flag says anything.
type Defaults struct {
	Rounds                  int
	Each                    time.Duration
	QuickRows, QuickTargets string // with -quick; "" is all
}

// Usual returns those of most measurements.
func Usual() Defaults {
	return Defaults{Rounds: 5, Each: 3 * time.Second, QuickTargets: "direct,cardea,haproxy"}
}

// Flags adds the flags that become Options. rows are the names of the rows.
func Flags(d Defaults, rows ...string) *Options {
	o := &Options{defaults: d}
	flag.IntVar(&o.Rounds, "rounds", d.Rounds, "rounds")
	flag.DurationVar(&o.Each, "time", d.Each, "how long each measurement lasts")
	flag.StringVar(&o.Rows, "rows", "", "what to measure, of "+strings.Join(rows, ",")+"; all if left out")
	flag.StringVar(&o.Targets, "targets", "", "whom to measure: a part of the name, or several with commas; all if left out")
	flag.StringVar(&o.Engines, "engines", "loop,copy", "the engines of Cardea, if it has several")
	flag.StringVar(&o.Profile, "profile", "", "write profiles of Cardea into this directory, while it is measured")
	flag.StringVar(&o.Results, "results", "", "write the tables into their section of this file, if this measurement has one; bench/RESULTS.md if all is measured")
	flag.BoolVar(&o.quick, "quick", false, "an indication in a minute or two: 1 round of 1 s, of fewer, unless other flags say so")
	flag.BoolVar(&o.pinned, "pinned", false, "the load runs on its own cores already")
	return o
}

// Quick reports whether an indication is enough.
func (o *Options) Quick() bool { return o.quick }

// settle applies what -quick stands for where nothing else was said.
func (o *Options) settle() {
	said := map[string]bool{}
	flag.Visit(func(f *flag.Flag) { said[f.Name] = true })
	if !o.quick {
		if o.Part != "" && !said["results"] && !said["rows"] && !said["targets"] {
			o.Results = "bench/RESULTS.md"
		}
		return
	}
	if !said["rounds"] {
		o.Rounds = 1
	}
	if !said["time"] {
		o.Each = time.Second
	}
	if !said["targets"] {
		o.Targets = o.defaults.QuickTargets
	}
	if !said["rows"] {
		o.Rows = o.defaults.QuickRows
	}
}

// Wants reports whether a row is to be measured, or any of those whose names begin with
// that and a hyphen. Who wants those wants each of them.
func (o *Options) Wants(row string) bool {
	return o.Rows == "" || slices.ContainsFunc(strings.Split(o.Rows, ","), func(said string) bool {
		return said == row || strings.HasPrefix(row, said+"-") || strings.HasPrefix(said, row+"-")
	})
}

// of returns the Targets that are to be measured.
func (o *Options) of(list []*Target) []*Target {
	if o.Targets == "" {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(t *Target) bool {
		return !slices.ContainsFunc(strings.Split(o.Targets, ","), func(part string) bool { return strings.Contains(t.Name, part) })
	})
}

// A Rig is a machine set up for measurements.
type Rig struct {
	*Options
	Dir string // everything is below it
	Bin string // Cardea
	Up  *Upstreams

	prefix  []string // what runs a proxy: taskset, say
	report  *report
	cardeas []*Cardea
	started []*exec.Cmd
	files   []*os.File
}

// Main is the main function of a measurement: it sets the machine up, has f measure,
// and makes sure that the logs of what is called Cardea are whole.
func Main(o *Options, f func(context.Context, *Rig) error) {
	flag.Parse()
	o.settle()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx, o, f)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o *Options, f func(context.Context, *Rig) error) (err error) {
	before := load()
	var prefix []string
	if !o.Shared {
		var done bool
		if prefix, done, err = pin(ctx, o.pinned); done || err != nil {
			return err
		}
	}
	dir, err := os.MkdirTemp("", "cardea-bench")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	r := &Rig{Options: o, Dir: dir, prefix: prefix}
	if r.Up, err = newUpstreams(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.close(ctx)) }()
	if o.Profile != "" {
		r.Bin, err = r.buildProfiled(ctx)
	} else {
		r.Bin, err = cluster.Build(ctx, dir)
	}
	if err != nil {
		return err
	}
	r.report = newReport(ctx, before, r.Bin)
	where := "proxies, load and upstreams share all cores"
	if prefix != nil {
		where = "proxies on cores 0 and 1, load and upstreams on 2 and 3"
	}
	r.report.say(fmt.Sprintf("Rounds: %d, of %s each; %s.", o.Rounds, o.Each, where))
	if err := f(ctx, r); err != nil {
		return err
	}
	fmt.Println()
	if err := r.verify(ctx); err != nil {
		return err
	}
	return r.report.write(o)
}

// pin has this process run on the cores of the load, and says what runs a proxy on
// the others. If it had to begin again for that, done is true and err is how the
// second self ended. pinned says that this is the second self: the flag that pin
// adds to the arguments.
func pin(ctx context.Context, pinned bool) (prefix []string, done bool, err error) {
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

// Start starts a proxy that is not ours.
func (r *Rig) Start(name string, args ...string) (PID, error) {
	argv := slices.Concat(r.prefix, []string{name}, args)
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

// End ends a proxy that Start has started.
func (r *Rig) End(pid PID) {
	for _, cmd := range r.started {
		if cmd.Process.Pid == int(pid) && cmd.ProcessState == nil {
			cmd.Process.Signal(syscall.SIGTERM)
			cmd.Wait() // it ends by the signal
		}
	}
}

// close ends the proxies and the upstreams.
func (r *Rig) close(ctx context.Context) (err error) {
	for _, c := range r.cardeas {
		err = errors.Join(err, c.Stop(ctx))
	}
	for i, cmd := range r.started {
		r.End(PID(cmd.Process.Pid))
		r.files[i].Close()
	}
	r.Up.close()
	return err
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
