package sqlite

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"cardea/api"
	"cardea/store"
)

func object(name string, size int) store.Record {
	return store.Record{Key: api.Key{Kind: "User", Name: name}, UID: "1", JSON: json.RawMessage(`"` + strings.Repeat("x", size) + `"`)}
}

// together runs functions at once: all stand in line, in their order, before the
// first of them begins. It returns the batch that each ran in, and what each was
// told. It must be called in a bubble, as only there one knows who stands in line.
func together(t *testing.T, s *Store, fs ...func(store.Tx) error) (batches []*batch, errs []error) {
	t.Helper()
	batches, errs = make([]*batch, len(fs)), make([]error, len(fs))
	var wg sync.WaitGroup
	begin, end := make(chan struct{}), make(chan struct{})
	wg.Go(func() {
		err := s.line.Alone(t.Context(), func(*batch) error {
			close(begin)
			<-end
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	})
	<-begin
	for i, f := range fs {
		wg.Go(func() {
			errs[i] = s.line.Do(t.Context(), func(b *batch) error {
				batches[i] = b
				return b.update(t.Context(), "tester", f)
			})
		})
		synctest.Wait()
	}
	close(end)
	wg.Wait()
	return batches, errs
}

func openTest(t *testing.T) *Store {
	s, err := Open(t.Context(), filepath.Join(t.TempDir(), "cardea.db"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Callers who come together share one transaction, and each has its own fate.
func TestBatchIsShared(t *testing.T) { synctest.Test(t, testBatchIsShared) }

func testBatchIsShared(t *testing.T) {
	s := openTest(t)
	oops := errors.New("oops")
	var fs []func(store.Tx) error
	for i := range 40 {
		fs = append(fs, func(tx store.Tx) error {
			if err := tx.Put(object(fmt.Sprint("u", i), 1)); err != nil || i%4 == 0 {
				return errors.Join(err, oops)
			}
			return nil
		})
	}
	batches, errs := together(t, s, fs...)
	for i, b := range batches {
		if b != batches[0] {
			t.Errorf("caller %d had another transaction", i)
		}
		if (i%4 == 0) != errors.Is(errs[i], oops) {
			t.Errorf("caller %d was told %v", i, errs[i])
		}
	}
	err := s.View(t.Context(), func(r store.Reader) error {
		n := 0
		for range r.List("", "User") {
			n++
		}
		if n != 30 || r.Revision().Number != 30 {
			t.Errorf("there are %d Objects at %v, want 30", n, r.Revision())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

// When the disk is full, everybody in the batch is told, nothing of it stays,
// and the store works again once there is room.
func TestBatchIsLostWhole(t *testing.T) { synctest.Test(t, testBatchIsLostWhole) }

func testBatchIsLostWhole(t *testing.T) {
	s := openTest(t)
	if _, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(object("before", 1)) }); err != nil {
		t.Fatal(err)
	}
	limit := func(pages int) {
		t.Helper()
		if _, err := s.writer.ExecContext(t.Context(), fmt.Sprint("PRAGMA max_page_count = ", pages)); err != nil {
			t.Fatal(err)
		}
	}
	limit(40)
	huge := func(tx store.Tx) error { return tx.Put(object("huge", 1<<20)) }
	small := func(name string) func(store.Tx) error {
		return func(tx store.Tx) error { return tx.Put(object(name, 1)) }
	}
	_, errs := together(t, s, small("one"), huge, small("two"))
	for i, err := range errs[:2] {
		if err == nil || !strings.Contains(err.Error(), "disk is full") {
			t.Errorf("caller %d of a batch that was lost was told %v", i, err)
		}
	}
	if errs[2] != nil {
		t.Errorf("who came after was told %v", errs[2])
	}
	if got := names(t, s); got != "before two" {
		t.Errorf("there are %s", got)
	}
	limit(1 << 20)
	if r, err := s.Update(t.Context(), "", huge); err != nil || r.Number != 3 {
		t.Errorf("with room again: %v, %v, want the third commit", r, err)
	}
}

// After trouble with the file the transaction may be no more, so that whoever
// takes no notice must not write outside of one.
func TestTroubleIsNotOverlooked(t *testing.T) {
	s := openTest(t)
	good := s.writer.get
	bad, err := s.writer.PrepareContext(t.Context(), "SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	if err := bad.Close(); err != nil {
		t.Fatal(err)
	}
	s.writer.get = bad
	_, err = s.Update(t.Context(), "", func(tx store.Tx) error {
		if _, err := tx.Get(object("a", 0).Key); err == nil {
			t.Error("Get succeeded")
		}
		s.writer.get = good
		return tx.Put(object("a", 1))
	})
	if err == nil {
		t.Error("a transaction after trouble was committed")
	}
	if got := names(t, s); got != "" {
		t.Errorf("there are %s", got)
	}
	if r, err := s.Update(t.Context(), "", func(tx store.Tx) error { return tx.Put(object("a", 1)) }); err != nil || r.Number != 1 {
		t.Errorf("the next: %v, %v", r, err)
	}
}

// names returns the names that there are.
func names(t *testing.T, s *Store) string {
	t.Helper()
	var ns []string
	err := s.View(t.Context(), func(r store.Reader) error {
		for rec, err := range r.List("", "User") {
			if err != nil {
				return err
			}
			ns = append(ns, rec.Key.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(ns, " ")
}
