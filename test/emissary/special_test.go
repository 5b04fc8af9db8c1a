package emissary_test

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"cardea/api"
)

// overrides change what probes expect where the index recommends something else
// than what the original does.
var overrides = map[string]func(i int, p *probe){
	// The documentation of v2 says that a scheme is ignored; the original honours it,
	// and so do we, with a note: cleartext comes in and TLS goes out.
	"kat-TCPMappingTLSOriginationV2SchemeTest": func(i int, p *probe) {
		yes := true
		p.Expect = []expect{
			{Backend: "echo-target", BackendSeesTLS: &yes},
			{Errors: []string{"handshake fails"}}, // TLS within TLS
			{Errors: []string{"connection closed: TLS to a port that speaks none"}},
		}[i]
	},
	// Exactly 70/30.
	"kat-TCPMappingWeightTest": func(_ int, p *probe) { p.Expect.Tolerance = 0 },
}

// assertions are those that the index has in words only.
var assertions = map[string]func(*game) error{"go-FakeHelloConsul": consul}

// extra is what else is to be seen of a case: what the index says in its notes, and
// what the original has no place to say.
var extra = map[string]func(*game){
	"kat-TCPMappingTest": func(g *game) {
		g.probe("the port of 127.0.0.1, from the machine itself", func() error {
			yes := true
			p := probe{Connect: &connect{Port: 8765, TLS: true}, Expect: expect{Backend: "echo-target1", BackendSeesTLS: &yes}}
			a, err := g.exchange(g.inside, "127.0.0.1", p)
			if err != nil {
				return err
			}
			return g.found(a, p)
		})
	},
	"kat-TCPMappingAddressTest": func(g *game) {
		g.probe("the port of 127.0.0.1, from the machine itself", func() error {
			p := probe{Connect: &connect{Port: 6789}, Expect: expect{Backend: "echo-target"}}
			a, err := g.exchange(g.inside, "127.0.0.1", p)
			if err != nil {
				return err
			}
			return g.found(a, p)
		})
	},
	"kat-TCPMappingTLSOriginationV2SchemeTest": func(g *game) {
		for _, name := range []string{"tcpmappingtlsoriginationv2schemetest-1", "tcpmappingtlsoriginationv2schemetest-2"} {
			g.statusSays(api.KindTCPMapping+" "+name+".default", "scheme")
		}
	},
	"tlsctx-CRL-revoked": func(g *game) {
		presto := "presto.example.com"
		yes := connect{Port: 6789, TLS: true, SNI: "ambassador.example.com", ClientCert: &presto}
		no := yes
		no.ClientCert = nil
		g.probe("no certificate", func() error {
			return g.connect(probe{Connect: &no, Expect: expect{Errors: []string{"tls alert certificate_required"}}}, clusterHost)
		})
		// The list is replaced by an empty one while the cluster runs.
		empty, err := g.papers.list(authority)
		if err != nil {
			g.Fatal(err)
		}
		if out, err := g.run(fmt.Sprintf("apiVersion: v1\nkind: Secret\ntype: Opaque\nmetadata: {name: crl-secret, namespace: default}\nstringData:\n  crl.pem: %q\n", empty), "apply", "-f", "-"); err != nil {
			g.Fatalf("%v\n%s", err, out)
		}
		g.probe("an empty revocation list", func() error {
			return g.connect(probe{Connect: &yes, Expect: expect{Backend: "echo-target"}}, clusterHost)
		})
		g.probe("an empty revocation list, and no certificate", func() error {
			return g.connect(probe{Connect: &no, Expect: expect{Errors: []string{"tls alert certificate_required"}}}, clusterHost)
		})
	},
	// Nothing in these documents says whom to trust: the connection is made, and the
	// status says that the certificate does not verify.
	"doc-host-and-tls": func(g *game) {
		g.statusSays(api.KindTCPMapping+" test-1.default", api.ConditionUpstreamVerified+"=False")
		g.statusSays(api.KindTCPMapping+" test-2.default", api.ConditionUpstreamVerified+"=False")
	},
	"doc-tls-no-host": func(g *game) {
		g.statusSays(api.KindTCPMapping+" test.default", api.ConditionUpstreamVerified+"=False")
	},
	"kat-InvalidResources-tcpmapping": func(g *game) {
		g.probe("another resource keeps working", func() error {
			const good = "apiVersion: getambassador.io/v2\nkind: TCPMapping\nmetadata: {name: good, namespace: default}\nspec: {port: 6789, service: \"echo-target:80\"}\n"
			if out, err := g.run(good, "apply", "-f", "-"); err != nil {
				return fmt.Errorf("%w\n%s", err, out)
			}
			if _, err := g.run(g.documents, "apply", "-f", "-"); err == nil {
				return errors.New("the bad documents were applied")
			}
			return g.connect(probe{Connect: &connect{Port: 6789}, Expect: expect{Backend: "echo-target"}}, clusterHost)
		})
	},
}

// statusSays is a probe: the status of an Object has these words.
func (g *game) statusSays(name, words string) {
	g.probe("the status of "+name, func() error {
		all, err := g.statuses()
		if err != nil {
			return err
		}
		if got := said(all[name]); !strings.Contains(got, words) {
			return fmt.Errorf("it says %q; want it to say %q", got, words)
		}
		return nil
	})
}

// A bound is what circuit_breakers say of a port's mapping.
type bound struct {
	service              string
	bounded              bool
	connections, pending int
}

// limits returns the limits of the mapping of a port.
func (g *game) limits(port int) (b bound) {
	for _, o := range g.objects {
		if o.Kind != api.KindTCPMapping || o.Spec["port"] != port {
			continue
		}
		text, _ := o.Spec["service"].(string)
		b.service, _, _ = strings.Cut(text, ":")
		list, _ := o.Spec["circuit_breakers"].([]any)
		for _, x := range list {
			if m, ok := x.(map[string]any); ok {
				b.bounded = true
				b.connections, _ = m["max_connections"].(int)
				b.pending, _ = m["max_pending_requests"].(int)
			}
		}
	}
	return b
}

// refusals plays diagnostics of documents that apply refuses: check and apply name
// each bad document, and the field.
func (g *game) refusals(p probe) error {
	file := filepath.Join(g.dir, "refused.yaml")
	if err := os.WriteFile(file, []byte(g.documents), 0o600); err != nil {
		return err
	}
	checked, err := g.check(file)
	if err != nil {
		return err
	}
	_, applied := g.run("", "apply", "-f", file)
	if applied == nil {
		return errors.New("the documents were applied")
	}
	for _, o := range g.objects {
		field := "port"
		if _, ok := o.Spec["port"]; ok {
			field = "service"
		}
		if p.Diagnostics[o.Metadata.Name+"."+o.Metadata.Namespace+".1"] == nil {
			return fmt.Errorf("the index says nothing of %s", o)
		}
		for verb, out := range map[string]string{"check": checked, "apply": applied.Error()} {
			if !strings.Contains(out, field) || !strings.Contains(out, "required") {
				return fmt.Errorf("%s does not say that spec.%s of %s is required:\n%s", verb, field, o, out)
			}
		}
	}
	return nil
}

// diagnostics plays diagnostics of documents that are kept: the status of each
// Object says what is wrong. Of the original's words only the names of fields, and
// what they are about, must be there.
func (g *game) diagnostics(p probe) error {
	all, err := g.statuses()
	if err != nil {
		return err
	}
	var wrong []error
	for _, key := range slices.Sorted(maps.Keys(p.Diagnostics)) {
		texts, ok := p.Diagnostics[key].([]any)
		if !ok {
			texts = []any{p.Diagnostics[key]}
		}
		for _, x := range texts {
			text := fmt.Sprint(x)
			name := strings.TrimSuffix(key, ".default.1")
			if key == "-global-" { // TLSContext: NAME; …
				_, name, _ = strings.Cut(text, ": ")
				name, _, _ = strings.Cut(name, ";")
			} else if !strings.HasSuffix(key, ".1") {
				name = key
			}
			got := said(all[api.KindTLSContext+" "+name+".default"])
			for _, word := range about(text) {
				if !strings.Contains(got, word) {
					wrong = append(wrong, fmt.Errorf("of TLSContext %s the original says %q; its status does not mention %q: %s", name, text, word, got))
				}
			}
		}
	}
	return errors.Join(wrong...)
}

// about returns the words that a diagnostic of ours must have in common with one of
// the original.
func about(text string) (words []string) {
	for _, x := range []struct {
		theirs string
		ours   []string
	}{
		{"no certificate information", []string{"certificate"}},
		{"missing cert_chain_file", []string{"certificate"}},
		{"missing private_key_file", []string{"certificate"}},
		{"'cert_chain_file' requires 'private_key_file'", []string{"private_key_file"}},
		{"exactly one of 'secret' and 'cert_chain_file'", []string{"secret", "files"}},
		{"redirect_from", []string{"redirect_cleartext_from"}},
		// A context with nothing but a CA is good: upstreams are verified against it,
		// which the original cannot do. In the case its Secret is missing.
		{"cannot validate client certs", []string{"ca_secret"}},
	} {
		if strings.Contains(text, x.theirs) {
			words = append(words, x.ours...)
		}
	}
	if len(words) == 0 {
		words = []string{text}
	}
	return words
}

// configuration plays what the original's configuration must be like, as far as it
// is about TCP: the ports of TCPMappings are open, with and without a Listener, and
// those of Listeners that only HTTP would use are not, which their statuses say.
func (g *game) configuration(want *configuration) error {
	if want.Listeners != len(want.Prefixes) {
		return fmt.Errorf("the index has %d listeners, and prefixes of %d", want.Listeners, len(want.Prefixes))
	}
	all, err := g.statuses()
	if err != nil {
		return err
	}
	var wrong []error
	for _, port := range slices.Sorted(maps.Keys(want.Prefixes)) {
		p := probe{Connect: &connect{Port: port}, Expect: expect{Errors: []string{"refused"}}}
		if want.Filters[port] > 0 {
			p.Expect = expect{Backend: "quote"}
		}
		if err := g.connect(p, clusterHost); err != nil {
			wrong = append(wrong, fmt.Errorf("port %d: %w", port, err))
		}
	}
	for _, o := range g.objects {
		port, _ := o.Spec["port"].(int)
		if o.Kind == api.KindListener && want.Filters[port] == 0 && said(all[o.String()]) == "" {
			wrong = append(wrong, fmt.Errorf("the status of %s (port %d) says nothing of HTTP", o, port))
		}
	}
	return errors.Join(wrong...)
}

// consul plays a TCPMapping whose endpoints Consul knows: that is not yet to be
// had, and its status says so. The port does not lead anywhere.
func consul(g *game) error {
	all, err := g.statuses()
	if err != nil {
		return err
	}
	s := all[api.KindTCPMapping+" hello-tcp.default"]
	if s == nil {
		return errors.New("there is no TCPMapping hello-tcp")
	}
	if c := s.Condition(api.ConditionAccepted); c == nil || c.Status != "False" || !strings.Contains(c.Message, "Consul") || !strings.Contains(c.Message, "not yet") {
		return fmt.Errorf("its status says %q; want Accepted=False, Consul and \"not yet\"", said(s))
	}
	p := probe{Connect: &connect{Port: 3099}, Expect: expect{Errors: []string{"refused", "closed"}}}
	return g.connect(p, clusterHost)
}

// roundTrip plays documents that must be kept as they are: every one is there, in
// its version, with the spec that it had, and what get prints changes nothing when
// it is applied.
func (g *game) roundTrip() error {
	kinds := map[string]bool{}
	want := map[string]object{}
	for _, o := range g.objects {
		if !o.ours() {
			return fmt.Errorf("%s is not a kind that is kept", o)
		}
		kinds[o.Kind] = true
		o.Metadata.Namespace = cmp.Or(o.Metadata.Namespace, g.namespace())
		want[o.String()] = o
	}
	before, err := g.kept(kinds)
	if err != nil {
		return err
	}
	var wrong []error
	for _, name := range slices.Sorted(maps.Keys(want)) {
		o, got := want[name], before[name]
		if got.APIVersion != o.APIVersion {
			wrong = append(wrong, fmt.Errorf("%s of %s is of version %q now", name, o.APIVersion, got.APIVersion))
		}
		if spec := plain(o.Spec); !reflect.DeepEqual(got.Spec, spec) {
			wrong = append(wrong, fmt.Errorf("the spec of %s was %v and is %v", name, spec, got.Spec))
		}
	}
	if len(before) != len(want) {
		wrong = append(wrong, fmt.Errorf("%d documents, %d Objects", len(want), len(before)))
	}
	for kind := range kinds {
		out, err := g.run("", "get", kind, "-o", "yaml")
		if err != nil {
			return err
		}
		if out, err := g.run(out, "apply", "-f", "-"); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	after, err := g.kept(kinds)
	if err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(before)) {
		if before[name].ResourceVersion != after[name].ResourceVersion {
			wrong = append(wrong, fmt.Errorf("%s was changed by what get had printed of it: %v became %v", name, before[name].Spec, after[name].Spec))
		}
	}
	return errors.Join(wrong...)
}

// A record is what get says of an Object that must not change.
type record struct {
	APIVersion, ResourceVersion string
	Spec                        any
}

// kept returns the Objects of some kinds, by KIND NAME.NAMESPACE.
func (g *game) kept(kinds map[string]bool) (map[string]record, error) {
	all := map[string]record{}
	for kind := range kinds {
		out, err := g.run("", "get", kind, "-o", "json")
		if err != nil {
			return nil, err
		}
		var list struct {
			Items []struct {
				api.Head
				Spec any `json:"spec"`
			} `json:"items"`
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return nil, err
		}
		for _, x := range list.Items {
			all[kind+" "+x.Metadata.Name+"."+x.Metadata.Namespace] = record{x.APIVersion, x.Metadata.ResourceVersion, x.Spec}
		}
	}
	return all, nil
}

// plain returns what a value is in JSON.
func plain(v any) (out any) {
	b, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	if err != nil {
		return "not JSON: " + strconv.Quote(err.Error())
	}
	return out
}
