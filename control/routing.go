package control

import (
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
	Table *ingress.Table // its Status and Ask are what there is to be told
}

// Diagnose makes the routing table of documents, without a cluster: Secrets have
// their values. The Objects are not written to.
func Diagnose(objects []api.Object, opt DiagnoseOptions) *Diagnosis {
	var all RoutingObjects
	for _, o := range objects {
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
	return &Diagnosis{Compile(all, RoutingOptions{DiagnoseOptions: opt}, nil)}
}

// route answers GET /api/route: where a connection would go.
func (c *call) route() (any, error) {
	q, err := c.query("port", "address", "sni", "notls", "alpn", "from")
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
