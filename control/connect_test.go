package control

import (
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"cardea/address"
	"cardea/api"
	"cardea/store"
)

// wireguardKey returns a new public key.
func wireguardKey(t testing.TB) string {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(k.PublicKey().Bytes())
}

// A connected is a connect stream under way.
type connected struct {
	watching
	state *api.NetworkState // the latest
}

// connect connects somebody; the test runs in a bubble.
func (w *world) connect(who *person, in api.ConnectRequest) *connected {
	w.t.Helper()
	ctx, stop := context.WithCancel(w.t.Context())
	s := &connected{watching: watching{t: w.t, header: http.Header{}, status: http.StatusOK, stop: stop}}
	w.t.Cleanup(stop)
	r := w.newRequest(who, "POST", "/api/connect", in).WithContext(ctx)
	synctest.Wait() // what serves has begun
	go func() {
		w.handler.ServeHTTP(s, r)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.ended = true
	}()
	return s
}

// told returns the types of what was told since it was asked last, each with what a
// person would be told.
func (s *connected) told() (told []string) {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.lines {
		var e api.ConnectEvent
		if err := json.Unmarshal([]byte(l), &e); err != nil {
			s.t.Fatalf("%q: %v", l, err)
		}
		word := string(e.Type)
		switch e.Type {
		case api.ConnectState:
			s.state = e.State
		case api.ConnectEnded:
			word += " " + string(e.Ended.Code) + " " + e.Ended.Message
		case api.ConnectRefused:
			word += " " + e.Refused.Words
		}
		told = append(told, word)
	}
	s.lines = nil
	return told
}

// wants reports what was told otherwise.
func (s *connected) wants(want ...string) {
	s.t.Helper()
	if got := s.told(); !slices.Equal(got, want) {
		s.t.Errorf("told %q, want %q", got, want)
	}
}

// plan returns the address plan in force.
func (w *world) plan() (p address.Plan) {
	w.t.Helper()
	err := w.Store.View(w.t.Context(), func(r store.Reader) (err error) {
		p, err = addressPlan(r)
		return err
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

func within(t testing.TB, a string, ps []netip.Prefix) bool {
	t.Helper()
	x, err := netip.ParseAddr(a)
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(ps, func(p netip.Prefix) bool { return p.Contains(x) })
}

func TestConnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		a := w.user(root, "alice")
		w.network.set(api.GatewayPlace{Name: "default", WireGuardPort: 51820})
		key := wireguardKey(t)
		s := w.connect(a, api.ConnectRequest{PublicKey: key})
		s.wants("STATE")
		p := w.plan()
		st := s.state
		if st.Session.Name != a.session || st.Domain != testDomain || st.MTU != 1280 || len(st.Gateways) != 1 ||
			!within(t, st.Addresses.IPv4, p.Sessions()) || !within(t, st.Addresses.IPv6, p.Sessions()) ||
			len(st.Services) != 2 || len(st.DNS) != 2 || !within(t, st.DNS[0], p.Services()) || !within(t, st.DNS[1], p.Services()) {
			t.Errorf("the state is %+v", st)
		}
		got := get[*api.Session](w, api.KindSession, a.session).Status.Connection
		if got == nil || got.Addresses != st.Addresses || got.PublicKey != key || got.StartedAt.IsZero() {
			t.Errorf("stored is %+v", got)
		}

		w.network.set(api.GatewayPlace{Name: "default", WireGuardPort: 51821})
		s.wants("STATE")
		w.network.set(api.GatewayPlace{Name: "default", WireGuardPort: 51821})
		s.wants()
		w.Tell(st.Session.UID, api.NetworkRefusal{Words: "not allowed"})
		w.Tell("another", api.NetworkRefusal{Words: "not allowed"})
		s.wants("REFUSED not allowed")
		time.Sleep(aliveInterval)
		s.wants("ALIVE")

		// The same client comes back: nothing is written, and it has what it had.
		s.stop()
		s.over()
		before := w.revision()
		s2 := w.connect(a, api.ConnectRequest{PublicKey: key})
		s2.wants("STATE")
		if s2.state.Addresses != st.Addresses || w.revision() != before {
			t.Errorf("it has %v, had %v; the revision is %v, was %v", s2.state.Addresses, st.Addresses, w.revision(), before)
		}

		// Another takes over, and keeps the addresses.
		key2 := wireguardKey(t)
		s3 := w.connect(a, api.ConnectRequest{PublicKey: key2})
		s3.wants("STATE")
		if s3.state.Addresses != st.Addresses {
			t.Errorf("it has %v, had %v", s3.state.Addresses, st.Addresses)
		}
		s2.wants("ENDED CONFLICT another client of this Session has connected")
		s2.over()

		w.must(a, "POST", "/api/disconnect", nil, nil)
		s3.wants("ENDED CONFLICT the Session was disconnected")
		if c := get[*api.Session](w, api.KindSession, a.session).Status.Connection; c.PublicKey != "" || c.Addresses != st.Addresses {
			t.Errorf("stored is %+v", c)
		}
	})
}

// Who looks what he would be told changes nothing, and cuts nobody off.
func TestLookAtThePlace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		a := w.user(root, "alice")
		w.network.set(api.GatewayPlace{Name: "default", WireGuardPort: 51820})
		before := w.revision()
		var s api.NetworkState
		w.must(a, "GET", "/api/connect", nil, &s)
		if s.Session.Name != a.session || s.Addresses != (api.Addresses{}) || len(s.Services) != 2 || len(s.DNS) != 2 || len(s.Gateways) != 1 || s.MTU != 1280 {
			t.Errorf("before it was connected: %+v", s)
		}
		if w.revision() != before {
			t.Error("a look has written")
		}
		c := w.connect(a, api.ConnectRequest{PublicKey: wireguardKey(t)})
		c.wants("STATE")
		w.must(a, "GET", "/api/connect", nil, &s)
		if s.Addresses != c.state.Addresses {
			t.Errorf("connected: %+v", s)
		}
		c.wants()
		if all := w.Connected(); !slices.Equal(all, []string{s.Session.UID}) {
			t.Errorf("connected are %q", all)
		}
		c.stop()
		c.over()
		if all := w.Connected(); len(all) != 0 {
			t.Errorf("at the end there are %q", all)
		}
	})
}

// A client that only publishes ports needs no key; it is connected as any other.
func TestConnectWithoutKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		a := w.user(root, "alice")
		s := w.connect(a, api.ConnectRequest{})
		s.wants("STATE")
		if s.state.Addresses.IPv4 == "" || w.internals()["WireGuardKey"] != 0 {
			t.Errorf("it has %v, kept are %v", s.state.Addresses, w.internals())
		}
		w.must(a, "POST", "/api/disconnect", nil, nil)
		s.wants("ENDED CONFLICT the Session was disconnected")
		again := w.connect(a, api.ConnectRequest{})
		again.wants("STATE")
		w.connect(a, api.ConnectRequest{PublicKey: wireguardKey(t)}).wants("STATE")
		again.wants("ENDED CONFLICT another client of this Session has connected")
	})
}

// Who is connected stays so while no decision can be made.
func TestConnectInDoubt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		a := w.user(root, "alice")
		var broken atomic.Bool
		await := w.Await
		w.Await = func(ctx context.Context, r api.Revision) error {
			if broken.Load() {
				return errors.New("it is gone")
			}
			return await(ctx, r)
		}
		s := w.connect(a, api.ConnectRequest{PublicKey: wireguardKey(t)})
		s.wants("STATE")
		broken.Store(true)
		w.network.set(api.GatewayPlace{Name: "default", WireGuardPort: 1})
		time.Sleep(2 * lookInterval)
		s.wants()
		broken.Store(false)
		time.Sleep(lookInterval)
		s.wants("STATE")
		if len(s.state.Gateways) != 1 {
			t.Errorf("the state is %+v", s.state)
		}
	})
}

// A cluster without tunnels, and one that does not follow its store, connect nobody.
func TestConnectNowhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		w.Network = nil
		for _, path := range []string{"/api/connect", "/api/disconnect"} {
			if err := w.do(root, "POST", path, api.ConnectRequest{}, nil); !api.HasCode(err, api.CodeNotFound) || !strings.Contains(err.Error(), "no private network") {
				t.Errorf("%s: %v", path, err)
			}
			if err := w.do(nil, "POST", path, api.ConnectRequest{}, nil); !api.HasCode(err, api.CodeUnauthenticated) {
				t.Errorf("%s, as a stranger: %v", path, err)
			}
		}
		w.Network = w.network
		synctest.Wait()
		w.seats.rest()
		if err := w.do(root, "POST", "/api/connect", api.ConnectRequest{}, nil); !api.HasCode(err, api.CodeUnavailable) {
			t.Errorf("not followed: %v", err)
		}
		if c := get[*api.Session](w, api.KindSession, root.session).Status.Connection; c != nil {
			t.Errorf("stored is %+v", c)
		}
	})
}

// Whatever ends a Session ends its place, at once, and says why.
func TestConnectEnds(t *testing.T) {
	for _, c := range []struct {
		name, want string
		end        func(w *world, root, who *person)
	}{
		{"deleted", "ENDED UNAUTHENTICATED your Session NAME was deleted", func(w *world, root, who *person) {
			w.must(root, "DELETE", "/api/core/v1/sessions/"+who.session, nil, nil)
		}},
		{"logged out", "ENDED UNAUTHENTICATED your Session NAME was deleted", func(w *world, root, who *person) {
			w.must(who, "POST", "/api/logout", nil, nil)
		}},
		{"with its User", "ENDED UNAUTHENTICATED your Session NAME was deleted", func(w *world, root, who *person) {
			w.must(root, "DELETE", "/api/core/v1/users/alice", nil, nil)
		}},
		{"expired", "ENDED UNAUTHENTICATED your Session NAME has expired", func(w *world, root, who *person) {
			w.clock.advance(1000 * time.Hour)
			time.Sleep(maxLook)
		}},
		{"rejected", "ENDED UNAUTHENTICATED your Session NAME is not active: it waits for approval, or was rejected", func(w *world, root, who *person) {
			w.must(root, "PATCH", "/api/core/v1/sessions/"+who.session, `{"spec":{"state":"REJECTED"}}`, nil)
		}},
		{"its Device is rejected", "ENDED UNAUTHENTICATED the Device DEVICE of your Session is not active: it waits for approval, or was rejected or deleted", func(w *world, root, who *person) {
			w.must(root, "PATCH", "/api/core/v1/devices/"+w.deviceOf(who), `{"spec":{"state":"REJECTED"}}`, nil)
		}},
		{"its User is disabled", "ENDED UNAUTHENTICATED your User alice is disabled or was deleted", func(w *world, root, who *person) {
			w.must(root, "PATCH", "/api/core/v1/users/alice", `{"spec":{"isDisabled":true}}`, nil)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, root := newRoot(t)
				a := w.user(root, "alice")
				if _, err := w.register(a, machine("a")); err != nil {
					t.Fatal(err)
				}
				device := w.deviceOf(a)
				s := w.connect(a, api.ConnectRequest{PublicKey: wireguardKey(t)})
				s.wants("STATE")
				c.end(w, root, a)
				got := slices.DeleteFunc(s.told(), func(x string) bool { return x == "ALIVE" })
				if want := strings.NewReplacer("NAME", a.session, "DEVICE", device).Replace(c.want); !slices.Equal(got, []string{want}) {
					t.Errorf("told %q, want %q", got, want)
				}
				s.over()
			})
		})
	}
}

// deviceOf returns the name of the Device of a person's Session.
func (w *world) deviceOf(who *person) string {
	return get[*api.Session](w, api.KindSession, who.session).Status.DeviceRef.Name
}

// served is a Service whose upstream is a User.
func served(name, user, url string) string {
	return `{'kind':'Service','metadata':{'name':'` + name + `'},'spec':{'mode':'TCP','port':80,'config':{'upstream':{'user':'` + user + `','url':'` + url + `'}}}}`
}

// TestServe is about who is to be the upstream of Services: the User whom they name, with
// the right to.
func TestServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		w.mustApply(root, onAPI("may-serve", "a.verb == ^serve^ && a.name != ^shop.default^"))
		a := w.user(root, "alice", "may-serve")
		w.user(root, "bob")
		w.mustApply(root, served("web", "alice", "tcp://localhost:8080"), served("shop", "alice", "tcp://localhost:8081"),
			served("other", "bob", "tcp://localhost:8082"))
		uid := get[*api.Session](w, api.KindSession, a.session).Metadata.UID

		for _, c := range []struct {
			in   api.ConnectRequest
			code api.Code
			want string
		}{
			{api.ConnectRequest{Serve: []string{"shop"}}, api.CodePermissionDenied, "not allowed: serve Service shop.default"},
			{api.ConnectRequest{Serve: []string{"web", "other"}}, api.CodeConflict, "the upstream of Service other.default is not User alice"},
			{api.ConnectRequest{Serve: []string{"none"}}, api.CodeNotFound, `Service "none.default" not found`},
			{api.ConnectRequest{Serve: []string{""}}, api.CodeInvalid, "serve[0]: must name"},
			{api.ConnectRequest{Serve: make([]string, maxServe+1)}, api.CodeInvalid, "at most 1000"},
		} {
			err := w.do(a, "POST", "/api/connect", c.in, nil)
			if text := err.Error() + strings.Join(problems(err), " "); !api.HasCode(err, c.code) || !strings.Contains(text, c.want) {
				t.Errorf("%v: %s, want %s %s", c.in.Serve, text, c.code, c.want)
			}
		}

		serves := func(s *connected) (list []string) {
			for _, x := range s.state.Serves {
				list = append(list, strings.Join(strings.Fields(x.Service+" "+x.URL+" "+x.Problem), " "))
			}
			return list
		}
		check := func(s *connected, want, stored []string) {
			t.Helper()
			s.wants("STATE")
			if got := serves(s); !slices.Equal(got, want) {
				t.Errorf("served are %q, want %q", got, want)
			}
			if got := get[*api.Session](w, api.KindSession, a.session).Status.Connection.Serves; !slices.Equal(got, stored) {
				t.Errorf("stored are %q, want %q", got, stored)
			}
			for _, name := range []string{"web.default", "shop.default", "other.default", "new.default"} {
				d, err := w.MayServe(t.Context(), uid, name, api.DefaultConfig, api.Revision{})
				if err != nil || d.Allowed() != slices.Contains(stored, name) || !d.Allowed() && d.Words == "" {
					t.Errorf("that it may serve %s is %v %q, %v", name, d.Allowed(), d.Words, err)
				}
				if !slices.Contains(d.DependsOn, coreKey(api.KindService, name)) {
					t.Errorf("what it may serve of %s does not depend on that", name)
				}
			}
		}
		s := w.connect(a, api.ConnectRequest{ServeAll: true, Serve: []string{"web"}})
		check(s, []string{"shop.default you are not allowed to serve it", "web.default tcp://localhost:8080"}, []string{"web.default"})

		// What others do that does not concern it is not told.
		w.mustApply(root, served("other", "bob", "tcp://localhost:8083"), service, group1)
		s.wants()
		w.mustApply(root, served("web", "alice", "tcp://localhost:9090"))
		check(s, []string{"shop.default you are not allowed to serve it", "web.default tcp://localhost:9090"}, []string{"web.default"})
		w.mustApply(root, served("new", "alice", "tcp://localhost:7070"))
		check(s, []string{"new.default tcp://localhost:7070", "shop.default you are not allowed to serve it", "web.default tcp://localhost:9090"},
			[]string{"new.default", "web.default"})
		w.must(root, "DELETE", "/api/core/v1/services/new", nil, nil)
		check(s, []string{"shop.default you are not allowed to serve it", "web.default tcp://localhost:9090"}, []string{"web.default"})
		w.mustApply(root, served("shop", "bob", "tcp://localhost:8081"), served("web", "bob", "tcp://localhost:8080"))
		check(s, []string{"web.default its upstream is not User alice any more"}, nil)
		w.mustApply(root, served("web", "alice", "tcp://localhost:8080"))
		check(s, []string{"web.default tcp://localhost:8080"}, []string{"web.default"})
		w.mustApply(root, onAPI("may-serve", "false"))
		check(s, []string{"web.default you are not allowed to serve it"}, nil)

		// A User whom a Service names is in use.
		if err := w.do(root, "DELETE", "/api/core/v1/users/bob", nil, nil); !api.HasCode(err, api.CodeConflict) || !strings.Contains(err.Error(), "in use by Service/other.default") {
			t.Errorf("to delete bob: %v", err)
		}
		if _, err := w.apply(root, served("odd", "nobody", "tcp://localhost:1")); !strings.Contains(strings.Join(problems(err), " "), "must name a User that exists") {
			t.Errorf("to name nobody: %v", problems(err))
		}
	})
}

// TestWireGuardKeys is about keys that cannot be.
func TestWireGuardKeys(t *testing.T) {
	w, root := newRoot(t)
	a := w.user(root, "alice")
	key := wireguardKey(t)
	raw, _ := base64.StdEncoding.DecodeString(key)
	one := make([]byte, 32)
	one[0] = 1
	high := slices.Clone(raw)
	high[31] |= 0x80
	w.network.set(api.GatewayPlace{PublicKey: wireguardKey(t)})
	for _, c := range []struct{ key, want string }{
		{"x", "32 bytes"},
		{key[:43], "32 bytes"},
		{key + "\n", "32 bytes"},
		{base64.StdEncoding.EncodeToString(raw[:31]), "32 bytes"},
		{base64.StdEncoding.EncodeToString(make([]byte, 32)), "that somebody can have"},
		{base64.StdEncoding.EncodeToString(one), "that somebody can have"},
		{base64.StdEncoding.EncodeToString(high), "of X25519"},
		{w.network.list[0].PublicKey, "that of a Gateway"},
	} {
		err := w.do(a, "POST", "/api/connect", api.ConnectRequest{PublicKey: c.key}, nil)
		if !api.HasCode(err, api.CodeInvalid) || !strings.Contains(strings.Join(problems(err), " "), c.want) {
			t.Errorf("%q: %v %v, want %s", c.key, err, problems(err), c.want)
		}
	}

	synctest.Test(t, func(t *testing.T) {
		w, root := newRoot(t)
		a, b := w.user(root, "alice"), w.user(root, "bob")
		w.connect(a, api.ConnectRequest{PublicKey: key}).wants("STATE")
		taken := func(want bool) {
			t.Helper()
			s := w.connect(b, api.ConnectRequest{PublicKey: key})
			synctest.Wait()
			if got := s.status == http.StatusConflict; got != want {
				t.Errorf("that it is taken is %v, want %v: %s", got, want, s.lines)
			}
			s.stop()
		}
		taken(true)
		// It is free when its Session has another, or is deleted.
		w.connect(a, api.ConnectRequest{PublicKey: wireguardKey(t)}).wants("STATE")
		taken(false)
		w.must(b, "POST", "/api/disconnect", nil, nil)
		w.connect(a, api.ConnectRequest{PublicKey: key}).wants("STATE")
		taken(true)
		w.must(root, "DELETE", "/api/core/v1/sessions/"+a.session, nil, nil)
		taken(false)
	})
}
