package server

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/journal"
	"cardea/audit/merge"
	"cardea/cert"
	"cardea/store"
)

// The journals of a data directory. Each process writes one of its own: the first
// writes log, and who comes while that is in use log.1, and so on. Each is a chain by
// itself, of an instance of its own, which is gone on with by whoever has it next.

// journalName returns the directory of the n-th journal, below the data directory.
func journalName(n int) string {
	if n == 0 {
		return logDir
	}
	return fmt.Sprintf("%s.%d", logDir, n)
}

// journalsIn returns the journals that there are in a data directory, in order.
func journalsIn(dataDir string) (names []string, err error) {
	all, err := os.ReadDir(dataDir)
	if err != nil {
		return nil, err
	}
	var numbers []int
	for _, e := range all {
		if e.Name() == logDir {
			numbers = append(numbers, 0)
		} else if n, err := strconv.Atoi(strings.TrimPrefix(e.Name(), logDir+".")); err == nil && n > 0 && e.Name() == journalName(n) {
			numbers = append(numbers, n)
		}
	}
	slices.Sort(numbers)
	for _, n := range numbers {
		names = append(names, journalName(n))
	}
	return names, nil
}

// instanceFile names the instances of the journals, where the store is elsewhere.
const instanceFile = "instance"

// instanceOf returns whose journal it is that has that name: where the store is not
// in the data directory, another directory is another journal beside the same store.
func instanceOf(cfg Config, name string) (string, error) {
	instance := "up"
	if cfg.Store != "" {
		path := filepath.Join(cfg.DataDir, instanceFile)
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			b = []byte("up-" + strings.ToLower(rand.Text()[:8]))
			err = os.WriteFile(path, b, 0o600)
		}
		if err != nil {
			return "", err
		}
		instance = strings.TrimSpace(string(b))
	}
	if _, n, ok := strings.Cut(name, "."); ok {
		instance += "-" + n
	}
	return instance, nil
}

// busy reports whether somebody writes a journal. One of which that cannot be told is
// left alone.
func busy(dataDir, name string) bool {
	is, err := journal.Busy(filepath.Join(dataDir, name))
	return is || err != nil
}

// A written is the journal that this process writes.
type written struct {
	*journal.Journal
	name, instance string
}

// openJournal opens the first journal of the data directory that is free, and returns
// the names of those that are not.
func openJournal(ctx context.Context, cfg Config, a *cert.Authority, st store.Store) (j written, others []string, err error) {
	for n := 0; ; n++ {
		name := journalName(n)
		if busy(cfg.DataDir, name) {
			others = append(others, name)
			continue
		}
		c, err := journalConfig(ctx, cfg, name, a, st)
		if err != nil {
			return j, nil, err
		}
		j = written{name: name, instance: c.Instance}
		if j.Journal, err = openAgain(ctx, c); err != nil && busy(cfg.DataDir, name) { // it was, by now
			others = append(others, name)
			continue
		}
		return j, others, err
	}
}

// openAgain opens a journal, again if that fails at first: who only looks whether it
// is free has its lock for a moment.
func openAgain(ctx context.Context, c journal.Config) (j *journal.Journal, err error) {
	for range 5 {
		if j, err = journal.Open(ctx, c); err == nil {
			return j, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return nil, err
}

// journalConfig says how a journal is opened. How much it keeps is known before it
// begins: opened with less, it would delete what is to be kept.
func journalConfig(ctx context.Context, cfg Config, name string, a *cert.Authority, st store.Store) (c journal.Config, err error) {
	c = journal.Config{Dir: filepath.Join(cfg.DataDir, name), Marks: st, Log: cfg.Log}
	if c.Instance, err = instanceOf(cfg, name); err != nil {
		return c, err
	}
	if c.Signer, err = a.JournalSigner(ctx); err != nil {
		return c, err
	}
	if c.Keys, err = a.JournalKeys(ctx); err != nil {
		return c, err
	}
	config, err := configOf(ctx, st)
	if err != nil && !api.HasCode(err, api.CodeNotFound) { // it is missing before the first start
		return c, err
	}
	c.Retention, c.Durability = journal.RetentionOf(config.Spec.Audit), config.Spec.Audit.Durability
	return c, nil
}

// logs are all journals of the data directory, for reading.
type logs struct {
	*house

	mu      sync.Mutex
	readers map[string]*journal.Reader // of those that this process does not write
}

// others returns the journals that this process does not write.
func (l *logs) others() ([]string, error) {
	all, err := journalsIn(l.cfg.DataDir)
	return slices.DeleteFunc(all, func(name string) bool { return name == l.journal.name }), err
}

// Records implements control.Logs.
func (l *logs) Records(ctx context.Context, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return merge.New(l.parts).Records(ctx, q)
}

// parts returns all journals, each by the same Reader each time.
func (l *logs) parts() []merge.Part {
	parts := []merge.Part{{Name: l.journal.name, Reader: l.journal.Journal}}
	others, err := l.others()
	if err != nil {
		l.cfg.Log.Warn("the other journals cannot be listed", "error", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, name := range others {
		r := l.readers[name]
		if r == nil {
			if r, err = journal.OpenReader(journal.ReaderConfig{Dir: filepath.Join(l.cfg.DataDir, name), Log: l.cfg.Log}); err != nil {
				l.cfg.Log.Warn("a journal cannot be read", "journal", name, "error", err)
				continue
			}
			if l.readers == nil {
				l.readers = map[string]*journal.Reader{}
			}
			l.readers[name] = r
		}
		parts = append(parts, merge.Part{Name: name, Reader: r})
	}
	return parts
}

// Verify implements control.Logs.
func (l *logs) Verify(ctx context.Context) (api.VerifyReport, error) {
	report, err := l.journal.Verify(ctx)
	if err != nil {
		return report, err
	}
	others, err := l.others()
	if err != nil {
		return report, err
	}
	report.Journals = 1
	if len(others) == 0 {
		return report, nil
	}
	name := func(of string, all []string) {
		for i := range all {
			all[i] = of + ": " + all[i]
		}
	}
	name(l.journal.name, report.Findings)
	name(l.journal.name, report.Notes)
	for _, other := range others {
		r, err := l.verify(ctx, other)
		if err != nil {
			return report, err
		}
		name(other, r.Findings)
		name(other, r.Notes)
		report.OK = report.OK && r.OK
		report.Records, report.Segments, report.Heads, report.Open = report.Records+r.Records, report.Segments+r.Segments, report.Heads+r.Heads, report.Open+r.Open
		report.Findings, report.Notes = append(report.Findings, r.Findings...), append(report.Notes, r.Notes...)
		report.Journals++
	}
	return report, nil
}

// verify verifies a journal that another process writes, or wrote.
func (l *logs) verify(ctx context.Context, name string) (report api.VerifyReport, err error) {
	instance, err := instanceOf(l.cfg, name)
	if err != nil {
		return report, err
	}
	mark, err := journal.ReadMark(ctx, l.store, instance)
	if err != nil {
		return report, err
	}
	keys, err := l.authority.JournalKeys(ctx)
	if err != nil {
		return report, err
	}
	if signer, err := l.authority.JournalSigner(ctx); err != nil {
		return report, err
	} else if key, ok := signer.Public().(ed25519.PublicKey); ok {
		keys = append(keys, key)
	}
	return journal.Verify(ctx, filepath.Join(l.cfg.DataDir, name), keys, mark)
}
