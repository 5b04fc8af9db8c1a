package cli

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"cardea/api"
)

func when() time.Time { return time.Date(2026, 1, 31, 18, 0, 0, 123e6, time.UTC) }

func TestExplain(t *testing.T) {
	service := &api.Key{Group: "core", Kind: "Service", Name: "nats.default"}
	deny := api.RuleRef{Policy: "night", Owner: service, Name: "at night", Effect: api.Deny, Priority: -2}
	allow := api.RuleRef{Owner: service, Inline: 1, Index: 2, Effect: api.Allow}
	var b strings.Builder
	err := explain(&b, api.WhyRequest{Subject: "alice", Service: "nats", At: when()}, &api.Explanation{
		Decision: api.Decision{
			ID: "aaaa-bbbb", Revision: api.Revision{Epoch: 1, Number: 7}, Effect: api.Deny, Reason: api.ReasonPolicyMatch, Words: "not shown",
			Message: "come back\nin the morning", Rule: &deny,
			DependsOn: []api.Key{*service, {Kind: "User", Name: "alice"}}, TimeBound: true,
		},
		Steps: []api.Step{
			{Rule: deny, Condition: "now().getHours() > 20 ||\nnow().getHours() < 6", Outcome: api.OutcomeMatch},
			{Rule: allow, Condition: `"group-1" in ctx.user.spec.groups`, Outcome: api.OutcomeSkipped, Words: "a stronger rule had decided"},
		},
		Hypothetical: true,
		Hints:        []string{"wait"},
	})
	if err != nil {
		t.Fatal(err)
	}
	b.WriteString("\n=====\n\n")
	if err := explain(&b, api.WhyRequest{Subject: "session/bob-x", Service: "pg.prod"}, &api.Explanation{Decision: api.Decision{
		ID: "cccc", Effect: api.Deny, Reason: api.ReasonNoSession, Words: "the Session does not exist",
	}}); err != nil {
		t.Fatal(err)
	}
	golden(t, "why.txt", b.String())
}

func TestLogTable(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	record := func(common api.AccessLogCommon, info api.AccessLogInfo) *api.AccessLog {
		return &api.AccessLog{Metadata: api.AccessLogMetadata{CreatedAt: when()}, Entry: api.AccessLogEntry{Common: common, Info: info}}
	}
	alice := api.AccessLogCommon{
		UserRef: &api.Ref{Name: "alice"}, ServiceRef: &api.Ref{Name: "nats.default"}, Status: api.StatusAllowed, DecisionID: "aaaa-bbbb",
		Facts: &api.Facts{IP: "::1", Port: 4711}, Reason: &api.LogReason{Type: api.ReasonPolicyMatch},
	}
	stranger := api.AccessLogCommon{
		Status: api.StatusDenied, Facts: &api.Facts{IP: "not an\x1b[2J address"}, ServiceRef: &api.Ref{Name: "a\nb"},
		Reason: &api.LogReason{Type: api.ReasonHandshake, Count: 42},
	}
	denied := alice
	denied.Status, denied.Reason = api.StatusDenied, &api.LogReason{Type: api.ReasonNoPolicyMatch}
	revoked := alice
	revoked.Reason = &api.LogReason{Type: api.ReasonNoPolicyMatch, Words: "no rule allows it"}
	end := func(reason, words string) api.AccessLogInfo {
		return api.AccessLogInfo{TCP: &api.TCPInfo{Type: api.LogEnd, CloseReason: reason, Error: words}}
	}
	mapping := api.AccessLogCommon{
		ServiceRef: &api.Ref{APIVersion: "getambassador.io/v2", Kind: "TCPMapping", Namespace: "default", Name: "my-host-1"}, Status: api.StatusAllowed,
		IsPublic: true, IsAnonymous: true, DecisionID: "cccc-dddd", Facts: &api.Facts{IP: "192.0.2.1", Port: 4711}, Reason: &api.LogReason{Type: api.ReasonAnonymous},
		Upstream: "10.0.0.1:9999", Route: &api.LogRoute{Listener: "*:2222", Match: "sni my-host-1", Version: "v7"},
	}
	mended := mapping
	mended.Route = &api.LogRoute{Listener: "*:2222", Match: "sni my-host-1", Version: "v7", Retries: 2, UpstreamVerified: new(bool), UpstreamWords: "it is self-signed"}
	nowhere := api.AccessLogCommon{
		Status: api.StatusDenied, Facts: &api.Facts{IP: "192.0.2.1", Port: 4712, TLS: &api.TLSFacts{SNI: "other"}}, Route: &api.LogRoute{Listener: "*:2222"},
		Reason: &api.LogReason{Type: api.ReasonNoRoute, Words: `nothing is served there for the name "other"`},
	}
	call := func(verb, kind, namespace, name string) *api.AccessLog {
		c := alice
		c.Facts = &api.Facts{IP: "::1", Port: 4711, Listener: "127.0.0.1:8443", API: &api.APIFacts{Namespace: namespace}}
		return record(c, api.AccessLogInfo{API: &api.APIInfo{Verb: verb, Kind: kind, Name: name}})
	}
	records := []*api.AccessLog{
		record(alice, api.AccessLogInfo{TCP: &api.TCPInfo{Type: api.LogStart}}),
		record(alice, api.AccessLogInfo{TCP: &api.TCPInfo{Type: api.LogEnd, ReceivedBytes: n(17), SentBytes: n(5 << 30), CloseReason: "REVOKED"}}),
		record(alice, api.AccessLogInfo{TCP: &api.TCPInfo{Type: api.LogEnd, ReceivedBytes: n(-1), SentBytes: n(-1), CloseReason: "CRASHED"}}),
		record(denied, api.AccessLogInfo{TCP: &api.TCPInfo{Type: api.LogDenied}}),
		record(denied, api.AccessLogInfo{API: &api.APIInfo{Verb: "list", Kind: "User"}}),
		record(alice, api.AccessLogInfo{API: &api.APIInfo{Verb: "update", Kind: "Service", Name: "nats.default"}}),
		record(stranger, api.AccessLogInfo{}),
		call("delete", "TCPMapping", "edge", "ssh"),
		call("get", api.FactKubernetesSecret, "edge", "supersecret"),
		call("list", "TCPMapping", "edge", ""),
		call("get", "Service", "prod", "web.prod"),
		call("get", "Secret", "", "password"),
		record(alice, end("DIAL_FAILED", "connection refused: 127.0.0.1:1")),
		record(alice, end("DIAL_TIMEOUT", strings.Repeat("long ", 40)+"end")),
		record(alice, end("UPSTREAM_TLS", "a\x1b[2J name")),
		record(revoked, end("REVOKED", "")),
		record(mapping, api.AccessLogInfo{TCP: &api.TCPInfo{Type: api.LogStart}}),
		record(mended, end("CLIENT", "")),
		record(nowhere, api.AccessLogInfo{TCP: &api.TCPInfo{Type: api.LogDenied}}),
		record(alice, api.AccessLogInfo{UDP: &api.UDPInfo{TCPInfo: api.TCPInfo{Type: api.LogStart}}}),
		record(alice, api.AccessLogInfo{UDP: &api.UDPInfo{
			TCPInfo: api.TCPInfo{Type: api.LogEnd, ReceivedBytes: n(64), SentBytes: n(128), CloseReason: "IDLE_TIMEOUT"}, ReceivedPackets: n(1), SentPackets: n(2),
		}}),
		record(alice, api.AccessLogInfo{UDP: &api.UDPInfo{
			TCPInfo: api.TCPInfo{Type: api.LogEnd, ReceivedBytes: n(-1), SentBytes: n(-1), CloseReason: "CRASHED"}, ReceivedPackets: n(-1), SentPackets: n(-1),
		}}),
	}
	var b strings.Builder
	for _, table := range []*logTable{{batch: 2}, {batch: 500, width: 130}, {batch: 500, wide: true}} {
		table.w = &b
		fmt.Fprintf(&b, "--- width %d, wide %v\n", table.width, table.wide)
		for _, rec := range records {
			if err := table.add(rec); err != nil {
				t.Fatal(err)
			}
		}
		if err := table.flush(); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "logs.txt", b.String())
}

func TestConnTable(t *testing.T) {
	list := []api.Connection{
		{ID: "aaaa", Service: "nats.default", User: "alice", Session: "alice-x", Source: "127.0.0.1:1", Upstream: "10.0.0.1:4222", ConfigName: "default",
			Tunnel: "cardea/1", StartedAt: when(), ReceivedBytes: 1023, SentBytes: 1 << 20, DecisionID: "dddd",
			Rule: &api.RuleRef{Policy: "allow-all", Owner: &api.Key{Kind: "User", Name: "alice"}, Effect: api.Allow}, Process: 4711, Draining: true},
		{ID: "cccc", Service: "TCPMapping/default/ssh", Source: "192.0.2.1:4711", Upstream: "10.0.0.2:22", StartedAt: when().Add(30 * time.Second), Process: 4712},
		{ID: "bbbb", Service: "nats.default", StartedAt: when().Add(time.Minute), ReceivedBytes: 1024, Process: 4712},
	}
	var b strings.Builder
	for _, wide := range []bool{false, true} {
		if err := connTable(list, wide, when().Add(time.Hour)).print(&b); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "conns.txt", b.String())
}

func TestPrintObjects(t *testing.T) {
	list := []json.RawMessage{
		json.RawMessage(`{"kind":"User","metadata":{"name":"alice","uid":"u1","createdAt":"2026-01-31T18:00:00Z"},"spec":{"type":"HUMAN","groups":["a1","b2"]}}`),
		json.RawMessage(`{"kind":"User","metadata":{"name":"bob"},"spec":{"type":"HUMAN","isDisabled":true}}`),
		json.RawMessage(`{"kind":"Service","metadata":{"name":"db.prod"},"spec":{"mode":"TCP","isPublic":true,"public":{"address":"*","hosts":["db.example.com"]}},"status":{"port":443,` +
			`"conditions":[{"type":"Accepted","status":"True"},{"type":"Listening","status":"False","message":"the port is in use"}]}}`),
		json.RawMessage(`{"kind":"Service","metadata":{"name":"web.prod"},"spec":{"mode":"TCP"},"status":{"port":80}}`),
		json.RawMessage(`{"kind":"Service","metadata":{"name":"open.prod"},"spec":{"mode":"TCP","isPublic":true},"status":{"port":22,"conditions":[{"type":"Listening","status":"True"}]}}`),
		json.RawMessage(`{"kind":"Group","metadata":{"name":"a1"},"spec":{}}`),
		json.RawMessage(`{"apiVersion":"core/v1","kind":"Secret","metadata":{"name":"password"},"spec":{}}`),
		json.RawMessage(`{"apiVersion":"v1","kind":"Secret","metadata":{"name":"supersecret","namespace":"default"},"type":"kubernetes.io/tls","status":{"keys":["tls.crt","tls.key"]}}`),
		json.RawMessage(`{"apiVersion":"getambassador.io/v2","kind":"TCPMapping","metadata":{"name":"ssh"},"spec":{"port":2222,"service":"upstream:22"},` +
			`"status":{"conditions":[{"type":"Accepted","status":"True"}]}}`),
		json.RawMessage(`{"apiVersion":"getambassador.io/v3alpha1","kind":"TCPMapping","metadata":{"name":"ssh","namespace":"prod"},"spec":{"port":2222,"host":"a.example","tls":"out",` +
			`"service":"upstream:22","weight":70},"status":{"conditions":[{"type":"Accepted","status":"False","message":"TCPMapping default/test has the same address, port and host"}]}}`),
	}
	var b strings.Builder
	for _, format := range []string{formatTable, formatWide, formatJSON, formatYAML, formatName} {
		b.WriteString("--- " + format + "\n")
		if err := printObjects(&b, format, list, false, true); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("--- one\n")
	if err := printObjects(&b, formatJSON, list[5:6], true, false); err != nil {
		t.Fatal(err)
	}
	b.WriteString("--- none\n")
	if err := printObjects(&b, formatJSON, nil, false, false); err != nil {
		t.Fatal(err)
	}
	golden(t, "objects.txt", b.String())

	if err := printObjects(&b, formatTable, []json.RawMessage{json.RawMessage(`{"kind":"Gadget"}`)}, false, false); err == nil {
		t.Error("a kind that is not known is printed")
	}
}

func TestReport(t *testing.T) {
	var b strings.Builder
	printReport(&b, &api.VerifyReport{OK: true, Records: 1, Segments: 2, Heads: 3, Notes: []string{"The last 3 lines are not signed yet."}})
	printReport(&b, &api.VerifyReport{OK: true, Records: 5, Segments: 2, Heads: 3, Journals: 2})
	printReport(&b, &api.VerifyReport{Records: 4, Segments: 1, Open: 1, Findings: []string{"Line 3 was changed."}})
	golden(t, "verify.txt", b.String())
}

// TestTableWidth cuts the last column of a table, and no other.
func TestTableWidth(t *testing.T) {
	for width, want := range map[int]string{
		0:  "NAME     STATE\nssh      Accepted=False: it is not alone\nlonger   -\n",
		32: "NAME     STATE\nssh      Accepted=False: it is …\nlonger   -\n",
		5:  "NAME     STATE\nssh      Accepted=False: it …\nlonger   -\n",
	} {
		var b strings.Builder
		table := table{headings: []string{"NAME", "STATE"}, width: width}
		table.add("ssh", "Accepted=False: it is not alone")
		table.add("longer", "")
		if err := table.print(&b); err != nil {
			t.Fatal(err)
		}
		if got := b.String(); got != want {
			t.Errorf("in %d characters: got\n%s\nwant\n%s", width, got, want)
		}
	}
}

// TestServed is what is shown of Services whose upstreams are Sessions: who serves them,
// or that nobody does.
func TestServed(t *testing.T) {
	service := func(name, url string, conditions []api.StatusCondition, endpoints ...api.EndpointStatus) *api.Service {
		s := &api.Service{Spec: api.ServiceSpec{Mode: api.ModeTCP, Port: 80, Config: &api.ServiceConfig{Upstream: api.Upstream{URL: url, User: "lab"}}}}
		s.Metadata.Name, s.Metadata.CreatedAt, s.Metadata.UpdatedAt = name, when(), when()
		s.Default()
		s.Status.Port, s.Status.Conditions, s.Status.Endpoints = 80, conditions, endpoints
		return s
	}
	const nobody = "127.0.0.1:8081 (user lab): no connected Session of User lab serves it: run `cardea connect --serve none` where lab is logged in"
	at := "127.0.0.1:8080 (user lab)"
	some := service("some", "tcp://127.0.0.1:8080", []api.StatusCondition{{Type: api.ConditionUpstreamHealthy, Status: "True", Reason: "SERVING", Since: when()}},
		api.EndpointStatus{Endpoint: at, Address: api.ServedAt("lab-1"), State: api.HealthHealthy, Since: when(), Weight: 1, Connections: 3},
		api.EndpointStatus{Endpoint: at, Address: api.ServedAt("lab-2"), State: api.HealthEjected, Since: when().Add(time.Hour), Weight: 1, Words: "1 failures in a row, out for 5s: no answer of the device"})
	none := service("none", "tcp://127.0.0.1:8081", []api.StatusCondition{{Type: api.ConditionUpstreamHealthy, Status: "False", Reason: "NO_ENDPOINT", Message: nobody, Since: when()}})
	var b strings.Builder
	if err := kindTable(kindOf(api.KindService), []api.Object{some, none}, true, false).print(&b); err != nil {
		t.Fatal(err)
	}
	for _, o := range []api.Object{some, none} {
		b.WriteString("\n=====\n\n")
		if err := describeObject(&b, raw(t, o), when().Add(4*time.Hour)); err != nil {
			t.Fatal(err)
		}
	}
	b.WriteString("\n=====\n\n")
	err := explain(&b, api.WhyRequest{Subject: "alice", Service: "none"}, &api.Explanation{Unserved: nobody, Decision: api.Decision{
		ID: "cccc", Effect: api.Allow, Reason: api.ReasonPolicyMatch, Config: none.EffectiveConfig(api.DefaultConfig),
	}})
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "served.txt", b.String())
}
