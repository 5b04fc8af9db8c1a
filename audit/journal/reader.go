package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"cardea/api"
	"cardea/audit"
)

// look is how long a Reader waits until it looks again.
const look = 200 * time.Millisecond

// A ReaderConfig is what a Reader needs: both are required.
type ReaderConfig struct {
	Dir string // of the journal; it must be there
	Log *slog.Logger
}

// A Reader reads a journal that another process writes, or nobody. It is an
// [audit.Reader]. It writes nothing, and holds up nobody: retention may delete what
// it has not read, as [Journal.Records] says.
//
// What it gives was written, but may not be acknowledged yet: if the disk fails the
// process that writes at that moment, that process may cut off again what the Reader
// has given.
type Reader struct {
	dir string
	log *slog.Logger

	mu      sync.Mutex
	known   []segment     // when it looked last
	changed chan struct{} // made by who waits, closed when it is time to look again
	closed  bool
}

var _ audit.Reader = (*Reader)(nil)

// OpenReader opens a journal to read it. It fails if it cannot be read.
func OpenReader(c ReaderConfig) (*Reader, error) {
	if c.Dir == "" || c.Log == nil {
		return nil, errors.New("opening a journal to read it: Dir and Log are required")
	}
	r := &Reader{dir: c.Dir, log: c.Log}
	if _, err := r.segments(); err != nil {
		return nil, fmt.Errorf("opening a journal to read it: %w", err)
	}
	return r, nil
}

// Close ends what follows the journal, once what is there was given. What is there can
// still be read.
func (r *Reader) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.wake()
	return nil
}

// Records implements [audit.Reader], as [Journal.Records] does; what comes is given
// within a quarter of a second.
func (r *Reader) Records(ctx context.Context, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return selected(ctx, files{dir: r.dir, log: r.log, view: r.view}, q)
}

// Stats returns the Segments and Bytes of the journal; what else it may have is of
// the process that writes it.
func (r *Reader) Stats() (Stats, error) {
	segments, err := r.segments()
	if err != nil {
		return Stats{}, fmt.Errorf("reading the journal: %w", err)
	}
	s := Stats{Segments: len(segments)}
	for _, g := range segments {
		s.Bytes += g.size
	}
	return s, nil
}

// view is of files.
func (r *Reader) view() ([]segment, <-chan struct{}, error) {
	r.mu.Lock()
	closed := r.closed
	if !closed && r.changed == nil {
		r.changed = make(chan struct{})
		time.AfterFunc(look, func() {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.wake()
		})
	}
	changed := r.changed
	r.mu.Unlock()
	segments, err := r.segments()
	if closed {
		changed = nil
	}
	return segments, changed, err
}

// wake lets those who wait look again.
func (r *Reader) wake() {
	if r.changed != nil {
		close(r.changed)
		r.changed = nil
	}
}

// segments looks what there is.
func (r *Reader) segments() ([]segment, error) {
	ns, err := listSegments(r.dir)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known := map[int64]segment{}
	for i, s := range r.known {
		if i+1 < len(r.known) { // the last one may grow, and may have been begun only
			known[s.Segment] = s
		}
	}
	var all []segment
	for _, n := range ns {
		s, ok := known[n]
		if !ok {
			s, err = readSegment(r.dir, n)
			if err == nil {
				s.size, err = wholeLines(filepath.Join(r.dir, segmentName(n)), s.size)
			}
			if errors.Is(err, os.ErrNotExist) {
				continue // retention was here
			}
			if err != nil {
				return nil, err
			}
			if s.Seq == 0 && s.size == 0 {
				continue // it is being begun
			}
		}
		all = append(all, s)
	}
	r.known = all
	return append([]segment(nil), all...), nil
}

// wholeLines returns how many bytes of a file, of at most size, are finished lines.
func wholeLines(path string, size int64) (int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	buf := make([]byte, 4<<10)
	for size > 0 {
		from := max(0, size-int64(len(buf)))
		b := buf[:size-from]
		if _, err := f.ReadAt(b, from); err != nil && err != io.EOF {
			return 0, err
		}
		if i := bytes.LastIndexByte(b, '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		size = from
	}
	return 0, nil
}
