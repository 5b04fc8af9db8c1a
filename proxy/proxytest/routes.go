package proxytest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/proxy"
	"cardea/relay"
)

// runRoutes checks the connections that the routing table sent somewhere.
func runRoutes(t *testing.T, s Subject) {
	in := func(name string, f func(*testing.T, *World)) {
		t.Run("routed: "+name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { f(t, s.start(t, 0)) })
		})
	}
	open := func(t *testing.T, w *World, r *api.Routed) (*Client, *bufio.Reader) {
		t.Helper()
		c := w.ConnectBy(r, "192.0.2.9")
		in := bufio.NewReader(c)
		if got, err := s.Say(c, in, "hello"); err != nil || got != "hello" {
			t.Fatalf("read %q, %v", got, err)
		}
		return c, in
	}
	wantReset := func(t *testing.T, c io.Reader) {
		t.Helper()
		if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
			t.Fatalf("the client saw %v, want a reset", err)
		}
	}
	wantLog := func(t *testing.T, w *World, want ...api.LogType) []*api.AccessLog {
		t.Helper()
		synctest.Wait()
		recs, got := w.Journal.Connections()
		if !slices.Equal(got, want) {
			t.Fatalf("log = %v, want %v", got, want)
		}
		return recs
	}
	wantStill := func(t *testing.T, c *Client, r *bufio.Reader) {
		t.Helper()
		synctest.Wait()
		if got, err := s.Say(c, r, "still there"); err != nil || got != "still there" {
			t.Fatalf("read %q, %v", got, err)
		}
	}

	in("a foreign Object is served and logged", func(t *testing.T, w *World) {
		w.report = api.DialReport{Retries: 1, Verified: new(false), Words: "unknown authority"}
		r := routed("db", api.Limits{})
		c, _ := open(t, w, r)
		live := w.Gate.List()
		if len(live) != 1 || live[0].Service != "TCPMapping/team/db" || live[0].Source != "192.0.2.9:4711" || live[0].ConfigName != "default" || live[0].User != "" {
			t.Fatalf("live = %+v", live)
		}
		if to := w.dialled; to.Service != "TCPMapping/team/db" || to.Object != mapping("db") || to.Config != r.Config || to.Facts.IP != "192.0.2.9" || to.ConnectionID != live[0].ID {
			t.Errorf("dialled for %+v", to)
		}
		c.Reset("done")
		for i, rec := range wantLog(t, w, api.LogStart, api.LogEnd) {
			c := rec.Entry.Common
			if ref := c.ServiceRef; ref == nil || *ref != (api.Ref{APIVersion: "getambassador.io/v2", Kind: api.KindTCPMapping, Namespace: "team", Name: "db"}) || rec.Metadata.TargetRef != ref {
				t.Errorf("serviceRef = %+v, targetRef = %+v", ref, rec.Metadata.TargetRef)
			}
			if c.IsAuthenticated || !c.IsAuthorized || !c.IsAnonymous || !c.IsPublic || c.ConfigName != "default" || c.Mode != api.ModeTCP {
				t.Errorf("%s = %+v", rec.Entry.Info.TCP.Type, c)
			}
			want := r.Log
			if i == 1 {
				want.Retries, want.UpstreamVerified, want.UpstreamWords = 1, w.report.Verified, "unknown authority"
			}
			if c.Route == nil || *c.Route != want {
				t.Errorf("%s says %+v, want %+v", rec.Entry.Info.TCP.Type, c.Route, want)
			}
		}
	})
	in("who may not is reset and told nothing", func(t *testing.T, w *World) {
		for _, name := range []string{"db", "nothing"} {
			w.Decider.Set(func(d *Decider) { d.public = new(name != "db") })
			c := w.ConnectBy(routed(name, api.Limits{}), "192.0.2.9")
			wantReset(t, c)
			if v, ok := c.Verdict(); ok && v != (api.Verdict{Code: api.VerdictDenied}) {
				t.Errorf("it was told %+v", v)
			}
		}
		for i, rec := range wantLog(t, w, api.LogDenied, api.LogDenied) {
			c := rec.Entry.Common
			want := api.Ref{APIVersion: []string{"getambassador.io/v2", "getambassador.io/v3alpha1"}[i], Kind: api.KindTCPMapping, Namespace: "team", Name: []string{"db", "nothing"}[i]}
			if *c.ServiceRef != want || rec.Metadata.TargetRef != c.ServiceRef || c.IsAuthorized || !c.IsAnonymous || !c.IsPublic || c.Route == nil || c.Route.Match == "" {
				t.Errorf("DENIED = %+v %+v", c, c.ServiceRef)
			}
		}
		if w.Dials() != 0 {
			t.Errorf("dialled %d times", w.Dials())
		}
	})
	in("a DENY cuts", func(t *testing.T, w *World) {
		c, r := open(t, w, routed("db", api.Limits{}))
		w.Decider.Set(func(*Decider) {}, anyone)
		wantStill(t, c, r)
		w.Decider.Set(func(d *Decider) { d.public = new(false) }, anyone)
		wantReset(t, c)
		if tcp := wantLog(t, w, api.LogStart, api.LogEnd)[1].Entry.Info.TCP; tcp.CloseReason != string(relay.Revoked) {
			t.Errorf("END = %+v", tcp)
		}
	})
	in("an Object that is removed and cuts", func(t *testing.T, w *World) {
		c, _ := open(t, w, routed("db", api.Limits{}))
		other, r := open(t, w, routed("other", api.Limits{}))
		w.Decider.Set(func(d *Decider) { d.removed = true }, mapping("db"))
		wantReset(t, c)
		log := wantLog(t, w, api.LogStart, api.LogStart, api.LogEnd)
		if end := log[2].Entry; end.Info.TCP.CloseReason != string(relay.Drained) || end.Info.TCP.Error != "it was deleted" || end.Common.Reason.Type != api.ReasonRouteRemoved {
			t.Errorf("END = %+v %+v", end.Info.TCP, end.Common.Reason)
		}
		wantStill(t, other, r)
	})
	in("an Object that is removed and drains", func(t *testing.T, w *World) {
		c, r := open(t, w, routed("db", api.Limits{}))
		end := time.Now().Add(10*time.Minute + 300*time.Millisecond)
		w.Decider.Set(func(d *Decider) { d.until = end }, mapping("db"))
		time.Sleep(9 * time.Minute)
		wantStill(t, c, r)
		wantReset(t, c)
		if late := time.Since(end); late < 0 || late > 10*time.Millisecond {
			t.Errorf("cut %v after the end", late)
		}
		if end := wantLog(t, w, api.LogStart, api.LogEnd)[1].Entry; end.Info.TCP.CloseReason != string(relay.Drained) || end.Common.Reason.Type != api.ReasonRouteRemoved {
			t.Errorf("END = %+v %+v", end.Info.TCP, end.Common.Reason)
		}
	})
	in("an Object that is removed and made again", func(t *testing.T, w *World) {
		c, r := open(t, w, routed("db", api.Limits{}))
		w.Decider.Set(func(d *Decider) { d.until = time.Now().Add(time.Minute) }, mapping("db"))
		synctest.Wait()
		w.Decider.Set(func(d *Decider) { d.until, d.service = time.Time{}, "another" }, mapping("db"))
		time.Sleep(time.Hour)
		wantStill(t, c, r)
	})
	in("limits are those of the table", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.limits.Connections = 1 }) // which is about Services
		limits := api.Limits{Connections: 2, ConnectionsPerSession: 3, Idle: time.Minute}
		c, _ := open(t, w, routed("db", limits))
		open(t, w, routed("db", limits))
		open(t, w, routed("other", limits))
		wantReset(t, w.ConnectBy(routed("db", limits), "192.0.2.10"))
		begin := time.Now()
		w.Decider.Set(func(*Decider) {}, anyone)
		wantReset(t, c)
		if d := time.Since(begin); d < time.Minute || d > time.Minute+time.Second {
			t.Errorf("cut after %v", d)
		}
	})
	in("figures have the name that they are to have", func(t *testing.T, w *World) {
		named := routed("db", api.Limits{})
		named.StatsName = "orders"
		c, _ := open(t, w, named)
		open(t, w, routed("db", api.Limits{}))
		c.Reset("done")
		synctest.Wait()
		all := w.Gate.Stats().Objects
		if f := all[proxy.Counted{Kind: api.KindTCPMapping, Name: "orders"}]; f.Live != 0 || f.Ends[relay.ClientReset] != 1 || f.Received != 6 || f.Sent != 6 {
			t.Errorf("figures = %+v", all)
		}
		if f := all[proxy.Counted{Kind: api.KindTCPMapping, Name: "team/db"}]; f.Live != 1 || len(f.Ends) != 0 || len(all) != 2 {
			t.Errorf("figures = %+v", all)
		}
	})
	in("the names of figures are bounded", func(t *testing.T, w *World) {
		for i := range 10_050 {
			r := routed("db", api.Limits{})
			r.StatsName = fmt.Sprint(i)
			w.ConnectBy(r, "192.0.2.9").Reset("done")
			if i%500 == 0 {
				synctest.Wait()
			}
		}
		synctest.Wait()
		n, all := int64(0), w.Gate.Stats().Objects
		for _, f := range all {
			for _, ends := range f.Ends {
				n += ends
			}
		}
		if other := all[proxy.Other()]; len(all) != 10_001 || len(other.Ends) == 0 || n != 10_050 {
			t.Errorf("%d names, %d ends, others %+v", len(all), n, other)
		}
	})
	in("kill ends one connection", func(t *testing.T, w *World) {
		c, _ := open(t, w, routed("db", api.Limits{}))
		if !w.Gate.Kill(w.Gate.List()[0].ID, "root") {
			t.Fatal("there is none")
		}
		wantReset(t, c)
	})
	in("a Service keeps its config, and its record tells of the way", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.public, d.limits.Idle = new(true), time.Hour })
		service := api.Key{Group: api.GroupCore, Kind: api.KindService, Name: "svc.default"}
		a := api.Arrival{Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceAnonymous},
			Route: &api.Routed{Object: service, Limits: api.Limits{Idle: time.Minute}, Log: api.LogRoute{Listener: "*:443"}}}
		c := w.arrive(a)
		r := bufio.NewReader(c)
		wantStill(t, c, r)
		if to := w.dialled; to.Service != "svc.default" || to.Object != service || to.Config.Upstream.URL != "tcp://upstream:1" {
			t.Errorf("dialled for %+v", to)
		}
		time.Sleep(2 * time.Minute) // limits are the decision's
		wantStill(t, c, r)
		w.Decider.Set(func(d *Decider) { d.service = "another" }, anyone)
		wantReset(t, c)
		log := wantLog(t, w, api.LogStart, api.LogEnd)
		if route := log[0].Entry.Common.Route; route == nil || route.Listener != "*:443" {
			t.Errorf("START says %+v", route)
		}
	})
	in("a request to cancel goes where its connections are", func(t *testing.T, w *World) {
		w.Decider.Set(func(d *Decider) { d.public = new(true) })
		listener, from := "192.0.2.250:5432", netip.MustParseAddr("192.0.2.9")
		peers := func(listener string, from netip.Addr) (names []string) {
			for _, a := range w.Gate.Peers(listener, from) {
				names = append(names, a.Service+" "+a.Route.Object.Name+" "+a.Route.Config.Upstream.URL)
			}
			return names
		}
		db, _ := open(t, w, routed("db", api.Limits{}))
		open(t, w, routed("db", api.Limits{})) // to the same upstream
		time.Sleep(time.Second)
		svc := w.arrive(api.Arrival{Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceAnonymous}, Facts: api.Facts{IP: "192.0.2.9", Listener: listener, Tunnel: "public"}})
		ann := w.arrive(api.Arrival{Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceMemory, Data: []byte("ann")}, Facts: api.Facts{IP: "192.0.2.9", Listener: listener}})
		elsewhere := w.ConnectBy(routed("other", api.Limits{}), "192.0.2.10")
		synctest.Wait()
		if got, want := peers(listener, from), []string{" svc.default tcp://upstream", " db tcp://upstream"}; len(got) != 2 || !strings.HasPrefix(got[0], "svc.default svc.default tcp://") || !strings.HasPrefix(got[1], " db tcp://") {
			t.Errorf("peers are %q, want %q", got, want)
		}
		if got := peers("192.0.2.250:1", from); got != nil {
			t.Errorf("at another port: %q", got)
		}
		if got := peers(listener, netip.MustParseAddr("192.0.2.10")); len(got) != 1 || !strings.Contains(got[0], "other") {
			t.Errorf("from another address: %q", got)
		}
		a := w.Gate.Peers(listener, from)[1]
		if u := a.Route.Config; u.TLS != nil || u.Upstream.StartTLS != "" || u.Upstream.ProxyProtocol != api.ProxyV2 || a.Route.Log.Listener != "*:5432" {
			t.Errorf("the config is %+v", u)
		}
		a.Facts, a.Evidence = api.Facts{IP: "192.0.2.9"}, api.Evidence{Kind: api.EvidenceAnonymous}
		c := w.arrive(a)
		wantStill(t, c, bufio.NewReader(c))
		if to := w.dialled; to.Object != mapping("db") || to.Config != a.Route.Config {
			t.Errorf("dialled for %+v", to)
		}
		wantReset(t, c) // it does not last
		b := w.Gate.Peers(listener, from)[0]
		b.Evidence = api.Evidence{Kind: api.EvidenceAnonymous}
		c = w.arrive(b)
		wantStill(t, c, bufio.NewReader(c))
		if to := w.dialled; to.Service != "svc.default" || to.Config != b.Route.Config {
			t.Errorf("dialled for %+v", to)
		}
		for _, c := range []*Client{db, svc, ann, elsewhere, c} {
			c.Reset("done")
		}
		synctest.Wait()
		if got := peers(listener, from); len(got) != 1 {
			t.Errorf("one of two to an upstream is left: %q", got)
		}
	})
}
