package cli

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
)

func (r *run) update() *cobra.Command {
	c := &cobra.Command{
		Use:     "update session|device|authenticator|secret NAME",
		Short:   "Approve, reject or prolong what the system made; give a Secret a new value",
		Long:    "Changes one resource by flags. What flags cannot say, edit and apply can.",
		Example: "  cardea update session alice-x1y2z3 --approve\n  cardea update device linux-a1b2c3d4 --reject\n  cardea update secret db-password --file password.txt",
		Args:    cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("update needs a kind: session, device, authenticator, secret")
			}
			k, err := findKind(args[0])
			if err != nil {
				return err
			}
			u := usagef("a %s is not updated by flags", k.Name)
			u.hint = fmt.Sprintf("cardea edit %s NAME, or cardea apply -f FILE", strings.ToLower(k.Name))
			return u
		},
	}
	c.AddCommand(r.updateState(api.KindSession), r.updateState(api.KindDevice), r.updateState(api.KindAuthenticator), r.updateSecret())
	return c
}

// updateState returns the verb that sets the state of an Object of a kind.
func (r *run) updateState(kind string) *cobra.Command {
	var approve, reject bool
	var expireIn string
	k := kindOf(kind)
	word := strings.ToLower(k.Name)
	c := &cobra.Command{
		Use: word + " NAME --approve|--reject", Aliases: append([]string{k.Plural}, k.Short...),
		Short:   "Approve or reject one: " + k.Name,
		Example: fmt.Sprintf("  cardea update %s NAME --approve", word),
		Args:    cobra.ExactArgs(1),
	}
	c.Flags().BoolVar(&approve, "approve", false, "let it be used: state ACTIVE")
	c.Flags().BoolVar(&reject, "reject", false, "do not let it be used: state REJECTED; its connections are cut")
	if kind == api.KindSession {
		c.Flags().StringVar(&expireIn, "expire-in", "", "end it so long from now: 30m, 2h, 7d")
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		spec := map[string]any{}
		switch {
		case approve && reject:
			return usagef("--approve and --reject cannot both be")
		case approve:
			spec["state"] = api.SessionActive
		case reject:
			spec["state"] = api.SessionRejected
		case expireIn == "":
			return usagef("update %s needs --approve or --reject", word)
		}
		if expireIn != "" {
			d, err := parseDuration(expireIn)
			if err != nil {
				return usagef("--expire-in: %v", err)
			}
			spec["expiresAt"] = time.Now().Add(d).UTC().Truncate(time.Second)
		}
		out, err := r.patch(c, k, args[0], map[string]any{"spec": spec})
		if err != nil {
			return err
		}
		r.printResult(out.Result, false)
		return nil
	}
	return c
}

func (r *run) updateSecret() *cobra.Command {
	var from secretSource
	k := kindOf(api.KindSecret)
	c := &cobra.Command{
		Use: "secret NAME", Aliases: append([]string{k.Plural}, k.Short...),
		Short: "Give a Secret a new value", Example: "  cardea update secret db-password --file password.txt", Args: cobra.ExactArgs(1),
	}
	from.flags(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		data, err := r.secretData(&from)
		if err != nil {
			return err
		}
		out, err := r.patch(c, k, args[0], map[string]any{"data": data})
		if err != nil {
			return err
		}
		r.printResult(out.Result, false)
		return nil
	}
	return c
}
