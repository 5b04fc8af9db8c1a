package gen

import (
	"slices"
	"strings"
	"testing"

	"cardea/api"
)

func TestExplain(t *testing.T) {
	d, err := Explain("Service", "spec.config.upstream")
	if err != nil {
		t.Fatal(err)
	}
	names := func(d Doc) (list []string) {
		for _, f := range d.Fields {
			list = append(list, f.Path[strings.LastIndexByte(f.Path, '.')+1:])
		}
		return list
	}
	if got := names(d); !slices.Equal(got, []string{"url", "loadbalance", "connectTimeout", "proxyProtocol", "startTLS", "families", "health", "user", "container"}) {
		t.Errorf("the fields of an upstream are %q", got)
	}
	if u := d.Fields[8]; !u.NotYet {
		t.Errorf("upstream.container is there: %+v", u)
	}
	if d, err = Explain("Service", "spec.mode"); err != nil || !slices.Equal(d.Values, []string{"TCP", "UDP"}) || !slices.Contains(d.Later, "HTTP") || !d.Required {
		t.Errorf("spec.mode: %+v, %v", d, err)
	}
	if d, err = Explain("Policy", "spec.rules"); err != nil || d.Type != "list of object" || !slices.Contains(names(d), "condition") {
		t.Errorf("spec.rules: %+v, %v", d, err)
	}
	if d, err = Explain("Policy", "spec.rules[0].condition.all.of.any"); err != nil || d.Text == "" && len(d.Fields) == 0 {
		t.Errorf("conditions within conditions: %+v, %v", d, err)
	}
	if d, err = Explain("User", ""); err != nil || !strings.Contains(d.Text, "person or a program") {
		t.Errorf("User: %+v, %v", d, err)
	}
	if _, err = Explain("User", "spec.gruops"); err == nil || !strings.Contains(err.Error(), "groups") {
		t.Errorf("a field that is not there: %v", err)
	}
	if d, err = Explain("TCPMapping", "spec"); err != nil || !slices.Contains(names(d), "idle_timeout_ms") {
		t.Errorf("TCPMapping: %+v, %v", d, err)
	}
	if d, err = Explain("Service", "spec.config.tls"); err != nil || slices.Contains(names(d), "verification") {
		t.Errorf("what only programs set is explained: %+v, %v", d, err)
	}
	if _, err = Explain("Usr", ""); err == nil {
		t.Error("a kind that is not there was explained")
	}
}

// TestExplainForeign: each field of Ambassador's documents has a text, and a type as
// people write it.
func TestExplainForeign(t *testing.T) {
	types := map[string]string{}
	for _, at := range [][2]string{{"TCPMapping", "spec"}, {"TCPMapping", "spec.circuit_breakers"}, {"TLSContext", "spec"}} {
		d, err := Explain(at[0], at[1])
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range d.Fields {
			if types[f.Path] = f.Type; f.Text == "" || f.Type == "–" {
				t.Errorf("%s: type %q, text %q", f.Path, f.Type, f.Text)
			}
		}
	}
	for path, want := range map[string]string{
		"TCPMapping.spec.tls": "true, false or a name", "TCPMapping.spec.idle_timeout_ms": "a whole number, or text of digits",
		"TCPMapping.spec.ambassador_id": "text or a list of texts", "TCPMapping.spec.labels": "anything", "TCPMapping.spec.circuit_breakers": "list of object",
	} {
		if types[path] != want {
			t.Errorf("%s is %q, want %q", path, types[path], want)
		}
	}
	if d, err := Explain("TCPMapping", "spec.enable_ipv4"); err != nil || !strings.HasPrefix(d.Text, "enable_ipv4 uses ") {
		t.Errorf("spec.enable_ipv4: %+v, %v", d, err)
	}
	d, err := Explain("TCPMapping", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{api.AnnotationTLS, api.AnnotationALPN, api.AnnotationSources, api.AnnotationProxyProtocol, api.AnnotationStartTLS,
		api.AnnotationUpstreamVerification, api.AnnotationConnectTimeout, api.AnnotationPendingTimeout, api.AnnotationMaxDuration,
		api.AnnotationHalfCloseTimeout, api.AnnotationOnRemoval, api.AnnotationConnectionsPerSecond} {
		if !strings.Contains(d.Text, "\n- "+api.AnnotationPrefix+name+": ") {
			t.Errorf("the annotation %s has no line in %s", name, d.Text)
		}
	}
}
