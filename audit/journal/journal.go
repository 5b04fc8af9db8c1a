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
// Callers encode their records, and whoever finds that nobody writes writes what
// all who wait have given, with one write(2) (group commit). What nobody waits for
// is written some milliseconds later.
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

// lockName is the name of the file that says, by a lock on it, that the directory is
// in use.
const lockName = "lock"

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

// A Journal is an access log in files. It is an [audit.Ledger], an [audit.Reader]
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

	scratch sync.Pool // of *records

	wake chan struct{} // Run has something to do
	turn chan struct{} // it is Run's turn to write

	settled  atomic.Int64 // the last batch that is written, or has failed
	lost     atomic.Bool  // there are failures
	troubled atomic.Bool  // there is trouble

	owed records // that were noted, and could not be written; of who writes

	mu         sync.Mutex
	taken      bool   // somebody writes
	turnWanted bool   // … and Run waits until it is its turn
	batch      *batch // is next; it is of those who hold mu
	writing    *batch // is being written; its records are of who writes
	failures   map[int64]failure
	refused    int64 // records since the last write
	held       int   // records of owed
	closed     bool
	soon, busy bool  // what Run knows that it has to do
	trouble    error // of tail
}

var (
	_ audit.Ledger = (*Journal)(nil)
	_ audit.Reader = (*Journal)(nil)
	_ audit.Source = (*Journal)(nil)
)

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
		scratch: sync.Pool{New: func() any { return new(records) }},
		wake:    make(chan struct{}, 1), turn: make(chan struct{}, 1),
		batch: &batch{number: 1}, writing: new(batch), failures: map[int64]failure{},
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
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rouse(&j.busy)
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

// The rhythm of Run.
const (
	lull   = 5 * time.Millisecond // until what nobody waits for is written
	second = time.Second          // from one signed head to the next
	hour   = time.Hour            // between looks at the clock, while nothing is written
)

// Run writes what nobody waits for, signs, syncs and deletes what is old, until ctx
// is done. It then writes what is still waiting, signs that the journal ended
// cleanly, and releases the files; the error says what of that failed. It can be
// called once.
func (j *Journal) Run(ctx context.Context) error {
	due := make(chan struct{}, 1)
	var keeping sync.WaitGroup
	keeping.Go(func() { j.keepAll(ctx, due) })
	j.beat(ctx, due)

	j.mu.Lock()
	j.closed = true
	j.mu.Unlock()
	j.hold() // for good
	j.mu.Lock()
	j.write(true)
	if j.held > 0 {
		j.log.Error("records of what has happened are lost: the journal is closed and cannot be written", "records", j.held)
	}
	j.mu.Unlock()
	err := j.signEnd()
	close(due)
	keeping.Wait()
	// What was written must be kept although we are told to stop.
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	_, kerr := j.keeper.keep(last)
	err = errors.Join(err, kerr, j.keeper.close(), j.names.close(), j.lock.Close())
	j.index.close()
	return err
}

// beat does what is to be done from time to time, until ctx is done. While nothing
// is written it sleeps.
func (j *Journal) beat(ctx context.Context, due chan<- struct{}) {
	soon, tick := time.NewTimer(hour), time.NewTimer(second)
	defer soon.Stop()
	defer tick.Stop()
	waiting, busy := false, true // for soon, and for tick to come within a second
	var settled int64
	for {
		select {
		case <-ctx.Done():
			return
		case <-j.wake:
		case <-soon.C:
			if waiting {
				waiting = false
				settled = j.flush(settled)
			}
		case <-tick.C:
			busy = false
			tick.Reset(j.mind())
			select {
			case due <- struct{}{}:
			default: // still at the last one
			}
		}
		j.mu.Lock()
		if j.soon && !waiting {
			waiting = true
			soon.Reset(lull)
		}
		if j.busy && !busy {
			busy = true
			tick.Reset(second)
		}
		j.mu.Unlock()
	}
}

// flush writes what nobody waits for. It returns which batch is the last that is
// settled; if that is the one that it was before, nothing happens any more.
func (j *Journal) flush(before int64) int64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.batch.items) > 0 && j.trouble == nil {
		j.mu.Unlock()
		j.hold()
		j.mu.Lock()
		j.write(false)
		j.pass()
	}
	now := j.settled.Load()
	j.soon = now != before
	return now
}

// mind signs what is new, begins a new segment if this one is old, and finds out
// whether the journal can be written again if it could not. It returns when to do so
// again if nothing is written until then.
func (j *Journal) mind() time.Duration {
	j.mu.Lock()
	j.busy = false
	j.mu.Unlock()
	j.hold()
	if j.tail.trouble != nil {
		j.mu.Lock()
		j.write(true)
		j.mu.Unlock()
	} else if j.tail.ages() <= 0 {
		j.renew()
	}
	err := j.sign()
	if err != nil {
		j.log.Error("the head of the journal is not signed", "err", err)
	}
	old := min(j.tail.ages(), j.keeper.ages())
	j.mu.Lock()
	defer j.mu.Unlock()
	if err != nil {
		j.rouse(&j.busy)
	}
	j.pass()
	return min(max(old, second), hour)
}

// keepAll lets the keeper work each time that it is due.
func (j *Journal) keepAll(ctx context.Context, due <-chan struct{}) {
	var last error
	for range due {
		more, err := j.keeper.keep(ctx)
		if err != nil && ctx.Err() == nil && (last == nil || last.Error() != err.Error()) {
			j.log.Error("the journal cannot be kept safe", "err", err)
		}
		if last = err; more || err != nil {
			j.mu.Lock()
			j.rouse(&j.busy)
			j.mu.Unlock()
		}
	}
}

// renew begins a new segment, as the one that is written is old.
func (j *Journal) renew() {
	defer j.note()
	if err := j.tail.ready(true, 0); err != nil {
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

// note lets the others know how it stands with the tail.
func (j *Journal) note() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.see()
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
