package journal

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"cardea/audit"
)

// A keeper does what takes the disk or the store a while and must not hold up
// the writer: it syncs files, keeps the mark, and deletes old segments.
type keeper struct {
	dir      string
	names    *directory // of dir
	instance string
	marks    Marks
	now      func() time.Time
	log      *slog.Logger
	index    *index

	// reading is held by who needs the segments to stay.
	reading sync.RWMutex
	// syncing is held by who syncs.
	syncing sync.Mutex

	mu        sync.Mutex
	retention Retention
	current   file
	retired   []file // to be synced and closed
	newName   bool   // a name in dir is not durable
	written   audit.Position
	synced    audit.Position // what is known to be on disk
	since     time.Time      // when the first line after synced was written
	syncedAt  time.Time      // when it was last all on disk
	syncErr   error          // why the last sync failed
	mark      *Mark          // as it should be kept
	kept      *Mark          // as it is kept
	letGo     Start          // where the journal is to begin, which the next head says
}

// retain says how much is kept from now on.
func (k *keeper) retain(r Retention) {
	orDefault(&r.Size, 10<<30)
	orDefault(&r.Age, 90*24*time.Hour)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.retention = r
}

// span is how long a segment may hold records until the next begins: what
// retention deletes is at most so much older than it should be.
func (k *keeper) span() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	return min(k.retention.Age/8, 24*time.Hour)
}

// begins returns where the journal is to begin.
func (k *keeper) begins() Start {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.letGo
}

// rotated says that f is the file of the segment that has just begun.
func (k *keeper) rotated(f file, begun Start) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != nil {
		k.retired = append(k.retired, k.current)
	}
	k.current, k.newName = f, true
	if k.letGo.Segment == 0 {
		k.letGo = begun
	}
}

// wrote says which line is the last, when it was written and whether it is on disk.
func (k *keeper) wrote(to audit.Position, onDisk bool, at time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.synced == k.written {
		k.since = at
	}
	k.written = to
	if onDisk {
		k.synced, k.syncedAt = to, k.now()
	}
}

// signed says which head is the last, the hash of its line, and how many records
// there are before it.
func (k *keeper) signed(h *Head, hash digest, records int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mark = &Mark{Instance: k.instance, Head: *h, Line: hash, Oldest: *h.Oldest, Records: records}
}

// failure says why what was written may not be on disk.
func (k *keeper) failure() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.syncErr
}

// sync makes durable what is written.
func (k *keeper) sync() error {
	k.syncing.Lock()
	defer k.syncing.Unlock()
	k.mu.Lock()
	current, retired, newName, written := k.current, k.retired, k.newName, k.written
	done := written.Line == k.synced.Line && len(retired) == 0 && !newName && k.syncErr == nil
	k.mu.Unlock()
	if done || current == nil {
		return nil
	}
	var err error
	for _, f := range retired {
		err = errors.Join(err, f.Sync())
	}
	err = errors.Join(err, current.Sync())
	if newName {
		err = errors.Join(err, k.names.sync())
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.syncErr = err
	if err != nil {
		return err
	}
	for _, f := range retired {
		f.Close()
	}
	k.retired = k.retired[len(retired):]
	k.newName = k.newName && k.current != current
	if written.Line > k.synced.Line { // else a write that was synced has passed by
		k.synced = written
	}
	k.since, k.syncedAt = k.now(), k.now()
	return nil
}

// keep does what is due. A segment goes in three steps: choose says where the
// journal is to begin, the next head says so under its signature, and once the
// mark with that head is kept, release deletes what is before it. So whoever finds
// segments gone can tell whether they were let go. It returns whether there is more
// to do of that.
func (k *keeper) keep(ctx context.Context) (more bool, err error) {
	k.mu.Lock()
	mark := k.mark
	k.mu.Unlock()
	// The mark says what a crash of the machine leaves, so the sync comes first.
	if err := k.sync(); err != nil {
		return true, err
	}
	if mark == nil {
		return false, nil
	}
	if k.kept == nil || k.kept.Head.Seq != mark.Head.Seq {
		if err := writeMark(ctx, k.marks, mark); err != nil {
			return true, err
		}
		k.kept = mark
	}
	released := k.release()
	k.choose()
	return !released || k.begins() != k.kept.Oldest, nil
}

// release deletes the segments that the mark has let go. It returns false if
// somebody needs them to stay.
func (k *keeper) release() bool {
	all, _ := k.index.view()
	oldest := k.kept.Oldest
	n := slices.IndexFunc(all, func(s segment) bool { return s.Segment >= oldest.Segment })
	if n <= 0 {
		return true
	}
	if !k.reading.TryLock() {
		return false
	}
	defer k.reading.Unlock()
	k.index.drop(oldest.Segment)
	for _, s := range all[:n] {
		if err := os.Remove(filepath.Join(k.dir, segmentName(s.Segment))); err != nil && !errors.Is(err, os.ErrNotExist) {
			k.log.Warn("an old segment of the journal cannot be removed", "segment", s.Segment, "err", err)
		}
	}
	k.log.Info("old segments of the journal were removed", "segments", n, "oldest", oldest.Segment)
	return true
}

// choose lets go the segments that are more than retention keeps. The last one
// always stays.
func (k *keeper) choose() {
	all, _ := k.index.view()
	k.mu.Lock()
	defer k.mu.Unlock()
	all = slices.DeleteFunc(all, func(s segment) bool { return s.Segment < k.letGo.Segment })
	var size int64
	for _, s := range all {
		size += s.size
	}
	n := 0
	for ; n+1 < len(all); n++ {
		// Nothing in a segment is younger than the beginning of the next.
		old := k.now().Sub(all[n+1].at) > k.retention.Age
		if size <= k.retention.Size && !old {
			break
		}
		size -= all[n].size
	}
	if n > 0 {
		k.letGo = all[n].Start
	}
}

// ages returns in how long the first segment is so old that it is let go.
func (k *keeper) ages() time.Duration {
	all, _ := k.index.view()
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(all) < 2 {
		return math.MaxInt64
	}
	return k.retention.Age - k.now().Sub(all[1].at) + 1
}

// close closes the files.
func (k *keeper) close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	for _, f := range append(k.retired, k.current) {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	k.retired, k.current = nil, nil
	return err
}
