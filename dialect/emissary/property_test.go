package emissary

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"cardea/api"
)

// drawInput draws Objects that get into each other's way: few names, ports and hosts.
func drawInput(t *rapid.T) Input {
	in := Input{Now: now, Files: func(string) bool { return true }}
	ns := rapid.SampledFrom([]string{"", "default", "shop"})
	host := rapid.SampledFrom([]string{"", "a.example.com", "*.example.com", "*", "b.test", "bad.*"})
	seen := map[api.Key]bool{}
	head := func(kind, prefix string) (api.Head, bool) {
		h := api.Head{APIVersion: api.GroupAmbassador + "/v2", Kind: kind, Metadata: api.Metadata{
			Name: fmt.Sprintf("%s%d", prefix, rapid.IntRange(0, 9).Draw(t, "n")), Namespace: ns.Draw(t, "namespace"),
			CreatedAt: now.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "age")) * time.Hour),
		}}
		k := h.Key()
		first := !seen[k]
		seen[k] = true
		return h, first
	}
	id := rapid.SampledFrom([]api.AmbassadorIDs{nil, nil, nil, {"default"}, {"other"}})
	for range rapid.IntRange(0, 12).Draw(t, "mappings") {
		h, first := head(api.KindTCPMapping, "m")
		if !first {
			continue
		}
		port := rapid.IntRange(1, 3).Draw(t, "port")
		m := &api.TCPMapping{Head: h, Spec: api.TCPMappingSpec{
			Port: &port, Host: host.Draw(t, "host"), Service: rapid.SampledFrom([]string{"a", "b:5", "https://c", "x:y"}).Draw(t, "service"),
			TLS: rapid.SampledFrom([]api.NameOrBool{{}, {}, {Name: "c0"}, {Name: "c1"}, {Bool: new(true)}}).Draw(t, "tls"),
		}}
		m.Spec.AmbassadorID = id.Draw(t, "id")
		m.Spec.Address = rapid.SampledFrom([]string{"", "127.0.0.1"}).Draw(t, "address")
		if rapid.Bool().Draw(t, "weighted") {
			m.Spec.Weight = new(rapid.IntRange(-1, 101).Draw(t, "weight"))
		}
		if rapid.IntRange(0, 3).Draw(t, "annotated") == 0 {
			m.Metadata.Annotations = map[string]string{api.AnnotationPrefix + api.AnnotationTLS: "passthrough"}
		}
		for _, x := range [][]string{
			{api.AnnotationConnectionsPerClient, "1", "none"}, {api.AnnotationMaxBytes, "4096"},
			{api.AnnotationLoadbalance, `{"algorithm":"SOURCE_HASH"}`, `{`}, {api.AnnotationHealth, `{"check":{}}`, `{"check":{"typ":"TCP"}}`},
		} {
			if rapid.IntRange(0, 6).Draw(t, x[0]) == 0 {
				if m.Metadata.Annotations == nil {
					m.Metadata.Annotations = map[string]string{}
				}
				m.Metadata.Annotations[api.AnnotationPrefix+x[0]] = rapid.SampledFrom(x[1:]).Draw(t, "value")
			}
		}
		in.TCPMappings = append(in.TCPMappings, m)
	}
	for range rapid.IntRange(0, 5).Draw(t, "contexts") {
		h, first := head(api.KindTLSContext, "c")
		if !first {
			continue
		}
		x := &api.TLSContext{Head: h, Spec: api.TLSContextSpec{Hosts: rapid.SliceOfN(host, 0, 2).Draw(t, "hosts"), Secret: rapid.SampledFrom([]string{"", "s0", "s1"}).Draw(t, "secret")}}
		x.Spec.AmbassadorID = id.Draw(t, "id")
		in.TLSContexts = append(in.TLSContexts, x)
	}
	for range rapid.IntRange(0, 4).Draw(t, "hosts") {
		h, first := head(api.KindHost, "h")
		if !first {
			continue
		}
		x := &api.Host{Head: h, Spec: api.HostSpec{Hostname: host.Draw(t, "hostname")}}
		if rapid.Bool().Draw(t, "secret") {
			x.Spec.TLSSecret = &api.HostSecret{Name: rapid.SampledFrom([]string{"s0", "s1"}).Draw(t, "secret")}
		}
		if rapid.Bool().Draw(t, "context") {
			x.Spec.TLSContext = &api.HostSecret{Name: rapid.SampledFrom([]string{"c0", "c1"}).Draw(t, "context")}
		}
		in.Hosts = append(in.Hosts, x)
	}
	for range rapid.IntRange(0, 2).Draw(t, "listeners") {
		if h, first := head(api.KindListener, "l"); first {
			port := rapid.IntRange(1, 3).Draw(t, "port")
			in.Listeners = append(in.Listeners, &api.Listener{Head: h, Spec: api.ListenerSpec{Port: &port, ProtocolStack: []string{"PROXY", "TCP"}}})
		}
	}
	for _, name := range []string{"s0", "s1"} {
		if rapid.IntRange(0, 3).Draw(t, "there") > 0 {
			s := &api.KubernetesSecret{Head: api.Head{APIVersion: "v1", Kind: api.KindSecret, Metadata: api.Metadata{Name: name, Namespace: "default"}}}
			s.Status.Keys = []string{"tls.crt", "tls.key"}
			s.Status.Certificate = &api.CertificateFacts{HasKey: true}
			in.Secrets = append(in.Secrets, s)
		}
	}
	return in
}

// Nothing depends on the order in which the Objects come.
func TestOrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		want := Compile(in)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		shuffle(r, in.TCPMappings)
		shuffle(r, in.TLSContexts)
		shuffle(r, in.Hosts)
		shuffle(r, in.Listeners)
		shuffle(r, in.Secrets)
		if got := Compile(in); !reflect.DeepEqual(want, got) {
			t.Fatal(difference(render(want), render(got)))
		}
	})
}

func shuffle[T any](r *rand.Rand, list []T) {
	r.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
}

// A row is of the mappings that share its address, port and host, and of what they
// use: any other Object can go without changing it.
func TestOneObjectDoesNotDisturbOthers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		whole, before := in, Compile(in)
		kind := rapid.IntRange(0, 2).Draw(t, "kind")
		var gone api.Object
		switch kind {
		case 0:
			gone = remove(t, &in.TCPMappings)
		case 1:
			gone = remove(t, &in.TLSContexts)
		case 2:
			gone = remove(t, &in.Hosts)
		}
		if gone == nil {
			return
		}
		after := rowsByText(Compile(in))
		for _, r := range before.Routes {
			if !involves(whole, before, &r, gone) && !after[rowText(&r)] {
				t.Fatalf("without %s there is no more\n%s", gone.Header().Key(), rowText(&r))
			}
		}
	})
}

func remove[T api.Object](t *rapid.T, list *[]T) api.Object {
	if len(*list) == 0 {
		return nil
	}
	i := rapid.IntRange(0, len(*list)-1).Draw(t, "gone")
	o := (*list)[i]
	*list = slices.Delete(slices.Clone(*list), i, i+1)
	return o
}

// involves reports whether a row of Compile(in) has to do with an Object.
func involves(in Input, out api.Routes, r *api.Route, o api.Object) bool {
	key := o.Header().Key()
	if slices.Contains(out.Uses[r.Owner], key) {
		return true
	}
	switch o := o.(type) {
	case *api.TCPMapping:
		return *o.Spec.Port == r.Bind.Port && canonical(o.Spec.Host) == r.Match.SNI && o.Spec.Address == r.Bind.Address
	case *api.TLSContext:
		// Without it a Host that names it may find another of that name, and then come
		// before the Host that the row uses.
		if r.Terminate != nil && slices.ContainsFunc(in.Hosts, func(h *api.Host) bool { return lendsTo(h, o.Metadata.Name) }) {
			return true
		}
	case *api.Host:
		// It takes the place of the context that it lends its certificate to, and a
		// context that is for hosts is not accepted without one, for origination neither.
		uses := func(k api.Key) bool { return k.Kind == api.KindTLSContext && lendsTo(o, k.Name) }
		if r.Terminate != nil && o.Spec.TLSContext != nil || slices.ContainsFunc(out.Uses[r.Owner], uses) {
			return true
		}
	}
	// What is not there may be of another installation, or near a name that is.
	return strings.Contains(r.Refused, key.Name)
}

// lendsTo reports whether a Host names a context.
func lendsTo(h *api.Host, context string) bool {
	return h.Spec.TLSContext != nil && h.Spec.TLSContext.Name == context
}

func rowText(r *api.Route) string { return render(api.Routes{Routes: []api.Route{*r}}) }

func rowsByText(out api.Routes) map[string]bool {
	rows := map[string]bool{}
	for _, r := range out.Routes {
		rows[rowText(&r)] = true
	}
	return rows
}

// What is said of shares holds for every set of weights.
func TestShares(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := Input{Now: now}
		weights := rapid.SliceOfN(rapid.IntRange(-20, 100), 1, 20).Draw(t, "weights")
		for i, w := range weights {
			m := &api.TCPMapping{Spec: api.TCPMappingSpec{Port: new(1), Service: "a"}}
			m.Metadata.Name = fmt.Sprintf("m%02d", i)
			m.Default()
			if w >= 0 {
				m.Spec.Weight = &w
			}
			in.TCPMappings = append(in.TCPMappings, m)
		}
		out := Compile(in)
		members := map[string]int{}
		sum, explicit, unset := 0, 0, 0
		for _, m := range out.Routes[0].Members {
			members[m.Object.Name], sum = m.Weight, sum+m.Weight
			if m.Weight < 0 {
				t.Fatalf("%s has %d", m.Object.Name, m.Weight)
			}
		}
		least, most := -1, 0
		for i, w := range weights {
			got, there := members[fmt.Sprintf("m%02d", i)]
			switch {
			case w < 0:
				if !there {
					t.Fatal("one without weight is not there")
				}
				unset, most = unset+1, max(most, got)
				if least < 0 || got < least {
					least = got
				}
			case there:
				explicit += w
			case explicit+w <= 100:
				t.Fatalf("m%02d is not there, and the weights before it come to %d", i, explicit)
			}
		}
		if refused := out.Routes[0].Refused != ""; refused != (sum == 0) {
			t.Fatalf("the weights come to %d, and the row refuses: %t", sum, refused)
		}
		for i, w := range weights {
			got, there := members[fmt.Sprintf("m%02d", i)]
			if w < 0 || !there || explicit == 0 {
				continue
			}
			if unset == 0 && got*explicit != w*sum || unset > 0 && got*100 != w*sum {
				t.Fatalf("m%02d has %d of %d for weight %d", i, got, sum, w)
			}
		}
		if unset > 0 && (most-least > 1 || explicit < 100 && least == 0) {
			t.Fatalf("those without weight have from %d to %d", least, most)
		}
	})
}

// Whatever comes, Compile does not panic, gives every Object a status, and sends
// nothing to a place that cannot be dialled.
func FuzzCompile(f *testing.F) {
	f.Add([]byte(`{"TCPMappings":[{"metadata":{"name":"a"},"spec":{"port":1,"host":"x","service":"a","tls":"c","circuit_breakers":[{}]}}],"TLSContexts":[{"metadata":{"name":"c"},"spec":{"hosts":["x"],"secret":"s.t"}}],"Hosts":[{"metadata":{"name":"h"},"spec":{"tlsSecret":{"name":"s"},"tlsContext":{"name":"c"},"tls":{"caSecret":"s"}}}]}`))
	f.Add([]byte(`{"Listeners":[{"metadata":{"name":"l"},"spec":{"port":1,"protocolStack":["PROXY","TLS"]}}],"Modules":[{"metadata":{"name":"ambassador"},"spec":{"config":{"circuit_breakers":5,"defaults":{"tls_secret_namespacing":false}}}}],"Resolvers":[{"kind":"ConsulResolver","metadata":{"name":"r"}}],"TCPMappings":[null,{"metadata":{"name":"a","annotations":{"cardea/sources":"1.2.3.4/8"}},"spec":{"port":1,"service":"[::1]:5","resolver":"r","idle_timeout_ms":"7"}}]}`))
	f.Add([]byte(`{"Secrets":[{"metadata":{"name":"s"},"status":{"keys":["root-cert.pem"]}}],"Own":[{"metadata":{"name":"s"}}],"TLSContexts":[{"metadata":{"name":"c"},"spec":{"cipher_suites":["[|]"],"ecdh_curves":[""],"alpn_protocols":",","sni":"."}}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var x struct {
			TCPMappings []*api.TCPMapping
			TLSContexts []*api.TLSContext
			Hosts       []*api.Host
			Listeners   []*api.Listener
			Modules     []*api.Module
			Resolvers   []*api.Resolver
			Secrets     []*api.KubernetesSecret
			Own         []*api.Secret
		}
		if json.Unmarshal(data, &x) != nil {
			return
		}
		in := Input{TCPMappings: x.TCPMappings, TLSContexts: x.TLSContexts, Hosts: x.Hosts, Listeners: x.Listeners, Modules: x.Modules, Resolvers: x.Resolvers, Secrets: x.Secrets, Own: x.Own, Now: now}
		out := Compile(in)
		keys := map[api.Key]bool{}
		addKeys(keys, x.TCPMappings)
		addKeys(keys, x.TLSContexts)
		addKeys(keys, x.Hosts)
		addKeys(keys, x.Listeners)
		addKeys(keys, x.Modules)
		addKeys(keys, x.Resolvers)
		for k, s := range out.Status {
			if c := s.Condition(api.ConditionAccepted); c == nil || c.Reason == "" || c.Status == "False" && c.Message == "" {
				t.Errorf("%s: %+v", k, s)
			}
		}
		if got := slices.Collect(maps.Keys(out.Status)); len(got) != len(keys) {
			t.Errorf("of %d Objects %d have a status", len(keys), len(got))
		}
		for _, r := range out.Routes {
			for _, m := range r.Members {
				if _, err := m.Config.Upstream.Endpoints(); err != nil {
					t.Errorf("%s: %v", m.Object, err)
				}
			}
		}
	})
}

func addKeys[T pointer](keys map[api.Key]bool, list []T) {
	var none T
	for _, o := range list {
		if o != none {
			keys[o.Header().Key()] = true
		}
	}
}

// BenchmarkCompile is of mappings with hosts on one port: one context has a certificate
// for all of them, or each has a context of its own.
func BenchmarkCompile(b *testing.B) {
	for _, x := range []struct{ mappings, contexts int }{{1, 1}, {100, 1}, {10_000, 1}, {10_000, 10_000}} {
		b.Run(fmt.Sprintf("mappings=%d/contexts=%d", x.mappings, x.contexts), func(b *testing.B) {
			in := many(x.mappings, x.contexts)
			b.ReportAllocs()
			for b.Loop() {
				if out := Compile(in); len(out.Routes) != x.mappings || out.Routes[0].Refused != "" {
					b.Fatal(out.Routes[0].Refused)
				}
			}
		})
	}
}

func many(mappings, contexts int) Input {
	in := Input{Now: now}
	s := &api.KubernetesSecret{Head: api.Head{APIVersion: "v1", Kind: api.KindSecret, Metadata: api.Metadata{Name: "s"}}}
	s.Status.Keys, s.Status.Certificate = []string{"tls.crt", "tls.key"}, &api.CertificateFacts{HasKey: true}
	in.Secrets = []*api.KubernetesSecret{s}
	for i := range mappings {
		m := &api.TCPMapping{Spec: api.TCPMappingSpec{Port: new(1), Host: fmt.Sprintf("h%d.example.com", i), Service: fmt.Sprintf("s%d:5432", i)}}
		m.Metadata.Name = fmt.Sprintf("m%d", i)
		m.Default()
		in.TCPMappings = append(in.TCPMappings, m)
	}
	for i := range contexts {
		c := &api.TLSContext{Spec: api.TLSContextSpec{Hosts: []string{fmt.Sprintf("h%d.example.com", i)}, Secret: "s"}}
		if contexts == 1 {
			c.Spec.Hosts = []string{"*.example.com"}
		}
		c.Metadata.Name = fmt.Sprintf("c%d", i)
		c.Default()
		in.TLSContexts = append(in.TLSContexts, c)
	}
	return in
}
