package control

import (
	"context"
	"errors"
	"iter"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"cardea/api"
	"cardea/store"
	"cardea/store/memory"
)

// aSession returns a Session that expires then.
func aSession(name string, at time.Time) *api.Session {
	s := &api.Session{Head: api.Head{Metadata: api.Metadata{Name: name, UID: name}}, Spec: api.SessionSpec{ExpiresAt: at}}
	s.Default()
	return s
}

func write(t *testing.T, st store.Store, os ...api.Object) {
	t.Helper()
	_, err := st.Update(t.Context(), "test", func(tx store.Tx) error {
		for _, o := range os {
			if err := put(tx, o); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// names returns the names of all Objects.
func names(t *testing.T, st store.Store) (list string) {
	t.Helper()
	err := st.View(t.Context(), func(r store.Reader) error {
		for rec, err := range r.List(api.GroupCore, "") {
			if err != nil {
				return err
			}
			list += rec.Key.Name + " "
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// expiring runs an Expirer over a store for a test in a bubble.
func expiring(t *testing.T, st store.Store, log *journal, now func() time.Time) {
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := (&Expirer{Store: st, Audit: log, Log: quiet(), Now: now}).Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
		st.Close()
	})
}

func TestExpirer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := memory.New()
		begin := time.Now()
		in := func(d time.Duration) time.Time { return begin.Add(d) }
		never := &api.Credential{Head: api.Head{Metadata: api.Metadata{Name: "never"}}}
		never.Default()
		soon := api.Clone(never)
		soon.Metadata.Name, soon.Spec.ExpiresAt = "soon", in(3*time.Hour)
		system := api.Clone(soon)
		system.Metadata.Name, system.Metadata.IsSystem = "system", true
		past := aSession("past", in(-time.Hour))
		write(t, st, past, aSession("s1", in(time.Hour)), never, soon, system)
		log := new(journal)
		expiring(t, st, log, time.Now)

		at := func(d time.Duration, want string) {
			t.Helper()
			time.Sleep(time.Until(in(d)))
			synctest.Wait()
			if got := names(t, st); got != want {
				t.Errorf("after %s there are %q, want %q", d, got, want)
			}
		}
		at(0, "never soon system s1 ")
		write(t, st, aSession("s2", in(2*time.Hour)), aSession("s3", in(30*time.Minute)))
		at(30*time.Minute-1, "never soon system s1 s2 s3 ")
		at(30*time.Minute, "never soon system s1 s2 ")
		write(t, st, aSession("s1", in(4*time.Hour))) // prolonged
		at(time.Hour, "never soon system s1 s2 ")
		write(t, st, aSession("s2", in(90*time.Minute))) // cut short
		at(90*time.Minute, "never soon system s1 ")
		at(3*time.Hour, "never system s1 ")
		at(4*time.Hour, "never system ")
		at(1000*time.Hour, "never system ")

		var recorded string
		for _, r := range log.all() {
			a, c := r.Entry.Info.API, r.Entry.Common
			recorded += a.Name + " "
			if a.Verb != verbDelete || a.Before == nil || r.Metadata.ActorRef != nil || c.SessionRef != nil || c.Reason.Words != "expired" {
				t.Errorf("the record of %s is %+v", a.Name, r.Entry)
			}
		}
		if want := "past s3 s2 soon s1 "; recorded != want {
			t.Errorf("recorded were %q, want %q", recorded, want)
		}
	})
}

// TestExpirerClock sets the clock on, as when a machine has slept: timers do not
// notice.
func TestExpirerClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := memory.New()
		c := &clock{t: time.Now()}
		write(t, st, aSession("s1", c.now().Add(time.Hour)))
		expiring(t, st, new(journal), c.now)
		time.Sleep(time.Minute)
		c.advance(time.Hour)
		time.Sleep(time.Second)
		synctest.Wait()
		if got := names(t, st); got != "" {
			t.Errorf("a second after the clock was set there are %q", got)
		}
	})
}

// TestExpirerUnrecorded: what cannot be recorded is not deleted, until it can be.
func TestExpirerUnrecorded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, log := memory.New(), new(journal)
		log.fail = errors.New("the disk is full")
		write(t, st, aSession("s1", time.Now().Add(time.Minute)))
		expiring(t, st, log, time.Now)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := names(t, st); got != "s1 " {
			t.Errorf("there are %q although it could not be recorded", got)
		}
		log.mu.Lock()
		log.fail = nil
		log.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if got := names(t, st); got != "" || len(log.all()) != 1 {
			t.Errorf("a second later there are %q and %d records", got, len(log.all()))
		}
	})
}

// flaky is a store that forgets its history once, and fails to write once.
type flaky struct {
	store.Store
	watches, updates int
}

func (f *flaky) Watch(ctx context.Context, from api.Revision) iter.Seq2[store.Commit, error] {
	f.watches++
	if f.watches == 1 {
		return func(yield func(store.Commit, error) bool) { yield(store.Commit{}, store.ErrCompacted) }
	}
	return f.Store.Watch(ctx, from)
}

func (f *flaky) Update(ctx context.Context, actor string, tx func(store.Tx) error) (api.Revision, error) {
	if actor == actorSystem {
		if f.updates++; f.updates == 1 {
			return api.Revision{}, errors.New("the disk is full")
		}
	}
	return f.Store.Update(ctx, actor, tx)
}

func TestExpirerGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &flaky{Store: memory.New()}
		write(t, st, aSession("s1", time.Now().Add(time.Minute)))
		expiring(t, st, new(journal), time.Now)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := names(t, st); got != "s1 " {
			t.Errorf("there are %q although it could not be deleted", got)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := names(t, st); got != "" {
			t.Errorf("a second later there are %q", got)
		}
	})
}
