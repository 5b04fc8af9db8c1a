package cli

import (
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
)

func (r *run) conns() *cobra.Command {
	c := &cobra.Command{
		Use:     "conns",
		Short:   "Show live connections",
		Long:    "Shows every connection that is open now, the oldest first, with who has it and which\nrule lets it be. After an upgrade some are carried by the old process until they end.",
		Example: "  cardea conns\n  cardea conns -o json\n  cardea conns kill ID",
		Args:    noArgs,
	}
	out := output(c, formatTable, formatWide, formatJSON)
	c.RunE = func(c *cobra.Command, _ []string) error {
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		list := api.Connections{Items: []api.Connection{}}
		if err := call.Do(c.Context(), http.MethodGet, "/api/conns", nil, &list); err != nil {
			return err
		}
		if out.value == formatJSON {
			return printJSON(r.Out, list)
		}
		for _, pid := range list.Silent {
			fmt.Fprintf(r.Err, "warning: process %d, which an upgrade has replaced, does not answer: the connections that it keeps are not shown\n", pid)
		}
		if len(list.Items) == 0 {
			fmt.Fprintln(r.Err, "there are no live connections")
			return nil
		}
		return connTable(list.Items, out.value == formatWide, time.Now()).print(r.Out)
	}
	c.AddCommand(&cobra.Command{
		Use:     "kill ID…",
		Short:   "Cut live connections",
		Long:    "Cuts connections; what is allowed can be opened again. To keep somebody out, delete the\nSession or change the policy.",
		Example: "  cardea conns kill ID",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			call, err := r.api(c.Context())
			if err != nil {
				return err
			}
			var failure error
			for _, id := range args {
				if err := call.Do(c.Context(), http.MethodDelete, "/api/conns/"+url.PathEscape(id), nil, nil); err != nil {
					failure = errors.Join(failure, err)
					continue
				}
				fmt.Fprintf(r.Out, "connection %s cut\n", id)
			}
			return failure
		},
	})
	return c
}

func connTable(list []api.Connection, wide bool, now time.Time) *table {
	t := &table{headings: []string{"ID", "USER", "SERVICE", "SOURCE", "UPSTREAM", "AGE", "RECEIVED", "SENT", "PROCESS"}}
	if wide {
		t.headings = append(t.headings, "SESSION", "DEVICE", "CONFIG", "TUNNEL", "DECISION", "RULE")
	}
	for _, c := range list {
		age := now.Sub(c.StartedAt).Truncate(time.Second)
		row := []string{c.ID, c.User, serviceName(c.Service), c.Source, c.Upstream, age.String(), size(c.ReceivedBytes), size(c.SentBytes), process(c)}
		if wide {
			rule := ""
			if c.Rule != nil {
				rule = ruleWords(*c.Rule)
			}
			row = append(row, c.Session, c.Device, c.ConfigName, c.Tunnel, c.DecisionID, rule)
		}
		t.add(row...)
	}
	return t
}

// process returns the process that carries a connection.
func process(c api.Connection) string {
	switch {
	case c.Process == 0: // a cluster of before there was more than one
		return ""
	case c.Draining:
		return fmt.Sprintf("%d (old)", c.Process)
	}
	return fmt.Sprint(c.Process)
}

// serviceName returns the name of a Service, and of another system's resource, which
// is KIND/NAMESPACE/NAME, as people see it.
func serviceName(s string) string {
	if kind, rest, ok := strings.Cut(s, "/"); ok {
		return strings.ToLower(kind) + "/" + rest
	}
	return s
}

// size returns a number of bytes with a unit; it is not known if it is negative.
func size(n int64) string {
	switch {
	case n < 0:
		return "?"
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	case n < 1<<30:
		return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}
