package emissary

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"cardea/api"
)

// defaults are what the Module named ambassador says for all mappings.
type defaults struct {
	EnableIPv4      bool
	EnableIPv6      bool
	CircuitBreakers []api.CircuitBreaker
	Loadbalance     *api.Loadbalance // nil is as always: in turn
	Resolver        string
	// AmbassadorNamespace makes bare names of services those of our Namespace, whatever
	// that of the mapping.
	AmbassadorNamespace bool
	// SecretNamespacing makes what follows the last dot of a Secret's name its Namespace.
	SecretNamespacing bool
}

// moduleName is the name of the one Module that counts here.
const moduleName = "ambassador"

// readModules takes the defaults from the Module.
func (c *compiler) readModules() {
	c.defaults = defaults{EnableIPv4: true, SecretNamespacing: true}
	type module struct {
		*object
		config api.Attrs
	}
	var all []module
	take(c, c.Modules, func(m *api.Module) *api.Installations { return &m.Spec.Installations }, func(m *api.Module, o *object) {
		if m.Metadata.Name != moduleName {
			o.note("only the Module named ambassador has an effect on TCP")
			return
		}
		all = append(all, module{o, m.Spec.Config})
	})
	if len(all) == 0 {
		return
	}
	used := max(0, slices.IndexFunc(all, func(m module) bool { return m.ns == c.ns }))
	for i, m := range all {
		if i != used {
			m.reject(problemf(ReasonConflict, "%s is the Module that counts: the one of Namespace %s first, else the oldest. Put the settings there", all[used].key, c.ns))
		}
	}
	wrong := c.defaults.read(all[used].config)
	note, bad := c.defaults.balance(all[used].config["load_balancer"])
	if bad != "" {
		wrong = append(wrong, bad)
	}
	if len(wrong) > 0 {
		all[used].reject(problem{ReasonInvalid, strings.Join(wrong, "; ") + ". Such a field counts as left out; the others count"})
	}
	if note != "" {
		all[used].note("%s", note)
	}
	for _, name := range []string{"keepalive", "buffer_limit_bytes"} {
		if _, set := all[used].config[name]; set {
			all[used].note("config.%s has no effect: %s", name, map[string]string{
				"keepalive":          "TCP keep-alive is on: after 30 seconds without a word, every 10 seconds, 3 times",
				"buffer_limit_bytes": "the buffers of a connection have one size",
			}[name])
		}
	}
}

// balance takes load_balancer, and says what of it has no effect, or is wrong.
//
// Of hashes there is that of the client's address. Envoy takes any address by
// ring_hash and maglev where TCP is concerned, as nothing tells it what to hash; who
// has set source_ip means one for each client.
func (d *defaults) balance(setting any) (note, wrong string) {
	if setting == nil {
		return "", ""
	}
	s, _ := setting.(map[string]any)
	policy, _ := s["policy"].(string)
	bySource, _ := s["source_ip"].(bool)
	switch {
	case policy == "round_robin":
	case policy == "least_request":
		d.Loadbalance = &api.Loadbalance{Algorithm: api.BalanceLeastConnections}
	case policy != "ring_hash" && policy != "maglev":
		return "", "config.load_balancer.policy must be round_robin, least_request, ring_hash or maglev"
	case bySource:
		d.Loadbalance = &api.Loadbalance{Algorithm: api.BalanceSourceHash}
	default:
		return fmt.Sprintf("config.load_balancer: %s has no effect on TCP without source_ip: true, as there are neither headers nor cookies; the addresses of a name are used in turn", policy), ""
	}
	return "", ""
}

// read takes the settings that TCP knows, and says what of them is wrong.
func (d *defaults) read(config api.Attrs) (wrong []string) {
	get := func(from map[string]any, path, name string, into any, want string) {
		v, set := from[name]
		if !set || v == nil {
			return
		}
		b, err := json.Marshal(v)
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%s%s must be %s", path, name, want))
		}
	}
	get(config, "config.", "enable_ipv4", &d.EnableIPv4, "true or false")
	get(config, "config.", "enable_ipv6", &d.EnableIPv6, "true or false")
	get(config, "config.", "resolver", &d.Resolver, "the name of a resolver")
	get(config, "config.", "use_ambassador_namespace_for_service_resolution", &d.AmbassadorNamespace, "true or false")
	var breakers []api.CircuitBreaker
	get(config, "config.", "circuit_breakers", &breakers, "a list of circuit breakers")
	if bad := wrongBreakers(breakers); bad != "" {
		wrong = append(wrong, "config."+bad)
	} else {
		d.CircuitBreakers = breakers
	}
	var more map[string]any
	get(config, "config.", "defaults", &more, "a mapping")
	get(more, "config.defaults.", "tls_secret_namespacing", &d.SecretNamespacing, "true or false")
	return wrong
}

// wrongBreakers says what is wrong with circuit breakers, "" if nothing is.
func wrongBreakers(list []api.CircuitBreaker) string {
	for i, b := range list {
		if b.Priority != "" && b.Priority != "default" && b.Priority != "high" {
			return fmt.Sprintf("circuit_breakers[%d].priority must be default or high, not %q", i, short(b.Priority))
		}
		for _, n := range []*int{b.MaxConnections, b.MaxPendingRequests, b.MaxRequests, b.MaxRetries} {
			if n != nil && *n < 0 {
				return fmt.Sprintf("circuit_breakers[%d] must not have a number less than 0", i)
			}
		}
	}
	return ""
}

// A resolver is how services are found.
type resolver struct {
	*object
	kind string
}

// The resolvers that are there without an Object.
const (
	serviceResolver  = "kubernetes-service"
	endpointResolver = "kubernetes-endpoint"
)

func (c *compiler) readResolvers() {
	take(c, c.Resolvers, func(r *api.Resolver) *api.Installations { return &r.Spec.Installations }, func(r *api.Resolver, o *object) {
		switch r.Kind {
		case api.KindKubernetesServiceResolver:
		case api.KindKubernetesEndpointResolver:
			o.note("endpoints of Kubernetes are not yet available: names are resolved by DNS")
		case api.KindConsulResolver:
			o.reject(problem{ReasonNotYet, "Consul is not yet available: use DNS names, and leave resolver out"})
		default:
			o.reject(problemf(ReasonInvalid, "the kind must be one of %s, %s and %s", api.KindKubernetesServiceResolver, api.KindKubernetesEndpointResolver, api.KindConsulResolver))
		}
		c.resolvers.add(&resolver{o, r.Kind})
	})
}

// checkResolver says why a mapping cannot have the resolver that it, or the Module,
// names.
func (c *compiler) checkResolver(name string, o *object) problem {
	if name == "" {
		name = c.defaults.Resolver
	}
	const byDNS = "resolver %s finds endpoints of Kubernetes, which are not yet available: names are resolved by DNS"
	r, ok := c.resolvers.find(name, o.ns)
	switch {
	case ok && !r.accepted():
		return problemf(ReasonNotYet, "the resolver %s cannot be used: %s", r.key, r.status.Condition(api.ConditionAccepted).Message)
	case ok && r.kind == api.KindKubernetesEndpointResolver, !ok && name == endpointResolver:
		o.note(byDNS, name)
	case !ok && name != "" && name != serviceResolver:
		return problemf(ReasonNoResolver, "there is no resolver %q%s; leave resolver out for DNS", short(name), c.resolvers.near(name, serviceResolver, endpointResolver))
	}
	return problem{}
}
