// Package audittest holds every [audit.Ledger] to the same promises.
package audittest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
)

// A Subject is an empty log under test.
type Subject struct {
	Log    audit.Ledger
	Reader audit.Reader
	Source audit.Source
	// Break makes the log unable to keep anything, and Mend able again.
	Break, Mend func()
	// Close closes the log, once what was taken is kept.
	Close func()
}

// Run runs the suite. open makes an empty log that runs until the test is over.
func Run(t *testing.T, open func(t *testing.T) Subject) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Subject)
	}{
		{"a record comes back as it was", comesBack},
		{"the caller may change a record after Append", noAlias},
		{"records of one caller keep their order", order},
		{"records of one call stay together", groups},
		{"a malformed record is refused, with its group", malformed},
		{"an error means that nothing is kept", broken},
		{"a context that is done keeps nothing", cancelled},
		{"a query gives what matches", query},
		{"a query that cannot be meant is an error", badQuery},
		{"a limit gives the latest", limit},
		{"following gives what is there and what comes", follow},
		{"a source goes on behind a place", source},
		{"what is begun is kept when Keep returns, and what came before", begun},
		{"what is noted is kept soon", noted},
		{"a malformed record is neither begun nor noted", malformedLedger},
		{"what Keep says is so", keepFails},
		{"what is noted while the log is broken is held, in order", held},
		{"many begin, keep and note at once", manyConnections},
		{"a closed log takes nothing", closed},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open(t)) })
	}
}

// Connection returns the START and the END of a connection, with all that they
// may hold.
func Connection(now time.Time) (start, end *api.AccessLog) {
	ref := func(kind, name string) *api.Ref {
		return &api.Ref{APIVersion: api.Version, Kind: kind, Name: name,
			UID: "uid-of-" + name, ResourceVersion: "version-of-" + name}
	}
	region := ref("Region", "default")
	region.ResourceVersion = ""
	start = audit.New(now)
	start.Metadata.ActorRef, start.Metadata.TargetRef = ref("Session", "usr1-3pt93j"), ref("Service", "pg2.default")
	start.Entry.Common = api.AccessLogCommon{
		ConnectionID: api.NewID(), StartedAt: now,
		IsAuthenticated: true, IsAuthorized: true, Status: api.StatusAllowed, Mode: "TCP",
		Reason: &api.LogReason{Type: api.ReasonPolicyMatch, Words: "allowed by rule 0",
			Rule: &api.RuleRef{Policy: "staff", Effect: api.Allow}},
		DecisionID: api.NewID(), Revision: api.Revision{Epoch: 1, Number: 12}, ConfigName: "host-1",
		Facts:    &api.Facts{IP: "192.0.2.7", Port: 50123, Listener: "127.0.0.1:8443", Tunnel: "tls", TLS: &api.TLSFacts{SNI: "pg2", Version: "1.3"}},
		Upstream: "10.0.0.5:5432", NamespaceRef: ref("Namespace", "default"), RegionRef: region,
		ServiceRef: ref("Service", "pg2.default"), SessionRef: ref("Session", "usr1-3pt93j"), UserRef: ref("User", "usr1"), DeviceRef: ref("Device", "linux-x7k2m9qp"),
	}
	start.Entry.Info.TCP = &api.TCPInfo{Type: api.LogStart}
	received, sent := int64(30253), int64(2876)
	e := *start
	e.Metadata.ID, e.Metadata.CreatedAt = api.NewID(), now.Add(45*time.Second).UTC()
	e.Entry.Common.EndedAt = now.Add(45 * time.Second)
	e.Entry.Info.TCP = &api.TCPInfo{Type: api.LogEnd, ReceivedBytes: &received, SentBytes: &sent, CloseReason: "CLIENT_CLOSED"}
	return start, &e
}

// Denied returns a record of a connection that was refused, marked with words.
func Denied(words string) *api.AccessLog {
	rec := audit.New(time.Now())
	rec.Entry.Common = api.AccessLogCommon{Status: api.StatusDenied, Reason: &api.LogReason{Type: api.ReasonHandshake, Words: words}}
	rec.Entry.Info.TCP = &api.TCPInfo{Type: api.LogDenied}
	return rec
}

// words returns the mark of a record of Denied.
func words(rec *api.AccessLog) string {
	if r := rec.Entry.Common.Reason; r != nil {
		return r.Words
	}
	return ""
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Collect returns all that a query gives.
func Collect(t *testing.T, r audit.Reader, q audit.Query) []api.AccessLog {
	t.Helper()
	var recs []api.AccessLog
	for rec, err := range r.Records(t.Context(), q) {
		must(t, err)
		recs = append(recs, rec)
	}
	return recs
}

func comesBack(t *testing.T, s Subject) {
	start, end := Connection(time.Now())
	hostile := Denied("line\nfeed \x1b[31m \u202e \u0085 \u2028 \U000e0001 \"quoted\" <tag> grün ✓")
	call := audit.New(time.Now().Add(time.Hour))
	call.Entry.Info.API = &api.APIInfo{Verb: "update", Kind: "Service", Name: "a.b", Before: json.RawMessage(`{"a":"ü"}`), After: json.RawMessage(`null`)}
	want := []*api.AccessLog{start, end, hostile, call}
	for _, rec := range want {
		must(t, s.Log.Append(t.Context(), rec))
	}
	got := Collect(t, s.Reader, audit.Query{})
	if len(got) != len(want) {
		t.Fatalf("%d records came back of %d", len(got), len(want))
	}
	for i := range want {
		w, err := json.Marshal(want[i])
		must(t, err)
		var back api.AccessLog
		must(t, json.Unmarshal(w, &back))
		utc(&back)
		if !reflect.DeepEqual(got[i], back) {
			t.Errorf("record %d\n got %+v\nwant %+v", i, got[i], back)
		}
	}
}

func utc(rec *api.AccessLog) {
	rec.Metadata.CreatedAt = rec.Metadata.CreatedAt.UTC()
	rec.Entry.Common.StartedAt = rec.Entry.Common.StartedAt.UTC()
	rec.Entry.Common.EndedAt = rec.Entry.Common.EndedAt.UTC()
}

func noAlias(t *testing.T, s Subject) {
	rec := Denied("before")
	must(t, s.Log.Append(t.Context(), rec))
	rec.Entry.Common.Reason.Words = "after"
	if got := Collect(t, s.Reader, audit.Query{}); len(got) != 1 || words(&got[0]) != "before" {
		t.Errorf("got %+v, want the record as it was when it was appended", got)
	}
}

// writeGroups appends groups of three from several goroutines.
func writeGroups(t *testing.T, s Subject) (callers, groups int) {
	callers, groups = 8, 20
	var wg sync.WaitGroup
	for c := range callers {
		wg.Go(func() {
			for g := range groups {
				name := fmt.Sprintf("%d %d ", c, g)
				if err := s.Log.Append(t.Context(), Denied(name+"0"), Denied(name+"1"), Denied(name+"2")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	return callers, groups
}

func order(t *testing.T, s Subject) {
	callers, groups := writeGroups(t, s)
	next := make([]int, callers)
	for _, rec := range Collect(t, s.Reader, audit.Query{}) {
		var c, g, i int
		_, err := fmt.Sscan(words(&rec), &c, &g, &i)
		must(t, err)
		if g*3+i != next[c] {
			t.Fatalf("caller %d: record %d of group %d comes as number %d", c, i, g, next[c])
		}
		next[c]++
	}
	for c, n := range next {
		if n != groups*3 {
			t.Errorf("caller %d: %d records, want %d", c, n, groups*3)
		}
	}
}

func groups(t *testing.T, s Subject) {
	callers, groups := writeGroups(t, s)
	recs := Collect(t, s.Reader, audit.Query{})
	if len(recs) != callers*groups*3 {
		t.Fatalf("%d records, want %d", len(recs), callers*groups*3)
	}
	for i := 0; i < len(recs); i += 3 {
		a, b, c := words(&recs[i]), words(&recs[i+1]), words(&recs[i+2])
		group := strings.TrimSuffix(a, "0")
		if a != group+"0" || b != group+"1" || c != group+"2" {
			t.Fatalf("records %q, %q, %q are not one group", a, b, c)
		}
	}
}

func malformed(t *testing.T, s Subject) {
	noID := Denied("b")
	noID.Metadata.ID = ""
	noTime := Denied("b")
	noTime.Metadata.CreatedAt = time.Time{}
	_, noConnection := Connection(time.Now())
	noConnection.Entry.Common.ConnectionID = ""
	noYear := Denied("b")
	noYear.Entry.Common.EndedAt = time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)
	noJSON := Denied("b")
	noJSON.Entry.Info.API = &api.APIInfo{Before: json.RawMessage(`{"a":`)}
	for _, bad := range []*api.AccessLog{nil, {}, noID, noTime, noConnection, noYear, noJSON} {
		if err := s.Log.Append(t.Context(), Denied("a"), bad); !errors.Is(err, audit.ErrMalformed) {
			t.Errorf("Append of %+v returned %v, want ErrMalformed", bad, err)
		}
	}
	if got := Collect(t, s.Reader, audit.Query{}); len(got) != 0 {
		t.Errorf("%d records are kept of groups that were refused", len(got))
	}
}

func broken(t *testing.T, s Subject) {
	must(t, s.Log.Append(t.Context(), Denied("1")))
	s.Break()
	for range 3 {
		if err := s.Log.Append(t.Context(), Denied("lost"), Denied("lost")); err == nil {
			t.Error("Append says that the record is kept, and it cannot be")
		}
	}
	s.Mend()
	must(t, s.Log.Append(t.Context(), Denied("2")))
	var got []string
	for _, rec := range Collect(t, s.Reader, audit.Query{}) {
		got = append(got, words(&rec))
	}
	if strings.Join(got, " ") != "1 2" {
		t.Errorf("kept %q, want 1 and 2", got)
	}
}

func cancelled(t *testing.T, s Subject) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Log.Append(ctx, Denied("x")); !errors.Is(err, context.Canceled) {
		t.Errorf("Append returned %v, want the error of the context", err)
	}
	if got := Collect(t, s.Reader, audit.Query{}); len(got) != 0 {
		t.Errorf("%d records are kept", len(got))
	}
}

func query(t *testing.T, s Subject) {
	at := time.Date(2025, 3, 21, 22, 28, 7, 0, time.UTC)
	start, end := Connection(at) // END is 45 s later
	must(t, s.Log.Append(t.Context(), start))
	must(t, s.Log.Append(t.Context(), end))
	denied := Denied("d")
	denied.Metadata.CreatedAt = at.Add(time.Hour)
	must(t, s.Log.Append(t.Context(), denied))
	call := audit.New(at.Add(2 * time.Hour))
	call.Entry.Common = api.AccessLogCommon{Status: api.StatusDenied, UserRef: &api.Ref{Name: "usr2"}, ServiceRef: &api.Ref{Name: api.APIService}}
	call.Entry.Info.API = &api.APIInfo{Verb: "delete"}
	must(t, s.Log.Append(t.Context(), call))

	routed := audit.New(at.Add(3 * time.Hour))
	routed.Entry.Common = api.AccessLogCommon{ConnectionID: "c", Status: api.StatusAllowed, Route: &api.LogRoute{Listener: "*:5432"},
		ServiceRef: &api.Ref{APIVersion: "getambassador.io/v2", Kind: api.KindTCPMapping, Namespace: "team", Name: "db.main", UID: "uid-of-db"}}
	routed.Entry.Info.TCP = &api.TCPInfo{Type: api.LogStart}
	must(t, s.Log.Append(t.Context(), routed))

	health := audit.New(at.Add(4 * time.Hour))
	health.Entry.Common = api.AccessLogCommon{Status: api.StatusAllowed, ServiceRef: &api.Ref{Name: "pg3.default"}}
	health.Entry.Info.Health = &api.HealthInfo{Endpoint: "db:5432", Address: "10.0.0.5:5432", From: api.HealthHealthy, To: api.HealthUnhealthy}
	must(t, s.Log.Append(t.Context(), health))

	all := []string{start.Metadata.ID, end.Metadata.ID, denied.Metadata.ID, call.Metadata.ID, routed.Metadata.ID, health.Metadata.ID}
	for _, c := range []struct {
		name string
		q    audit.Query
		want []string
	}{
		{"all", audit.Query{}, all},
		{"user", audit.Query{User: "usr1"}, all[:2]},
		{"user by uid", audit.Query{User: "uid-of-usr1"}, all[:2]},
		{"nobody", audit.Query{User: "usr"}, nil},
		{"service", audit.Query{Service: "pg2.default"}, all[:2]},
		{"service without its namespace", audit.Query{Service: "pg2"}, all[:2]},
		{"service of another namespace", audit.Query{Service: "pg2.other"}, nil},
		{"TCPMapping", audit.Query{Service: "db.main"}, all[4:5]},
		{"TCPMapping with its namespace", audit.Query{Service: "team/db.main"}, all[4:5]},
		{"TCPMapping with its namespace, as a Service", audit.Query{Service: "db.main.team"}, all[4:5]},
		{"TCPMapping with its kind", audit.Query{Service: "TCPMapping/team/db.main"}, all[4:5]},
		{"TCPMapping by uid", audit.Query{Service: "uid-of-db"}, all[4:5]},
		{"TCPMapping of another namespace", audit.Query{Service: "other/db.main"}, nil},
		{"namespace of a TCPMapping", audit.Query{Service: "team"}, nil},
		{"session", audit.Query{Session: "usr1-3pt93j"}, all[:2]},
		{"device", audit.Query{Device: "linux-x7k2m9qp"}, all[:2]},
		{"device by uid", audit.Query{Device: "uid-of-linux-x7k2m9qp"}, all[:2]},
		{"decision", audit.Query{Decision: start.Entry.Common.DecisionID}, all[:2]},
		{"another decision", audit.Query{Decision: "x"}, nil},
		{"START", audit.Query{Type: api.LogStart, Until: at.Add(time.Hour)}, all[:1]},
		{"END", audit.Query{Type: api.LogEnd}, all[1:2]},
		{"DENIED", audit.Query{Type: api.LogDenied}, all[2:4]},
		{"API", audit.Query{Type: audit.LogAPI}, all[3:4]},
		{"HEALTH", audit.Query{Type: audit.LogHealth}, all[5:]},
		{"health of a service", audit.Query{Service: "pg3"}, all[5:]},
		{"since", audit.Query{Since: at.Add(45 * time.Second)}, all[1:]},
		{"until", audit.Query{Until: at.Add(45 * time.Second)}, all[:1]},
		{"between", audit.Query{Since: at.Add(time.Minute), Until: at.Add(2 * time.Hour)}, all[2:3]},
		{"both", audit.Query{User: "usr2", Type: api.LogDenied}, all[3:4]},
	} {
		var got []string
		for _, rec := range Collect(t, s.Reader, c.q) {
			got = append(got, rec.Metadata.ID)
		}
		if strings.Join(got, "\n") != strings.Join(c.want, "\n") {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func badQuery(t *testing.T, s Subject) {
	now := time.Now()
	for _, q := range []audit.Query{{Type: "STOP"}, {Limit: -1}, {Since: now, Until: now}} {
		n := 0
		for _, err := range s.Reader.Records(t.Context(), q) {
			n++
			if err == nil {
				t.Errorf("%+v gives a record", q)
			}
		}
		if n != 1 {
			t.Errorf("%+v gives %d things, want one error", q, n)
		}
	}
}

func limit(t *testing.T, s Subject) {
	for i := range 5 {
		must(t, s.Log.Append(t.Context(), Denied(fmt.Sprint(i))))
	}
	for n, want := range map[int]string{1: "4", 3: "2 3 4", 5: "0 1 2 3 4", 9: "0 1 2 3 4"} {
		var got []string
		for _, rec := range Collect(t, s.Reader, audit.Query{Limit: n}) {
			got = append(got, words(&rec))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("limit %d gives %q, want %q", n, got, want)
		}
	}
}

func follow(t *testing.T, s Subject) {
	for i := range 3 {
		must(t, s.Log.Append(t.Context(), Denied(fmt.Sprint(i))))
	}
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan string)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() {
		defer close(got)
		for rec, err := range s.Reader.Records(ctx, audit.Query{Follow: true, Limit: 2}) {
			if err != nil {
				t.Error(err)
			}
			got <- words(&rec)
		}
	})
	for _, want := range []string{"1", "2"} {
		if g := <-got; g != want {
			t.Errorf("got %q, want %q", g, want)
		}
	}
	for i := range 10 {
		must(t, s.Log.Append(t.Context(), Denied(fmt.Sprintf("live %d", i))))
		if g, want := <-got, fmt.Sprintf("live %d", i); g != want {
			t.Errorf("got %q, want %q", g, want)
		}
	}
	for i := range 20 { // and what was there when it was told to stop
		must(t, s.Log.Append(t.Context(), Denied(fmt.Sprintf("last %d", i))))
	}
	cancel()
	for i := range 20 {
		if g, want := <-got, fmt.Sprintf("last %d", i); g != want {
			t.Errorf("got %q, want %q", g, want)
		}
	}
	for g := range got {
		t.Errorf("got %q after the last", g)
	}
}

func source(t *testing.T, s Subject) {
	for i := range 10 {
		must(t, s.Log.Append(t.Context(), Denied(fmt.Sprint(i))))
	}
	end, durable := s.Source.End()
	if end.Record != 10 || end.Line < 10 || durable.Line > end.Line || durable.Record > end.Record {
		t.Errorf("the log ends at %+v, and is durable up to %+v", end, durable)
	}
	must(t, s.Source.Sync())
	if _, durable = s.Source.End(); durable != end {
		t.Errorf("after Sync the log is durable up to %+v, and ends at %+v", durable, end)
	}
	places := []audit.Position{{}}
	next := func(from audit.Position, i int) audit.Position {
		t.Helper()
		for e, err := range s.Source.Follow(t.Context(), from) {
			must(t, err)
			var rec api.AccessLog
			must(t, json.Unmarshal(e.JSON, &rec))
			if words(&rec) != fmt.Sprint(i) || e.At.Record != int64(i+1) || i > 0 && e.At.Line <= from.Line || e.Time.IsZero() || e.Lost != 0 {
				t.Fatalf("behind %+v comes %q at %+v, want %d", from, words(&rec), e.At, i)
			}
			return e.At
		}
		t.Fatalf("nothing comes behind %+v", from)
		return from
	}
	for i := range 10 {
		places = append(places, next(places[i], i))
	}
	if places[10] != end {
		t.Errorf("the last record is at %+v, and the log ends at %+v", places[10], end)
	}
	must(t, s.Log.Append(t.Context(), Denied("10")))
	next(places[10], 10)
	next(places[4], 4)
	next(audit.Position{Line: end.Line + 1000, Record: end.Record + 1000}, 0) // of another log

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	for _, err := range s.Source.Follow(ctx, places[5]) {
		must(t, err)
		if n++; n == 6 {
			cancel()
		}
	}
	if n != 6 {
		t.Errorf("%d records behind the fifth, want 6", n)
	}
}
