// Package journal keeps the access log in files that nobody can change
// unnoticed.
//
// A directory holds one chain of lines of JSON, of one instance, in segments.
// Each line carries its number and the hash of the line before it, so that a
// line cannot be changed, left out or moved without all that follow. Each
// second, and at the end of a segment, the head of the chain is signed; the
// signed head stands in the chain and, as the [Mark], outside of it, so that
// the end of the chain cannot be cut off or written anew either. What was
// written since the last head, a second at most, is not protected yet. [Verify]
// checks all this with the public keys and the mark alone.
//
// The last head of a clean end says so, and only another head may follow upon
// it. What is added while nothing runs is therefore found: the next start sets
// it aside, in files whose names end in .foreign and which stay until somebody
// removes them, and says in the chain how much there was, which is a finding of
// Verify as long as that line is kept.
//
// A crash leaves no such end. The next start takes over the whole lines after
// the last head, because they may have been acknowledged, and says in the chain
// how many; Verify gives that as a note. Nobody can tell whether the process
// wrote them: whoever can write to the files can add lines there between a crash
// and the next start, or write anew those of the last second, and whoever can
// kill the process can bring a crash about. Nor does any of this help against
// whoever has the key, or can write to the files and to where the mark is kept.
//
// One goroutine writes. Callers encode their records, and all who wait are
// served by one write(2) (group commit).
//
// After a crash [Open] cuts off a line that was never finished, and ends each
// connection that has a START and no END with a record of what is known.
//
// Retention deletes the oldest segments. Before it does, a signed head says where
// the journal begins from then on, so that nobody else can cut off its beginning.
// The key that signs can be changed while the journal runs; each head names its
// key.
//
// What it costs: the disk is synced each second, so that a loss of power may
// take the last second with it, unless the durability is DISK. Several
// faults at once can keep a record whose caller was told that it is not: it was
// written, could not be synced or was in a file that had been removed, and
// could not be cut off again.
package journal

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/audit"
)

// Retention says how much is kept. Whole segments go, the oldest first, and
// never the one that is written; who reads may still finish.
type Retention struct {
	Size int64         // bytes of all segments; 0 is 10 GiB
	Age  time.Duration // of what is in a segment; 0 is 90 days
}

// RetentionOf returns the retention that a ClusterConfig says.
func RetentionOf(a api.ClusterAudit) Retention {
	if a.Retention == nil {
		return Retention{}
	}
	return Retention{Size: int64(a.Retention.MaxSizeMegabytes) << 20, Age: a.Retention.MaxAge.Or(0)}
}

// A Config is what a Journal needs. Dir, Instance, Signer, Marks and Log are
// required.
type Config struct {
	Dir      string // made if it is not there, 0700
	Instance string // whose journal it is: 1 to 64 of A-Z a-z 0-9 . _ -; the same at each start
	// Signer signs heads; its public key must be an ed25519.PublicKey. It must
	// not be kept in Dir.
	Signer crypto.Signer
	// Keys are further public keys whose heads are accepted: those that signed
	// before Signer did.
	Keys        []ed25519.PublicKey
	Marks       Marks
	Log         *slog.Logger
	Now         func() time.Time // nil is time.Now
	SegmentSize int64            // bytes from which on a new segment begins; 0 is 64 MiB
	Retention   Retention
	Durability  api.Durability // "" is PROCESS
}

// A Journal is an access log in files. It is an [audit.Log], an [audit.Reader]
// and an [audit.Source].
type Journal struct {
	dir    string
	marks  Marks
	log    *slog.Logger
	lock   *os.File
	names  *directory
	keys   keyring
	disk   atomic.Bool // Append waits for the disk
	index  index
	keeper keeper
	tail   tail // of Run alone

	entries sync.Pool // of *entry
	wake    chan struct{}

	mu      sync.Mutex
	batch   *batch // of those who wait to be written
	closed  bool
	trouble error // of tail
}

var (
	_ audit.Log    = (*Journal)(nil)
	_ audit.Reader = (*Journal)(nil)
	_ audit.Source = (*Journal)(nil)
)

// A batch is what is written at once.
type batch struct {
	entries []*entry
	done    chan struct{}
	err     error // good once done is closed
}

func newBatch() *batch { return &batch{done: make(chan struct{})} }

// Open opens the journal in c.Dir, makes it if there is none, and mends what a
// crash left. It starts nothing; whoever opens a Journal must [Journal.Run] it,
// if only with a context that is done, to release what it holds. It fails if
// another process has the journal open, if it is of another instance, and if it
// cannot be read or written.
func Open(ctx context.Context, c Config) (*Journal, error) {
	j, err := open(ctx, c, createFile)
	if err != nil {
		return nil, fmt.Errorf("opening the journal: %w", err)
	}
	return j, nil
}

func open(ctx context.Context, c Config, create func(string) (file, error)) (*Journal, error) {
	if c.Dir == "" || c.Signer == nil || c.Marks == nil || c.Log == nil {
		return nil, errors.New("Dir, Signer, Marks and Log are required")
	}
	if !instanceRule.MatchString(c.Instance) {
		return nil, fmt.Errorf("instance %q: must be 1 to 64 characters of A-Z, a-z, 0-9, '.', '_' and '-'", c.Instance)
	}
	if !slices.Contains(append(c.Durability.Values(), ""), string(c.Durability)) {
		return nil, fmt.Errorf("durability %q: must be PROCESS or DISK", c.Durability)
	}
	orDefault(&c.SegmentSize, 64<<20)
	if c.Now == nil {
		c.Now = time.Now
	}
	j := &Journal{
		dir: c.Dir, marks: c.Marks, log: c.Log,
		keeper: keeper{dir: c.Dir, instance: c.Instance, marks: c.Marks, now: c.Now, log: c.Log},
		tail: tail{
			dir: c.Dir, instance: c.Instance, segmentSize: c.SegmentSize,
			now: c.Now, create: create, log: c.Log, open: map[string]place{},
		},
		entries: sync.Pool{New: func() any { return new(entry) }},
		wake:    make(chan struct{}, 1),
		batch:   newBatch(),
	}
	j.keeper.index = &j.index
	j.tail.index, j.tail.keeper, j.tail.keys, j.tail.disk = &j.index, &j.keeper, &j.keys, &j.disk
	j.disk.Store(c.Durability == api.DurabilityDisk)
	j.keeper.retain(c.Retention)
	if err := j.keys.set(c.Signer, c.Keys); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, err
	}
	var err error
	if j.lock, err = lock(c.Dir); err != nil {
		return nil, err
	}
	if j.names, err = openDirectory(c.Dir); err != nil {
		return nil, errors.Join(err, j.lock.Close())
	}
	j.keeper.names = j.names
	if err := j.recover(ctx); err != nil {
		return nil, errors.Join(err, j.keeper.close(), j.names.close(), j.lock.Close())
	}
	return j, nil
}

// Configure makes the journal follow a as it is now, with the defaults for what a
// leaves out. What is written from then on is as durable as a says.
func (j *Journal) Configure(a api.ClusterAudit) {
	j.keeper.retain(RetentionOf(a))
	j.disk.Store(a.Durability == api.DurabilityDisk)
}

// SetSigner makes s sign heads from now on; the next one within a second of the
// next record. Heads of the key before it, and of earlier, stay good; but once a
// head of another key stands in the chain, the key before it signs no more: a
// later head of it is a finding of Verify.
func (j *Journal) SetSigner(s crypto.Signer, earlier ...ed25519.PublicKey) error {
	if err := j.keys.set(s, earlier); err != nil {
		return fmt.Errorf("changing the key of the journal: %w", err)
	}
	return nil
}

// orDefault sets *v if it is zero.
func orDefault[T comparable](v *T, to T) {
	var zero T
	if *v == zero {
		*v = to
	}
}

// Run writes what Append is given, until ctx is done. It then writes what is
// still waiting, signs that the journal ended cleanly, and releases the files;
// the error says what of that failed. It can be called once.
func (j *Journal) Run(ctx context.Context) error {
	due := make(chan struct{}, 1)
	var keeping sync.WaitGroup
	keeping.Go(func() { j.keepAll(ctx, due) })
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-j.wake:
			// Let those who are about to append do so: fewer and greater writes
			// take a quarter less of the processor.
			runtime.Gosched()
			j.commit(j.take(false))
		case <-tick.C:
			if j.tail.trouble != nil {
				j.commit(newBatch()) // ask whether it can be written again
			} else if j.tail.aged() {
				j.renew()
			}
			if err := j.sign(); err != nil {
				j.log.Error("the head of the journal is not signed", "err", err)
			}
			select {
			case due <- struct{}{}:
			default: // still at the last one
			}
		}
	}
	j.commit(j.take(true))
	err := j.signEnd()
	close(due)
	keeping.Wait()
	// What was written must be kept although we are told to stop.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	err = errors.Join(err, j.keeper.keep(last), j.keeper.close(), j.names.close(), j.lock.Close())
	j.index.close()
	return err
}

// keepAll lets the keeper work each time that it is due.
func (j *Journal) keepAll(ctx context.Context, due <-chan struct{}) {
	var last error
	for range due {
		err := j.keeper.keep(ctx)
		if err != nil && ctx.Err() == nil && (last == nil || last.Error() != err.Error()) {
			j.log.Error("the journal cannot be kept safe", "err", err)
		}
		last = err
	}
}

// Append implements [audit.Log]. Before [Journal.Run] is called it waits.
func (j *Journal) Append(ctx context.Context, recs ...*api.AccessLog) error {
	if len(recs) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	e := j.entries.Get().(*entry)
	defer func() { e.reset(); j.entries.Put(e) }()
	for _, rec := range recs {
		if err := e.add(rec); err != nil {
			return err
		}
	}
	j.mu.Lock()
	if j.closed {
		j.mu.Unlock()
		return audit.ErrClosed
	}
	b := j.batch
	b.entries = append(b.entries, e)
	j.mu.Unlock()
	select {
	case j.wake <- struct{}{}:
	default: // the writer knows
	}
	select {
	case <-b.done:
		return b.err
	case <-ctx.Done():
		if j.withdraw(b, e) {
			return ctx.Err()
		}
		<-b.done
		return b.err
	}
}

// take takes the batch that waits, and refuses more if it is the last.
func (j *Journal) take(last bool) *batch {
	j.mu.Lock()
	defer j.mu.Unlock()
	b := j.batch
	j.batch, j.closed = newBatch(), last
	return b
}

// withdraw takes e out of b, unless b is being written.
func (j *Journal) withdraw(b *batch, e *entry) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.batch != b {
		return false
	}
	b.entries = slices.DeleteFunc(b.entries, func(x *entry) bool { return x == e })
	return true
}

// commit writes a batch and tells those who wait.
func (j *Journal) commit(b *batch) {
	if len(b.entries) > 0 || j.tail.trouble != nil {
		b.err = j.tail.write(b.entries)
		j.note()
	}
	close(b.done)
}

// renew begins a new segment, as the one that is written is old.
func (j *Journal) renew() {
	defer j.note()
	if err := j.tail.ready(0); err != nil {
		j.log.Error("no new segment of the journal is begun", "err", err)
	}
}

// sign signs the head if there is something new.
func (j *Journal) sign() error {
	if j.tail.trouble != nil {
		return j.tail.trouble
	}
	defer j.note()
	return j.tail.head()
}

// signEnd signs that the journal ends here, cleanly: it is used no more.
func (j *Journal) signEnd() error {
	if j.tail.trouble != nil {
		return j.tail.trouble
	}
	defer j.note()
	j.keeper.choose()
	return j.tail.sign(true)
}

// note lets Healthy know.
func (j *Journal) note() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.trouble = j.tail.trouble
}

// Healthy says why records cannot be written; nil if they can. The journal finds
// out within a second that they can again.
func (j *Journal) Healthy() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(j.trouble, j.keeper.failure())
}

// Stats is what there is to measure of a Journal.
type Stats struct {
	Records  int64 // that were ever taken, also by earlier processes
	Segments int
	Bytes    int64         // of all segments
	Unsynced int64         // records that may not be on disk yet …
	Lag      time.Duration // … and for how long the oldest line is not
	LastSync time.Time     // when all was last known to be on disk; zero if it never was
}

// Stats returns what there is to measure now.
func (j *Journal) Stats() Stats {
	var s Stats
	segments, _ := j.index.view()
	s.Segments = len(segments)
	for _, g := range segments {
		s.Bytes += g.size
	}
	k := &j.keeper
	k.mu.Lock()
	defer k.mu.Unlock()
	s.Records, s.LastSync = k.written.Record, k.syncedAt
	if k.synced != k.written {
		s.Unsynced, s.Lag = k.written.Record-k.synced.Record, k.now().Sub(k.since)
	}
	return s
}
