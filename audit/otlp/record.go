package otlp

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	otlp "go.opentelemetry.io/proto/otlp/common/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	resource "go.opentelemetry.io/proto/otlp/resource/v1"
	"google.golang.org/protobuf/proto"

	"cardea/api"
	"cardea/audit"
)

// An item is a record on its way.
type item struct {
	at      audit.Position
	written time.Time
	id      string
	lost    int64 // if it says that records are gone
	log     *logs.LogRecord
	size    int // bytes of log
}

func newItem(e audit.Entry) item {
	it := item{at: e.At, written: e.Time, lost: e.Lost}
	if e.Lost > 0 {
		it.log = newGap(e)
	} else {
		it.log, it.id = newLog(e)
	}
	it.size = proto.Size(it.log)
	return it
}

// newLog makes the message of a record. Its body is the record as the log has it,
// in the shape of the document: what is a string there, as the 64-bit counters are,
// is a string here.
func newLog(e audit.Entry) (l *logs.LogRecord, id string) {
	l = &logs.LogRecord{
		TimeUnixNano: nano(e.Time), ObservedTimeUnixNano: nano(e.Time),
		SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_INFO, SeverityText: "INFO",
		EventName: "cardea.access",
	}
	if !json.Valid(e.JSON) { // which no log gives
		l.Body = text(string(e.JSON))
		return l, ""
	}
	l.Body = decode(string(e.JSON))
	common := get(l.Body, "entry", "common")
	if made, err := time.Parse(time.RFC3339Nano, words(l.Body, "metadata", "createdAt")); err == nil {
		l.TimeUnixNano = nano(made)
	}
	if words(common, "status") == string(api.StatusDenied) {
		l.SeverityNumber, l.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
	}
	info := get(l.Body, "entry", "info")
	if t := cmp.Or(words(info, "tcp", "type"), words(info, "udp", "type")); t != "" {
		l.EventName += "." + strings.ToLower(t)
	} else if get(info, "api") != nil {
		l.EventName += ".api"
	} else if to := words(info, "health", "to"); to != "" {
		l.EventName += ".health"
		if !api.HealthState(to).Serves() {
			l.SeverityNumber, l.SeverityText = logs.SeverityNumber_SEVERITY_NUMBER_WARN, "WARN"
		}
	}
	id = words(l.Body, "metadata", "id")
	add := func(name, value string) {
		if value != "" {
			l.Attributes = append(l.Attributes, &otlp.KeyValue{Key: name, Value: text(value)})
		}
	}
	add("event.name", l.EventName)
	add("log.record.uid", id)
	service := words(common, "serviceRef", "name")
	if namespace := words(common, "serviceRef", "namespace"); namespace != "" {
		service = namespace + "/" + service
	}
	add("cardea.service", service)
	add("cardea.user", words(common, "userRef", "name"))
	add("cardea.session", words(common, "sessionRef", "name"))
	add("cardea.decision.id", words(common, "decisionID"))
	add("cardea.connection.id", words(common, "connectionID"))
	return l, id
}

// get returns what stands at a path in a value; nil if there is nothing.
func get(v *otlp.AnyValue, path ...string) *otlp.AnyValue {
	for _, name := range path {
		kvs := v.GetKvlistValue().GetValues()
		i := slices.IndexFunc(kvs, func(kv *otlp.KeyValue) bool { return kv.Key == name })
		if i < 0 {
			return nil
		}
		v = kvs[i].Value
	}
	return v
}

// words returns the text that stands at a path in a value.
func words(v *otlp.AnyValue, path ...string) string { return get(v, path...).GetStringValue() }

// newGap makes the message that says how many records are gone.
func newGap(e audit.Entry) *logs.LogRecord {
	const name = "cardea.access.gap"
	return &logs.LogRecord{
		TimeUnixNano: nano(e.Time), ObservedTimeUnixNano: nano(e.Time),
		SeverityNumber: logs.SeverityNumber_SEVERITY_NUMBER_ERROR, SeverityText: "ERROR",
		EventName: name,
		Body: list(&otlp.KeyValue{Key: "kind", Value: text("AccessLogGap")},
			&otlp.KeyValue{Key: "lost", Value: text(strconv.FormatInt(e.Lost, 10))},
			&otlp.KeyValue{Key: "words", Value: text(fmt.Sprintf("%d records were deleted by retention before the collector took them", e.Lost))}),
		Attributes: []*otlp.KeyValue{{Key: "event.name", Value: text(name)}},
	}
}

// request puts items into a message. Without any it is empty, which every receiver
// takes.
func (s *Sink) request(items []item) []*logs.ResourceLogs {
	if len(items) == 0 {
		return nil
	}
	records := make([]*logs.LogRecord, len(items))
	for i := range items {
		records[i] = items[i].log
	}
	about := []*otlp.KeyValue{
		{Key: "service.name", Value: text("cardea")},
		{Key: "service.instance.id", Value: text(s.Instance)},
	}
	if s.Version != "" {
		about = append(about, &otlp.KeyValue{Key: "service.version", Value: text(s.Version)})
	}
	return []*logs.ResourceLogs{{
		Resource:  &resource.Resource{Attributes: about},
		ScopeLogs: []*logs.ScopeLogs{{Scope: &otlp.InstrumentationScope{Name: "cardea/audit"}, LogRecords: records}},
	}}
}

// nano returns t as OTLP counts it; 0, which is unknown, if it cannot be said.
func nano(t time.Time) uint64 {
	if t.Year() < 1970 || t.Year() > 2261 {
		return 0
	}
	return uint64(t.UnixNano())
}

// text makes a value of text, in which each byte that is no UTF-8 is U+FFFD, as JSON
// decoders make of it.
func text(s string) *otlp.AnyValue {
	return &otlp.AnyValue{Value: &otlp.AnyValue_StringValue{StringValue: string([]rune(s))}}
}

func list(kvs ...*otlp.KeyValue) *otlp.AnyValue {
	return &otlp.AnyValue{Value: &otlp.AnyValue_KvlistValue{KvlistValue: &otlp.KeyValueList{Values: kvs}}}
}

// decode returns JSON, which is valid, as a value of OTLP, with the members of
// objects in their order.
func decode(s string) *otlp.AnyValue {
	d := decoder{s}
	return d.value()
}

// A decoder reads valid JSON. What it makes of plain text is parts of the same
// memory: a record costs a tenth of the time that encoding/json takes to make
// tokens of it.
type decoder struct{ rest string }

// next returns the first character of what comes next.
func (d *decoder) next() byte {
	d.rest = strings.TrimLeft(d.rest, " \t\r\n")
	return d.rest[0]
}

// more passes over a bracket, brace or comma, and reports whether there is an
// element after it.
func (d *decoder) more(end byte) bool {
	c := d.next()
	d.rest = d.rest[1:]
	if c != end && d.next() == end { // it was the opening one, of nothing
		d.rest = d.rest[1:]
		return false
	}
	return c != end
}

// scalar passes over a number, true, false or null.
func (d *decoder) scalar() string {
	n := strings.IndexAny(d.rest, ",]} \t\r\n")
	if n < 0 {
		n = len(d.rest)
	}
	s := d.rest[:n]
	d.rest = d.rest[n:]
	return s
}

// text passes over a string.
func (d *decoder) text() string {
	d.next()
	end := 1
	plain := true
	for d.rest[end] != '"' {
		if d.rest[end] == '\\' {
			plain = false
			end++
		}
		end++
	}
	quoted := d.rest[:end+1]
	d.rest = d.rest[end+1:]
	if plain {
		return string([]rune(quoted[1:end]))
	}
	var s string
	if err := json.Unmarshal([]byte(quoted), &s); err != nil {
		return quoted
	}
	return s
}

func (d *decoder) value() *otlp.AnyValue {
	switch d.next() {
	case '"':
		return &otlp.AnyValue{Value: &otlp.AnyValue_StringValue{StringValue: d.text()}}
	case '[':
		a := new(otlp.ArrayValue)
		for d.more(']') {
			a.Values = append(a.Values, d.value())
		}
		return &otlp.AnyValue{Value: &otlp.AnyValue_ArrayValue{ArrayValue: a}}
	case '{':
		var kvs []*otlp.KeyValue
		for d.more('}') {
			kv := &otlp.KeyValue{Key: d.text()}
			d.next()
			d.rest = d.rest[1:] // the colon
			kv.Value = d.value()
			kvs = append(kvs, kv)
		}
		return list(kvs...)
	}
	switch s := d.scalar(); s {
	case "null":
		return new(otlp.AnyValue)
	case "true", "false":
		return &otlp.AnyValue{Value: &otlp.AnyValue_BoolValue{BoolValue: s == "true"}}
	default:
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			return &otlp.AnyValue{Value: &otlp.AnyValue_IntValue{IntValue: n}}
		}
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return text(s) // too great
		}
		return &otlp.AnyValue{Value: &otlp.AnyValue_DoubleValue{DoubleValue: f}}
	}
}
