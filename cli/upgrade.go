package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/handover"
	"cardea/server"
)

// upgradeTimeout is how long a new process may take to be ready if nothing is said.
const upgradeTimeout = time.Minute

func (r *run) upgrade() *cobra.Command {
	var dir, binary string
	var timeout time.Duration
	c := &cobra.Command{
		Use:   "upgrade",
		Short: "Let a new binary take the place of a running cluster's, without closing a door",
		Long: "Makes the process that serves from a data directory start a new one, from the binary that is\n" +
			"at its path now, as it was started itself. The new one takes over the ports; nobody is refused.\n" +
			"The old one keeps the connections that it has until they end, or its --drain is over. If the\n" +
			"new one does not come up, the old one goes on, and this says what the new one said.",
		Example: "  cardea upgrade --data-dir ./data\n  cardea upgrade --data-dir ./data --binary ./cardea-next",
		Args:    noArgs,
	}
	c.Flags().StringVar(&dir, "data-dir", "", "directory of the cluster; as for up if left out (or CARDEA_DATA_DIR)")
	c.Flags().StringVar(&binary, "binary", "", "what to start; what the running process was started from if left out")
	c.Flags().DurationVar(&timeout, "timeout", upgradeTimeout, "how long the new process may take to be ready")
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if timeout <= 0 {
			return usagef("--timeout: must be more than 0, found %s", timeout)
		}
		q := server.UpgradeRequest{Timeout: timeout}
		var err error
		if dir, err = r.dataDir(dir); err != nil {
			return err
		}
		if binary != "" {
			if q.Binary, err = filepath.Abs(binary); err != nil {
				return err
			}
		}
		done, err := server.Upgrade(c.Context(), dir, q)
		if err != nil {
			return err
		}
		if done.Failed != "" {
			for line := range strings.Lines(done.Said) {
				fmt.Fprintf(r.Err, "the new process said: %s\n", plain(strings.TrimSuffix(line, "\n")))
			}
			if done.Unserved {
				return hinted(errors.New(done.Failed), "nobody serves: start cardea up again")
			}
			return hinted(errors.New(done.Failed), fmt.Sprintf("process %d goes on, as if nothing had been", done.OldPID))
		}
		if out.value == formatJSON {
			return printJSON(r.Out, done)
		}
		fmt.Fprintf(r.Out, "process %d (%s) serves in the place of process %d (%s)\n", done.NewPID, plain(done.NewVersion), done.OldPID, plain(done.OldVersion))
		if done.Connections > 0 {
			fmt.Fprintf(r.Out, "%s with process %d, for %s at most\n", stay(done.Connections), done.OldPID, done.Drain)
		}
		return nil
	}
	return c
}

// stay says how many connections stay.
func stay(n int) string {
	if n == 1 {
		return "1 connection stays"
	}
	return fmt.Sprintf("%d connections stay", n)
}

// program returns what an upgrade of this process starts: what is at the path that it
// was started from, where the binary may have been replaced meanwhile.
func (r *run) program() handover.Program {
	p := handover.Program{Args: os.Args}
	p.Stdin, _ = r.In.(*os.File)
	p.Stdout, _ = r.Out.(*os.File)
	p.Stderr, _ = r.Err.(*os.File)
	self, err := os.Executable()
	if err != nil {
		return p // then it must be named
	}
	p.Path = self
	// As it was called it may be a symbolic link, which leads elsewhere later.
	if called, err := exec.LookPath(os.Args[0]); err == nil {
		if called, err = filepath.Abs(called); err == nil && sameFile(called, self) {
			p.Path = called
		}
	}
	return p
}

func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}
