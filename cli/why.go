package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
	"cardea/rpc"
)

func (r *run) why() *cobra.Command {
	var at, request string
	c := &cobra.Command{
		Use:   "why SUBJECT SERVICE",
		Short: "Show what would be decided, and by which rule",
		Long: "Decides whether SUBJECT (a User, session/NAME, or anonymous) may reach SERVICE and shows every\n" +
			"rule that was considered. A User stands for the latest Session, or for a new one. --request\n" +
			"says what ctx.request is.",
		Example: "  cardea why alice nats\n  cardea why session/alice-x1y2z3 pg.prod --at 2026-01-31T18:00:00Z\n" +
			"  cardea why anonymous web --request '{\"ip\": \"192.0.2.1\"}'",
		Args: cobra.ExactArgs(2),
	}
	c.Flags().StringVar(&at, "at", "", "decide as at that time, such as 2026-01-31T18:00:00Z")
	c.Flags().StringVar(&request, "request", "", "what is known of the request, as JSON")
	out := output(c, formatTable, formatJSON)
	c.RunE = func(c *cobra.Command, args []string) error {
		if strings.Contains(args[1], "/") {
			u := usagef("%.100q is no Service: nobody is asked who he is where another system's resources lead", args[1])
			u.hint = "cardea route PORT [--sni NAME] [--from IP] says where a connection would go, and why"
			return u
		}
		in := api.WhyRequest{Subject: args[0], Service: args[1]}
		if request != "" {
			d := json.NewDecoder(strings.NewReader(request))
			d.DisallowUnknownFields()
			if err := d.Decode(&in.Facts); err != nil {
				return usagef("--request: %s; it is a JSON object such as {\"ip\": \"192.0.2.1\"}", strings.TrimPrefix(err.Error(), "json: "))
			}
		}
		if at != "" {
			var err error
			if in.At, err = time.Parse(time.RFC3339, at); err != nil {
				return usagef("--at: %.40q is not a time such as 2026-01-31T18:00:00Z", at)
			}
		}
		call, err := r.api(c.Context())
		if err != nil {
			return err
		}
		var x api.Explanation
		if err := call.Do(c.Context(), http.MethodPost, "/api/why", in, &x); err != nil {
			return nearby(c.Context(), call, in.Subject, err)
		}
		if out.value == formatJSON {
			return printJSON(r.Out, x)
		}
		return explain(r.Out, in, &x)
	}
	return c
}

// nearby adds to an error that there is no such User which one was probably meant.
func nearby(ctx context.Context, call *rpc.Client, user string, err error) error {
	if !api.HasCode(err, api.CodeNotFound) || strings.Contains(user, "/") {
		return err
	}
	k := kindOf(api.KindUser)
	list, _, failure := client.Objects{API: call, Kind: k}.List(ctx, client.Selection{})
	if failure != nil {
		return missing(k, err)
	}
	var names []string
	for _, raw := range list {
		if h, err := head(raw); err == nil {
			names = append(names, h.Metadata.Name)
		}
	}
	if near := api.Nearest(user, names); near != "" {
		return hinted(err, "did you mean "+near+"?")
	}
	return missing(k, err)
}

// explain tells an Explanation to a person.
func explain(w io.Writer, in api.WhyRequest, x *api.Explanation) error {
	d := &x.Decision
	verdict := "may NOT reach"
	if d.Effect == api.Allow {
		verdict = "may reach"
	}
	fmt.Fprintf(w, "%s %s %s.\n\n", plain(in.Subject), verdict, plain(api.ServiceName(in.Service)))
	facts := new(table)
	reason := string(d.Reason)
	if d.Words != "" && d.Rule == nil { // else it names the rule, as the next line does
		reason += ": " + d.Words
	}
	facts.add("Effect", string(cmp.Or(d.Effect, api.Deny)))
	facts.add("Reason", reason)
	if d.Rule != nil {
		facts.add("Decided by", ruleWords(*d.Rule))
	}
	if d.Message != "" {
		facts.add("The caller is told", quoted(d.Message))
	}
	if d.Config != nil {
		facts.add("Goes to", fmt.Sprintf("%s (config %s)", goesTo(d.Config), d.Config.Name))
	}
	if x.Unserved != "" {
		facts.add("NOT SERVED", x.Unserved)
	}
	switch {
	case x.Hypothetical:
		facts.add("Session", "none: this is what a new one would get")
	case d.Subject.Session != nil:
		facts.add("Session", d.Subject.Session.Name)
	}
	if !in.At.IsZero() {
		facts.add("At", stamp(in.At))
	}
	facts.add("Decision", fmt.Sprintf("%s, on revision %s", d.ID, d.Revision))
	if err := facts.print(w); err != nil {
		return err
	}

	switch {
	case slices.ContainsFunc(x.Hints, func(h string) bool { return strings.HasPrefix(h, "the rules are not shown") }):
	case len(x.Steps) == 0:
		fmt.Fprint(w, "\nNo rule applies.\n")
	default:
		fmt.Fprint(w, "\nThe rules that apply, the strongest first:\n")
	}
	for i, s := range x.Steps {
		fmt.Fprintf(w, "%3d. %-8s %s\n", i+1, s.Outcome, ruleWords(s.Rule))
		if s.Condition != "" {
			fmt.Fprintf(w, "              if %s\n", strings.TrimLeft(within(s.Condition, "                 "), " "))
		}
		if s.Words != "" {
			fmt.Fprintf(w, "%s\n", within(plain(s.Words), "              "))
		}
	}
	if names := dependencies(d); len(names) > 0 {
		fmt.Fprintf(w, "\nIt is decided again when one of these changes:\n%s\n", within(strings.Join(names, "\n"), "  "))
	}
	if len(x.Hints) > 0 {
		fmt.Fprint(w, "\nWhat would change it:\n")
		for _, h := range x.Hints {
			fmt.Fprintf(w, "  - %s\n", plain(h))
		}
	}
	return nil
}

// goesTo names the endpoints of a config, and what is odd about it.
func goesTo(c *api.ServiceConfig) string {
	var all []string
	ends, err := c.Upstream.Endpoints()
	if err != nil {
		return err.Error()
	}
	for _, e := range ends {
		all = append(all, e.Address())
	}
	words := strings.Join(all, ", ")
	switch {
	case c.TLS != nil && c.TLS.InsecureSkipVerify:
		words += " by TLS, NOT VERIFIED"
	case c.TLS != nil || c.ClientCertificate != nil || ends[0].TLS:
		words += " by TLS"
	}
	return words
}

// ruleWords says what a rule does, which one it is, and where it is written.
func ruleWords(r api.RuleRef) string {
	words := fmt.Sprintf("%s by %s", r.Effect, plain(r.String()))
	if r.Priority != 0 {
		words += fmt.Sprintf(", priority %d", r.Priority)
	}
	return words
}

// dependencies names what a decision was made from.
func dependencies(d *api.Decision) []string {
	var names []string
	for _, k := range d.DependsOn {
		names = append(names, plain(k.Kind+" "+k.Name))
	}
	if d.TimeBound {
		names = append(names, "the time, each second")
	}
	return names
}
