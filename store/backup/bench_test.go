package backup_test

import (
	"bytes"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"cardea/store"
	"cardea/store/backup"
	"cardea/store/sqlite"
)

// BenchmarkBackup writes and restores a SQLite store of 100,000 Objects of 1 KiB.
func BenchmarkBackup(b *testing.B) {
	s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "cardea.db"), sqlite.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	text := strings.Repeat("x", 1000)
	_, err = s.Renew(b.Context(), "bench", func(yield func(store.Record, error) bool) {
		for i := range 100_000 {
			if !yield(record("core", "User", fmt.Sprintf("u%06d", i), text), nil) {
				return
			}
		}
	})
	if err != nil {
		b.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := backup.Write(b.Context(), s, &file, backup.Options{}); err != nil {
		b.Fatal(err)
	}
	b.Run("write", func(b *testing.B) {
		b.SetBytes(int64(file.Len()))
		p := &peak{b: b}
		for b.Loop() {
			if _, err := backup.Write(b.Context(), s, writer(p.passes), backup.Options{}); err != nil {
				b.Fatal(err)
			}
		}
		p.report()
	})
	b.Run("restore", func(b *testing.B) {
		b.SetBytes(int64(file.Len()))
		p := &peak{b: b}
		for b.Loop() {
			rest := bytes.NewReader(file.Bytes())
			in := reader(func(to []byte) (int, error) {
				n, err := rest.Read(to)
				_, _ = p.passes(to[:n]) // never fails
				return n, err
			})
			if _, err := backup.Restore(b.Context(), s, in, "bench", nil); err != nil {
				b.Fatal(err)
			}
		}
		p.report()
	})
}

// A peak sees how much memory is in use as bytes go by.
type peak struct {
	b          *testing.B
	seen       int
	first, top uint64
}

// passes looks at the heap every 16 MiB.
func (p *peak) passes(bytes []byte) (int, error) {
	if p.seen%(16<<20) < len(bytes) {
		p.b.StopTimer()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		p.top = max(p.top, m.HeapAlloc)
		if p.first == 0 {
			p.first = m.HeapAlloc
		}
		p.b.StartTimer()
	}
	p.seen += len(bytes)
	return len(bytes), nil
}

func (p *peak) report() { p.b.ReportMetric(float64(p.top-p.first)/(1<<20), "heap-MiB") }
