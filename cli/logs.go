package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
)

func (r *run) logs() *cobra.Command {
	var follow bool
	var user, service, session, typ, since string
	c := &cobra.Command{
		Use:   "logs",
		Short: "Show what happened",
		Long: "Shows the access log: each connection that was opened, ended or denied, and each write to\n" +
			"the API. -o json prints one record a line.",
		Example: "  cardea logs --user alice --since 1h\n  cardea logs -f --type DENIED\n  cardea logs -o json | jq .\n  cardea logs verify",
		Args:    cobra.NoArgs,
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens from now")
	c.Flags().StringVar(&user, "user", "", "only records of that User")
	c.Flags().StringVar(&service, "service", "", "only records of that Service")
	c.Flags().StringVar(&session, "session", "", "only records of that Session")
	c.Flags().StringVar(&typ, "type", "", "only records of that type: START, END, DENIED, API")
	c.Flags().StringVar(&since, "since", "", "only records from then on: a time, or how long ago (1h)")
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, _ []string) error {
		q := url.Values{}
		for name, value := range map[string]string{"user": user, "service": service, "session": session, "type": strings.ToUpper(typ)} {
			if value != "" {
				q.Set(name, value)
			}
		}
		if follow {
			q.Set("follow", "true")
		}
		if since != "" {
			t, err := parseSince(since, time.Now())
			if err != nil {
				return usagef("--since: %v", err)
			}
			q.Set("since", t.UTC().Format(time.RFC3339Nano))
		}
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		each := func(line json.RawMessage) error {
			_, err := fmt.Fprintf(r.Out, "%s\n", line)
			return err
		}
		if out.value == formatTable {
			logLine(r.Out, logHeadings())
			each = func(line json.RawMessage) error {
				var rec api.AccessLog
				if err := json.Unmarshal(line, &rec); err != nil {
					return fmt.Errorf("the cluster sent a record that is not understood: %w", err)
				}
				return logLine(r.Out, logCells(&rec))
			}
		}
		err = call.Stream(c.Context(), http.MethodGet, "/api/logs?"+q.Encode(), nil, each)
		if follow && errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	}
	c.AddCommand(r.logsVerify())
	return c
}

// parseSince reads a time, or how long ago it was.
func parseSince(s string, now time.Time) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, s); err == nil {
		return t, nil
	}
	d, err := parseDuration(s)
	if err != nil {
		return time.Time{}, fmt.Errorf("%.40q is neither a time such as 2026-01-31T18:00:00Z nor a duration such as 1h", s)
	}
	return now.Add(-d), nil
}

func logHeadings() []string {
	return []string{"TIME", "TYPE", "USER", "SERVICE", "SOURCE", "BYTES", "REASON", "DECISION"}
}

// logLine writes a line of the log's table. The widths are fixed, so that each
// record can be shown as it comes.
func logLine(w io.Writer, c []string) error {
	_, err := fmt.Fprintf(w, "%-24s  %-6s  %-12s  %-16s  %-21s  %-13s  %-26s  %s\n", c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7])
	return err
}

// logCells returns the cells of a record.
func logCells(rec *api.AccessLog) []string {
	c := &rec.Entry.Common
	cells := []string{rec.Metadata.CreatedAt.UTC().Format("2006-01-02T15:04:05.000Z"), "", "-", "-", "-", "-", "-", cmp.Or(c.DecisionID, "-")}
	if c.UserRef != nil {
		cells[2] = quoted(c.UserRef.Name)
	}
	if s := cmp.Or(c.ServiceRef, rec.Metadata.TargetRef); s != nil {
		cells[3] = quoted(s.Name)
	}
	if f := c.Facts; f != nil && f.IP != "" {
		cells[4] = quoted(net.JoinHostPort(f.IP, strconv.Itoa(f.Port)))
	}
	if c.Reason != nil {
		cells[6] = string(c.Reason.Type)
		if c.Reason.Count > 1 {
			cells[6] += fmt.Sprintf(" ×%d", c.Reason.Count)
		}
	}
	switch info := &rec.Entry.Info; {
	case info.TCP != nil:
		cells[1] = string(info.TCP.Type)
		if info.TCP.ReceivedBytes != nil && info.TCP.SentBytes != nil {
			cells[5] = size(*info.TCP.ReceivedBytes) + "/" + size(*info.TCP.SentBytes)
		}
		cells[6] = cmp.Or(info.TCP.CloseReason, cells[6])
	case info.API != nil:
		cells[1] = "API"
		if c.Status == api.StatusDenied {
			cells[1] = string(api.LogDenied)
		}
		what := info.API.Verb
		if info.API.Kind != "" {
			what += " " + strings.TrimSuffix(slashName(info.API.Kind, info.API.Name), "/")
		}
		if c.Status == api.StatusDenied {
			what += ": " + cells[6]
		}
		cells[6] = plain(what)
	case c.Status == api.StatusDenied:
		cells[1] = string(api.LogDenied)
	}
	return cells
}

func (r *run) logsVerify() *cobra.Command {
	c := &cobra.Command{
		Use:     "verify",
		Short:   "Check that the access log is whole",
		Long:    "Checks the chain of hashes, the signatures and that no record is missing. It fails if\nanything was changed or taken away.",
		Example: "  cardea logs verify",
		Args:    cobra.NoArgs,
	}
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, _ []string) error {
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		var report api.VerifyReport
		if err := call.Do(c.Context(), http.MethodPost, "/api/logs/verify", nil, &report); err != nil {
			return err
		}
		if out.value == formatJSON {
			err = printJSON(r.Out, report)
		} else {
			printReport(r.Out, &report)
		}
		if err == nil && !report.OK {
			err = errors.New("the access log is not whole")
		}
		return err
	}
	return c
}

func printReport(w io.Writer, v *api.VerifyReport) {
	verdict := "The log is whole"
	if !v.OK {
		verdict = "The log is NOT whole"
	}
	fmt.Fprintf(w, "%s: %s in %s, %s checked, %s open.\n", verdict,
		count(int(v.Records), "record"), count(v.Segments, "segment"), count(int(v.Heads), "signature"), count(int(v.Open), "connection"))
	for _, f := range v.Findings {
		fmt.Fprintf(w, "  wrong: %s\n", plain(f))
	}
	for _, n := range v.Notes {
		fmt.Fprintf(w, "  note: %s\n", plain(n))
	}
}
