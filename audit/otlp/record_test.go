package otlp

import (
	"bytes"
	"encoding/json"
	"os"
	"strings"
	"testing"
	"time"

	common "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"google.golang.org/protobuf/proto"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

// plain returns a value as encoding/json would.
func plain(v *common.AnyValue) any {
	switch x := v.GetValue().(type) {
	case *common.AnyValue_StringValue:
		return x.StringValue
	case *common.AnyValue_BoolValue:
		return x.BoolValue
	case *common.AnyValue_IntValue:
		return x.IntValue
	case *common.AnyValue_DoubleValue:
		return x.DoubleValue
	case *common.AnyValue_ArrayValue:
		all := []any{}
		for _, e := range x.ArrayValue.GetValues() {
			all = append(all, plain(e))
		}
		return all
	case *common.AnyValue_KvlistValue:
		all := map[string]any{}
		for _, kv := range x.KvlistValue.GetValues() {
			all[kv.Key] = plain(kv.Value)
		}
		return all
	}
	return nil
}

// The document's record is the body, member by member; what is a string in the
// document is one here.
func TestDocument(t *testing.T) {
	doc, err := os.ReadFile("../testdata/mission-tcp-end.json")
	must(t, err)
	seen := time.Date(2025, 3, 21, 22, 28, 54, 7, time.UTC)
	l, id := newLog(audit.Entry{JSON: doc, Time: seen})
	var want any
	must(t, json.Unmarshal(doc, &want))
	w, err := json.Marshal(want)
	must(t, err)
	g, err := json.Marshal(plain(l.GetBody()))
	must(t, err)
	if string(g) != string(w) {
		t.Errorf("the body is\n%s\nwant\n%s", g, w)
	}
	if got := get(l.Body, "entry", "info", "tcp", "receivedBytes").GetStringValue(); got != "30253" {
		t.Errorf("receivedBytes is %q", got)
	}
	made := time.Date(2025, 3, 21, 22, 28, 53, 184211348, time.UTC)
	if l.TimeUnixNano != uint64(made.UnixNano()) || l.ObservedTimeUnixNano != uint64(seen.UnixNano()) ||
		l.SeverityNumber != logs.SeverityNumber_SEVERITY_NUMBER_INFO || l.SeverityText != "INFO" || l.EventName != "cardea.access.end" {
		t.Errorf("%v", l)
	}
	var attributes []string
	for _, kv := range l.Attributes {
		attributes = append(attributes, kv.Key+"="+kv.Value.GetStringValue())
	}
	wanted := `event.name=cardea.access.end
log.record.uid=q41j-e6m6-7wvk7mr90dy36kbbaxtpfmeh-ail9-8z34
cardea.service=pg2.default
cardea.user=usr1
cardea.session=usr1-3pt93j
cardea.connection.id=vldv-kx0n-jz20ix83wijy7p605o61puha-zpq6-2z7k`
	if got := strings.Join(attributes, "\n"); got != wanted || id != "q41j-e6m6-7wvk7mr90dy36kbbaxtpfmeh-ail9-8z34" {
		t.Errorf("attributes\n%s\nwant\n%s", got, wanted)
	}
}

func TestDenied(t *testing.T) {
	b, err := audit.AppendRecord(nil, audittest.Denied("no certificate"))
	must(t, err)
	l, _ := newLog(audit.Entry{JSON: b})
	if l.SeverityText != "WARN" || l.EventName != "cardea.access.denied" || get(l.Body, "entry", "common", "isAuthorized").GetBoolValue() {
		t.Errorf("%v", l)
	}
	s := &Sink{Instance: "test-1", Version: "1.2.3"}
	got := plain(list(s.request([]item{{log: l}})[0].Resource.Attributes...))
	if b, _ := json.Marshal(got); string(b) != `{"service.instance.id":"test-1","service.name":"cardea","service.version":"1.2.3"}` {
		t.Errorf("the resource is %s", b)
	}
}

func TestFlow(t *testing.T) {
	rec, _ := audittest.Connection(time.Now())
	rec.Entry.Info = api.AccessLogInfo{UDP: &api.UDPInfo{TCPInfo: api.TCPInfo{Type: api.LogStart}}}
	b, err := audit.AppendRecord(nil, rec)
	must(t, err)
	if l, _ := newLog(audit.Entry{JSON: b}); l.EventName != "cardea.access.start" {
		t.Errorf("the event is %s", l.EventName)
	}
}

// A foreign Object is named with its namespace.
func TestRouted(t *testing.T) {
	rec := audittest.Denied("no")
	rec.Entry.Common.ServiceRef = &api.Ref{APIVersion: "getambassador.io/v2", Kind: api.KindTCPMapping, Namespace: "team", Name: "db"}
	b, err := audit.AppendRecord(nil, rec)
	must(t, err)
	l, _ := newLog(audit.Entry{JSON: b})
	for _, kv := range l.Attributes {
		if kv.Key == "cardea.service" && kv.Value.GetStringValue() == "team/db" {
			return
		}
	}
	t.Errorf("attributes %v", l.Attributes)
}

// same fails unless a value says what encoding/json says.
func same(t *testing.T, v *common.AnyValue, want any) {
	switch want := want.(type) {
	case map[string]any: // a name that is there twice counts with its last value
		last := map[string]*common.AnyValue{}
		for _, kv := range v.GetKvlistValue().GetValues() {
			last[kv.Key] = kv.Value
		}
		if len(last) != len(want) {
			t.Fatalf("%v, want %v", v, want)
		}
		for k, w := range want {
			same(t, last[k], w)
		}
	case []any:
		got := v.GetArrayValue().GetValues()
		if len(got) != len(want) {
			t.Fatalf("%v, want %v", v, want)
		}
		for i := range want {
			same(t, got[i], want[i])
		}
	case json.Number:
		n, err := want.Int64()
		f, ferr := want.Float64()
		switch got := plain(v); {
		case err == nil && got == n, err != nil && ferr == nil && got == f, ferr != nil && got == want.String():
		default:
			t.Fatalf("%v, want %v", v, want)
		}
	default:
		if plain(v) != want {
			t.Fatalf("%v, want %v", v, want)
		}
	}
}

// FuzzRecord makes messages of what may stand in a log: each can be sent, and holds
// what was there.
func FuzzRecord(f *testing.F) {
	doc, err := os.ReadFile("../testdata/mission-tcp-end.json")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(doc)
	f.Add([]byte(`{"a":[1,-2.5,1e400,null,true,{"":"\ud800"}]}`))
	f.Add([]byte(strings.Repeat("[", 1000)))
	f.Add([]byte("{\"a\":\"\xff\""))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, _ := newLog(audit.Entry{JSON: b, Time: time.Now()})
		if _, err := proto.Marshal(l); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		if !json.Valid(b) {
			return
		}
		var want any
		d := json.NewDecoder(bytes.NewReader(b))
		d.UseNumber()
		must(t, d.Decode(&want))
		same(t, l.GetBody(), want)
	})
}

func BenchmarkNewItem(b *testing.B) {
	_, end := audittest.Connection(time.Now())
	j, err := audit.AppendRecord(nil, end)
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		newItem(audit.Entry{JSON: j})
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// A change in the health of an endpoint has a name of its own, and is a warning if the
// endpoint serves no more.
func TestHealth(t *testing.T) {
	for to, severity := range map[api.HealthState]string{
		api.HealthUnhealthy: "WARN", api.HealthEjected: "WARN", api.HealthHealthy: "INFO",
	} {
		rec := audit.New(time.Now())
		rec.Entry.Common.Status = api.StatusAllowed
		rec.Entry.Info.Health = &api.HealthInfo{Endpoint: "db:5432", Address: "10.0.0.5:5432", From: api.HealthUnknown, To: to}
		b, err := audit.AppendRecord(nil, rec)
		must(t, err)
		if l, _ := newLog(audit.Entry{JSON: b}); l.EventName != "cardea.access.health" || l.SeverityText != severity {
			t.Errorf("to %s: %s, %s", to, l.EventName, l.SeverityText)
		}
	}
}
