package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"cardea/handover"
	"cardea/manifest"
	"cardea/server"
)

// defaultListen is where a cluster listens if nothing is said.
const defaultListen = "127.0.0.1:" + defaultPort

// readyFile is what --ready-file gets.
type readyFile struct {
	Address  string `json:"address"`
	CASHA256 string `json:"caSHA256"`
	Token    string `json:"token,omitempty"` // while root has never logged in
}

func (r *run) up() *cobra.Command {
	var cfg server.Config
	var ready string
	var files []string
	c := &cobra.Command{
		Use:   "up",
		Short: "Run a whole cluster in this process",
		Long: "Runs every role in one process until Ctrl-C and prints how to reach it. What it knows is in\n" +
			"the data directory and survives a restart.",
		Example: "  cardea up\n  cardea up --data-dir ./data --listen 127.0.0.1:8443 --ready-file ready.json\n" +
			"  cardea up -f ./resources\n  cardea up --store postgres://cardea@db/cardea",
		Args: noArgs,
	}
	c.Flags().StringVar(&cfg.DataDir, "data-dir", "", "directory of all that it knows; in the user's state directory if left out (or CARDEA_DATA_DIR)")
	c.Flags().StringVar(&cfg.Domain, "domain", server.DefaultDomain, "domain of the cluster; the first start decides (or CARDEA_DOMAIN)")
	c.Flags().StringVar(&cfg.Listen, "listen", defaultListen, "HOST:PORT to listen at (or CARDEA_LISTEN)")
	c.Flags().StringVar(&cfg.Store, "store", "", "postgres://… to keep resources in PostgreSQL; in the data directory if left out (or CARDEA_STORE)")
	c.Flags().StringVar(&cfg.Metrics, "metrics-listen", "", "HOST:PORT that serves /metrics, /livez and /readyz to everyone by plain HTTP (or CARDEA_METRICS_LISTEN)")
	c.Flags().StringVar(&cfg.Network.Form, "network", "auto", "how much of the tunnels is the kernel's: tun (TCP, behind a network interface), userspace (nothing), kernel (WireGuard, too), or off: there are none; auto is tun where this process may, and userspace if it listens on loopback alone (or CARDEA_NETWORK)")
	c.Flags().IntVar(&cfg.Network.WireGuard, "wireguard-port", -1, "UDP port for WireGuard, at the host of --listen; if left out 51820 or, if that is taken, any (or CARDEA_WIREGUARD_PORT)")
	c.Flags().StringSliceVar(&cfg.Network.Addresses, "gateway-address", nil, "IP address or name where clients reach the tunnels; where they reach the API if left out (or CARDEA_GATEWAY_ADDRESS)")
	c.Flags().StringVar(&cfg.Engine, "engine", "", "what carries bytes: loop (epoll, Linux) or copy (goroutines); loop where there is one if left out (or CARDEA_ENGINE)")
	c.Flags().DurationVar(&cfg.Grace, "grace", 0, "how long live connections may go on after SIGTERM or Ctrl-C; a second one ends the process at once (or CARDEA_GRACE)")
	c.Flags().DurationVar(&cfg.Drain, "drain", time.Hour, "how long connections may go on in this process once cardea upgrade has put another one in its place (or CARDEA_DRAIN)")
	ambassadorFlags(c, &cfg.AmbassadorID, &cfg.AmbassadorNamespace, &cfg.TLSFiles)
	fileFlag(c, &files)
	c.Flags().StringVar(&ready, "ready-file", "", `file that gets {"address", "caSHA256", "token"} once it serves; ready.json in the data directory if standard output is no terminal`)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if cfg.Drain < 0 {
			return usagef("--drain: must be 0 or more, found %s", cfg.Drain)
		}
		cfg.Log, cfg.Version, cfg.Program, cfg.Notify = r.logger(), r.Version, r.program(), r.Getenv("NOTIFY_SOCKET")
		var err error
		if fd := r.Getenv(handover.Variable); fd != "" {
			os.Unsetenv(handover.Variable) // it is for this process alone
			if cfg.Estate, err = handover.Inherit(c.Context(), fd, r.Version); err != nil {
				return err
			}
			defer cfg.Estate.Close()
			// Whoever read what the process before printed may have gone: no reason to end.
			gone := make(chan os.Signal, 1)
			signal.Notify(gone, syscall.SIGPIPE)
			defer signal.Stop(gone)
			// Documents on standard input were read by the process before, and applied.
			files = slices.DeleteFunc(files, func(f string) bool { return f == "-" })
		}
		if cfg.DataDir, err = r.dataDir(cfg.DataDir); err != nil {
			return err
		}
		for i, dir := range cfg.TLSFiles {
			if cfg.TLSFiles[i], err = filepath.Abs(dir); err != nil {
				return err
			}
		}
		var docs []manifest.Document
		if len(files) > 0 {
			var warnings manifest.Diagnostics
			if docs, warnings, err = r.documents(files); err != nil {
				return r.problems(err, "the cluster was not started")
			}
			r.tellAll(warnings)
			for _, d := range docs {
				cfg.Documents = append(cfg.Documents, d.JSON)
			}
		}
		if ready == "" && !isTerminal(r.Out) {
			// What is printed may be kept in a log: the token goes to a file.
			ready = filepath.Join(cfg.DataDir, "ready.json")
		}
		if ready != "" && cfg.Estate == nil { // one of another run would be taken for ours
			if err := os.Remove(ready); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("replace the ready file: %w", err)
			}
		}
		cfg.Prepare = func(s server.Ready) error {
			if ready == "" {
				return nil
			}
			return writeReady(ready, readyFile{s.Address, s.CASHA256, s.Token})
		}
		err = server.Up(c.Context(), cfg, func(s server.Ready) {
			to := r.Out
			if f, ok := to.(*os.File); ok && cfg.Estate != nil {
				to = hasty{f}
			}
			r.printReady(to, s, cfg.DataDir, ready)
		})
		if e := located(docs, err); e != err {
			err = r.problems(e, "the cluster was not started")
		}
		return unprefixed(err)
	}
	return c
}

// dataDir returns the data directory, absolute.
func (r *run) dataDir(flag string) (string, error) {
	if flag != "" {
		return filepath.Abs(flag)
	}
	state, err := r.stateDir()
	if err != nil {
		return "", hinted(fmt.Errorf("there is no directory for data: %w", err), "set --data-dir")
	}
	return filepath.Join(state, "cardea"), nil
}

// A hasty is a file to which only that is written for which it has room: nobody may be
// reading what a process prints that has replaced another one.
type hasty struct{ *os.File }

// Write implements io.Writer. What there is no room for is lost.
func (h hasty) Write(b []byte) (n int, err error) {
	const piece = 512 // POSIX: a pipe that is ready takes as much (PIPE_BUF of pipe(7))
	for n < len(b) {
		ready := []unix.PollFd{{Fd: int32(h.Fd()), Events: unix.POLLOUT}}
		if room, err := unix.Poll(ready, 0); err != nil || room == 0 || ready[0].Revents != unix.POLLOUT {
			return n, io.ErrShortWrite
		}
		m, err := h.File.Write(b[n:min(n+piece, len(b))])
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

// printReady says how to reach a cluster.
func (r *run) printReady(out io.Writer, s server.Ready, dataDir, ready string) {
	fmt.Fprintf(out, "Cardea serves %s.\n\n", s.Domain)
	t := new(table)
	t.add("  address", s.Address)
	t.add("  CA SHA-256", s.CASHA256)
	t.add("  data", dataDir)
	if s.Metrics != "" {
		t.add("  metrics", "http://"+s.Metrics+"/metrics")
	}
	if s.Network != "" {
		t.add("  network", s.Network)
	}
	if s.Connections > 0 {
		t.add("  connections", fmt.Sprintf("at most %d at once, by the limit of descriptors", s.Connections))
	}
	if len(s.Listeners) > 0 {
		heading := "  public ports"
		for _, words := range ports(s.Listeners) {
			t.add(heading, words)
			heading = ""
		}
	}
	t.print(out)
	if s.NotInForce > 0 {
		words := "are"
		if s.NotInForce == 1 {
			words = "is"
		}
		fmt.Fprintf(out, "\n%s %s not in force: cardea check says why\n", count(s.NotInForce, "object"), words)
	}
	if s.Token != "" {
		r.printFirstLogin(out, s, ready)
	} else {
		fmt.Fprintf(out, "\nroot has logged in before. If that Session is lost, stop this and run:\n\n  cardea recover --data-dir %s\n", dataDir)
	}
}

// ports returns the lines that tell the public ports: one, if all are open and there
// are not more than three, else one for each.
func ports(listeners []string) []string {
	closed := func(l string) bool { return strings.Contains(l, ", not open") }
	if len(listeners) > 3 || len(listeners) > 1 && slices.ContainsFunc(listeners, closed) {
		return listeners
	}
	return []string{strings.Join(listeners, ", ")}
}

// printFirstLogin says how root logs in, once. The token in it is for the terminal
// of whoever starts the cluster; what is not a terminal may be a log.
func (r *run) printFirstLogin(out io.Writer, s server.Ready, ready string) {
	if !isTerminal(r.Out) {
		fmt.Fprintf(out, "\nroot has never logged in. The token for it, for 15 minutes, is in %s, which only you can read.\n", ready)
		return
	}
	fmt.Fprintf(out, "\nLog in as root, once:\n\n  %s\n", loginLine(reachable(s.Address, outward), s.Token, s.CASHA256))
}

// isTerminal reports whether what is written to w is read on a screen, and not
// kept.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), termios)
	return err == nil
}

// reachable returns an address at which a listener can be reached from elsewhere: one that
// listens at all addresses of a machine, at that from which the machine speaks to others,
// or else at its name.
func reachable(address string, outward func(network string) (netip.Addr, bool)) string {
	at, err := netip.ParseAddrPort(address)
	if err != nil || !at.Addr().IsUnspecified() {
		return address
	}
	port := strconv.Itoa(int(at.Port()))
	if own, ok := outward("udp4"); ok {
		return net.JoinHostPort(own.String(), port)
	}
	if own, ok := outward("udp6"); ok && at.Addr().Is6() { // 0.0.0.0 is of IPv4 alone
		return net.JoinHostPort(own.String(), port)
	}
	if host, err := os.Hostname(); err == nil {
		return net.JoinHostPort(host, port)
	}
	return net.JoinHostPort("HOST", port)
}

// outward returns the address from which this machine speaks to others, by the route that
// it would take. No packet is sent.
func outward(network string) (netip.Addr, bool) {
	to := "192.0.2.1:9" // RFC 5737: nobody's
	if network == "udp6" {
		to = "[2001:db8::1]:9" // RFC 3849
	}
	c, err := net.Dial(network, to)
	if err != nil {
		return netip.Addr{}, false
	}
	defer c.Close()
	own := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	return own, !own.IsLoopback() && !own.IsUnspecified()
}

// unprefixed takes the name of the package that failed from the words of an error:
// it says nothing to a person.
func unprefixed(err error) error {
	if err == nil {
		return nil
	}
	if parts := joined(err); parts != nil {
		var all []error
		for _, e := range parts {
			all = append(all, unprefixed(e))
		}
		return errors.Join(all...)
	}
	for _, name := range []string{"cert", "secret", "server", "store"} {
		if words, ok := strings.CutPrefix(err.Error(), name+": "); ok {
			return rewordedError{err, words}
		}
	}
	return err
}

// A rewordedError is an error in other words.
type rewordedError struct {
	error
	words string
}

func (e rewordedError) Error() string { return e.words }

func (e rewordedError) Unwrap() error { return e.error }

// writeReady writes the ready file, which may hold a token, so that a reader
// sees all of it or nothing.
func writeReady(path string, v readyFile) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".ready-*") // mode 0600
	if err != nil {
		return fmt.Errorf("write the ready file: %w", err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	err = json.NewEncoder(f).Encode(v)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write the ready file: %w", err)
	}
	return os.Rename(f.Name(), path)
}

func (r *run) recover() *cobra.Command {
	var dir string
	var reset bool
	var cfg server.Config
	c := &cobra.Command{
		Use:   "recover --data-dir DIR",
		Short: "Make a new token for root, from the data of a cluster that is stopped",
		Long: "Gives whoever owns the data directory a token that logs root in, once, and makes root an\n" +
			"administrator again. The cluster must not run meanwhile.",
		Example: "  cardea recover --data-dir ./data",
		Args:    noArgs,
	}
	c.Flags().StringVar(&dir, "data-dir", "", "directory of the cluster; as for up if left out (or CARDEA_DATA_DIR)")
	c.Flags().StringVar(&cfg.Store, "store", "", "postgres://… if the cluster keeps its resources there (or CARDEA_STORE)")
	c.Flags().BoolVar(&reset, "reset", false, "if policies stand in root's way: remove those of the ClusterConfig, and root's Groups and other policies")
	c.RunE = func(c *cobra.Command, _ []string) error {
		dir, err := r.dataDir(dir)
		if err != nil {
			return err
		}
		cfg.DataDir, cfg.Log = dir, r.logger()
		done, err := server.Recover(c.Context(), cfg, reset)
		if err != nil {
			return unprefixed(err)
		}
		for _, x := range done.Changes {
			fmt.Fprintln(r.Err, x)
		}
		fmt.Fprintln(r.Out, done.Token)
		fmt.Fprintln(r.Err, "this token logs root in, once, within 15 minutes; start the cluster with cardea up")
		return nil
	}
	return c
}
