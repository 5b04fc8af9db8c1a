package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
)

// connectFlags are the flags of connect.
type connectFlags struct {
	publish                              []string
	proxies                              []string
	serve                                []string
	tunnel, interfaceName                string
	serveAll, serveAnyURL                bool
	share, detach, daemon, noDNS, asksIt bool
}

// defaultInterface is the name of the network interface if none is given.
const defaultInterface = "cardea0"

func (r *run) connect() *cobra.Command {
	var f connectFlags
	c := &cobra.Command{
		Use:   "connect [-p SERVICE:[HOST:]PORT[/udp]…] [--socks5 [HOST:]PORT] [--serve SERVICE…] [--detach]",
		Short: "Join the private network, or make Services appear at local ports",
		Long: "As root, and without other flags, it makes a network interface: every program reaches each\n" +
			"Service that this Session may use by its name (SERVICE or SERVICE.NAMESPACE), at its port.\n" +
			"Without root, -p makes one Service appear at a local port or Unix socket, and --socks5 is a proxy\n" +
			"to all of them (SOCKS5, HTTP CONNECT); only your own programs may use these, but with --share.\n" +
			"--serve makes this device the upstream of a Service whose config names your User (upstream.user).",
		Example: "  sudo -E cardea connect                            # until Ctrl-C\n" +
			"  sudo -E cardea connect --detach                   # in the background; cardea status, cardea disconnect\n" +
			"  cardea connect -p nats:14222                      # until Ctrl-C\n" +
			"  cardea connect -p nats:14222 -p dns.prod:5353/udp -d\n" +
			"  cardea connect -p nats:[::1]:14222\n" +
			"  cardea connect -p nats:/run/user/1000/nats.sock\n" +
			"  cardea connect --socks5 1080 -d && curl -x socks5h://127.0.0.1:1080 http://web\n" +
			"  cardea connect --serve web -d",
		Args: noArgs,
	}
	c.Flags().StringArrayVarP(&f.publish, "publish", "p", nil, "SERVICE:[HOST:]PORT, with /udp behind it for a port of UDP, or SERVICE:/PATH; port 0 is any that is free")
	c.Flags().StringArrayVar(&f.proxies, "socks5", nil, "[HOST:]PORT of a proxy to all Services, by SOCKS5 and HTTP CONNECT; port 0 is any that is free")
	c.Flags().StringArrayVar(&f.serve, "serve", nil, "be the upstream of this SERVICE, at the URL that its config says")
	c.Flags().BoolVar(&f.serveAll, "serve-all", false, "be the upstream of all Services that name your User")
	c.Flags().BoolVar(&f.serveAnyURL, "serve-any-url", false, "also at URLs to which the cluster changes them while this runs")
	c.Flags().StringVar(&f.tunnel, "tunnel", string(client.TunnelAuto), "auto, wireguard, quic or tls; auto is WireGuard, else QUIC, else TLS with an interface, and TLS without one")
	c.Flags().StringVar(&f.interfaceName, "interface", defaultInterface, "name of the network interface; one that ends in a number and is taken becomes the next that is free")
	c.Flags().BoolVar(&f.noDNS, "no-dns", false, "do not change where this machine asks for names")
	c.Flags().BoolVarP(&f.detach, "detach", "d", false, "run in the background; another connect -d adds its ports")
	c.Flags().BoolVar(&f.share, "share", false, "let others on this machine, or who reach HOST, use the ports with your Session")
	c.Flags().BoolVar(&f.daemon, "daemon", false, "be the process in the background")
	if err := c.Flags().MarkHidden("daemon"); err != nil {
		panic("cli: " + err.Error())
	}
	c.RunE = func(c *cobra.Command, _ []string) error {
		home, err := r.homeDir()
		if err != nil {
			return err
		}
		if f.daemon {
			return r.background(c.Context(), home)
		}
		f.asksIt = c.Flags().Changed("interface")
		wish, err := f.wish()
		if err != nil {
			return err
		}
		if len(wish.Ports) == 0 && !wish.Network.IsNeeded() {
			return r.reachable(c, "without root there is no network interface")
		}
		me, err := r.open(c.Context())
		if err != nil {
			return err
		}
		if s, err := me.Session(c.Context()); err == nil && wish.Network.Interface != "" && !f.asksIt && isHere(c.Context(), s.Address) {
			// Nobody means to change the routes and names of the machine that the cluster
			// itself runs on by a command without flags.
			return r.reachable(c, "the cluster is on this machine, and --interface "+defaultInterface+" joins it all the same")
		}
		warnings, err := me.Survey(c.Context(), wish.Ports)
		if err != nil {
			return err
		}
		for _, w := range warnings {
			fmt.Fprintln(r.Err, "warning:", w)
		}
		if !client.KnowsPeers && !f.share && len(wish.Ports) > 0 {
			fmt.Fprintln(r.Err, "warning: this system does not tell whose a local connection is: every user of this machine can use a TCP port")
		}
		if client.IsOthers(home) && (f.detach || wish.Network.IsNeeded()) {
			fmt.Fprintf(r.Err, "note: %s is another user's: only root may ask what runs here: sudo -E cardea status, sudo -E cardea disconnect\n", home)
		}
		switch {
		case f.detach:
			err = r.detach(c.Context(), home, wish)
		case wish.Network.IsNeeded():
			err = r.foreground(c.Context(), home, me, wish)
		default:
			err = r.portsOnly(c.Context(), home, me, wish.Ports)
		}
		if api.HasCode(err, api.CodeNotFound) && wish.Network.Interface != "" && !f.asksIt {
			return r.reachable(c, "this cluster has no private network")
		}
		return err
	}
	return c
}

// isLoopback reports whether HOST:PORT is of this machine alone.
func isLoopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback()
}

// isHere reports whether HOST:PORT is of this machine, also where HOST is a name of it.
func isHere(ctx context.Context, address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil || isLoopback(address) {
		return err == nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	all, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	return err == nil && slices.ContainsFunc(all, func(a netip.Addr) bool { return a.Unmap().IsLoopback() })
}

// wish returns what the flags ask for.
func (f *connectFlags) wish() (w client.Wish, err error) {
	for _, text := range f.publish {
		p, err := client.ParsePort(text)
		if err != nil {
			return w, usagef("%v", err)
		}
		w.Ports = append(w.Ports, p)
	}
	for _, text := range f.proxies {
		p, err := client.ParseProxy(text)
		if err != nil {
			return w, usagef("%v", err)
		}
		w.Ports = append(w.Ports, p)
	}
	for i := range w.Ports {
		w.Ports[i].Share = f.share
	}
	if f.share && len(w.Ports) == 0 {
		return w, usagef("--share is of ports: give -p or --socks5")
	}
	n := &w.Network
	if n.Tunnel, err = client.ParseTunnel(f.tunnel); err != nil {
		return w, usagef("--tunnel: %v", err)
	}
	for _, s := range f.serve {
		name, err := client.ParseService(s)
		if err != nil {
			return w, usagef("--serve: %v", err)
		}
		n.Serve = append(n.Serve, name)
	}
	slices.Sort(n.Serve)
	n.Serve = slices.Compact(n.Serve) // in one spelling, to be compared
	n.ServeAll, n.ServeAnyURL, n.NoDNS = f.serveAll, f.serveAnyURL, f.noDNS
	if n.ServeAnyURL && !n.ServeAll && len(n.Serve) == 0 {
		return w, usagef("--serve-any-url is of what is served: give --serve or --serve-all")
	}
	nothingElse := len(w.Ports) == 0 && !n.ServeAll && len(n.Serve) == 0
	if f.asksIt || nothingElse && client.MayInterface() {
		n.Interface = f.interfaceName
	}
	if n.Interface == "" && n.NoDNS && !nothingElse {
		return w, usagef("--no-dns is of a network interface: give --interface too")
	}
	if n.Interface == "" && nothingElse {
		*n = client.NetworkOptions{} // there is nothing to carry
	}
	return w, nil
}

// reachable says what is needed, and why, and shows what could be reached.
func (r *run) reachable(c *cobra.Command, why string) error {
	needs := usagef("connect needs -p, --socks5 or --serve: %s", why)
	needs.hint = "cardea connect -p SERVICE:PORT, or cardea connect --socks5 1080"
	if os.Geteuid() != 0 {
		needs.hint += "; or as root: sudo -E cardea connect"
	}
	call, err := r.api(c.Context())
	if err != nil {
		return err
	}
	var list api.Reachable
	if err := call.Do(c.Context(), http.MethodGet, "/api/self/services", nil, &list); err != nil {
		return err
	}
	if len(list.Items) == 0 {
		fmt.Fprintln(r.Out, "this Session may reach no Service")
		return needs
	}
	if err := servicesTable(list.Items).print(r.Out); err != nil {
		return err
	}
	return needs
}

// portsOnly publishes ports over TLS until ctx is done.
func (r *run) portsOnly(ctx context.Context, home string, me *client.Client, ports []client.Port) error {
	me.Log = r.logger()
	all := &client.Ports{Dialer: me, Names: &client.Names{Client: me}, Log: me.Log}
	open, err := all.Publish(ctx, ports...)
	if err != nil {
		return err
	}
	end, err := client.Announce(home, client.Foreground{PID: os.Getpid(), StartedAt: time.Now().UTC(), Ports: open})
	if err != nil {
		me.Log.Warn("cardea status cannot show this", "error", err)
	} else {
		defer end()
	}
	r.printPorts(open)
	if s, err := me.Session(ctx); err == nil { // what is printed to r.Out are the ports, for programs too
		fmt.Fprintf(r.Err, "connections go by TLS to %s; refusals and cuts are told here\n", s.Address)
	}
	all.Wait()
	return nil
}

// foreground does what is wished until ctx is done, cardea disconnect is called, or the
// private network ends.
func (r *run) foreground(ctx context.Context, home string, me *client.Client, wish client.Wish) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	me.Log = r.logger()
	d := newDaemon(home, me)
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- d.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-ended:
		return running(err)
	}
	open, err := d.Connect(ctx, wish)
	if err == nil {
		r.printPorts(open)
		n := d.Status().Network
		r.printNetwork(n)
		r.noteServes(wish, n)
		return <-ended
	}
	stop()
	if end := <-ended; end != nil {
		return end // which is why
	}
	return err
}

// running adds the way out to an error that says that connect runs already.
func running(err error) error {
	if errors.Is(err, client.ErrRunning) {
		return hinted(err, "cardea status shows it; with --detach it does this too, or says why not; cardea disconnect ends it")
	}
	return err
}

// newDaemon returns what connect runs.
func newDaemon(home string, me *client.Client) *client.Daemon {
	return &client.Daemon{Home: home, Client: me, Log: me.Log, Now: time.Now,
		Ports: &client.Ports{Dialer: me, Names: &client.Names{Client: me}, Log: me.Log}}
}

// detach has the process in the background do what is wished; it starts it if there is
// none.
func (r *run) detach(ctx context.Context, home string, wish client.Wish) error {
	var open []client.Port
	var status client.Status
	daemon, err := inBackground(ctx, home)
	if err == nil {
		open, status, err = daemon.Connect(ctx, wish)
	}
	if errors.Is(err, client.ErrNotRunning) { // it was just ending
		if daemon, err = inBackground(ctx, home); err == nil {
			open, status, err = daemon.Connect(ctx, wish)
		}
	}
	if err != nil {
		return err
	}
	r.printPorts(open)
	if wish.Network.IsNeeded() {
		r.printNetwork(status.Network)
		r.noteServes(wish, status.Network)
	}
	fmt.Fprintf(r.Err, "refusals and cuts are told in %s\n", logWords(status))
	return nil
}

// inBackground returns the process in the background, which it starts if there is none.
func inBackground(ctx context.Context, home string) (*client.Control, error) {
	daemon, err := client.Running(ctx, home)
	if !errors.Is(err, client.ErrNotRunning) {
		return daemon, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	started := client.Detach(home, self, "connect", "--daemon", "--home", home)
	// Another may have been started at the same time: either is good.
	if daemon, err = client.Running(ctx, home); err != nil {
		return nil, errors.Join(started, err)
	}
	return daemon, nil
}

// logWords says where what connect runs tells what goes wrong.
func logWords(s client.Status) string {
	return cmp.Or(s.Log, fmt.Sprintf("what process %d writes to its standard error", s.PID))
}

// background is the process in the background.
func (r *run) background(ctx context.Context, home string) error {
	file, err := client.OpenLog(home)
	if err != nil {
		return err
	}
	defer file.Close()
	me := &client.Client{Home: home, Log: slog.New(slog.NewTextHandler(file, nil))}
	defer me.Close()
	d := newDaemon(home, me)
	d.File = client.LogFile(home)
	return d.Run(ctx, func() { fmt.Fprint(r.Out, client.ReadyLine) })
}

func (r *run) printPorts(ports []client.Port) {
	for _, p := range ports {
		fmt.Fprintln(r.Out, portLine(p))
	}
}

// noteServes says so where whatever there is is to be served, and there is nothing.
func (r *run) noteServes(wish client.Wish, n *client.NetworkStatus) {
	if wish.Network.ServeAll && n != nil && len(n.Serves) == 0 {
		fmt.Fprintln(r.Err, "note: nothing is served now: no Service has an upstream of this User that he may serve")
	}
}

// printNetwork says what there is, once it is there.
func (r *run) printNetwork(n *client.NetworkStatus) {
	if n == nil {
		return
	}
	t := new(table)
	networkTable(t, n)
	if err := t.print(r.Out); err != nil {
		fmt.Fprintln(r.Err, "warning:", err)
	}
}

func portLine(p client.Port) string {
	line := fmt.Sprintf("%s is at %s", p.Service, p.Address)
	switch p.Network {
	case "udp":
		line += " (UDP)"
	case client.NetworkProxy:
		line = "the proxy (SOCKS5 and HTTP CONNECT) is at " + p.Address
	}
	if p.Share {
		line += ", shared with everyone who can connect"
	}
	return line
}

func (r *run) disconnect() *cobra.Command {
	return &cobra.Command{
		Use:   "disconnect",
		Short: "End what connect runs",
		Long: "Ends the network interface, the published ports and what is served of this home,\n" +
			"cuts their connections, and puts back what was changed on this machine, also\n" +
			"after a connect that was killed. The Session stays.",
		Example: "  cardea disconnect",
		Args:    noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			home, err := r.homeDir()
			if err != nil {
				return err
			}
			daemon, err := client.Running(c.Context(), home)
			if errors.Is(err, client.ErrNotRunning) {
				end := client.LastEnd(home) // which Restore forgets
				found, failure := client.Restore(c.Context(), home)
				switch {
				case failure != nil:
					return running(failure)
				case found.Names:
					fmt.Fprintln(r.Out, "connect had been killed: the name servers of this machine were put back")
					return nil
				case found.Killed:
					fmt.Fprintln(r.Out, "connect had been killed: it has left nothing on this machine")
					return nil
				}
				if end != nil {
					err = fmt.Errorf("%w; the last one ended at %s: %s", err, stamp(end.At), end.Words)
				}
				return hinted(err, notRunningHint(client.Foregrounds(home)))
			}
			if err != nil {
				return err
			}
			if err := daemon.Stop(c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(r.Out, "disconnected")
			return nil
		},
	}
}

// notRunningHint says what can be done where there is nothing in the background.
func notRunningHint(front []client.Foreground) string {
	if len(front) == 0 {
		return "cardea connect --detach starts it (without root, with -p SERVICE:PORT); Ctrl-C ends one in the foreground"
	}
	var pids []string
	for _, f := range front {
		pids = append(pids, strconv.Itoa(f.PID))
	}
	return "what runs in the foreground ends by Ctrl-C, or by kill " + strings.Join(pids, " ")
}
