package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"cardea/api"
)

func (r *run) logs() *cobra.Command {
	var follow bool
	var user, service, session, device, decision, typ, since, until string
	var limit int
	c := &cobra.Command{
		Use:   "logs",
		Short: "Show what happened",
		Long: "Shows the access log: each connection that was opened, ended or denied, and each write to\n" +
			"the API. -o wide adds the decision, how it was routed and what is cut; -o json prints one\n" +
			"record a line.",
		Example: "  cardea logs --user alice --since 1h\n  cardea logs -f --type DENIED\n  cardea logs -o json | jq .\n  cardea logs verify",
		Args:    noArgs,
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens from now")
	c.Flags().StringVar(&user, "user", "", "only records of that User")
	c.Flags().StringVar(&service, "service", "", "only records of that Service, or TCPMapping: NAME or KIND/NAMESPACE/NAME")
	c.Flags().StringVar(&session, "session", "", "only records of that Session")
	c.Flags().StringVar(&device, "device", "", "only records of that Device")
	c.Flags().StringVar(&decision, "decision", "", "only the records of that decision")
	c.Flags().StringVar(&typ, "type", "", "only records of that type: "+strings.Join(recordTypes(), ", "))
	c.Flags().StringVar(&since, "since", "", "only records from then on: a time, or how long ago (1h)")
	c.Flags().StringVar(&until, "until", "", "only records before then: a time, or how long ago (1h)")
	c.Flags().IntVarP(&limit, "limit", "n", 0, "only so many, the latest; 0 is all")
	out := output(c, formatTable, formatWide, formatJSON)
	c.RunE = func(c *cobra.Command, _ []string) error {
		if typ = strings.ToUpper(typ); typ != "" && !slices.Contains(recordTypes(), typ) {
			return usagef("--type: must be one of %s, found %.40q", strings.Join(recordTypes(), ", "), typ)
		}
		q := url.Values{}
		for name, value := range map[string]string{"user": user, "service": logName(service), "session": session, "device": device, "decision": decision, "type": typ} {
			if value != "" {
				q.Set(name, value)
			}
		}
		if follow {
			q.Set("follow", "true")
		}
		for name, value := range map[string]string{"since": since, "until": until} {
			if value == "" {
				continue
			}
			t, err := parseSince(value, time.Now())
			if err != nil {
				return usagef("--%s: %v", name, err)
			}
			q.Set(name, t.UTC().Format(time.RFC3339Nano))
		}
		if limit < 0 {
			return usagef("--limit: must be 0 or more, found %d", limit)
		}
		if limit > 0 {
			q.Set("limit", strconv.Itoa(limit))
		}
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		each := func(line json.RawMessage) error {
			_, err := fmt.Fprintf(r.Out, "%s\n", line)
			return err
		}
		t := &logTable{w: r.Out, batch: logBatch, wide: out.value == formatWide}
		if follow {
			t.batch = 1
		}
		if !t.wide {
			t.width = terminalWidth(r.Out)
		}
		isTable := out.value != formatJSON
		if isTable {
			each = func(line json.RawMessage) error {
				var rec api.AccessLog
				if err := json.Unmarshal(line, &rec); err != nil {
					return fmt.Errorf("the cluster sent a record that is not understood: %w", err)
				}
				return t.add(&rec)
			}
		}
		err = call.Stream(c.Context(), http.MethodGet, "/api/logs?"+q.Encode(), nil, each)
		switch {
		case follow && c.Context().Err() != nil: // Ctrl-C
			return nil
		case follow && err == nil:
			return hinted(errors.New("the cluster ended the stream: it stopped, or you may not read on"), "cardea logs -f --since TIME goes on from a time")
		case isTable && err == nil && t.widths == nil && len(t.rows) == 0:
			fmt.Fprintln(r.Err, "there are no such records")
		case isTable && (err == nil || len(t.rows) > 0):
			err = errors.Join(t.flush(), err)
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

// recordTypes returns the types of records.
func recordTypes() []string {
	return []string{string(api.LogStart), string(api.LogEnd), string(api.LogDenied), "API", "HEALTH"}
}

// logBatch is how many records are laid out together.
const logBatch = 500

// logName returns a name to filter by as the log has it: of another system's
// resource KIND/NAMESPACE/NAME, or KIND/NAME, with the kind's own name.
func logName(name string) string {
	kind, rest, ok := strings.Cut(name, "/")
	if !ok {
		return name
	}
	if k, known := api.FindKind(kind); known {
		return k.Name + "/" + rest
	}
	return name
}

// A logTable is the log for a person, who may wait for its next row: rows are
// written in batches, and a column never becomes narrower from one to the next.
// The headings come with the first batch.
type logTable struct {
	w      io.Writer
	batch  int
	wide   bool // with what few want to see
	width  int  // the last cell of a line is cut to fit into so many characters; 0 is whole, with all details
	widths []int
	rows   [][]string
}

// add adds a record, and writes the batch if that makes it full.
func (t *logTable) add(rec *api.AccessLog) error {
	t.rows = append(t.rows, logCells(rec, t.wide, t.wide || t.width == 0))
	if len(t.rows) < t.batch {
		return nil
	}
	return t.flush()
}

// flush writes the rows that were not written, and the headings before the first.
func (t *logTable) flush() error {
	if t.widths == nil {
		headings := []string{"TIME", "TYPE", "USER", "SERVICE", "SOURCE", "BYTES", "REASON"}
		t.widths = []int{24, 6, 6, 16, 21, 13, 0} // fit most, so that the rows of logs -f stay in line
		if t.wide {
			headings = slices.Insert(headings, 6, "DECISION", "LISTENER", "SERVER NAME", "VERSION", "UPSTREAM")
			t.widths = slices.Insert(t.widths, 6, 44, 8, 11, 8, 16)
		}
		t.rows = slices.Insert(t.rows, 0, headings)
	}
	last := len(t.widths) - 1
	for _, row := range t.rows {
		for i, c := range row[:last] {
			t.widths[i] = max(t.widths[i], utf8.RuneCountInString(c))
		}
	}
	left := 0
	if t.width > 0 {
		left = t.width
		for _, n := range t.widths[:last] {
			left -= n + 2
		}
		left = max(left, leastReason)
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, c := range row[:last] {
			fmt.Fprintf(&b, "%-*s  ", t.widths[i], c)
		}
		reason := row[last]
		if left > 0 {
			reason = short(reason, left)
		}
		b.WriteString(reason + "\n")
	}
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.w, b.String())
	return err
}

// logCells returns the cells of a record. Unless they are to be whole, details are cut.
func logCells(rec *api.AccessLog, wide, whole bool) []string {
	c := &rec.Entry.Common
	cells := []string{rec.Metadata.CreatedAt.UTC().Format("2006-01-02T15:04:05.000Z"), "", "-", "-", "-", "-", "-"}
	if c.UserRef != nil {
		cells[2] = quoted(c.UserRef.Name)
	}
	detail := func(s string) string {
		if whole {
			return s
		}
		return short(s, longDetail)
	}
	if s := cmp.Or(c.ServiceRef, rec.Metadata.TargetRef); s != nil {
		cells[3] = quoted(refName(s))
	}
	if f := c.Facts; f != nil && f.IP != "" {
		cells[4] = quoted(net.JoinHostPort(f.IP, strconv.Itoa(f.Port)))
	}
	reason := ""
	if c.Reason != nil {
		reason = string(c.Reason.Type)
		if c.Reason.Count > 1 {
			reason += fmt.Sprintf(" ×%d", c.Reason.Count)
		}
	}
	info, flow := &rec.Entry.Info, rec.Entry.Info.Flow()
	switch {
	case flow != nil:
		cells[1] = string(flow.Type)
		if flow.ReceivedBytes != nil && flow.SentBytes != nil {
			cells[5] = size(*flow.ReceivedBytes) + "/" + size(*flow.SentBytes)
		}
		if flow.Type == api.LogEnd {
			reason = endWords(info, c.Reason, detail)
		}
	case info.API != nil:
		cells[1] = "API"
		if c.Status == api.StatusDenied {
			cells[1] = string(api.LogDenied)
		}
		what := info.API.Verb
		if info.API.Kind != "" {
			what += " " + strings.TrimSuffix(keyName(calledKey(info.API, c.Facts)), "/")
		}
		if c.Status == api.StatusDenied {
			what += ": " + reason
		}
		reason = plain(what)
	case info.Health != nil:
		cells[1] = "HEALTH"
		if c.Reason != nil {
			reason = plain(detail(c.Reason.Words))
		}
	case c.Status == api.StatusDenied:
		cells[1] = string(api.LogDenied)
	}
	if c.Status == api.StatusDenied && info.API == nil && c.Reason != nil && c.Reason.Words != "" {
		reason += ": " + plain(detail(c.Reason.Words))
	}
	if r := c.Route; r != nil {
		reason += plain(routeWords(r, flow != nil && flow.Type == api.LogEnd, detail))
	}
	cells[6] = cmp.Or(reason, "-")
	if wide {
		r := cmp.Or(c.Route, new(api.LogRoute))
		f := cmp.Or(c.Facts, new(api.Facts))
		for i, cell := range []string{c.DecisionID, cmp.Or(r.Listener, f.Listener), cmp.Or(f.TLS, new(api.TLSFacts)).SNI, r.Version, c.Upstream} {
			cells = slices.Insert(cells, 6+i, "-")
			if cell != "" {
				cells[6+i] = quoted(cell)
			}
		}
	}
	return cells
}

// calledKey returns the Object that a call was about, without a name or namespace if
// it was about several. Records have the group of a kind only by what policies call it.
func calledKey(info *api.APIInfo, facts *api.Facts) api.Key {
	key := api.Key{Kind: info.Kind, Name: info.Name}
	if info.Kind == api.FactKubernetesSecret {
		key.Group, key.Kind = api.GroupKubernetes, api.KindSecret
	}
	for _, k := range api.Kinds() {
		if k.IsForeign() && k.Name == info.Kind && k.Name != api.KindSecret {
			key.Group = k.Group
		}
	}
	if key.Group != "" && key.Name != "" && facts != nil && facts.API != nil {
		key.Namespace = facts.API.Namespace
	}
	return key
}

// routeWords says how a connection was routed: when it begins, by what; when it
// ends, what was odd about it.
func routeWords(r *api.LogRoute, ended bool, detail func(string) string) string {
	if !ended {
		if r.Match == "" {
			return ""
		}
		return " (" + r.Match + ")"
	}
	var words string
	switch {
	case r.Retries == 1:
		words = "; after 1 retry"
	case r.Retries > 1:
		words = fmt.Sprintf("; after %d retries", r.Retries)
	}
	if r.UpstreamVerified != nil && !*r.UpstreamVerified {
		words += "; the upstream was NOT VERIFIED: " + detail(r.UpstreamWords)
	}
	return words
}

// How many characters of a detail are shown, and what the reason is never cut below.
const (
	longDetail  = 160
	leastReason = 40
)

// refName names the Object of a reference: one of ours by its name alone, as it is
// a Service, one of another system by kind, namespace and name.
func refName(ref *api.Ref) string {
	if group, _ := api.GroupOf(ref.APIVersion); group != api.GroupCore && ref.Kind != "" {
		return keyName(api.Key{Group: group, Kind: ref.Kind, Namespace: ref.Namespace, Name: ref.Name})
	}
	return ref.Name
}

// revoked is the reason of an END whose right was withdrawn; the record then says
// by what.
const revoked = "REVOKED"

// endWords says why a connection ended, with the detail if there is one, and how many
// datagrams a flow of those has carried.
func endWords(info *api.AccessLogInfo, reason *api.LogReason, detail func(string) string) string {
	flow := info.Flow()
	said, words := plain(flow.CloseReason), flow.Error
	if u := info.UDP; u != nil && u.ReceivedPackets != nil && u.SentPackets != nil {
		said += fmt.Sprintf(" (%s/%s datagrams)", number(*u.ReceivedPackets), number(*u.SentPackets))
	}
	if flow.CloseReason == revoked && reason != nil {
		words = cmp.Or(reason.Words, words)
	}
	if words == "" {
		return said
	}
	return said + ": " + plain(detail(words))
}

// number writes how many there were; it is not known of a process that has died.
func number(n int64) string {
	if n < 0 {
		return "?"
	}
	return strconv.FormatInt(n, 10)
}

func (r *run) logsVerify() *cobra.Command {
	c := &cobra.Command{
		Use:     "verify",
		Short:   "Check that the access log is whole",
		Long:    "Checks the chain of hashes, the signatures and that no record is missing. It fails if\nanything was changed or taken away.",
		Example: "  cardea logs verify",
		Args:    noArgs,
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
	where := count(v.Segments, "segment")
	if v.Journals > 1 {
		where += fmt.Sprintf(" of %d journals", v.Journals)
	}
	fmt.Fprintf(w, "%s: %s in %s, %s checked, %s open.\n", verdict,
		count(int(v.Records), "record"), where, count(int(v.Heads), "signature"), count(int(v.Open), "connection"))
	for _, f := range v.Findings {
		fmt.Fprintf(w, "  wrong: %s\n", plain(f))
	}
	for _, n := range v.Notes {
		fmt.Fprintf(w, "  note: %s\n", plain(n))
	}
}
