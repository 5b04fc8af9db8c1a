package journal

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// A segment is one file of the chain.
type segment struct {
	Start
	at      time.Time // of its first line
	records int64     // of the chain, before the segment
	size    int64     // bytes that are whole lines, and acknowledged
}

// digits makes the names of segments sort as their numbers do.
const digits = 10

func segmentName(n int64) string { return fmt.Sprintf("%0*d.log", digits, n) }

// listSegments returns the numbers of the segments in dir, in order.
func listSegments(dir string) ([]int64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var ns []int64
	for _, e := range entries {
		base, ok := strings.CutSuffix(e.Name(), ".log")
		n, err := strconv.ParseInt(base, 10, 64)
		if ok && err == nil && n > 0 && e.Name() == segmentName(n) {
			ns = append(ns, n)
		}
	}
	slices.Sort(ns)
	return ns, nil
}

// readSegment returns what the file of a segment says of it, with the size of
// the whole file. If the first line cannot be read, Seq is 0 and at is when the
// file was written to last.
func readSegment(dir string, n int64) (segment, error) {
	s := segment{Start: Start{Segment: n}}
	f, err := os.Open(filepath.Join(dir, segmentName(n)))
	if err != nil {
		return s, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return s, err
	}
	s.size, s.at = info.Size(), info.ModTime()
	raw, err := newLineReaderSize(f, 4<<10).next()
	if err != nil {
		return s, nil
	}
	if l, err := parseLine(raw.text); err == nil && !raw.torn {
		s.Seq, s.Prev, s.at = l.Seq, l.Prev, l.At
		if l.Kind == kindOpen {
			s.records = l.Open.Records
		}
	}
	return s, nil
}

// index knows the segments, for those who read while the journal is written.
type index struct {
	mu       sync.Mutex
	segments []segment
	changed  chan struct{} // made by who waits, closed by who writes
	closed   bool
}

// view returns the segments as they are, and a channel that is closed when they
// are no more; nil if they will stay so.
func (x *index) view() ([]segment, <-chan struct{}) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return slices.Clone(x.segments), nil
	}
	if x.changed == nil {
		x.changed = make(chan struct{})
	}
	return slices.Clone(x.segments), x.changed
}

// start adds a segment.
func (x *index) start(s segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segments = append(x.segments, s)
	x.wake()
}

// grow says how long the last segment has become.
func (x *index) grow(size int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segments[len(x.segments)-1].size = size
	x.wake()
}

// drop forgets the segments before n.
func (x *index) drop(n int64) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segments = slices.DeleteFunc(x.segments, func(s segment) bool { return s.Segment < n })
}

// close says that nothing changes any more.
func (x *index) close() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.closed = true
	x.wake()
}

func (x *index) wake() {
	if x.changed != nil {
		close(x.changed)
		x.changed = nil
	}
}

// A directory makes durable the names of the files in it. It keeps a descriptor
// for that, so that the log can be kept safe while no others are left.
type directory struct {
	path string

	mu     sync.Mutex
	file   *os.File
	opened os.FileInfo // of file
}

// openDirectory opens the directory at path.
func openDirectory(path string) (*directory, error) {
	d := &directory{path: path}
	if err := d.reopen(); err != nil {
		return nil, err
	}
	return d, nil
}

// reopen opens what is at the path now, in place of what was. mu must be held.
func (d *directory) reopen() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	if d.file != nil {
		d.file.Close() // only read
	}
	d.file, d.opened = f, info
	return nil
}

// sync makes durable what names there are. The directory may have been replaced
// by another meanwhile, as when a volume was away.
func (d *directory) sync() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	is, err := os.Stat(d.path)
	if err != nil {
		return err
	}
	if !os.SameFile(d.opened, is) {
		if err := d.reopen(); err != nil {
			return err
		}
	}
	return d.file.Sync()
}

// close releases the descriptor.
func (d *directory) close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.file.Close()
}
