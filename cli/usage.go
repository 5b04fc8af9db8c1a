package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"cardea/api"
)

// A usageError says that the program was not understood: exit status 2. Without a
// hint of its own it is told with how the verb is used.
type usageError struct{ hint, words string }

func (e usageError) Error() string { return e.words }

func usagef(format string, args ...any) usageError {
	return usageError{words: fmt.Sprintf(format, args...)}
}

// A statusError is an error with an exit status of its own.
type statusError struct {
	error
	status int
}

func (e statusError) Unwrap() error { return e.error }

// badValue is what is said of the value of a flag.
var badValue = regexp.MustCompile(`^invalid argument (".*") for "(?:-., )?(--[a-z0-9-]+)" flag: (.*)$`)

// asUsage makes an error of cobra's, about a call of c, a usageError.
func asUsage(c *cobra.Command, err error) error {
	if _, ok := errors.AsType[usageError](err); ok {
		return err
	}
	words, _, _ := strings.Cut(err.Error(), "\n")
	for _, x := range []struct{ theirs, ours string }{
		{"accepts %d arg(s), received %d", "takes %d arguments, found %d"},
		{"requires at least %d arg(s), only received %d", "needs at least %d arguments, found %d"},
	} {
		var want, got int
		if n, err := fmt.Sscanf(words, x.theirs, &want, &got); n == 2 && err == nil {
			words = strings.Replace(fmt.Sprintf(x.ours, want, got), " 1 arguments", " 1 argument", 1)
		}
	}
	if m := badValue.FindStringSubmatch(words); m != nil {
		return usagef("%s: %s, found %s", m[2], valueRule(m[3]), m[1])
	}
	if flag, ok := strings.CutPrefix(words, "flag needs an argument: --"); ok {
		return usagef("--%s needs a value", flag)
	}
	if flag, ok := strings.CutPrefix(words, "unknown flag: --"); ok {
		u := usagef("%s has no flag --%s", c.CommandPath(), flag)
		if near := api.Nearest(flag, flagNames(c)); near != "" {
			u.hint = "did you mean --" + near + "?"
		}
		return u
	}
	return usagef("%s", words)
}

// flagNames returns the names of the flags that c has, as its help lists them.
func flagNames(c *cobra.Command) []string {
	var names []string
	for use := range strings.Lines(c.LocalFlags().FlagUsages() + c.InheritedFlags().FlagUsages()) {
		if _, rest, ok := strings.Cut(use, "--"); ok {
			name, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
			names = append(names, name)
		}
	}
	return names
}

// valueRule says what the value of a flag must be, in place of what the packages of
// Go say of one that they cannot read.
func valueRule(words string) string {
	for _, x := range []struct{ part, rule string }{
		{"strconv.ParseInt", "must be a whole number"},
		{"strconv.ParseBool", "must be true or false"},
		{"time: ", "must be a duration such as 30s or 5m"},
	} {
		if strings.HasPrefix(words, x.part) {
			return x.rule
		}
	}
	return words
}

// noArgs lets a verb have no arguments; it stands in for cobra.NoArgs, whose words
// are not ours.
func noArgs(c *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return nil
	case c.HasAvailableSubCommands():
		return unknownVerb(c, args[0])
	}
	return usagef("%s takes no argument, found %.100q", c.CommandPath(), args[0])
}

// A hintedError is an error with what to do next.
type hintedError struct {
	error
	hint string
}

func (e hintedError) Unwrap() error { return e.error }

func hinted(err error, hint string) error { return hintedError{err, hint} }

// tell prints an error, each of those that are joined in it, with its hint.
func tell(w io.Writer, err error) {
	if parts := joined(err); parts != nil {
		for _, e := range parts {
			tell(w, e)
		}
		return
	}
	words, hint := err.Error(), ""
	if e, ok := errors.AsType[*api.Error](err); ok {
		if err == error(e) {
			words = e.Message // its problems have been printed
		}
		if e.DecisionID != "" {
			words += " (decision " + e.DecisionID + ")"
			hint = "an administrator finds that decision by cardea logs --decision " + e.DecisionID
		}
		hint = cmp.Or(e.Hint, hint)
	}
	if e, ok := errors.AsType[hintedError](err); ok {
		hint = e.hint
	}
	if e, ok := errors.AsType[usageError](err); ok {
		hint = e.hint
	}
	if hint == "" && errors.Is(err, syscall.ECONNREFUSED) {
		hint = "is the cluster running, and is that its address?"
	}
	fmt.Fprintln(w, "error:", plain(words))
	if hint != "" {
		fmt.Fprintln(w, "hint:", plain(hint))
	}
}

// joined returns the errors that errors.Join has put together. One that wraps
// several and has words of its own is one error.
func joined(err error) []error {
	j, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return nil
	}
	var lines []string
	for _, e := range j.Unwrap() {
		lines = append(lines, e.Error())
	}
	if err.Error() != strings.Join(lines, "\n") {
		return nil
	}
	return j.Unwrap()
}

// environment sets the flags of c that were not given and have a variable.
func (r *run) environment(c *cobra.Command) error {
	for _, name := range []string{"home", "token", "ca-sha256", "token-file", "data-dir", "domain", "listen", "store", "metrics-listen", "grace", "drain",
		"ambassador-id", "ambassador-namespace", "tls-files"} {
		f := c.Flags().Lookup(name)
		if f == nil || f.Changed {
			continue
		}
		if name == "token" && c.Flags().Changed("token-file") || name == "token-file" && c.Flags().Changed("token") {
			continue // a token was given, in the other way
		}
		for _, variable := range variables(name) {
			value := r.Getenv(variable)
			if value == "" {
				continue
			}
			for _, value := range values(name, value) {
				if err := c.Flags().Set(name, value); err != nil {
					return usagef("%s: %s", variable, valueRule(err.Error()))
				}
			}
			break
		}
	}
	return nil
}

// variables returns the variables of a flag, the one that wins first: that of
// Cardea, and for what Ambassador has, too, its.
func variables(flag string) []string {
	name := strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
	if strings.HasPrefix(flag, "ambassador-") {
		return []string{"CARDEA_" + name, name}
	}
	return []string{"CARDEA_" + name}
}

// values returns what the variable of a flag says: directories as PATH does.
func values(flag, value string) []string {
	if flag != "tls-files" {
		return []string{value}
	}
	return slices.DeleteFunc(filepath.SplitList(value), func(dir string) bool { return dir == "" })
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
