// Package cli is the verbs that a person types, and how they look; nothing else.
//
// The rules of the terminal interface:
//
//   - What was asked for goes to standard output, everything else to standard
//     error. Output is the same with and without a terminal (no colour, no
//     progress, so that NO_COLOR has nothing to switch off), but that a terminal's
//     tables are cut to its width, and long reasons in tables; -o wide is whole.
//   - The exit status is 0 only if all that was asked was done, 1 if not, 2 if it
//     was not understood (wrong usage), in which case nothing was done, and 3 if
//     diff --exit-code found a difference.
//   - An error is one line, "error: …", in words that name the thing and the
//     value; a line "hint: …" says what to do next. Problems of documents come
//     first, one a line: FILE:LINE:COLUMN: error: FIELD: RULE.
//   - -o json and -o yaml are for programs and do not change; tables are for
//     people and may. A list in JSON is {"items": […]}.
//   - What a peer can have written is quoted where it is not plain text.
//   - A secret is printed once, when it is made, and only to standard output.
//   - A flag wins over its CARDEA_… variable, which wins over the default.
//   - Ctrl-C ends a verb that runs until it is ended (up, connect, logs -f) with
//     status 0, and any other with 1. No verb asks questions.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"

	"cardea/client"
	"cardea/rpc"
)

// The exit statuses.
const (
	ExitDone    = 0
	ExitFailed  = 1
	ExitUsage   = 2
	ExitDiffers = 3
)

// A Program is cardea as it was called. Its fields are all that it sees of the
// process that it runs in, beside the file system and the network.
type Program struct {
	Version  string
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
}

// Run does what args, without the name of the program, say and returns the exit
// status.
func (p *Program) Run(ctx context.Context, args []string) int {
	r := &run{Program: p}
	defer r.close()
	root := r.root()
	root.SetArgs(args)
	root.SetIn(p.In)
	root.SetOut(p.Out)
	root.SetErr(p.Err)
	started := false
	each(root, func(c *cobra.Command) {
		if c.RunE == nil {
			return
		}
		verb := c.RunE
		c.RunE = func(c *cobra.Command, args []string) error {
			if err := r.environment(c); err != nil {
				return err
			}
			started = true
			return verb(c, args)
		}
	})
	c, err := root.ExecuteContextC(ctx)
	if err == nil {
		return ExitDone
	}
	if !started { // cobra found that it is not understood
		if err = asUsage(c, err); c == root && len(args) > 0 && !strings.HasPrefix(args[0], "-") {
			err = unknownVerb(root, args[0]) // and not what was wrong with its flags
		}
	}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = errors.New("interrupted")
	}
	if u, ok := errors.AsType[usageError](err); ok {
		if u.hint == "" {
			u.hint = "usage: " + c.UseLine()
		}
		tell(p.Err, u)
		return ExitUsage
	}
	tell(p.Err, err)
	if s, ok := errors.AsType[statusError](err); ok {
		return s.status
	}
	return ExitFailed
}

// each calls f for a command and all below it.
func each(c *cobra.Command, f func(*cobra.Command)) {
	f(c)
	for _, sub := range c.Commands() {
		each(sub, f)
	}
}

// A run is one call of the program.
type run struct {
	*Program
	home   string // as given
	opened []*client.Client
}

// close gives up the connections of this call.
func (r *run) close() {
	for _, c := range r.opened {
		c.Close() // never fails
	}
}

// open returns a client of the home.
func (r *run) open(ctx context.Context) (*client.Client, error) {
	home, err := r.homeDir()
	if err != nil {
		return nil, err
	}
	c, err := client.Open(ctx, home)
	if err != nil {
		return nil, err
	}
	r.opened = append(r.opened, c)
	return c, nil
}

// root returns the tree of verbs.
func (r *run) root() *cobra.Command {
	c := &cobra.Command{
		Use:   "cardea",
		Short: "Zero trust access: identity and policy in front of every connection",
		Long: "Cardea stands in front of your services: each connection is identified, decided by\n" +
			"policy, recorded, and cut as soon as it is not allowed any more.",
		Example:       "  cardea demo\n  cardea up --data-dir ./data",
		Version:       r.Version,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return unknownVerb(c, args[0])
		},
	}
	c.SetVersionTemplate("cardea {{.Version}}\n")
	c.PersistentFlags().StringVar(&r.home, "home", "", "directory of this person's Session; two homes are two people (or CARDEA_HOME)")
	c.AddGroup(&cobra.Group{ID: "use", Title: "To reach Services:"}, &cobra.Group{ID: "rule", Title: "To write and read resources:"},
		&cobra.Group{ID: "see", Title: "To see what happens:"}, &cobra.Group{ID: "run", Title: "To run a cluster:"})
	add := func(group string, verbs ...*cobra.Command) {
		for _, v := range verbs {
			v.GroupID = group
			c.AddCommand(v)
		}
	}
	add("use", r.login(), r.logout(), r.status(), r.services(), r.connect(), r.disconnect(), r.auth())
	add("rule", r.apply(), r.diff(), r.check(), r.get(), r.describe(), r.explainKind(), r.create(), r.edit(), r.update(), r.delete())
	add("see", r.why(), r.route(), r.conns(), r.logs(), r.doctor())
	add("run", r.up(), r.upgrade(), r.demo(), r.backup(), r.restore(), r.rotate(), r.recover())
	c.AddCommand(r.version())
	c.AddCommand(laterVerbs()...)
	return c
}

func (r *run) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Example: "  cardea version", Args: noArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintf(r.Out, "cardea %s %s %s/%s\n", r.Version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
			return nil
		},
	}
}

// unknownVerb says that there is no such verb below c.
func unknownVerb(c *cobra.Command, name string) error {
	err := usagef("there is no verb %q in %q", name, c.CommandPath())
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(name); len(near) > 0 {
		err.hint = "did you mean " + strings.Join(near, " or ") + "?"
	} else {
		err.hint = "see " + c.CommandPath() + " --help"
	}
	return err
}

// homeDir returns the directory of the Session.
func (r *run) homeDir() (string, error) {
	if r.home != "" {
		return filepath.Abs(r.home)
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", hinted(fmt.Errorf("there is no directory for the Session: %w", err), "set CARDEA_HOME")
	}
	return filepath.Join(dir, "cardea"), nil
}

// api returns a client of the API that acts for the Session of the home.
func (r *run) api(ctx context.Context) (*rpc.Client, error) {
	c, err := r.open(ctx)
	if err != nil {
		return nil, err
	}
	return c.API(ctx)
}

// logger writes to standard error.
func (r *run) logger() *slog.Logger { return slog.New(slog.NewTextHandler(r.Err, nil)) }
