package cli

import (
	"cmp"
	"fmt"
	"net/http"
	"strconv"

	"github.com/spf13/cobra"

	"cardea/api"
)

func (r *run) services() *cobra.Command {
	var denied bool
	c := &cobra.Command{
		Use:   "services",
		Short: "Show what this Session may reach, and how",
		Long: "Shows the Services that this Session may connect to now, the command that does it, and the\n" +
			"addresses at which they are where connect has made a network interface.\n" +
			"With --denied also those that it may see and not connect to, the nearest first.",
		Example: "  cardea services\n  cardea services --denied",
		Args:    noArgs,
	}
	c.Flags().BoolVar(&denied, "denied", false, "also those that it may not connect to, and why")
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, _ []string) error {
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		path := "/api/self/services"
		if denied {
			path += "?denied=true"
		}
		list := api.Reachable{Items: []api.ReachableService{}}
		if err := call.Do(c.Context(), http.MethodGet, path, nil, &list); err != nil {
			return err
		}
		if out.value == formatJSON {
			return printJSON(r.Out, list)
		}
		if len(list.Items) == 0 {
			fmt.Fprintln(r.Err, "this Session may reach no Service")
			if !denied {
				fmt.Fprintln(r.Err, "hint: cardea services --denied shows what there is")
			}
		} else if err := servicesTable(list.Items).print(r.Out); err != nil {
			return err
		}
		if len(list.Denied) == 0 {
			return nil
		}
		if len(list.Items) > 0 {
			fmt.Fprintln(r.Out)
		}
		t := &table{headings: []string{"NOT REACHABLE", "MODE", "REASON", "DESCRIPTION"}}
		for _, s := range list.Denied {
			t.add(s.Name, string(s.Mode), cmp.Or(s.Message, string(s.Reason)), s.Description)
		}
		return t.print(r.Out)
	}
	return c
}

// servicesTable lists Services with the command that connects to each.
func servicesTable(list []api.ReachableService) *table {
	t := &table{headings: []string{"SERVICE", "MODE", "PORT", "HOW", "ADDRESSES", "DESCRIPTION"}}
	for _, s := range list {
		port, how := strconv.Itoa(s.Port), fmt.Sprintf("cardea connect -p %s:%d", s.Name, unprivileged(s.Port))
		if s.Mode == api.ModeUDP {
			port += "/udp"
			how += "/udp"
		}
		t.add(s.Name, string(s.Mode), port, how, addressWords(s.Addresses), s.Description)
	}
	return t
}

// unprivileged returns a port that everybody may open, which reminds of one.
func unprivileged(port int) int {
	if port > 0 && port < 1024 {
		return port + 10000
	}
	return port
}
