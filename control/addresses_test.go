package control

import (
	"bytes"
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardea/address"
	"cardea/api"
	"cardea/store"
	"cardea/store/backup"
	"cardea/store/memory"
)

// addressesOf returns the addresses of a Service.
func (w *world) addressesOf(name string) api.Addresses {
	w.t.Helper()
	return get[*api.Service](w, api.KindService, name).Status.Addresses
}

// internals returns how many Objects of each kind the cluster keeps for itself.
func (w *world) internals() map[string]int {
	w.t.Helper()
	n := map[string]int{}
	err := w.Store.View(w.t.Context(), func(r store.Reader) error {
		for rec, err := range r.List(address.Group, "") {
			if err != nil {
				return err
			}
			n[rec.Key.Kind]++
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return n
}

func plainService(name, more string) string {
	return `{'kind':'Service','metadata':{'name':'` + name + `'},'spec':{'mode':'TCP','config':{'upstream':{'url':'tcp://127.0.0.1:4222'}}` + more + `}}`
}

func TestServicesHaveAddresses(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, plainService("one", ""), plainService("two", ""))
	p := w.plan()
	one, two := w.addressesOf("one.default"), w.addressesOf("two.default")
	for _, a := range []api.Addresses{one, two} {
		if !within(t, a.IPv4, p.Services()) || !within(t, a.IPv6, p.Services()) {
			t.Errorf("%v is not of %v", a, p.Services())
		}
	}
	if one == two || one.IPv4 != "100.64.0.16" {
		t.Errorf("they have %v and %v", one, two)
	}
	if a := w.addressesOf(api.APIService); a != (api.Addresses{}) {
		t.Errorf("the API has %v", a)
	}

	// It keeps them whatever is written, and nobody says which it has.
	w.mustApply(root, plainService("one", `,'port':99,'isDisabled':true`))
	w.must(root, "PUT", "/api/core/v1/services/one", `{"kind":"Service","metadata":{"name":"one"},"status":{"addresses":{"ipv4":"100.64.0.99"}},
		"spec":{"mode":"TCP","config":{"upstream":{"url":"tcp://127.0.0.1:4222"}}}}`, nil)
	if a := w.addressesOf("one.default"); a != one {
		t.Errorf("it has %v, had %v", a, one)
	}

	// What was not written took none.
	if _, err := w.apply(root, plainService("three", ""), plainService("four", `,'region':'none'`)); err == nil {
		t.Error("a Service of no Region was applied")
	}
	var out api.ApplyResponse
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Documents: documents(plainService("five", "")), DryRun: true, Diff: true}, &out)
	w.mustApply(root, plainService("three", ""))
	if a := w.addressesOf("three.default"); a.IPv4 != "100.64.0.18" {
		t.Errorf("the third has %v", a)
	}

	// Those of one that is deleted are given to nobody for a while.
	w.must(root, "DELETE", "/api/core/v1/services/one", nil, nil)
	w.mustApply(root, plainService("one", ""))
	if a := w.addressesOf("one.default"); a == one {
		t.Errorf("a new Service has %v at once", a)
	}
	w.clock.advance(address.Quarantine)
	w.mustApply(root, plainService("five", ""))
	if a := w.addressesOf("five.default"); a != one {
		t.Errorf("it has %v, want %v again", a, one)
	}

	// Pruning deletes, too.
	set := api.ApplyRequest{Documents: documents(plainService("six", "")), Set: "services"}
	w.must(root, "POST", "/api/apply", set, nil)
	six := w.addressesOf("six.default")
	w.must(root, "POST", "/api/apply", api.ApplyRequest{Set: "services", Prune: true}, nil)
	w.clock.advance(address.Quarantine)
	w.mustApply(root, plainService("seven", ""))
	if a := w.addressesOf("seven.default"); a != six {
		t.Errorf("it has %v, want %v, of what was pruned", a, six)
	}
}

// TestSessionsGiveBack is about every way in which a Session ends.
func TestSessionsGiveBack(t *testing.T) {
	for _, c := range []struct {
		name string
		end  func(w *world, root, who *person)
	}{
		{"deleted", func(w *world, root, who *person) {
			w.must(root, "DELETE", "/api/core/v1/sessions/"+who.session, nil, nil)
		}},
		{"logged out", func(w *world, root, who *person) { w.must(who, "POST", "/api/logout", nil, nil) }},
		{"with its User", func(w *world, root, who *person) { w.must(root, "DELETE", "/api/core/v1/users/alice", nil, nil) }},
		{"expired", func(w *world, root, who *person) {
			w.clock.advance(1000 * time.Hour)
			ctx, stop := context.WithCancel(w.t.Context())
			e := &Expirer{Store: w.Store, Audit: w.journal, Log: quiet(), Now: w.clock.now}
			go func() {
				if err := e.Run(ctx); err != nil {
					w.t.Error(err)
				}
			}()
			time.Sleep(maxWait)
			stop()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, root := newRoot(t)
				a := w.user(root, "alice")
				key := wireguardKey(t)
				s := w.connect(a, api.ConnectRequest{PublicKey: key})
				s.wants("STATE")
				had := s.state.Addresses
				if n := w.internals(); n["WireGuardKey"] != 1 {
					t.Errorf("kept are %v", n)
				}
				c.end(w, root, a)
				s.over()
				if n := w.internals(); n["WireGuardKey"] != 0 || n["FreedAddress"] != 1 {
					t.Errorf("kept are %v", n)
				}
				if c.name == "expired" {
					return // so is root
				}
				b := w.connect(w.user(root, "bob"), api.ConnectRequest{PublicKey: key})
				b.wants("STATE")
				if b.state.Addresses == had {
					t.Errorf("another Session has %v at once", had)
				}
				w.clock.advance(address.Quarantine)
				d := w.connect(w.user(root, "carol"), api.ConnectRequest{})
				d.wants("STATE")
				if d.state.Addresses != had {
					t.Errorf("another Session has %v, want %v again", d.state.Addresses, had)
				}
			})
		})
	}
}

// clusterNetwork is a ClusterConfig with an address plan.
func clusterNetwork(network string) string {
	return `{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{'network':{` + network + `}}}`
}

func TestAddressPlan(t *testing.T) {
	w, root := newRoot(t)
	inForce := func() api.ClusterNetwork {
		return get[*api.ClusterConfig](w, api.KindClusterConfig, api.ClusterConfigName).Status.Network
	}
	first := inForce()
	if first.IPv4 != api.DefaultIPv4Network || !strings.HasPrefix(first.IPv6, "fd") {
		t.Errorf("the first plan is %v", first)
	}
	other, _ := newRoot(t)
	if p := other.plan(); p.IPv6.String() == first.IPv6 {
		t.Error("two clusters drew one prefix")
	}

	for network, want := range map[string]string{
		`'ipv4':'10.0.0.0/25'`:         "must be /8 to /24",
		`'ipv4':'10.0.0.1/16'`:         "must begin where the network does: 10.0.0.0/16",
		`'ipv4':'127.0.0.0/8'`:         "must be of addresses that hosts can have",
		`'ipv4':'fd00::/48'`:           "must be a network of IPv4",
		`'ipv4':'x'`:                   "must be a network of IPv4",
		`'ipv6':'10.0.0.0/8'`:          "must be a network of IPv6",
		`'ipv6':'fd00::/64'`:           "must be /48",
		`'ipv6':'fd00::1/48'`:          "must begin where the network does: fd00::/48",
		`'ipv6':'2001:db8::/48'`:       "must be of unique local addresses",
		`'ipv6':'::ffff:10.0.0.0/120'`: "must be a network of IPv6",
	} {
		if _, err := w.apply(root, clusterNetwork(network)); !strings.Contains(strings.Join(problems(err), " "), want) {
			t.Errorf("%s: %v, want %s", network, problems(err), want)
		}
	}

	// Nobody has an address yet: the plan, and Services with it, in one apply, in any order.
	w.mustApply(root, plainService("one", ""), clusterNetwork(`'ipv4':'10.8.0.0/16','ipv6':'FD12:3456::/48'`))
	if got, want := inForce(), (api.ClusterNetwork{IPv4: "10.8.0.0/16", IPv6: "fd12:3456::/48"}); got != want {
		t.Errorf("the plan is %v, want %v", got, want)
	}
	one := w.addressesOf("one.default")
	if one != (api.Addresses{IPv4: "10.8.0.16", IPv6: "fd12:3456::10"}) {
		t.Errorf("it has %v", one)
	}

	// What is left out stays as it is.
	w.mustApply(root, `{'kind':'ClusterConfig','metadata':{'name':'default'},'spec':{}}`)
	w.mustApply(root, clusterNetwork(`'ipv4':'10.8.0.0/14'`))
	if got, want := inForce(), (api.ClusterNetwork{IPv4: "10.8.0.0/14", IPv6: "fd12:3456::/48"}); got != want {
		t.Errorf("the plan is %v, want %v", got, want)
	}
	if a := w.addressesOf("one.default"); a != one {
		t.Errorf("it has %v, had %v", a, one)
	}
	before := w.revision()
	for network, want := range map[string]string{
		`'ipv4':'10.8.0.0/15'`: "1 Services have addresses in 10.8.0.0/14: the new prefix must begin at 10.8.0.0 and be wider",
		`'ipv6':'fd00::/48'`:   "1 Services have addresses in fd12:3456::/48",
	} {
		if _, err := w.apply(root, clusterNetwork(network), group1); !strings.Contains(strings.Join(problems(err), " "), want) {
			t.Errorf("%s: %v, want %s", network, problems(err), want)
		}
	}
	if w.revision() != before {
		t.Error("what was refused was written")
	}
}

// TestNoAddressLeft is about a plan that is too small: the rest works.
func TestNoAddressLeft(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, clusterNetwork(`'ipv4':'10.8.0.0/24'`))
	var docs []string
	for i := range 48 {
		docs = append(docs, plainService("svc-"+string(rune('a'+i/26))+string(rune('a'+i%26)), ""))
	}
	w.mustApply(root, docs...)
	_, err := w.apply(root, plainService("one-more", ""))
	if !api.HasCode(err, api.CodeUnavailable) || !strings.Contains(err.Error(), "no address is left for services: of the 48") {
		t.Errorf("one more: %v", err)
	}
	w.mustApply(root, group1)
	w.mustApply(root, clusterNetwork(`'ipv4':'10.8.0.0/23'`), plainService("one-more", ""))
}

// TestOlderCluster is about the store of a version that had no private network.
func TestOlderCluster(t *testing.T) {
	w, root := newRoot(t)
	w.mustApply(root, plainService("one", ""), plainService("two", ""))
	_, err := w.Store.Update(t.Context(), "", func(tx store.Tx) error {
		for rec, err := range tx.All() {
			if err != nil {
				return err
			}
			if rec.Key.Group == address.Group {
				if err := tx.Delete(rec.Key); err != nil {
					return err
				}
				continue
			}
			o, err := store.Decode(rec)
			if err != nil {
				return err
			}
			switch o := o.(type) {
			case *api.ClusterConfig:
				o.Status.Network = api.ClusterNetwork{}
			case *api.Service:
				o.Status.Addresses = api.Addresses{}
			}
			if err := put(tx, o); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Bootstrap(t.Context()); err != nil {
		t.Fatal(err)
	}
	one, two := w.addressesOf("one.default"), w.addressesOf("two.default")
	if one == two || !within(t, one.IPv4, w.plan().Services()) || !within(t, two.IPv6, w.plan().Services()) {
		t.Errorf("they have %v and %v", one, two)
	}
	before := w.revision()
	if _, err := w.Bootstrap(t.Context()); err != nil || w.revision() != before {
		t.Errorf("a second start writes: %v", err)
	}
}

// TestInternals is about what the cluster keeps for itself: nobody sees it, and nothing
// but a backup has it.
func TestInternals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		w.mustApply(root, plainService("one", ""), plainService("two", ""))
		w.must(root, "DELETE", "/api/core/v1/services/two", nil, nil)
		key := wireguardKey(t)
		a := w.user(root, "alice")
		s := w.connect(a, api.ConnectRequest{PublicKey: key})
		s.wants("STATE")
		if n := w.internals(); n["AddressPool"] != 2 || n["FreedAddress"] != 1 || n["WireGuardKey"] != 1 {
			t.Fatalf("kept are %v", n)
		}
		for _, path := range []string{"/api/internal.cardea/v1/addresspools", "/api/core/v1/addresspools", "/api/core/v1/wireguardkeys/" + "x"} {
			if err := w.do(root, "GET", path, nil, nil); !api.HasCode(err, api.CodeNotFound) {
				t.Errorf("GET %s: %v", path, err)
			}
		}
		if _, err := w.apply(root, `{'apiVersion':'internal.cardea/v1','kind':'AddressPool','metadata':{'name':'services'}}`); err == nil {
			t.Error("a pool was applied")
		}
		for _, r := range w.journal.all() {
			if api := r.Entry.Info.API; api != nil && slices.Contains([]string{"AddressPool", "FreedAddress", "WireGuardKey"}, api.Kind) {
				t.Errorf("the log has %+v", api)
			}
		}
		// A set whose name is in them prunes nothing, and fails at nothing.
		w.must(root, "POST", "/api/apply", api.ApplyRequest{Set: "next", Prune: true}, nil)

		var file bytes.Buffer
		if _, err := backup.Write(t.Context(), w.Store, &file, backup.Options{}); err != nil {
			t.Fatal(err)
		}
		restored := memory.New()
		defer restored.Close()
		if _, err := backup.Restore(t.Context(), restored, &file, "", nil); err != nil {
			t.Fatal(err)
		}
		_, err := restored.Update(t.Context(), "", func(tx store.Tx) error {
			got, err := address.Take(tx, w.plan(), address.Services, w.Now())
			if err != nil {
				return err
			}
			if got.IPv4 != "100.64.0.18" {
				t.Errorf("a restored cluster gives away %v", got)
			}
			err = address.TakeKey(tx, key, "another")
			if !api.HasCode(err, api.CodeConflict) {
				t.Errorf("a restored cluster gives away a key: %v", err)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
}
