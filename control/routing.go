package control

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"cardea/api"
	"cardea/dialect/emissary"
	"cardea/ingress"
	"cardea/secret"
)

// RoutingObjects are the Objects of which the routing table is made.
type RoutingObjects struct {
	Services   []*api.Service // those that are public
	Ambassador emissary.Input // the Objects in it
	Routing    api.ClusterRouting
}

// IsRouting reports whether the routing table may depend on Objects of a kind.
func IsRouting(k api.Key) bool {
	switch k.Group {
	case api.GroupAmbassador, api.GroupKubernetes:
		return true
	}
	return k.Kind == api.KindService || k.Kind == api.KindSecret || k.Kind == api.KindClusterConfig
}

// Add adds an Object, if the routing table may depend on it. The Object is not
// written to.
func (r *RoutingObjects) Add(o api.Object) {
	in := &r.Ambassador
	switch o := o.(type) {
	case *api.Service:
		if o.Spec.IsPublic {
			r.Services = append(r.Services, o)
		}
	case *api.ClusterConfig:
		r.Routing = o.Spec.Routing
	case *api.Secret:
		if !o.Metadata.IsSystem { // those of the cluster itself nobody may name
			in.Own = append(in.Own, o)
		}
	case *api.KubernetesSecret:
		in.Secrets = append(in.Secrets, o)
	case *api.TCPMapping:
		in.TCPMappings = append(in.TCPMappings, o)
	case *api.TLSContext:
		in.TLSContexts = append(in.TLSContexts, o)
	case *api.Host:
		in.Hosts = append(in.Hosts, o)
	case *api.Listener:
		in.Listeners = append(in.Listeners, o)
	case *api.Module:
		in.Modules = append(in.Modules, o)
	case *api.Resolver:
		in.Resolvers = append(in.Resolvers, o)
	}
}

// DiagnoseOptions say for which cluster Objects are.
type DiagnoseOptions struct {
	// AmbassadorID and AmbassadorNamespace are as in [emissary.Input].
	AmbassadorID, AmbassadorNamespace string
	Domain                            string
	Files                             func(path string) bool // that Objects may name; nil is none
	Now                               time.Time
}

// RoutingOptions say in addition where a process listens.
type RoutingOptions struct {
	DiagnoseOptions
	Host string           // IP address of Services that name none; "" is every one
	Own  []netip.AddrPort // listeners that are not the table's
}

// Compile makes the routing table of Objects, which goes on from the one before;
// nil is the first. It is a pure function.
func Compile(objects RoutingObjects, opt RoutingOptions, before *ingress.Table) *ingress.Table {
	in := objects.Ambassador
	in.AmbassadorID, in.Namespace, in.Files, in.Now = opt.AmbassadorID, opt.AmbassadorNamespace, opt.Files, opt.Now
	in.Verification = objects.Routing.UpstreamVerification
	secrets := make(map[string]*api.CertificateFacts, len(in.Own))
	for _, s := range in.Own {
		secrets[s.Metadata.Name] = s.Status.Certificate
	}
	return ingress.Compile(ingress.Input{Services: objects.Services, Foreign: emissary.Compile(in), Secrets: secrets,
		Domain: opt.Domain, Host: opt.Host, Own: opt.Own}, before, opt.Now)
}

// A Diagnosis is what the Objects of some documents come to.
type Diagnosis struct {
	// Table answers what there is to be told, by its Status and Ask.
	Table DiagnosedTable
	// Objects are those of the documents as a cluster would have them: those of other
	// systems have a namespace. One that is equal to another before it is nil.
	Objects []api.Object
	// Problems tell of two documents of one Object, which they spell differently. The
	// Document of each is an index into the objects. If there is an error among them a
	// cluster would refuse all, and the table has the first of the two.
	Problems []api.Problem
}

// A DiagnosedTable is the routing table of documents.
type DiagnosedTable struct {
	*ingress.Table
	namespace string // of what names none
}

// Status returns how it stands with an Object, by its key as its document has it.
func (t DiagnosedTable) Status(k api.Key) *api.RouteStatus {
	if k.Group != api.GroupCore && k.Namespace == "" {
		k.Namespace = t.namespace
	}
	return t.Table.Status(k)
}

// Diagnose makes the routing table of documents, without a cluster: Secrets have
// their values. The Objects are not written to; nil stands for none.
func Diagnose(objects []api.Object, opt DiagnoseOptions) *Diagnosis {
	opt.AmbassadorNamespace = cmp.Or(opt.AmbassadorNamespace, api.DefaultNamespace)
	var d Diagnosis
	d.Objects, d.Problems = placed(objects, opt.AmbassadorNamespace)
	refused := map[int]bool{}
	for _, p := range d.Problems {
		refused[p.Document] = true
	}
	var all RoutingObjects
	for i, o := range d.Objects {
		if refused[i] {
			continue
		}
		switch s := o.(type) {
		case *api.Secret:
			if s.Data != nil {
				described := *s
				described.Status.Certificate = secret.DescribeValue(s.Data.Bytes())
				o = &described
			}
		case *api.KubernetesSecret:
			described := *s
			secret.Describe(&described)
			o = &described
		}
		all.Add(o)
	}
	d.Table = DiagnosedTable{Compile(all, RoutingOptions{DiagnoseOptions: opt}, nil), opt.AmbassadorNamespace}
	return &d
}

// placed returns the Objects, those of other systems with a namespace, and reports
// those that are there twice. Of two that are equal the second is nil.
func placed(objects []api.Object, namespace string) (all []api.Object, problems []api.Problem) {
	first := map[api.Key]int{}
	for i, o := range objects {
		if o == nil {
			all = append(all, nil)
			continue
		}
		if h := *o.Header(); h.Key().Group != api.GroupCore && h.Metadata.Namespace == "" {
			o = api.Clone(o)
			place(o.Header(), namespace)
		}
		k := o.Header().Key()
		j, twice := first[k]
		switch p := (api.Problems{Document: i}); {
		case !twice || k.Name == "":
			first[k] = i
		case sameForeign(all[j], o):
			p.Warn("/metadata/name", skippedRule(j, k), nameOf(k))
			problems, o = append(problems, p.List...), nil
		default:
			p.Add("/metadata/name", twiceRule(j, k), nameOf(k))
			problems = append(problems, p.List...)
		}
		all = append(all, o)
	}
	return all, problems
}

// twiceRule and skippedRule say that document i of a request is of an Object, too.
func twiceRule(i int, k api.Key) string {
	return fmt.Sprintf("must not be there twice: document %d of the request is this %s too", i+1, k.Kind)
}

func skippedRule(i int, k api.Key) string {
	return fmt.Sprintf("the document is skipped: it is equal to document %d of the request, which is this %s too", i+1, k.Kind)
}

// route answers GET /api/route: where a connection would go.
func (c *call) route() (any, error) {
	q, err := c.query("port", "udp", "address", "sni", "notls", "alpn", "from")
	if err != nil {
		return nil, err
	}
	if _, err := c.may(verbRoute, api.Key{Group: api.GroupAmbassador, Kind: api.KindTCPMapping}); err != nil {
		return nil, err
	}
	ask := api.RouteQuestion{Address: q["address"], SNI: q["sni"], From: q["from"]}
	if ask.Port, err = number(q, "port"); err != nil {
		return nil, err
	}
	if ask.UDP, err = boolean(q, "udp"); err != nil {
		return nil, err
	}
	if ask.NoTLS, err = boolean(q, "notls"); err != nil {
		return nil, err
	}
	if q["alpn"] != "" {
		ask.ALPN = strings.Split(q["alpn"], ",")
	}
	if ask.Port < 1 || ask.Port > 65535 {
		return nil, api.Errorf(api.CodeInvalid, "the query parameter port must be a number from 1 to 65535")
	}
	for _, name := range []string{"address", "from"} {
		if _, err := netip.ParseAddr(q[name]); q[name] != "" && err != nil {
			return nil, api.Errorf(api.CodeInvalid, "the query parameter %s must be an IP address", name)
		}
	}
	if len(ask.SNI) > maxName+1 || ask.NoTLS && (ask.SNI != "" || ask.ALPN != nil) {
		e := api.Errorf(api.CodeInvalid, "the query parameter sni must be a server name")
		e.Hint = "without TLS there is neither a server name nor ALPN"
		return nil, e
	}
	if c.Route == nil {
		return nil, absent()
	}
	return c.Route(ask), nil
}
