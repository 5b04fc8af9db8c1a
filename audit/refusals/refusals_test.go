package refusals

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run calls f with a Recorder that runs, in a bubble.
func run(t *testing.T, f func(t *testing.T, r *Recorder, log *memory.Log, stop func() error)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		log := new(memory.Log)
		r := New(log, nil, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx) }()
		stop := sync.OnceValue(func() error { cancel(); return <-done })
		defer stop()
		f(t, r, log, stop)
	})
}

func from(ip string) api.Refusal {
	return api.Refusal{Facts: api.Facts{IP: ip, Port: 4711, Listener: "127.0.0.1:8443"}, Reason: api.ReasonHandshake, Words: "no certificate"}
}

// counts returns how many refusals the records stand for, one number a record.
func counts(log *memory.Log) (each []int64, sum int64) {
	for _, rec := range log.All() {
		n := max(rec.Entry.Common.Reason.Count, 1)
		each = append(each, n)
		sum += n
	}
	return each, sum
}

func held(r *Recorder) (networks, waiting int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.sources), len(r.waiting)
}

func TestDatagramsAreRecordedAsSuch(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, _ func() error) {
		f := from("192.0.2.7")
		f.Datagrams = true
		r.Refuse(f)
		synctest.Wait()
		if i := log.All()[0].Entry.Info; i.TCP != nil || i.UDP == nil || i.UDP.Type != api.LogDenied {
			t.Errorf("%+v", i)
		}
	})
}

func TestFewAreRecordedOneByOne(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, _ func() error) {
		f := from("192.0.2.7")
		f.Facts.TLS = &api.TLSFacts{SNI: "pg2"}
		r.Refuse(f)
		synctest.Wait() // and no second has passed
		recs := log.All()
		if len(recs) != 1 {
			t.Fatalf("%d records, want 1", len(recs))
		}
		c := recs[0].Entry.Common
		if c.IsAuthenticated || c.IsAuthorized || c.Status != api.StatusDenied || recs[0].Entry.Info.TCP.Type != api.LogDenied ||
			c.Reason.Type != api.ReasonHandshake || c.Reason.Words != "no certificate" || c.Reason.Count != 0 ||
			c.Facts.IP != "192.0.2.7" || c.Facts.Port != 4711 || c.Facts.TLS.SNI != "pg2" {
			t.Errorf("record %+v", c)
		}
		time.Sleep(3 * time.Second)
		if each, _ := counts(log); len(each) != 1 {
			t.Errorf("records %v, want no more than the one", each)
		}
	})
}

// What a stranger says does not wait here in full.
func TestLongWords(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, _ func() error) {
		f := from("192.0.2.7")
		f.Words = strings.Repeat("x", 64<<10)
		f.Facts.TLS = &api.TLSFacts{SNI: f.Words, ALPN: f.Words}
		for range 20 {
			r.Refuse(f)
		}
		r.mu.Lock()
		for of, n := range r.sources {
			if w := n.places[place{}].last; len(w.Words)+len(w.Facts.TLS.SNI)+len(w.Facts.TLS.ALPN) > 3<<10 {
				t.Errorf("%v holds the words in full", of)
			}
		}
		r.mu.Unlock()
		if len(f.Facts.TLS.SNI) != 64<<10 {
			t.Error("the caller's facts were changed")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if _, sum := counts(log); sum != 20 {
			t.Errorf("%d refusals are recorded, want 20", sum)
		}
	})
}

func TestReason(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, _ func() error) {
		f := from("192.0.2.7")
		f.Reason = api.ReasonOverload
		r.Refuse(f)
		f.Reason = ""
		r.Refuse(f)
		synctest.Wait()
		recs := log.All()
		if len(recs) != 2 || recs[0].Entry.Common.Reason.Type != api.ReasonOverload || recs[1].Entry.Common.Reason.Type != api.ReasonHandshake {
			t.Errorf("records %+v, want OVERLOAD as it was said, and HANDSHAKE where nothing was", recs)
		}
	})
}

func TestManyBecomeOne(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, _ func() error) {
		for second := range 2 {
			for i := range 1000 {
				r.Refuse(from(fmt.Sprintf("192.0.2.%d", i%256)))
			}
			r.Refuse(from("198.51.100.1")) // another network is not held up by the first
			synctest.Wait()
			if each, _ := counts(log); len(each) != 11+12*second {
				t.Errorf("within second %d: %d records", second, len(each))
			}
			time.Sleep(time.Second)
			synctest.Wait()
			each, sum := counts(log)
			if len(each) != 12*(second+1) || sum != int64(1001*(second+1)) || each[len(each)-1] != 990 {
				t.Errorf("after second %d the records stand for %v", second, each)
			}
		}
		last := log.All()[11].Entry.Common
		if want := "990 refusals from 192.0.2.0/24; the last: no certificate"; last.Reason.Words != want || last.Facts.IP != "192.0.2.231" {
			t.Errorf("record %+v of %+v, want %q", last.Reason, last.Facts, want)
		}
	})
}

// refused is a refusal at a place.
func refused(ip string, object *api.Ref, listener string) api.Refusal {
	f := from(ip)
	f.Object, f.Route = object, &api.LogRoute{Listener: listener, Match: "sni x"}
	return f
}

// What is refused at a public port says of what it is about, and what is counted is
// counted apart.
func TestPlaces(t *testing.T) {
	mapping := &api.Ref{APIVersion: "getambassador.io/v2", Kind: api.KindTCPMapping, Namespace: "prod", Name: "db"}
	service := &api.Ref{APIVersion: api.Version, Kind: api.KindService, Name: "pg.prod"}
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, _ func() error) {
		for range 10 {
			r.Refuse(refused("192.0.2.7", service, "*:5432"))
		}
		open := refused("198.51.100.1", mapping, "*:443")
		open.Anonymous = true
		r.Refuse(open)
		for range 3 {
			r.Refuse(refused("192.0.2.7", service, "*:5432"))
			r.Refuse(refused("192.0.2.7", service, "*:5433"))
			r.Refuse(refused("192.0.2.7", mapping, "*:5432"))
		}
		r.Refuse(refused("192.0.2.7", nil, "*:5432"))
		time.Sleep(time.Second)
		synctest.Wait()
		recs := log.All()
		if len(recs) != 15 {
			t.Fatalf("%d records, want 15", len(recs))
		}
		c := recs[0].Entry.Common
		if *c.ServiceRef != *service || *recs[0].Metadata.TargetRef != *service || c.Route.Listener != "*:5432" || c.Route.Match != "sni x" || !c.IsPublic || c.IsAnonymous {
			t.Errorf("%+v", c)
		}
		if q := (audit.Query{Service: "pg.prod"}); !q.Match(recs[0]) || q.Match(recs[10]) {
			t.Error("a query for the Service does not find its refusals, or others, too")
		}
		if c := recs[10].Entry.Common; *c.ServiceRef != *mapping || !c.IsAnonymous || !(&audit.Query{Service: "prod/db"}).Match(recs[10]) {
			t.Errorf("%+v", c)
		}
		each := map[string]int64{}
		for _, rec := range recs[11:] {
			c := rec.Entry.Common
			at := c.Route.Listener
			if c.ServiceRef != nil {
				at = c.ServiceRef.Kind + " " + at
			}
			each[at] = max(c.Reason.Count, 1)
		}
		if want := map[string]int64{"Service *:5432": 3, "Service *:5433": 3, "TCPMapping *:5432": 3, "*:5432": 1}; !maps.Equal(each, want) {
			t.Errorf("counted %v, want %v", each, want)
		}
	})
}

// Who comes to very many places gets no more records by that, and fills no memory.
func TestManyPlaces(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, _ func() error) {
		const networks, places = 300, 100
		for i := range networks * places {
			ref := &api.Ref{APIVersion: api.Version, Kind: api.KindService, Name: fmt.Sprintf("s%d.ns", i%places)}
			r.Refuse(refused(fmt.Sprintf("10.%d.%d.1", i/places/256, i/places%256), ref, "*:443"))
		}
		r.mu.Lock()
		if r.places > maxCounts {
			t.Errorf("%d counts are held", r.places)
		}
		r.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		each, sum := counts(log)
		if sum != networks*places || len(each) > networks*perSecond+maxCounts+networks {
			t.Errorf("%d records stand for %d refusals", len(each), sum)
		}
		of := map[string]int{}
		for _, rec := range log.All() {
			c := rec.Entry.Common
			if others := strings.Contains(c.Reason.Words, " at other places; the last: "); others != (c.ServiceRef == nil) || others != (c.Route == nil) || others != (rec.Metadata.TargetRef == nil) {
				t.Fatalf("%+v", c)
			}
			of[c.Facts.IP]++
		}
		for ip, n := range of {
			if n > perSecond+maxPlaces+1 {
				t.Errorf("%s has %d records", ip, n)
			}
		}
	})
}

func TestNetworks(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"192.0.2.1", "192.0.2.254", true},
		{"192.0.2.1", "192.0.3.1", false},
		{"192.0.2.1", "::ffff:192.0.2.9", true},
		{"2001:db8:0:1::1", "2001:db8:0:1:ffff::1", true},
		{"2001:db8:0:1::1", "2001:db8:0:2::1", false},
		{"fe80::1%eth0", "fe80::2%eth1", true},
		{"", "no address", true},
		{"", "192.0.2.1", false},
	} {
		if same := neighbourhood(c.a) == neighbourhood(c.b); same != c.same {
			t.Errorf("%q and %q in one network: %t", c.a, c.b, same)
		}
	}
}

// Whoever has many networks does not fill the memory, and is counted all the
// same.
func TestManyNetworks(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, stop func() error) {
		const n = 20_000
		for i := range n {
			r.Refuse(from(fmt.Sprintf("10.%d.%d.1", i/256, i%256)))
			if networks, waiting := held(r); networks > maxSources+1 || waiting > maxWaiting {
				t.Fatalf("%d networks and %d records are held", networks, waiting)
			}
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if _, sum := counts(log); sum != n {
			t.Errorf("the records stand for %d refusals, want %d", sum, n)
		}
	})
}

// What the log cannot take is recorded when it can, with a count that is right.
func TestLogFails(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, stop func() error) {
		log.Fail(errors.New("disk full"))
		for range 3 {
			for range 50 {
				r.Refuse(from("192.0.2.7"))
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		log.Fail(nil)
		time.Sleep(time.Second)
		synctest.Wait()
		if each, sum := counts(log); sum != 150 {
			t.Errorf("records stand for %v, want 150 in all", each)
		}
		for _, rec := range log.All() {
			if r := rec.Entry.Common.Reason; r.Words != fmt.Sprintf("%d refusals from 192.0.2.0/24; the last: no certificate", r.Count) {
				t.Errorf("record says %q", r.Words)
			}
		}
	})
}

// What was refused just before the end is recorded.
func TestEnd(t *testing.T) {
	run(t, func(t *testing.T, r *Recorder, log *memory.Log, stop func() error) {
		for range 25 {
			r.Refuse(from("192.0.2.7"))
		}
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if each, sum := counts(log); sum != 25 || len(each) != 11 {
			t.Errorf("records stand for %v, want 25 in 11", each)
		}
	})
}

// Refuse does not wait, even if nobody runs the Recorder.
func TestRefuseNeverWaits(t *testing.T) {
	r := New(new(memory.Log), nil, slog.New(slog.DiscardHandler))
	for i := range 5000 {
		r.Refuse(from(fmt.Sprintf("10.%d.%d.1", i/256, i%256)))
	}
	if _, waiting := held(r); waiting != maxWaiting {
		t.Errorf("%d records wait, want %d", waiting, maxWaiting)
	}
}
