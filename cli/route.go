package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"cardea/api"
	"cardea/client"
	"cardea/manifest"
	"cardea/rpc"
)

func (r *run) route() *cobra.Command {
	var q api.RouteQuestion
	var files []string
	var opt offline
	c := &cobra.Command{
		Use:   "route [ADDRESS:]PORT[/udp] [--sni NAME | --no-tls] [--from IP]",
		Short: "Show where a connection to a public port would go, and why",
		Long: "Asks the routing table of the cluster, or with -f that of documents, where a connection to a\n" +
			"public port would go. It fails if the connection would be refused. A client is taken to speak\n" +
			"TLS, without a server name unless --sni says one.",
		Example: "  cardea route 2222 --sni my-host-1\n  cardea route 10.9.0.1:7006\n  cardea route 5432 --no-tls --from 192.0.2.1\n  cardea route 2222 --sni my-host-1 -f ./resources",
		Args:    cobra.ExactArgs(1),
	}
	c.Flags().StringVar(&q.Address, "address", "", "the IP address that the client connects to")
	c.Flags().StringVar(&q.SNI, "sni", "", "the server name that the client asks for")
	c.Flags().BoolVar(&q.NoTLS, "no-tls", false, "the client does not speak TLS")
	c.Flags().StringArrayVar(&q.ALPN, "alpn", nil, "a protocol that the client offers (ALPN); may be repeated")
	c.Flags().StringVar(&q.From, "from", "", "the IP address that the client comes from")
	fileFlag(c, &files)
	opt.flags(c)
	out := output(c, formatTable, formatJSON, formatYAML)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := readQuestion(&q, args[0]); err != nil {
			return err
		}
		ask := r.ask
		if len(files) > 0 {
			ask = func(_ context.Context, q *api.RouteQuestion) (api.RouteAnswer, func() string, error) {
				return r.askDocuments(q, files, &opt)
			}
		}
		a, look, err := ask(c.Context(), &q)
		if err != nil {
			return err
		}
		switch out.value {
		case formatJSON:
			err = printJSON(r.Out, a)
		case formatYAML:
			err = manifest.Encode(r.Out, a)
		default:
			printAnswer(r.Out, &q, &a)
		}
		if err == nil {
			err = refusal(&q, &a, look)
		}
		return err
	}
	return c
}

// readQuestion reads the port, and says what of a question cannot be.
func readQuestion(q *api.RouteQuestion, port string) (err error) {
	port, q.UDP = strings.CutSuffix(port, "/udp")
	if host, p, err := net.SplitHostPort(port); err == nil {
		if q.Address != "" && q.Address != host {
			return usagef("--address %s is not that of %s", q.Address, port)
		}
		if port = p; host != "*" { // as listeners are printed
			q.Address = host
		}
	}
	if q.Port, err = strconv.Atoi(port); err != nil || q.Port < 1 || q.Port > 65535 {
		return usagef("%.40q is not a port: 1 to 65535, or ADDRESS:PORT", port)
	}
	for flag, address := range map[string]string{"address": q.Address, "from": q.From} {
		if _, err := netip.ParseAddr(address); address != "" && err != nil {
			return usagef("--%s: %.60q is not an IP address", flag, address)
		}
	}
	if q.UDP && (q.SNI != "" || len(q.ALPN) > 0) {
		return usagef("--sni and --alpn are said in TLS, which datagrams (/udp) are not asked for")
	}
	if q.NoTLS && (q.SNI != "" || len(q.ALPN) > 0) {
		return usagef("--no-tls and --sni or --alpn cannot both be: they are said in TLS")
	}
	return nil
}

// askDocuments asks the table that documents make. look says where to look after a
// refusal.
func (r *run) askDocuments(q *api.RouteQuestion, files []string, opt *offline) (a api.RouteAnswer, look func() string, err error) {
	docs, _, err := r.documents(files)
	if err != nil {
		return a, nil, r.problems(err, "the documents are not valid")
	}
	table, err := opt.table(docs)
	if err != nil {
		return a, nil, err
	}
	a = table.Ask(*q)
	a.Open = true // documents open no port
	return a, func() string {
		if noSecret.MatchString(a.Refused) {
			return onlyInCluster
		}
		return "cardea check -f PATH says how each document stands"
	}, nil
}

// ask asks the cluster.
func (r *run) ask(ctx context.Context, q *api.RouteQuestion) (a api.RouteAnswer, look func() string, err error) {
	me, err := r.open(ctx)
	if err != nil {
		return a, nil, err
	}
	call, err := me.API(ctx)
	if err != nil {
		return a, nil, err
	}
	if a, err = client.Route(ctx, call, *q); err != nil {
		return a, nil, err
	}
	s, err := me.Session(ctx)
	if err == nil && a.Listener == "" && isAt(q, s.Address) {
		a.Refused = s.Address + " is Cardea's own port, and not part of the routing table"
		return a, func() string {
			return "Sessions come in there, and clients that ask for the server name of a public Service; cardea why says who may reach what"
		}, nil
	}
	return a, func() string { return whereToLook(ctx, call, q.Port, &a) }, err
}

// isAt reports whether a question is about an address, HOST:PORT.
func isAt(q *api.RouteQuestion, address string) bool {
	host, port, err := net.SplitHostPort(address)
	return err == nil && port == strconv.Itoa(q.Port) && (q.Address == "" || q.Address == host)
}

// whereToLook names the command that says more after a refusal of the cluster.
func whereToLook(ctx context.Context, call *rpc.Client, port int, a *api.RouteAnswer) string {
	const mappings, services = "cardea get tcpmappings", "cardea get services -o wide"
	if a.Owner != nil {
		return describes(*a.Owner) + " says how it stands"
	}
	both := mappings + ", and " + services + ", list "
	what := "what " + a.Listener + " takes"
	if a.Listener == "" {
		port, what = 0, "who listens where"
	}
	switch m, s := listensAny(ctx, call, foreignKind(api.GroupAmbassador, api.KindTCPMapping), port), listensAny(ctx, call, kindOf(api.KindService), port); {
	case m && !s:
		return mappings + " lists " + what
	case s && !m:
		return services + " lists " + what
	}
	return both + what
}

// listensAny reports whether any TCPMapping or Service, as the kind is, has a public
// port: that one, unless it is 0.
func listensAny(ctx context.Context, call *rpc.Client, k api.Kind, port int) bool {
	list, _, err := client.Objects{API: call, Kind: k}.List(ctx, client.Selection{})
	if err != nil {
		return true // who may not list them is not told that there are none
	}
	for _, raw := range list {
		at := 0
		switch o, _ := decode(raw); o := o.(type) {
		case *api.TCPMapping:
			if o.Spec.Port != nil {
				at = *o.Spec.Port
			}
		case *api.Service:
			if o.Spec.IsPublic {
				at = o.Status.Port
			}
		}
		if at != 0 && (port == 0 || at == port) {
			return true
		}
	}
	return false
}

// asked says a question in words.
func asked(q *api.RouteQuestion) string {
	words := strconv.Itoa(q.Port)
	if q.Address != "" {
		words = netip.AddrPortFrom(netip.MustParseAddr(q.Address), uint16(q.Port)).String()
	}
	switch {
	case q.UDP:
		words += "/udp"
	case q.NoTLS:
		words += " without TLS"
	case q.SNI != "":
		words += " with server name " + quoted(q.SNI)
	default:
		words += " with TLS and no server name"
	}
	if len(q.ALPN) > 0 {
		words += ", offering " + quoted(strings.Join(q.ALPN, ","))
	}
	if q.From != "" {
		words += ", from " + q.From
	}
	return words
}

// printAnswer tells an answer to a person: where the connection goes, then who
// shares it, then why.
func printAnswer(w io.Writer, q *api.RouteQuestion, a *api.RouteAnswer) {
	fmt.Fprintf(w, "%s → %s\n", asked(q), plain(destination(a)))
	if a.Refused == "" {
		printMembers(w, a)
	}
	if len(a.Steps) > 0 {
		fmt.Fprint(w, "\nWhy:\n")
	}
	for i, s := range a.Steps {
		fmt.Fprintf(w, "%3d. %s\n", i+1, plain(s))
	}
}

// printMembers tells who shares a connection's row, and what is odd about each.
func printMembers(w io.Writer, a *api.RouteAnswer) {
	if len(a.Members) > 1 {
		t := &table{headings: []string{"MEMBER", "SHARE", "ENDPOINTS", "TLS"}}
		for _, m := range a.Members {
			t.add(keyName(m.Object), fmt.Sprintf("%d of %d", m.Weight, m.Of), strings.Join(m.Endpoints, ", "), m.TLS)
		}
		fmt.Fprintln(w)
		t.print(w)
		if a.Version != "" {
			fmt.Fprintf(w, "Within version %s, which the log names, each gets exactly its share.\n", plain(a.Version))
		}
	}
	var endpoints []api.EndpointStatus
	for _, m := range a.Members {
		endpoints = append(endpoints, m.Health...)
	}
	printEndpoints(w, endpoints, time.Now())
	notes := "\nNotes:\n"
	for _, m := range a.Members {
		for _, n := range m.Notes {
			fmt.Fprintf(w, "%s  - %s: %s\n", notes, keyName(m.Object), plain(n))
			notes = ""
		}
	}
}

// destination says in a line where a connection goes.
func destination(a *api.RouteAnswer) string {
	if a.Refused != "" {
		return "refused: " + a.Refused
	}
	var parts []string
	if a.Owner != nil {
		parts = append(parts, titled(*a.Owner))
	}
	var words []string
	switch len(a.Members) {
	case 0:
	case 1:
		m := a.Members[0]
		if to := strings.Join(m.Endpoints, " or "); to != "" {
			parts = append(parts, to)
		}
		words = append(words, m.TLS)
	default:
		parts = append(parts, fmt.Sprintf("one of %d members", len(a.Members)))
	}
	line := strings.Join(parts, " → ")
	for _, x := range append([]string{a.TLS}, words...) {
		if x != "" {
			line += ", " + x
		}
	}
	if !a.Open {
		line += "; but the port is NOT OPEN"
	}
	return line
}

// refusal returns that a connection would not be served, with where to look; nil if
// it would.
func refusal(q *api.RouteQuestion, a *api.RouteAnswer, look func() string) error {
	switch {
	case a.Refused != "":
		return hinted(errors.New("such a connection is refused"), look())
	case !a.Open:
		return hinted(fmt.Errorf("%s is not open", cmp.Or(a.Listener, strconv.Itoa(q.Port))), look())
	}
	return nil
}

// describes returns the command that shows an Object.
func describes(key api.Key) string {
	kind, name, _ := strings.Cut(keyName(key), "/")
	return "cardea describe " + kind + " " + name
}
