package cli

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

// laterVerbs returns the verbs that are promised and not there: who types one is
// told so, and not that it was misspelt.
func laterVerbs() []*cobra.Command {
	var verbs []*cobra.Command
	for _, name := range []string{"diff", "edit", "update", "explain", "test", "who-can", "access-diff", "doctor", "auth", "services"} {
		verbs = append(verbs, &cobra.Command{
			Use: name, Hidden: true, DisableFlagParsing: true,
			RunE: func(*cobra.Command, []string) error { return fmt.Errorf("the verb %q is not yet available", name) },
		})
	}
	return verbs
}

// laterFlags is the annotation that names the flags of a verb that are promised
// and not there.
const laterFlags = "later"

// later hides flags of c that are promised: [laterFlag] says so to who gives one.
func later(c *cobra.Command, names ...string) {
	for _, name := range names {
		if err := c.Flags().MarkHidden(name); err != nil {
			panic("cli: " + err.Error())
		}
	}
	c.Annotations = map[string]string{laterFlags: strings.Join(names, " ")}
}

// laterFlag returns an error if c was given a flag that is not there yet.
func laterFlag(c *cobra.Command) error {
	for _, name := range strings.Fields(c.Annotations[laterFlags]) {
		if c.Flags().Changed(name) {
			return fmt.Errorf("--%s is not yet available", name)
		}
	}
	return nil
}
