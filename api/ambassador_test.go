package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v4"
)

// decodeForeign reads a document of Ambassador's as it stands in a file: every field of
// its spec must be known.
func decodeForeign(doc map[string]any) (Object, error) {
	group, _ := GroupOf(doc["apiVersion"].(string))
	k, ok := KindIn(group, doc["kind"].(string))
	if !ok {
		return nil, nil
	}
	delete(doc, "status")
	if meta, ok := doc["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}
	o := k.New()
	b, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return o, d.Decode(o)
}

// The documents of the original's own tests, where they are at hand, are read whole and
// valid, and come back from JSON as they were; all but those that are wrong on purpose.
func TestAmbassadorCases(t *testing.T) {
	dir := os.Getenv("CARDEA_EMISSARY_CASES")
	if dir == "" {
		t.Skip("CARDEA_EMISSARY_CASES names no folder")
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal("no case was found", err)
	}
	for _, f := range files {
		name := filepath.Base(f)
		if name == "INDEX.yaml" {
			continue
		}
		t.Run(strings.TrimSuffix(name, ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			// What stands for base64 is none.
			d := yaml.NewDecoder(bytes.NewReader(bytes.ReplaceAll(text, []byte("'@"), []byte("'' #@"))))
			for {
				var doc map[string]any
				if err := d.Decode(&doc); errors.Is(err, io.EOF) {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				o, err := decodeForeign(doc)
				if wrong := strings.Contains(name, "InvalidResources"); wrong != (err != nil) {
					t.Errorf("%v: %v", doc["metadata"], err)
				}
				if o != nil && err == nil {
					checkForeign(t, o)
				}
			}
		})
	}
}

func checkForeign(t *testing.T, o Object) {
	t.Helper()
	key := o.Header().Key()
	if again := Clone(o); !reflect.DeepEqual(o, again) {
		t.Errorf("%s: %+v came back as %+v", key, o, again)
	}
	o.Default()
	if o.Header().Key() != key {
		t.Errorf("%s is %s by default", key, o.Header().Key())
	}
	var p Problems
	o.Validate(&p)
	for _, x := range p.List {
		t.Errorf("%s: %s", key, x)
	}
}

// All that a TCPMapping, a TLSContext and a Host of any version may have.
func TestAmbassadorFields(t *testing.T) {
	for _, text := range []string{
		`{apiVersion: getambassador.io/v3alpha1, kind: TCPMapping, metadata: {name: a, namespace: b}, spec: {
			ambassador_id: [default], address: 127.0.0.1, port: 1, host: h, service: s, tls: ctx, weight: 0, idle_timeout_ms: "5000", enable_ipv4: true,
			enable_ipv6: false, circuit_breakers: [{priority: high, max_connections: 1, max_pending_requests: 2, max_requests: 3, max_retries: 4}],
			resolver: r, cluster_tag: t, stats_name: n, v2ExplicitTLS: {tls: "bool:true", serviceScheme: "https://"}}}`,
		`{apiVersion: getambassador.io/v2, kind: TCPMapping, metadata: {name: a}, spec: {ambassador_id: default, port: 1, service: s, tls: null, idle_timeout_ms: 5, v3StatsName: n, circuit_breakers: [], labels: {x: [y]}}}`,
		`{apiVersion: getambassador.io/v1, kind: TCPMapping, metadata: {name: a}, spec: {ambassadorId: [x], port: 1, service: s, tls: true}}`,
		`{apiVersion: getambassador.io/v2, kind: TLSContext, metadata: {name: a}, spec: {
			hosts: [h], secret: s, cert_chain_file: c, private_key_file: k, ca_secret: a, cacert_chain_file: f, crl_secret: r, v3CRLSecret: r, cert_required: false,
			alpn_protocols: "h2, http/1.1", min_tls_version: v1.0, max_tls_version: v1.3, cipher_suites: [x], ecdh_curves: [y], redirect_cleartext_from: 8080,
			sni: n, secret_namespacing: false}}`,
		`{apiVersion: getambassador.io/v3alpha1, kind: Host, metadata: {name: a}, spec: {
			hostname: h, tlsSecret: {name: s, namespace: n}, tlsContext: {name: c}, tls: {ca_secret: a, certRequired: true, caCertChainFile: f, sni: x},
			requestPolicy: {insecure: {action: Route, additionalPort: -1}}, mappingSelector: {matchLabels: {}}, selector: {}, acmeProvider: {authority: none},
			previewUrl: {enabled: true, type: Path}}}`,
		`{apiVersion: getambassador.io/v3alpha1, kind: Listener, metadata: {name: a}, spec: {
			port: 1, protocol: TLS, protocolStack: [PROXY, TLS, TCP], securityModel: XFP, statsPrefix: p, l7Depth: 1, hostBinding: {namespace: {from: SELECTOR}, selector: {}}}}`,
		`{apiVersion: getambassador.io/v3alpha1, kind: Module, metadata: {name: ambassador}, spec: {config: {enable_ipv6: true, defaults: {tls_secret_namespacing: false}}}}`,
		`{apiVersion: getambassador.io/v3alpha1, kind: ConsulResolver, metadata: {name: a}, spec: {address: "c:8500", datacenter: d}}`,
		`{apiVersion: getambassador.io/v2, kind: KubernetesEndpointResolver, metadata: {name: a}, spec: {}}`,
	} {
		var doc map[string]any
		if err := yaml.Unmarshal([]byte(strings.ReplaceAll(text, "\t", " ")), &doc); err != nil {
			t.Fatal(err)
		}
		o, err := decodeForeign(doc)
		if err != nil {
			t.Errorf("%v: %v", doc, err)
			continue
		}
		checkForeign(t, o)
	}
}

// What the documents may not be is an error of theirs, whatever else there is.
func TestAmbassadorProblems(t *testing.T) {
	for text, want := range map[string]string{
		`{spec: {port: 1, service: s}, metadata: {name: A}}`:                                                                                 "metadata.name",
		`{spec: {port: 1, service: s}, metadata: {name: a, namespace: a.b}}`:                                                                 "metadata.namespace",
		`{spec: {service: s}, metadata: {name: a}}`:                                                                                          "spec.port: is required",
		`{spec: {port: 70000, service: s}, metadata: {name: a}}`:                                                                             "spec.port: must be from 1 to 65535",
		`{spec: {port: 1}, metadata: {name: a}}`:                                                                                             "spec.service: is required",
		`{spec: {port: 1, service: s, circuit_breakers: [{priority: low}]}, metadata: {name: a}}`:                                            "spec.circuit_breakers[0].priority",
		`{spec: {port: 1, service: s, circuit_breakers: [{max_connections: -1}]}, metadata: {name: a}}`:                                      "spec.circuit_breakers[0].max_connections",
		`{spec: {port: 1, service: s, weight: 101, host: "a.*", address: nowhere, resolver: none, tls: nobody}, metadata: {name: a.b-c.d0}}`: "",
		`{spec: {port: 1, service: "a b:c"}, metadata: {name: a}}`:                                                                           "",
	} {
		m := new(TCPMapping)
		b, err := yamlToJSON(text)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(b, m); err != nil {
			t.Fatal(err)
		}
		m.Default()
		var p Problems
		m.Validate(&p)
		var got []string
		for _, x := range p.List {
			got = append(got, x.String())
		}
		if joined := strings.Join(got, "\n"); want == "" && joined != "" || !strings.HasPrefix(joined, want) {
			t.Errorf("%s: %q", text, joined)
		}
	}
}

func yamlToJSON(text string) ([]byte, error) {
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		return nil, err
	}
	return json.Marshal(v)
}

func TestInstallations(t *testing.T) {
	for text, want := range map[string][]string{
		`{}`:                            {"default"},
		`{"ambassador_id": []}`:         {"default"},
		`{"ambassador_id": null}`:       {"default"},
		`{"ambassador_id": "edge"}`:     {"edge"},
		`{"ambassador_id": ["a", "b"]}`: {"a", "b"},
		`{"ambassadorId": ["a"]}`:       {"a"},
		`{"ambassador_id": ["--apiVersion-v3alpha1-only--edge"]}`: {"edge"},
		`{"ambassador_id": "_automatic_"}`:                        {"_automatic_"},
	} {
		var i Installations
		if err := json.Unmarshal([]byte(text), &i); err != nil {
			t.Fatal(err)
		}
		if got := i.IDs(); !slices.Equal(got, want) {
			t.Errorf("%s: %q", text, got)
		}
		for _, id := range []string{"default", "edge", "a", "b"} {
			if got, in := i.Include(id), slices.Contains(want, id) || want[0] == "_automatic_"; got != in {
				t.Errorf("%s includes %s: %t", text, id, got)
			}
		}
	}
	for _, text := range []string{`{"ambassador_id": 5}`, `{"ambassador_id": [5]}`, `{"ambassador_id": {}}`} {
		if err := json.Unmarshal([]byte(text), new(Installations)); err == nil {
			t.Errorf("%s is read", text)
		}
	}
}

func TestOnRemovalCut(t *testing.T) {
	for value, want := range map[string]bool{"": false, "cut": true, " Cut ": true, "drain": false, "cuts": false} {
		m := &TCPMapping{Head: Head{Metadata: Metadata{Annotations: map[string]string{"cardea/on-removal": value}}}}
		if got := OnRemovalCut(m); got != want {
			t.Errorf("%q: %t", value, got)
		}
	}
	if OnRemovalCut(new(TCPMapping)) {
		t.Error("a mapping without annotations cuts")
	}
}

// A Host's tls may be written in two spellings, which mean the same.
func TestHostTLSSettings(t *testing.T) {
	read := func(text string) TLSSettings {
		var x HostTLS
		if err := json.Unmarshal([]byte(text), &x); err != nil {
			t.Fatal(err)
		}
		return x.Settings()
	}
	snake := read(`{"cert_chain_file":"c","private_key_file":"k","ca_secret":"a","cacert_chain_file":"f","crl_secret":"r","cert_required":true,
		"alpn_protocols":"h2","min_tls_version":"v1.2","max_tls_version":"v1.3","cipher_suites":["x"],"ecdh_curves":["y"],"redirect_cleartext_from":80}`)
	camel := read(`{"certChainFile":"c","privateKeyFile":"k","caSecret":"a","caCertChainFile":"f","crlSecret":"r","certRequired":true,
		"alpnProtocols":"h2","minTLSVersion":"v1.2","maxTLSVersion":"v1.3","cipherSuites":["x"],"ecdhCurves":["y"],"redirectCleartextFrom":80}`)
	if !reflect.DeepEqual(snake, camel) {
		t.Errorf("%+v\n%+v", snake, camel)
	}
}

// What the settings say of TLS, or is wrong with it, in Ambassador's words.
func TestTLSSettingsTerms(t *testing.T) {
	for _, x := range []struct {
		settings TLSSettings
		want     TLSTerms
		wrong    string
	}{
		{settings: TLSSettings{}},
		{settings: TLSSettings{MinTLSVersion: "v1.1", MaxTLSVersion: "v1.2"}, want: TLSTerms{MinVersion: "v1.1", MaxVersion: "v1.2"}},
		{settings: TLSSettings{CipherSuites: []string{"TLS_AES_128_GCM_SHA256", "AES128-SHA"}}, want: TLSTerms{CipherSuites: []string{"AES128-SHA"}}},
		{settings: TLSSettings{CipherSuites: []string{"TLS_AES_128_GCM_SHA256"}}, want: TLSTerms{MinVersion: "v1.3"}},
		{settings: TLSSettings{CipherSuites: []string{"TLS_AES_128_GCM_SHA256"}, MaxTLSVersion: "v1.2"}, wrong: "min_tls_version: must not be above max_tls_version"},
		{settings: TLSSettings{CipherSuites: []string{"ECDHE-RSA-AES128-GCM-SHA265"}}, wrong: "did you mean ECDHE-RSA-AES128-GCM-SHA256?"},
		{settings: TLSSettings{ECDHCurves: []string{"P-265"}}, wrong: "did you mean P-256?"},
		{settings: TLSSettings{MinTLSVersion: "TLSv1"}, wrong: "min_tls_version: must be one of"},
	} {
		terms, problems := x.settings.Terms()
		var words []string
		for _, p := range problems {
			words = append(words, p.String())
		}
		if x.wrong == "" && (len(words) > 0 || !reflect.DeepEqual(terms, x.want)) || !strings.Contains(strings.Join(words, "\n"), x.wrong) {
			t.Errorf("%+v: %+v %q", x.settings, terms, words)
		}
	}
}
