package journal

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// A keeper does what takes the disk or the store a while and must not hold up
// the writer: it syncs files, keeps the mark, and deletes old segments.
type keeper struct {
	dir       string
	instance  string
	marks     Marks
	retention Retention
	now       func() time.Time
	log       *slog.Logger
	index     *index

	// reading is held by who needs the segments to stay.
	reading sync.RWMutex
	// syncing is held by who syncs.
	syncing sync.Mutex

	mu      sync.Mutex
	current file
	retired []file // to be synced and closed
	newName bool   // a name in dir is not durable
	written int64  // the last line
	synced  int64  // the last line that is known to be on disk
	syncErr error  // why the last sync failed
	mark    *Mark  // as it should be kept
	kept    *Mark  // as it is kept
	oldest  Start
}

// rotated says that f is the file of the segment that has just begun.
func (k *keeper) rotated(f file, begun Start) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.current != nil {
		k.retired = append(k.retired, k.current)
	}
	k.current, k.newName = f, true
	if k.oldest.Segment == 0 {
		k.oldest = begun
	}
}

// wrote says which line is the last.
func (k *keeper) wrote(seq int64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.written = seq
}

// signed says which head is the last, and the hash of its line.
func (k *keeper) signed(h *Head, hash digest) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mark = &Mark{Instance: k.instance, Head: *h, Line: hash}
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
	done := written == k.synced && len(retired) == 0 && !newName && k.syncErr == nil
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
		err = errors.Join(err, syncDir(k.dir))
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
	k.synced = written
	return nil
}

// keep does what is due.
func (k *keeper) keep(ctx context.Context) error {
	k.mu.Lock()
	mark, oldest := k.mark, k.oldest
	k.mu.Unlock()
	// The mark says what a crash of the machine leaves, so the sync comes first.
	if err := k.sync(); err != nil {
		return err
	}
	if mark == nil {
		return nil
	}
	if !k.reading.TryLock() {
		return k.set(ctx, mark, oldest)
	}
	defer k.reading.Unlock()
	expired, oldest := k.expired(oldest)
	// The mark moves first: a segment that is gone was let go.
	if err := k.set(ctx, mark, oldest); err != nil {
		return err
	}
	if len(expired) == 0 {
		return nil
	}
	k.index.drop(oldest.Segment)
	for _, s := range expired {
		if err := os.Remove(filepath.Join(k.dir, segmentName(s.Segment))); err != nil && !errors.Is(err, os.ErrNotExist) {
			k.log.Warn("an old segment of the journal cannot be removed", "segment", s.Segment, "err", err)
		}
	}
	k.log.Info("old segments of the journal were removed", "segments", len(expired), "oldest", oldest.Segment)
	return nil
}

// set keeps the mark if it is not what is kept.
func (k *keeper) set(ctx context.Context, mark *Mark, oldest Start) error {
	m := *mark
	m.Oldest = oldest
	if k.kept != nil && k.kept.Head.Seq == m.Head.Seq && k.kept.Oldest == m.Oldest {
		return nil
	}
	if err := writeMark(ctx, k.marks, &m); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept, k.oldest = &m, oldest
	return nil
}

// expired returns the segments that retention lets go, and where the rest
// begins. The last segment always stays.
func (k *keeper) expired(oldest Start) ([]segment, Start) {
	all, _ := k.index.view()
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
	if n == 0 {
		return nil, oldest
	}
	return all[:n], all[n].Start
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
