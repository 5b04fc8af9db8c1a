// Package policytest is the contract of policy.Decider as tests: every Decider
// over a store runs it.
package policytest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/identity"
	"cardea/policy"
	"cardea/store"
)

// A Decider is what the suite needs beside policy.Decider.
type Decider interface {
	policy.Decider
	// Await returns when every decision is made on that revision or a later one.
	Await(ctx context.Context, r api.Revision) error
	// Possible reports whether some request of a Session to a Service could be allowed.
	Possible(ctx context.Context, session, service string) bool
}

// An Opener returns a Decider over a store, running until the test ends.
type Opener func(testing.TB, store.Store, identity.Verifier) Decider

// Run runs the suite. newStore returns an empty store.
func Run(t *testing.T, newStore func() store.Store, open Opener) {
	s := suite{newStore, open}
	t.Run("Decisions", s.decisions)
	t.Run("Unknowns", s.unknowns)
	t.Run("Enforcement", s.enforcement)
	t.Run("Kleene", s.kleene)
	t.Run("Repeated", s.repeated)
	t.Run("Possible", s.possible)
	t.Run("PossibleIsNeverWrong", s.possibleIsNeverWrong)
	t.Run("Routes", s.routes)
	t.Run("Drain", s.drain)
	t.Run("DependsOn", s.dependsOn)
	t.Run("AtLeast", s.atLeast)
	t.Run("PromiseR", s.promiseR)
	t.Run("Changes", s.changes)
	t.Run("Heartbeat", s.heartbeat)
}

type suite struct {
	newStore func() store.Store
	open     Opener
}

// store returns an empty store that is closed after what was opened over it.
func (s suite) store(t testing.TB) store.Store {
	st := s.newStore()
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return st
}

// Verifier verifies evidence of kind MEMORY: a Session uid, and the hash of a
// key after a slash if one was proved.
type Verifier struct{}

// Verify implements identity.Verifier.
func (Verifier) Verify(ev api.Evidence, _ time.Time) (identity.Claim, error) {
	switch ev.Kind {
	case "":
		return identity.Claim{}, identity.ErrNobody
	case api.EvidenceMemory:
		uid, sum, _ := strings.Cut(string(ev.Data), "/")
		return identity.Claim{SessionUID: uid, KeySHA256: sum}, nil
	}
	return identity.Claim{}, fmt.Errorf("evidence of kind %s proves nothing here", ev.Kind)
}

// Evidence returns what Verifier takes for that Session uid.
func Evidence(uid string) api.Evidence {
	return api.Evidence{Kind: api.EvidenceMemory, Data: []byte(uid)}
}

// Put writes Objects in one transaction.
func Put(t testing.TB, s store.Store, objects ...api.Object) api.Revision {
	t.Helper()
	r, err := s.Update(t.Context(), "test", func(tx store.Tx) error {
		for _, o := range objects {
			o.Default()
			rec, err := store.Encode(o)
			if err == nil {
				err = tx.Put(rec)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Now is the instant of the requests of World.
func Now() time.Time { return time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC) }

// A World is what a simple decision is made from: User alice of Group friends
// has a Session and asks for the Service nats.default. No policy applies.
type World struct {
	Cluster   *api.ClusterConfig
	Namespace *api.Namespace
	Service   *api.Service
	Group     *api.Group
	User      *api.User
	Session   *api.Session
	More      []api.Object
	Request   api.Request
}

// NewWorld returns a World. No two share anything.
func NewWorld() *World {
	const uid = "5e551000-0000-4000-8000-000000000001"
	return &World{
		Cluster: &api.ClusterConfig{Head: head("default", "c1"), Status: api.ClusterConfigStatus{RegionUID: "r1"}},
		Namespace: &api.Namespace{
			Head: head("default", "n1"),
		},
		Service: &api.Service{Head: head("nats.default", "v1"), Spec: api.ServiceSpec{
			Mode: api.ModeTCP, Config: &api.ServiceConfig{Upstream: api.Upstream{URL: "tcp://127.0.0.1:4222"}},
		}},
		Group: &api.Group{Head: head("friends", "g1")},
		User: &api.User{Head: head("alice", "u1"), Spec: api.UserSpec{
			Type: api.UserHuman, Groups: []string{"friends"}, Attrs: api.Attrs{"level": 3},
		}},
		Session: &api.Session{Head: head("alice-abc123", uid),
			Spec:   api.SessionSpec{ExpiresAt: Now().Add(time.Hour)},
			Status: api.SessionStatus{Type: "CLIENT", UserRef: api.Ref{Name: "alice", UID: "u1"}, KeySHA256: "aa"},
		},
		Request: api.Request{
			Service: "nats.default", Evidence: Evidence(uid), Now: Now(),
			Facts: &api.Facts{IP: "192.0.2.7", Port: 50000},
		},
	}
}

// AddDevice binds the Session to a Device, which it adds to More and returns.
func (w *World) AddDevice() *api.Device {
	d := &api.Device{Head: head("linux-abcd1234", "d1"), Spec: api.DeviceSpec{State: api.DeviceActive},
		Status: api.DeviceStatus{UserRef: w.User.Ref(), OSType: api.OSLinux,
			Reported: api.DeviceReport{Hostname: "laptop", ID: strings.Repeat("0a", 32)}}}
	d.Default()
	ref := d.Ref()
	w.Session.Status.DeviceRef = &ref
	w.More = append(w.More, d)
	return d
}

// Anonymous makes the Service one that is open to everyone, and the Request that
// of somebody who has no Session.
func (w *World) Anonymous() {
	w.Service.Spec.IsPublic, w.Service.Spec.IsAnonymous, w.Service.Spec.Port = true, true, 4222
	w.Request.Evidence = api.Evidence{Kind: api.EvidenceAnonymous}
}

// Mapping adds a TCPMapping of the namespace default to More, makes the Request one
// of a connection that was routed to it, and returns it.
func (w *World) Mapping(name string) *api.TCPMapping {
	port := 5432
	m := &api.TCPMapping{Head: head(name, "m-"+name), Spec: api.TCPMappingSpec{Port: &port, Service: "db:5432"}}
	m.Metadata.Namespace = "default"
	m.Default()
	k := m.Key()
	w.More = append(w.More, m)
	w.Request.Service, w.Request.Route = "", &k
	w.Request.Evidence = api.Evidence{Kind: api.EvidenceAnonymous}
	return m
}

func head(name, uid string) api.Head { return api.Head{Metadata: api.Metadata{Name: name, UID: uid}} }

// Objects returns all Objects of the World; those that are nil are left out.
func (w *World) Objects() (list []api.Object) {
	add := func(o api.Object, there bool) {
		if there {
			list = append(list, o)
		}
	}
	add(w.Cluster, w.Cluster != nil)
	add(w.Namespace, w.Namespace != nil)
	add(w.Service, w.Service != nil)
	add(w.Group, w.Group != nil)
	add(w.User, w.User != nil)
	add(w.Session, w.Session != nil)
	return append(list, w.More...)
}

// Policy returns a Policy of those rules.
func Policy(name string, rules ...api.Rule) *api.Policy {
	return &api.Policy{Head: head(name, "p-"+name), Spec: api.PolicySpec{Rules: rules}}
}

// Inline returns an authorization with one inline policy of those rules.
func Inline(rules ...api.Rule) api.Authorization {
	return api.Authorization{InlinePolicies: []api.InlinePolicy{{Spec: api.PolicySpec{Rules: rules}}}}
}

// Named returns an authorization that names Policies.
func Named(names ...string) api.Authorization { return api.Authorization{Policies: names} }

// Allow returns a rule that allows what matches an expression, of all if it is "".
func Allow(match string) api.Rule { return rule(api.Allow, match) }

// Deny returns a rule that denies what matches an expression, all if it is "".
func Deny(match string) api.Rule { return rule(api.Deny, match) }

func rule(e api.Effect, match string) api.Rule {
	return api.Rule{Effect: e, Condition: api.Condition{Match: match, MatchAny: match == ""}}
}

// decide asks, and holds every answer to what holds for all answers.
func decide(t testing.TB, d policy.Decider, r api.Request) api.Decision {
	t.Helper()
	got, err := d.Decide(t.Context(), r)
	if err != nil {
		if got.Allowed() {
			t.Errorf("an ALLOW beside the error %v", err)
		}
		t.Fatalf("Decide: %v", err)
	}
	if !slices.EqualFunc(strings.Split(got.ID, "-"), []int{4, 4, 24, 4, 4}, func(s string, n int) bool {
		return len(s) == n && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789") == ""
	}) {
		t.Errorf("id %q is not 4-4-24-4-4 of [a-z0-9]", got.ID)
	}
	if got.Lease <= 0 || got.Reason == "" || got.Revision == (api.Revision{}) {
		t.Errorf("lease %v, reason %q, revision %v: none may be missing", got.Lease, got.Reason, got.Revision)
	}
	if got.Effect != api.Allow && got.Effect != api.Deny {
		t.Errorf("effect %q", got.Effect)
	}
	for i, k := range got.DependsOn {
		if slices.Contains(got.DependsOn[:i], k) {
			t.Errorf("DependsOn has %v twice", k)
		}
	}
	if got.Effect == api.Deny && got.Config != nil {
		t.Error("a DENY with a config")
	}
	return got
}

func (s suite) atLeast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := s.store(t)
		w := NewWorld()
		w.Service.Spec.Authorization = Inline(Allow(""))
		rev := Put(t, st, w.Objects()...)
		d := s.open(t, st, Verifier{})
		await(t, d, rev)
		w.Request.AtLeast = rev
		if got := decide(t, d, w.Request); !got.Allowed() || got.Revision != rev {
			t.Errorf("at its own revision: %s at %v", got.Effect, got.Revision)
		}
		w.Request.AtLeast.Number++
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if got, err := d.Decide(ctx, w.Request); err == nil || got.Allowed() {
			t.Errorf("it answered from data that is older than AtLeast: %s, %v", got.Effect, err)
		}
	})
}

func await(t testing.TB, d Decider, r api.Revision) {
	t.Helper()
	if err := d.Await(t.Context(), r); err != nil {
		t.Fatalf("Await(%v): %v", r, err)
	}
}

// promiseR checks that no decision taken after Await is made on older data,
// while others decide at the same time.
func (s suite) promiseR(t *testing.T) {
	st := s.store(t)
	w := NewWorld()
	w.Service.Spec.Authorization = Inline(Allow(""))
	Put(t, st, w.Objects()...)
	d := s.open(t, st, Verifier{})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			if got, err := d.Decide(ctx, w.Request); err != nil && got.Allowed() {
				t.Error("an ALLOW beside an error")
			}
		}
	}()
	for i := range 200 {
		user := api.Clone(w.User)
		user.Spec.IsDisabled = i%2 == 0
		rev := Put(t, st, user)
		await(t, d, rev)
		if got := decide(t, d, w.Request); got.Allowed() == user.Spec.IsDisabled || got.Revision.Compare(rev) < 0 {
			t.Fatalf("after write %d of disabled=%t at %v: %s at %v", i, user.Spec.IsDisabled, rev, got.Effect, got.Revision)
		}
	}
	stop()
	<-done
}

// changes checks that every follower gets every Change once, in order, and not
// before Decide answers from it.
func (s suite) changes(t *testing.T) {
	st := s.store(t)
	w := NewWorld()
	from := Put(t, st, w.Objects()...)
	d := s.open(t, st, Verifier{})
	await(t, d, from)
	const writes, followers = 100, 5
	got := make([]chan []api.Change, followers)
	for i := range got {
		got[i] = make(chan []api.Change, 1)
		go func() {
			var list []api.Change
			for c, err := range d.Changes(t.Context(), from) {
				if err != nil {
					t.Errorf("Changes: %v", err)
					break
				}
				if len(c.Keys) == 0 && !c.All {
					continue
				}
				r := w.Request
				r.AtLeast = c.Revision
				if _, err := d.Decide(t.Context(), r); err != nil {
					t.Errorf("Decide at the revision of a Change: %v", err)
				}
				if list = append(list, c); c.All || len(list) == writes {
					break
				}
			}
			got[i] <- list
		}()
	}
	var want []api.Change
	for i := range writes {
		// One Object is new each time, the other is written again and again.
		g := &api.Group{Head: head(fmt.Sprintf("group-%d", i), "g")}
		h := &api.Group{Head: head("other", "h")}
		h.Metadata.Description = fmt.Sprint(i)
		want = append(want, api.Change{Revision: Put(t, st, g, h), Keys: []api.Key{g.Key(), h.Key()}})
	}
	for i := range got {
		list := <-got[i]
		if !slices.EqualFunc(list, want, func(a, b api.Change) bool {
			return a.Revision == b.Revision && !a.All && slices.Equal(a.Keys, b.Keys)
		}) {
			t.Errorf("follower %d got %d changes that are not the %d that were made", i, len(list), writes)
		}
	}
}

// heartbeat checks that a follower hears something each second, and that it ends
// when it should.
func (s suite) heartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := s.store(t)
		from := Put(t, st, NewWorld().Objects()...)
		d := s.open(t, st, Verifier{})
		await(t, d, from)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second+time.Millisecond)
		defer cancel()
		beats, last := 0, time.Now()
		for c, err := range d.Changes(ctx, from) {
			if err != nil || c.All || len(c.Keys) > 0 || c.Revision != from {
				t.Errorf("heartbeat %v, %v", c, err)
			}
			if gap := time.Since(last); gap > time.Second {
				t.Errorf("silent for %v", gap)
			}
			last = time.Now()
			beats++
		}
		if beats < 10 {
			t.Errorf("%d heartbeats in 10 seconds", beats)
		}
	})
}
