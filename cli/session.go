package cli

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
)

// defaultPort is the port of a cluster whose address says none.
const defaultPort = "8443"

func (r *run) login() *cobra.Command {
	var token, tokenFile, ca, certOut string
	var force bool
	c := &cobra.Command{
		Use:   "login ADDRESS --token TOKEN --ca-sha256 FINGERPRINT",
		Short: "Get a Session on this machine",
		Long: "Proves a token to the cluster at ADDRESS, which has to prove to be the one whose CA\n" +
			"certificate has that fingerprint, and keeps the Session in this person's home.",
		Example: "  cardea login 127.0.0.1:8443 --token TOKEN --ca-sha256 FINGERPRINT\n" +
			"  cardea login gate.example.com --token - --ca-sha256 FINGERPRINT < token-file",
		Args: cobra.ExactArgs(1),
	}
	c.Flags().StringVar(&token, "token", "", "the token of a Credential; - reads it from standard input (or CARDEA_TOKEN)")
	c.Flags().StringVar(&tokenFile, "token-file", "", "the file that holds the token (or CARDEA_TOKEN_FILE)")
	c.Flags().StringVar(&certOut, "cert-out", "", "also write "+client.ExportedCertificate+", "+client.ExportedKey+" and "+client.ExportedCA+" to that directory, for other TLS programs")
	c.Flags().StringVar(&ca, "ca-sha256", "", "SHA-256 of the cluster's CA certificate, in hex (or CARDEA_CA_SHA256)")
	c.Flags().BoolVar(&force, "force", false, "also in place of a live Session of another User")
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, args []string) error {
		if c.Flags().Changed("token") && c.Flags().Changed("token-file") {
			return usagef("--token and --token-file cannot both be")
		}
		if (token == "" && tokenFile == "") || ca == "" {
			return usagef("login needs --token or --token-file, and --ca-sha256")
		}
		token, err := r.token(token, tokenFile)
		if err != nil {
			return err
		}
		address := args[0]
		if _, _, err := net.SplitHostPort(address); err != nil {
			address = net.JoinHostPort(strings.Trim(address, "[]"), defaultPort)
		}
		home, err := r.homeDir()
		if err != nil {
			return err
		}
		old := r.live(c.Context(), home)
		mustBe := old.User
		if force {
			mustBe = ""
		}
		s, err := client.LoginAs(c.Context(), home, mustBe, address, token, ca)
		if mustBe != "" && api.HasCode(err, api.CodeConflict) {
			return hinted(fmt.Errorf("this home is logged in as %s (Session %s), and the token is another User's", old.User, old.Session),
				"use another home (CARDEA_HOME or --home), or cardea logout first, or --force")
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return err // which says what to look at
		}
		if file, ok := errors.AsType[*fs.PathError](err); ok {
			return hinted(fmt.Errorf("the Session cannot be kept in %s: %w; the token was not used", home, file), "name a directory that you may write by --home or CARDEA_HOME")
		}
		if _, told := errors.AsType[*api.Error](err); err != nil && !told {
			return hinted(err, "compare the address and the fingerprint with what cardea up prints")
		}
		if err != nil {
			return err
		}
		switch {
		case old.Session == "":
		case old.Address == s.Address:
			fmt.Fprintf(r.Err, "Session %s, which was here, stays until it expires; cardea delete session %s ends it\n", old.Session, old.Session)
		default:
			fmt.Fprintf(r.Err, "Session %s at %s, which was here, stays until it expires\n", old.Session, old.Address)
		}
		if skew := s.ClockSkew; skew.Abs() >= maxSkew {
			fmt.Fprintf(r.Err, "warning: the clock of this machine is %s off the cluster's; certificates depend on it\n", skew.Abs())
		}
		if s.State == api.SessionPending {
			fmt.Fprintf(r.Err, "the Session is PENDING: nothing can be reached until an administrator says cardea update session %s --approve\n", s.Session)
		}
		if certOut != "" {
			if err := client.Export(c.Context(), home, certOut); err != nil {
				return err
			}
			fmt.Fprintf(r.Err, "the certificate is in %s until %s; whoever reads its key is you\n", certOut, stamp(s.CertificateNotAfter))
		}
		if out.value == formatJSON {
			return printJSON(r.Out, s)
		}
		fmt.Fprintf(r.Out, "logged in to %s as %s, Session %s\n", s.Domain, s.User, s.Session)
		return nil
	}
	return c
}

// token returns the token that was given, or read from standard input or a file.
func (r *run) token(token, file string) (string, error) {
	switch {
	case token == "-":
		line, err := readLine(r.In)
		if err != nil {
			return "", fmt.Errorf("read the token from standard input: %w", err)
		}
		return line, nil
	case token != "":
		return token, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return "", fmt.Errorf("read the token: %w", err)
	}
	defer f.Close()
	line, err := readLine(f)
	if err != nil {
		return "", fmt.Errorf("read the token from %s: %w", file, err)
	}
	return line, nil
}

// liveTime bounds the look whether the Session of a home lives.
const liveTime = 5 * time.Second

// live returns what a home knows of its Session, if its cluster says that it
// lives: one that is dead, or whose cluster cannot be reached, is none.
func (r *run) live(ctx context.Context, home string) client.Session {
	ctx, cancel := context.WithTimeout(ctx, liveTime)
	defer cancel()
	me, err := client.Open(ctx, home)
	if err != nil {
		return client.Session{}
	}
	defer me.Close()
	if _, err := self(ctx, me); err != nil {
		return client.Session{}
	}
	s, err := me.Session(ctx)
	if err != nil {
		return client.Session{}
	}
	return s
}

// readLine reads one line of at most 64 KiB.
func readLine(in io.Reader) (string, error) {
	line, err := bufio.NewReader(io.LimitReader(in, 64<<10)).ReadString('\n')
	if err == io.EOF && line != "" {
		err = nil
	}
	return strings.TrimSpace(line), err
}

func (r *run) logout() *cobra.Command {
	var local bool
	c := &cobra.Command{
		Use:     "logout",
		Short:   "End the Session of this machine, with its connections",
		Long:    "Ends the Session in the cluster, which cuts its connections, removes it from the home,\nand stops what connect runs in the background.",
		Example: "  cardea logout",
		Args:    noArgs,
	}
	c.Flags().BoolVar(&local, "local", false, "forget the Session here only: in the cluster it lives until it expires")
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx := c.Context()
		home, err := r.homeDir()
		if err != nil {
			return err
		}
		end := r.endSession
		if local {
			end = r.forgetSession
		}
		if err := end(ctx, home); err != nil {
			return err
		}
		daemon, err := client.Running(ctx, home)
		switch {
		case errors.Is(err, client.ErrNotRunning):
			_, err = client.Restore(ctx, home) // it may have been killed
		case err == nil:
			err = daemon.Stop(ctx)
		}
		return err
	}
	return c
}

// endSession ends the Session of a home in the cluster, and forgets it.
func (r *run) endSession(ctx context.Context, home string) error {
	me, err := r.open(ctx)
	if err != nil {
		return err
	}
	s, err := me.Session(ctx)
	if err != nil {
		return err
	}
	if err := me.Logout(ctx); err != nil {
		return hinted(err, "cardea logout --local forgets the Session here; in the cluster it lives until it expires")
	}
	fmt.Fprintf(r.Out, "logged out: the Session %s has ended\n", s.Session)
	return nil
}

// forgetSession forgets the Session of a home, also one that cannot be read.
func (r *run) forgetSession(ctx context.Context, home string) error {
	if err := client.Forget(ctx, home); err != nil {
		return err
	}
	fmt.Fprintf(r.Out, "%s holds no Session any more; one that it held lives in the cluster until it expires\n", home)
	return nil
}

// A homeStatus is what status prints in JSON.
type homeStatus struct {
	client.Session
	Home      string    `json:"home"`
	ExpiresAt time.Time `json:"expiresAt,omitzero"` // of the Session; absent if the cluster was not reached
	// OlderProcesses is that of api.Self.
	OlderProcesses int            `json:"olderProcesses,omitempty"`
	Connect        *client.Status `json:"connect,omitempty"`
	// Foreground are those that publish ports in the foreground alone.
	Foreground []client.Foreground `json:"foreground,omitempty"`
	// Ended is how the last connect has ended by itself; absent if one runs.
	Ended *client.End `json:"ended,omitempty"`
	// Left is what a connect that was killed has left on this machine.
	Left client.Remains `json:"left,omitzero"`
	mute bool           // connect runs, and does not say what it does
}

func (r *run) status() *cobra.Command {
	c := &cobra.Command{
		Use:   "status",
		Short: "Show the Session of this machine and what is connected",
		Long: "Shows who is logged in where, until when, and what connect does: the network\n" +
			"interface, how each gateway is reached, published ports, and what is served. It\n" +
			"fails if the cluster cannot be reached or does not know the Session.",
		Example: "  cardea status\n  cardea status -o json",
		Args:    noArgs,
	}
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx := c.Context()
		home, err := r.homeDir()
		if err != nil {
			return err
		}
		me, err := r.open(ctx)
		if err != nil {
			return err
		}
		s := homeStatus{Home: home, Foreground: client.Foregrounds(home)}
		told, failure := self(ctx, me)
		if failure == nil {
			s.ExpiresAt, s.OlderProcesses = told.Session.Spec.ExpiresAt, told.OlderProcesses
		}
		if s.Session, err = me.Session(ctx); err != nil { // after the call: it may have renewed the certificate
			return err
		}
		running, err := daemonStatus(ctx, home)
		if err == nil {
			s.Connect = &running
		} else {
			s.Ended = client.LastEnd(home)
		}
		if errors.Is(err, client.ErrNotRunning) {
			s.Left = client.Left(home)
		}
		if err != nil && !errors.Is(err, client.ErrNotRunning) {
			failure, s.mute = errors.Join(failure, err), true
		}
		if out.value == formatJSON {
			err = printJSON(r.Out, s)
		} else {
			err = s.table().print(r.Out)
		}
		return errors.Join(err, failure)
	}
	return c
}

// self returns what the cluster says of the Session.
func self(ctx context.Context, me *client.Client) (*api.Self, error) {
	call, err := me.API(ctx)
	if err != nil {
		return nil, err
	}
	out := new(api.Self)
	return out, call.Do(ctx, http.MethodGet, "/api/self", nil, out)
}

func (s homeStatus) table() *table {
	t := new(table)
	t.add("Cluster", s.Domain+" at "+s.Address)
	if s.OlderProcesses > 0 {
		words := "1 older process keeps its connections"
		if s.OlderProcesses > 1 {
			words = fmt.Sprintf("%d older processes keep their connections", s.OlderProcesses)
		}
		t.add("", "upgraded; "+words)
	}
	t.add("User", s.User)
	expires := "expiry not known"
	if !s.ExpiresAt.IsZero() {
		expires = "expires " + stamp(s.ExpiresAt)
	}
	t.add("Session", s.Session.Session+", "+expires)
	t.add("Certificate", "until "+stamp(s.CertificateNotAfter)+", renewed by itself")
	t.add("Home", s.Home)
	for _, f := range s.Foreground {
		t.add("Connect", fmt.Sprintf("in the foreground, as process %d since %s, by TLS", f.PID, stamp(f.StartedAt)))
		for _, p := range f.Ports {
			t.add("", portLine(p))
		}
	}
	if s.mute {
		t.add("Connect", "runs, and does not say what it does: see below")
		return t
	}
	if s.Connect == nil {
		if len(s.Foreground) == 0 || s.Ended != nil {
			t.add("Connect", "nothing in the background")
		}
		if s.Ended != nil {
			t.add("", fmt.Sprintf("the last one ended at %s: %s", stamp(s.Ended.At), s.Ended.Words))
		}
		if words := leftWords(s.Left); words != "" {
			t.add("", words+": cardea disconnect, or connect again")
		}
		return t
	}
	t.add("Connect", fmt.Sprintf("as process %d since %s", s.Connect.PID, stamp(s.Connect.StartedAt)))
	for _, p := range s.Connect.Ports {
		t.add("", portLine(p))
	}
	if s.Connect.Network != nil {
		networkTable(t, s.Connect.Network)
	}
	t.add("Told in", logWords(*s.Connect))
	if s.Connect.Trouble != "" {
		t.add("Last trouble", s.Connect.Trouble)
	}
	return t
}

// networkTable adds what there is of the private network to a table.
func networkTable(t *table, n *client.NetworkStatus) {
	switch n.Form {
	case client.FormInterface:
		t.add("Interface", n.Interface+": "+addressWords(n.Addresses))
		t.add("Services", strings.Join(n.Services, ", ")+" go through it")
	case client.FormStack:
		t.add("Address", addressWords(n.Addresses)+", for published ports and the proxy alone")
	}
	if n.Form == client.FormInterface {
		names := n.DNS
		if len(n.Servers) > 0 {
			names += ", asking " + strings.Join(n.Servers, ", ")
		}
		t.add("Names", names)
	}
	for _, g := range n.Gateways {
		gatewayRows(t, &g, n.Form)
	}
	for i, s := range n.Serves {
		heading := ""
		if i == 0 {
			heading = "Serves"
		}
		t.add(heading, serveWords(&s))
	}
	if n.Problem != "" {
		t.add("Cluster", "does not say what is new: "+n.Problem)
	}
	for i, r := range n.Refusals {
		heading := ""
		if i == 0 {
			heading = "Refused"
		}
		words := stamp(r.At) + " " + cmp.Or(r.Service, "a connection") + ": " + r.Words
		if r.DecisionID != "" {
			words += " (decision " + r.DecisionID + ")"
		}
		t.add(heading, words)
	}
}

// gatewayRows adds how a gateway is reached.
func gatewayRows(t *table, g *client.GatewayStatus, form string) {
	name := g.Name
	if g.Region != "" && g.Region != g.Name {
		name += " in " + g.Region
	}
	if g.Transport == "" {
		t.add("Gateway", strings.TrimSpace(cmp.Or(name, g.Address)+": not reached"))
		t.add("", cmp.Or(g.Why, "it is being tried"))
		return
	}
	words := strings.TrimSpace(name + " by " + g.Transport.Words())
	if g.Address != "" {
		words += " at " + g.Address
	}
	if g.LatencyMilliseconds > 0 {
		words += fmt.Sprintf(", %.1f ms", g.LatencyMilliseconds)
	}
	t.add("Gateway", words)
	why := "because " + g.Why
	if !g.Since.IsZero() {
		why += ", since " + stamp(g.Since)
	}
	t.add("", why)
	traffic := fmt.Sprintf("%d bytes received, %d sent", g.ReceivedBytes, g.SentBytes)
	switch {
	case form == client.FormStreams && g.Transport == client.TunnelTLS:
		return // each connection has one of its own
	case form == client.FormStreams:
	case g.HandshakeAt.IsZero():
		traffic = "no handshake yet, " + traffic
	default:
		traffic = "last handshake " + stamp(g.HandshakeAt) + ", " + traffic
	}
	t.add("", traffic)
}

func addressWords(a api.Addresses) string {
	return strings.Join(slices.DeleteFunc([]string{a.IPv4, a.IPv6}, func(s string) bool { return s == "" }), ", ")
}

// serveWords says how it stands with what is served.
func serveWords(s *client.ServeStatus) string {
	words := s.Service
	if s.Config != "" {
		words += "/" + s.Config
	}
	if s.URL != "" {
		words += " at " + s.URL
	}
	switch {
	case s.Problem != "":
		return words + ": not served: " + s.Problem
	case s.Trouble != "":
		return words + ": trouble: " + s.Trouble
	case s.Connections > 0:
		return fmt.Sprintf("%s, %d connections", words, s.Connections)
	}
	return words
}
