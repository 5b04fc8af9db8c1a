package cli

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"cardea/api"
)

// A usageError says that the program was not understood: exit status 2.
type usageError struct{ hint, words string }

func (e usageError) Error() string { return e.words }

func usagef(format string, args ...any) usageError {
	return usageError{words: fmt.Sprintf(format, args...), hint: "see --help"}
}

// asUsage makes an error of cobra's a usageError.
func asUsage(err error) error {
	if _, ok := errors.AsType[usageError](err); ok {
		return err
	}
	words, more, _ := strings.Cut(err.Error(), "\n")
	u := usagef("%s", words)
	if more = strings.Join(strings.Fields(more), " "); more != "" { // cobra's "Did you mean this?"
		u.hint = more
	}
	return u
}

// A hintedError is an error with what to do next.
type hintedError struct {
	error
	hint string
}

func (e hintedError) Unwrap() error { return e.error }

func hinted(err error, hint string) error { return hintedError{err, hint} }

// tell prints an error and its hint.
func tell(w io.Writer, err error) {
	words, hint := err.Error(), ""
	if e, ok := errors.AsType[*api.Error](err); ok {
		if err == error(e) {
			words = e.Message // its problems have been printed
		}
		if e.DecisionID != "" {
			words += " (decision " + e.DecisionID + ")"
		}
		hint = e.Hint
	}
	if e, ok := errors.AsType[hintedError](err); ok {
		hint = e.hint
	}
	if e, ok := errors.AsType[usageError](err); ok {
		hint = e.hint
	}
	fmt.Fprintln(w, "error:", plain(words))
	if hint != "" {
		fmt.Fprintln(w, "hint:", plain(hint))
	}
}

// fromEnvironment lets a variable set a flag that was not given.
func fromEnvironment(f flag, variable string) {
	f.Usage += " (or " + variable + ")"
	if f.Annotations == nil {
		f.Annotations = map[string][]string{}
	}
	f.Annotations[environmentKey] = []string{variable}
}

const environmentKey = "cardea/environment"

// environment sets the flags that were not given and have a variable.
func (r *run) environment(c *cobra.Command) (err error) {
	c.Flags().VisitAll(func(f flag) {
		v := f.Annotations[environmentKey]
		if f.Changed || len(v) == 0 || r.Getenv(v[0]) == "" || err != nil {
			return
		}
		if e := c.Flags().Set(f.Name, r.Getenv(v[0])); e != nil {
			err = usagef("%s: %v", v[0], e)
		}
	})
	return err
}

// A choice is the value of a flag that is one of a few words.
type choice struct {
	value   string
	allowed []string
}

// String implements pflag.Value.
func (c *choice) String() string { return c.value }

// Type implements pflag.Value.
func (c *choice) Type() string { return strings.Join(c.allowed, "|") }

// Set implements pflag.Value.
func (c *choice) Set(s string) error {
	for _, a := range c.allowed {
		if s == a {
			c.value = s
			return nil
		}
	}
	return fmt.Errorf("must be one of %s", strings.Join(c.allowed, ", "))
}

// output adds -o to a verb. The first format is the default.
func output(c *cobra.Command, formats ...string) *choice {
	o := &choice{formats[0], formats}
	c.Flags().VarP(o, "output", "o", "how to print it")
	complete := func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return formats, cobra.ShellCompDirectiveNoFileComp
	}
	if err := c.RegisterFlagCompletionFunc("output", complete); err != nil {
		panic("cli: " + err.Error()) // the flag is there: it was added above
	}
	return o
}

// stateDir is where what programs keep for a user belongs (XDG Base Directory
// Specification).
func (r *run) stateDir() (string, error) {
	if d := r.Getenv("XDG_STATE_HOME"); d != "" {
		return d, nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", err
	}
	return home + "/.local/state", nil
}
