package backup_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/secret"
	"cardea/store"
	"cardea/store/backup"
	"cardea/store/memory"
	"cardea/store/postgres"
	"cardea/store/postgres/pgtest"
	"cardea/store/sqlite"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func record(group, kind, name string, v any) store.Record {
	b, _ := json.Marshal(map[string]any{"v": v})
	return store.Record{Key: api.Key{Group: group, Kind: kind, Name: name}, UID: "uid-" + name, JSON: b}
}

func put(t testing.TB, s store.Store, rs ...store.Record) api.Revision {
	t.Helper()
	at, err := s.Update(t.Context(), "tester", func(tx store.Tx) error {
		var errs []error
		for _, r := range rs {
			errs = append(errs, tx.Put(r))
		}
		return errors.Join(errs...)
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// dump returns all that a store holds, and how far it is.
func dump(t testing.TB, s store.Store) (string, api.Revision) {
	t.Helper()
	var b strings.Builder
	var at api.Revision
	err := s.View(t.Context(), func(now store.Reader) error {
		at = now.Revision()
		for r, err := range now.All() {
			if err != nil {
				return err
			}
			fmt.Fprintln(&b, r.Key.Group, r.Key, r.UID, string(r.JSON))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String(), at
}

func write(t testing.TB, s store.Store) ([]byte, backup.Summary) {
	t.Helper()
	var b bytes.Buffer
	sum, err := backup.Write(t.Context(), s, &b, backup.Options{Domain: "cardea.internal", Program: "v1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), sum
}

// filled returns a store with a few Objects of several groups, and its backup.
func filled(t testing.TB) (*memory.Store, []byte) {
	s := memory.New()
	t.Cleanup(func() { s.Close() })
	put(t, s, record("core", "User", "alice", `<&>   "é`), record("core", "Group", "g", 1), record("getambassador.io", "Mapping", "m", nil))
	put(t, s, record("core", "User", "bob", 1.5))
	b, _ := write(t, s)
	return s, b
}

// A backup of any store can be restored in any other.
func TestRoundTrip(t *testing.T) {
	for from, open := range stores(t) {
		for to, open2 := range stores(t) {
			t.Run(from+" to "+to, func(t *testing.T) {
				a, b := open(t), open2(t)
				put(t, a, record("core", "User", "alice", "<&>\u2028"), record("core", "User", "bob", 2), record("other", "User", "bob", 3))
				at := put(t, a, record("core", "Group", "g", 1))
				before := put(t, b, record("core", "User", "alice", "another"), record("core", "User", "carol", 1))
				if err := b.SetMark(t.Context(), "journal/up/head", []byte("mine")); err != nil {
					t.Fatal(err)
				}
				file, sum := write(t, a)
				if sum.Objects != 4 || sum.Revision != at || sum.Domain != "cardea.internal" || sum.Program != "v1.2.3" {
					t.Errorf("Write: %+v", sum)
				}
				if seen, err := backup.Verify(t.Context(), bytes.NewReader(file), nil); err != nil || seen.Objects != 4 || seen.Revision != at {
					t.Errorf("Verify: %+v, %v", seen, err)
				}
				got, err := backup.Restore(t.Context(), b, bytes.NewReader(file), "tester", nil)
				if err != nil {
					t.Fatal(err)
				}
				want, _ := dump(t, a)
				have, now := dump(t, b)
				if have != want {
					t.Errorf("restored:\n%s\nwant:\n%s", have, want)
				}
				if got.Objects != 4 || got.Revision != at || got.Restored != now || now.Epoch != before.Epoch+1 {
					t.Errorf("Restore of %v over %v: %+v, the store is at %v", at, before, got, now)
				}
				if m, err := b.Mark(t.Context(), "journal/up/head"); err != nil || string(m) != "mine" {
					t.Errorf("the mark of this process is %q, %v", m, err)
				}
				for _, err := range b.Watch(t.Context(), before) {
					if !errors.Is(err, store.ErrCompacted) {
						t.Errorf("a watcher of before was told %v", err)
					}
				}
				// What is restored has the same backup again, but for the first line.
				again, _ := write(t, b)
				if _, x, _ := bytes.Cut(again, []byte("\n")); !bytes.Equal(body(x), body(file[bytes.IndexByte(file, '\n')+1:])) {
					t.Errorf("another backup:\n%s\nof:\n%s", again, file)
				}
			})
		}
	}
}

// body is all lines but the last.
func body(b []byte) []byte {
	return b[:bytes.LastIndexByte(bytes.TrimSuffix(b, []byte("\n")), '\n')+1]
}

// stores returns how each kind is opened.
func stores(t *testing.T) map[string]func(*testing.T) store.Store {
	m := map[string]func(*testing.T) store.Store{
		"memory": func(t *testing.T) store.Store {
			s := memory.New()
			t.Cleanup(func() { s.Close() })
			return s
		},
		"sqlite": func(t *testing.T) store.Store {
			s, err := sqlite.Open(t.Context(), filepath.Join(t.TempDir(), "cardea.db"), sqlite.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { s.Close() })
			return s
		},
	}
	server, err := pgtest.Launch(false)
	if errors.Is(err, pgtest.ErrMissing) {
		t.Log("without PostgreSQL: " + err.Error())
		return m
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := server.Remove(); err != nil {
			t.Error(err)
		}
	})
	n := 0
	m["postgres"] = func(t *testing.T) store.Store {
		n++
		s, err := postgres.Open(t.Context(), server.Create(t, fmt.Sprint("b", n)), postgres.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	return m
}

// The store serves while it is written to a file, which has one moment of it.
func TestWriteIsOneMoment(t *testing.T) {
	s := memory.New()
	defer s.Close()
	put(t, s, record("core", "User", "a", 1), record("core", "User", "b", 1))
	var b bytes.Buffer
	w := writer(func(p []byte) (int, error) {
		put(t, s, record("core", "User", "b", 2), record("core", "User", "c", 2))
		return b.Write(p)
	})
	sum, err := backup.Write(t.Context(), s, w, backup.Options{})
	if err != nil || sum.Objects != 2 || strings.Contains(b.String(), `"v":2`) {
		t.Errorf("%+v, %v:\n%s", sum, err, b.String())
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

// What is not a whole backup is refused, with the reason, and changes nothing.
func TestRefused(t *testing.T) {
	_, good := filled(t)
	lines := bytes.SplitAfter(good, []byte("\n"))
	without := func(i int) []byte { return bytes.Join(append(append([][]byte{}, lines[:i]...), lines[i+1:]...), nil) }
	replace := func(old, new string) []byte { return bytes.Replace(good, []byte(old), []byte(new), 1) }
	for _, c := range []struct {
		name, want string
		file       []byte
	}{
		{"empty", "line 1: it is empty", nil},
		{"text", "line 1: this is no backup of Cardea", []byte("Dear diary\n")},
		{"some other JSON", "line 1: this is no backup of Cardea", []byte("{\"kind\":\"User\"}\n")},
		{"a newer format", "line 1: it has format 3, this binary knows up to 2: use cardea ≥ v1.2.3", replace(`"format":2`, `"format":3`)},
		{"no format", "line 1: it has format 0", replace(`"format":2`, `"format":0`)},
		{"cut short between lines", "line 6: the backup is cut short", bytes.Join(lines[:5], nil)},
		{"cut short after the first line", "line 2: the backup is cut short", lines[0]},
		{"cut short in a line", "line 3: it is cut short", good[:len(lines[0])+len(lines[1])+10]},
		{"without the last newline", "line 6: it is cut short", good[:len(good)-1]},
		{"a value changed", "line 6: the backup was altered", replace(`{"v":1.5}`, `{"v":2.5}`)},
		{"the header changed", "line 6: the backup was altered", replace("cardea.internal", "cardea.external")},
		{"a line missing", "line 5: the backup was altered", without(2)},
		{"lines twice", "line 3: Group/g comes after Group/g", bytes.Join([][]byte{lines[0], lines[1], bytes.Join(lines[1:], nil)}, nil)},
		{"something after the end", "line 7: there is more after the last line", append(bytes.Clone(good), '\n')},
		{"a blank line for the rest", "line 4: it is blank", append(bytes.Join(lines[:3], nil), '\n')},
		{"an unknown field", `line 2: json: unknown field "weight"`, replace(`"uid":`, `"weight":1,"uid":`)},
		{"no Object", "line 2: it is neither an Object nor the last line", replace(`,"object":{"v":1}`, "")},
		{"a count that is wrong", "line 6: the last line counts 9 Objects, and there are 4", replace(`"objects":4`, `"objects":9`)},
		{"no name", "an Object needs a kind and a name", replace(`,"name":"g"`, "")},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := memory.New()
			defer s.Close()
			at := put(t, s, record("core", "User", "carol", 1))
			want, _ := dump(t, s)
			for name, try := range map[string]func() (backup.Summary, error){
				"Restore": func() (backup.Summary, error) {
					return backup.Restore(t.Context(), s, bytes.NewReader(c.file), "tester", nil)
				},
				"Verify": func() (backup.Summary, error) { return backup.Verify(t.Context(), bytes.NewReader(c.file), nil) },
			} {
				if _, err := try(); !errors.Is(err, backup.ErrInvalid) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, want %q", name, err, c.want)
				}
			}
			if have, now := dump(t, s); have != want || now != at {
				t.Errorf("the store has changed from %v to %v:\n%s", at, now, have)
			}
		})
	}
}

// Who can write to the file and has no key of the cluster can change nothing in
// it, although he can make it whole; who has one can.
func TestAuthentic(t *testing.T) {
	keeper := func(fill byte) *secret.Keeper {
		k, err := secret.New(bytes.Repeat([]byte{fill}, secret.KeySize))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	ours, theirs := keeper(1), keeper(2)
	of := func(k *secret.Keeper) []byte {
		from, _ := filled(t)
		var b bytes.Buffer
		opts := backup.Options{}
		if k != nil {
			opts.Authenticator = k
		}
		if _, err := backup.Write(t.Context(), from, &b, opts); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	good := of(ours)
	// resum makes a file whole that was changed.
	resum := func(file []byte) []byte {
		lines, last := body(file), file[len(body(file)):]
		before := fmt.Sprintf(`"sha256":"%x"`, sha256.Sum256(body(good)))
		after := fmt.Sprintf(`"sha256":"%x"`, sha256.Sum256(lines))
		return append(bytes.Clone(lines), bytes.Replace(last, []byte(before), []byte(after), 1)...)
	}
	last := string(good[len(body(good)):])
	mac := last[strings.Index(last, `"mac":"`):]
	for _, c := range []struct {
		name, want string
		file       []byte
	}{
		{"as it was written", "", good},
		{"another value", "altered, or written by somebody else", resum(bytes.Replace(good, []byte(`{"v":1.5}`), []byte(`{"v":2.5}`), 1))},
		{"of an older format", "altered, or written by somebody else", resum(bytes.Replace(good, []byte(`"format":2`), []byte(`"format":1`), 1))},
		{"without the code", "nobody vouches for it", bytes.Replace(good, []byte(","+mac), []byte("}\n"), 1)},
		{"by nobody", "nobody vouches for it", of(nil)},
		{"a code that is none", "its mac is not hexadecimal", bytes.Replace(good, []byte(mac), []byte(`"mac":"zz"}`+"\n"), 1)},
		{"by another cluster", "the key that vouches for it is not here", of(theirs)},
		{"by another cluster, in the name of this", "does not vouch for it", bytes.Replace(of(theirs), []byte(theirs.KeyID()), []byte(ours.KeyID()), 1)},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := memory.New()
			defer s.Close()
			at := put(t, s, record("core", "User", "carol", 1))
			if _, err := backup.Verify(t.Context(), bytes.NewReader(c.file), nil); err != nil {
				t.Fatalf("it is not whole: %v", err)
			}
			_, verify := backup.Verify(t.Context(), bytes.NewReader(c.file), ours)
			_, restore := backup.Restore(t.Context(), s, bytes.NewReader(c.file), "tester", ours)
			_, now := dump(t, s)
			for name, err := range map[string]error{"Verify": verify, "Restore": restore} {
				if c.want == "" && err != nil || c.want != "" && (!errors.Is(err, backup.ErrInvalid) || !strings.Contains(err.Error(), c.want)) {
					t.Errorf("%s: %v, want %q", name, err, c.want)
				}
			}
			if (now != at) != (c.want == "") {
				t.Errorf("the store went from %v to %v", at, now)
			}
		})
	}
}

// An error of the file, of the store or of the caller is told as what it is.
func TestTroubleIsNoBadBackup(t *testing.T) {
	s, good := filled(t)
	_, at := dump(t, s)
	oops := errors.New("oops")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	broken := io.MultiReader(bytes.NewReader(good[:len(good)-100]), reader(func([]byte) (int, error) { return 0, oops }))
	for name, try := range map[string]func() error{
		"read":   func() error { _, err := backup.Restore(t.Context(), s, broken, "", nil); return err },
		"cancel": func() error { _, err := backup.Restore(gone, s, bytes.NewReader(good), "", nil); return err },
		"write": func() error {
			_, err := backup.Write(t.Context(), s, writer(func([]byte) (int, error) { return 0, oops }), backup.Options{})
			return err
		},
	} {
		if err := try(); errors.Is(err, backup.ErrInvalid) || !errors.Is(err, oops) && !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, now := dump(t, s); now != at {
		t.Errorf("the store went from %v to %v", at, now)
	}
}

type reader func([]byte) (int, error)

func (r reader) Read(p []byte) (int, error) { return r(p) }

// FuzzRestore: whatever the file, it is refused with nothing changed, or restored
// to what it says. So that most are not refused for their checksum, sealed files
// get a right last line.
func FuzzRestore(f *testing.F) {
	_, good := filled(f)
	lines := good[:bytes.LastIndex(good[:len(good)-1], []byte("\n"))+1]
	f.Add(good, false)
	f.Add(good[:len(good)/2], false)
	f.Add(lines, true)
	f.Add(lines[:bytes.IndexByte(lines, '\n')+1], true)
	f.Add(bytes.Replace(lines, []byte("alice"), []byte("al\\u0000"), 1), true)
	f.Add(bytes.Replace(lines, []byte(`"uid"`), []byte(`"UID":"x","uid"`), 1), true)
	f.Fuzz(func(t *testing.T, file []byte, sealed bool) {
		if sealed {
			file = fmt.Appendf(file[:len(file):len(file)], "{\"objects\":%d,\"sha256\":\"%x\"}\n", bytes.Count(file, []byte("\n"))-1, sha256.Sum256(file))
		}
		s := memory.New()
		defer s.Close()
		at := put(t, s, record("core", "User", "carol", 1))
		want, _ := dump(t, s)
		sum, err := backup.Restore(t.Context(), s, bytes.NewReader(file), "", nil)
		seen, err2 := backup.Verify(t.Context(), bytes.NewReader(file), nil)
		if (err == nil) != (err2 == nil) {
			t.Fatalf("Restore: %v; Verify: %v", err, err2)
		}
		have, now := dump(t, s)
		if err != nil {
			if !errors.Is(err, backup.ErrInvalid) || have != want || now != at {
				t.Fatalf("%v; the store went from %v to %v", err, at, now)
			}
			return
		}
		if sum.Objects != bytes.Count(file, []byte("\n"))-2 || seen.Objects != sum.Objects || now != sum.Restored || now.Epoch != at.Epoch+1 {
			t.Fatalf("%+v, %+v of %v:\n%s", sum, seen, now, have)
		}
		// It has a backup that restores the same.
		again, _ := write(t, s)
		if _, err := backup.Restore(t.Context(), s, bytes.NewReader(again), "", nil); err != nil {
			t.Fatalf("%v:\n%s", err, again)
		}
		if twice, _ := dump(t, s); twice != have {
			t.Fatalf("restored as\n%s\nand then as\n%s", have, twice)
		}
	})
}
