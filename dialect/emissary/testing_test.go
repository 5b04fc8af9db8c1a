package emissary

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v4"

	"cardea/api"
)

// now is the instant of all tests.
var now = time.Unix(1_800_000_000, 0)

// A setting of a test's input that is no Object: kind Input.
type inputDoc struct {
	AmbassadorID string
	Namespace    string
	Verification api.Verification
	Files        []string // prefixes of the paths that may be used
}

// parse reads documents as the manifest does, but strictly all of their spec.
func parse(text []byte) (Input, error) {
	in := Input{Now: now}
	d := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc map[string]any
		err := d.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return in, nil
		}
		if err != nil {
			return in, err
		}
		if doc == nil {
			continue
		}
		if err := in.addDoc(doc); err != nil {
			return in, fmt.Errorf("%v: %w", doc["metadata"], err)
		}
	}
}

func (in *Input) addDoc(doc map[string]any) error {
	kind, _ := doc["kind"].(string)
	version, _ := doc["apiVersion"].(string)
	group, _ := api.GroupOf(version)
	delete(doc, "apiVersion")
	delete(doc, "kind")
	if kind == "Input" {
		var x inputDoc
		if err := strictly(doc, &x); err != nil {
			return err
		}
		in.AmbassadorID, in.Namespace, in.Verification = x.AmbassadorID, x.Namespace, x.Verification
		in.Files = func(path string) bool {
			return slices.ContainsFunc(x.Files, func(p string) bool { return strings.HasPrefix(path, p) })
		}
		return nil
	}
	if meta, ok := doc["metadata"].(map[string]any); ok {
		delete(meta, "creationTimestamp")
	}
	k, ok := api.KindIn(group, kind)
	if !ok || group == api.GroupCore && kind != api.KindSecret {
		return nil // Mappings and the like
	}
	if k.IsForeign() && kind != api.KindSecret {
		delete(doc, "status")
	}
	if s, ok := doc["data"].(map[string]any); ok && group == api.GroupKubernetes {
		keys := slices.Sorted(maps.Keys(s))
		status := map[string]any{"keys": keys}
		if s["tls.crt"] != "unreadable" && (slices.Contains(keys, "tls.crt") || slices.Contains(keys, "cert-chain.pem")) {
			facts := map[string]any{"hasKey": s["tls.key"] != "other" && (slices.Contains(keys, "tls.key") || slices.Contains(keys, "key.pem"))}
			crt, _ := s["tls.crt"].(string)
			if until, ok := strings.CutPrefix(crt, "until "); ok {
				facts["notAfter"] = until
			}
			status["certificate"] = facts
		}
		delete(doc, "data")
		doc["status"] = status
	}
	o := k.New()
	if err := strictly(doc, o); err != nil {
		return err
	}
	o.Header().APIVersion, o.Header().Kind = version, kind
	o.Default()
	in.add(o)
	return nil
}

func (in *Input) add(o api.Object) {
	switch o := o.(type) {
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
	case *api.KubernetesSecret:
		in.Secrets = append(in.Secrets, o)
	case *api.Secret:
		in.Own = append(in.Own, o)
	}
}

// strictly reads a document into a struct that must have a field for everything.
func strictly(doc any, into any) error {
	b, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	return d.Decode(into)
}

// parseT is parse of a text whose lines may be indented by tabs.
func parseT(t testing.TB, text string) Input {
	t.Helper()
	in, err := parse([]byte(strings.ReplaceAll(text, "\t", "")))
	if err != nil {
		t.Fatal(err)
	}
	return in
}

// render writes Routes for a person, and for golden files.
func render(r api.Routes) string {
	var b strings.Builder
	for _, x := range r.Routes {
		renderRoute(&b, &x)
	}
	for _, p := range r.Proxied {
		fmt.Fprintf(&b, "proxied %s\n", p)
	}
	for _, k := range slices.SortedFunc(maps.Keys(r.Status), compareKeys) {
		fmt.Fprintf(&b, "%s\n", k)
		for _, c := range r.Status[k].Conditions {
			fmt.Fprintf(&b, "    %s=%s %s", c.Type, c.Status, c.Reason)
			if c.Message != "" {
				fmt.Fprintf(&b, ": %s", c.Message)
			}
			b.WriteByte('\n')
		}
		for _, n := range r.Status[k].Notes {
			fmt.Fprintf(&b, "    note: %s\n", n)
		}
		if uses := r.Uses[k]; uses != nil {
			fmt.Fprintf(&b, "    uses: %s\n", joined(uses))
		}
	}
	return b.String()
}

func compareKeys(a, b api.Key) int { return strings.Compare(a.String()+a.Group, b.String()+b.Group) }

func joined[T fmt.Stringer](list []T) string {
	var all []string
	for _, x := range list {
		all = append(all, x.String())
	}
	return strings.Join(all, ", ")
}

func renderRoute(b *strings.Builder, x *api.Route) {
	fmt.Fprintf(b, "route %s", x.Bind)
	if x.Match.SNI != "" {
		fmt.Fprintf(b, " sni=%s", x.Match.SNI)
	}
	if x.Match.ALPN != nil {
		fmt.Fprintf(b, " alpn=%s", x.Match.ALPN)
	}
	if x.Match.Sources != nil {
		fmt.Fprintf(b, " sources=%s", x.Match.Sources)
	}
	fmt.Fprintf(b, " of %s\n", x.Owner)
	if x.Refused != "" {
		fmt.Fprintf(b, "    refused: %s\n", x.Refused)
	}
	if x.StartTLS != "" {
		fmt.Fprintf(b, "    starttls %s\n", x.StartTLS)
	}
	if x.Rate != 0 {
		fmt.Fprintf(b, "    rate %d\n", x.Rate)
	}
	if t := x.Terminate; t != nil {
		fmt.Fprintf(b, "    terminate%s\n", fields("cert", t.Certificate, "ca", t.ClientCA, "crl", t.CRL, "required", t.RequireClientCertificate, "alpn", t.ALPN, "terms", t.TLSTerms))
	}
	for _, m := range x.Members {
		fmt.Fprintf(b, "    %d %s%s\n", m.Weight, m.Object, fields("stats", m.StatsName))
		u := m.Config.Upstream
		fmt.Fprintf(b, "        %s%s%s\n", u.URL, fields("families", u.Families, "proxy", u.ProxyProtocol, "starttls", u.StartTLS), fields("connect", u.ConnectTimeout.String(), "balance", written(u.Loadbalance), "health", written(u.Health)))
		if t := m.Config.TLS; t != nil {
			fmt.Fprintf(b, "        tls%s\n", fields("own", t.Own, "ca", t.CA, "crl", t.CRL, "alpn", t.ALPN, "terms", t.TLSTerms, "name", t.ServerName, "verification", t.Verification))
		}
		l := m.Limits
		if text := fields("connections", l.Connections, "perClient", l.ConnectionsPerSession, "bytes", l.Bytes, "upload", l.Upload, "download", l.Download, "pending", l.Pending, "pendingTimeout", l.PendingTimeout, "idle", l.Idle, "halfClose", l.HalfClose, "duration", l.Duration); text != "" {
			fmt.Fprintf(b, "        limits%s\n", text)
		}
	}
}

// written writes a value as JSON, nil as "".
func written(v any) string {
	if b, err := json.Marshal(v); err == nil && string(b) != "null" {
		return string(b)
	}
	return ""
}

// fields writes names and values, without those that are zero.
func fields(list ...any) string {
	var b strings.Builder
	for i := 0; i < len(list); i += 2 {
		text := fmt.Sprint(list[i+1])
		switch text {
		case "", "0", "0s", "false", "[]", "<nil>", "{  [] []}":
		case "3000 milliseconds":
		default:
			fmt.Fprintf(&b, " %s=%s", list[i], text)
		}
	}
	return b.String()
}
