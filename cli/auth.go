package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"cardea/api"
)

func (r *run) auth() *cobra.Command {
	group := func(use, short string, aliases ...string) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Aliases: aliases, Args: noArgs, RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	}
	c := group("auth", "Prove more than who you are")
	c.Example = "  cardea auth device register"
	device := group("device", "This machine as a Device", "dev")
	register := &cobra.Command{
		Use:   "register",
		Short: "Make this machine a Device of yours, and bind the Session to it",
		Long: "Tells the cluster which machine this is (system, name, a hash of its id, network addresses)\n" +
			"and binds the Session to it. Policies read it as ctx.device; the log names it.",
		Example: "  cardea auth device register",
		Args:    noArgs,
	}
	out := output(register, formatTable, formatJSON)
	register.RunE = func(c *cobra.Command, _ []string) error {
		me, err := r.open(c.Context())
		if err != nil {
			return err
		}
		done, err := me.RegisterDevice(c.Context(), r.Version)
		if err != nil {
			return err
		}
		if out.value == formatJSON {
			return printJSON(r.Out, done)
		}
		word := "this machine was registered before, as"
		if done.Created {
			word = "this machine is now"
		}
		fmt.Fprintf(r.Out, "%s the Device %s, and the Session is bound to it\n", word, done.Device.Metadata.Name)
		if state := done.Device.Spec.State; state != api.DeviceActive {
			fmt.Fprintf(r.Err, "it is %s: nothing can be reached until an administrator says cardea update device %s --approve\n", state, done.Device.Metadata.Name)
		}
		return nil
	}
	device.AddCommand(register)
	c.AddCommand(device)
	return c
}
