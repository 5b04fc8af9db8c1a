package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
	"cardea/server"
)

// maxSkew is by how much clocks may differ.
const maxSkew = 5 * time.Minute

func (r *run) doctor() *cobra.Command {
	var dataDir string
	c := &cobra.Command{
		Use:   "doctor [--data-dir DIR]",
		Short: "Say what is wrong with this machine or cluster, and how to mend it",
		Long: "Looks at the Session of this machine, at the cluster that it is of, and with --data-dir at\n" +
			"the data of a cluster on this machine. It fails if anything is wrong.",
		Example: "  cardea doctor\n  cardea doctor --data-dir ./data",
		Args:    noArgs,
	}
	c.Flags().StringVar(&dataDir, "data-dir", "", "also look at the data directory of a cluster")
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, _ []string) error {
		checks := r.examine(c.Context())
		if dataDir != "" {
			checks = append(checks, server.CheckData(dataDir)...)
		}
		health := api.Health{OK: true, Checks: checks}
		bad := 0
		for _, x := range checks {
			if !x.OK {
				health.OK = false
				bad++
			}
		}
		var err error
		if out.value == formatJSON {
			err = printJSON(r.Out, health)
		} else {
			printHealth(r, checks)
		}
		if err == nil && bad > 0 {
			err = fmt.Errorf("%s found something wrong", count(bad, "check"))
		}
		return err
	}
	return c
}

func printHealth(r *run, checks []api.HealthCheck) {
	t := new(table)
	for _, x := range checks {
		word := "ok"
		if !x.OK {
			word = "WRONG"
		}
		t.add(word, x.Name, x.Words)
		if x.Hint != "" && !x.OK {
			t.add("", "", "→ "+x.Hint)
		}
	}
	t.print(r.Out)
}

// examine looks at the Session of the home and at its cluster.
func (r *run) examine(ctx context.Context) (checks []api.HealthCheck) {
	add := func(name string, ok bool, words, hint string) {
		checks = append(checks, api.HealthCheck{Name: name, OK: ok, Words: words, Hint: hint})
	}
	home, err := r.homeDir()
	if err != nil {
		add("home", false, err.Error(), "set CARDEA_HOME")
		return checks
	}
	if i, err := os.Stat(home); err == nil && i.Mode().Perm()&0o077 != 0 {
		add("home", false, fmt.Sprintf("%s can be read by others (mode %#o)", home, i.Mode().Perm()), "chmod 700 "+home)
	} else {
		add("home", true, home, "")
	}
	me, err := r.open(ctx)
	if err != nil {
		add("session", false, err.Error(), "cardea login ADDRESS --token TOKEN --ca-sha256 FINGERPRINT")
		return checks
	}
	var self api.Self
	call, err := me.API(ctx)
	asked := time.Now()
	if err == nil {
		err = call.Do(ctx, http.MethodGet, "/api/self", nil, &self)
	}
	switch e, told := errors.AsType[*api.Error](err); {
	case err == nil:
	case told:
		add("session", false, e.Message, e.Hint)
		return checks
	default:
		add("cluster", false, err.Error(), "is the cluster running, and is the network up?")
		return checks
	}
	add("cluster", true, self.Domain+" answers", "")
	add("session", self.Session.Spec.State == api.SessionActive,
		fmt.Sprintf("%s of %s, %s, until %s", self.Session.Metadata.Name, self.User.Metadata.Name, self.Session.Spec.State, stamp(self.Session.Spec.ExpiresAt)),
		"an administrator: cardea update session "+self.Session.Metadata.Name+" --approve")
	if s, err := me.Session(ctx); err == nil {
		add("certificate", time.Now().Before(s.CertificateNotAfter), "until "+stamp(s.CertificateNotAfter), "cardea login again")
	}
	skew := asked.Sub(self.Now).Truncate(time.Second)
	add("clock", skew.Abs() < maxSkew, fmt.Sprintf("%s from the cluster's", skew.Abs()), "set the clock of this machine or of the cluster: certificates depend on it")
	var network *client.NetworkStatus
	switch running, err := daemonStatus(ctx, home); {
	case errors.Is(err, client.ErrNotRunning):
		left := client.Left(home)
		add("connect", !left.Names, cmp.Or(leftWords(left), "nothing runs in the background"), "cardea disconnect puts back what was there; so does the next connect")
	case err != nil:
		add("connect", false, err.Error(), "cardea disconnect, then cardea connect again")
	default:
		network = running.Network
		words := fmt.Sprintf("runs as process %d", running.PID)
		if n := len(running.Ports); n > 0 {
			words += ", with " + count(n, "local port")
		}
		trouble := cmp.Or(unreached(network), running.Trouble)
		if trouble != "" {
			words += "; " + trouble
		}
		add("connect", trouble == "", words, "cardea status says more; so does "+logWords(running))
	}
	checks = append(checks, me.Diagnose(ctx, network)...)
	var health api.Health
	switch err := call.Do(ctx, http.MethodGet, "/api/health", nil, &health); {
	case api.HasCode(err, api.CodePermissionDenied), api.HasCode(err, api.CodeNotFound): // not for this Session to know
	case err != nil:
		add("health", false, err.Error(), "")
	default:
		checks = append(checks, health.Checks...)
	}
	return checks
}

// leftWords says what a connect that was killed has left; "" if none was.
func leftWords(left client.Remains) string {
	switch {
	case left.Names:
		return "connect was killed, and where this machine asks for names is still as it had set it"
	case left.Killed:
		return "connect was killed, and has left nothing on this machine"
	}
	return ""
}

// unreached says which gateway cannot be reached by what is connected, and why; "" if all
// can.
func unreached(n *client.NetworkStatus) string {
	if n == nil {
		return ""
	}
	for _, g := range n.Gateways {
		if g.Transport == "" {
			return fmt.Sprintf("gateway %s cannot be reached: %s", g.Name, g.Why)
		}
	}
	return ""
}

// daemonStatus returns what connect does in the background.
func daemonStatus(ctx context.Context, home string) (client.Status, error) {
	daemon, err := client.Running(ctx, home)
	if err != nil {
		return client.Status{}, err
	}
	return daemon.Status(ctx)
}
