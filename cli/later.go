package cli

import (
	"fmt"

	"github.com/spf13/cobra"
)

// laterVerbs returns the verbs that are promised and not there: who types one is
// told so, and not that it was misspelt.
func laterVerbs() []*cobra.Command {
	var verbs []*cobra.Command
	for _, name := range []string{"test", "who-can", "access-diff"} {
		verbs = append(verbs, &cobra.Command{
			Use: name, Hidden: true, DisableFlagParsing: true,
			RunE: func(*cobra.Command, []string) error { return fmt.Errorf("the verb %q is not yet available", name) },
		})
	}
	return verbs
}
