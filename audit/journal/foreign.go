package journal

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// setAside moves what stands behind a clean end out of the segments, to files of
// its own, and returns the segments that are left and what there was. A process
// that begins writes a signed head there before all else, so that without one it
// was somebody else. The mark says what was found before anything is moved: a
// crash on the way does not hide it.
func (j *Journal) setAside(ctx context.Context, mark *Mark, segments []segment) ([]segment, *Foreign, error) {
	if mark == nil || !mark.Head.Closed {
		return segments, nil, nil
	}
	i := slices.IndexFunc(segments, func(s segment) bool { return s.Segment == mark.Head.Segment })
	if i < 0 {
		return segments, mark.Foreign, nil
	}
	b, err := j.behind(mark)
	if err != nil {
		return nil, nil, err
	}
	later := segments[i+1:]
	if !b.found || b.resumed || b.lines == 0 && len(later) == 0 {
		return segments, mark.Foreign, nil
	}
	aside := func(n int64) string { return fmt.Sprintf("%s.%d.foreign", segmentName(n), mark.line()) }
	if mark.Foreign == nil {
		mark.Foreign = &Foreign{Lines: b.lines}
		if b.lines > 0 {
			mark.Foreign.Files = append(mark.Foreign.Files, aside(mark.Head.Segment))
		}
		for _, s := range later {
			lines, err := countLines(filepath.Join(j.dir, segmentName(s.Segment)))
			if err != nil {
				return nil, nil, err
			}
			mark.Foreign.Lines += lines
			mark.Foreign.Files = append(mark.Foreign.Files, aside(s.Segment))
		}
		if err := writeMark(ctx, j.marks, mark); err != nil {
			return nil, nil, err
		}
	}
	for _, s := range later {
		if err := os.Rename(filepath.Join(j.dir, segmentName(s.Segment)), filepath.Join(j.dir, aside(s.Segment))); err != nil {
			return nil, nil, err
		}
	}
	if b.lines > 0 {
		if err := cutTo(filepath.Join(j.dir, segmentName(mark.Head.Segment)), b.end, filepath.Join(j.dir, aside(mark.Head.Segment))); err != nil {
			return nil, nil, err
		}
	}
	return segments[:i+1], mark.Foreign, j.names.sync()
}

// behind is what stands behind the marked line in its segment.
type behind struct {
	found   bool  // the marked line
	end     int64 // where it ends
	resumed bool  // the next line is a head of ours
	lines   int64 // after it that were finished
}

// behind reads what stands behind the marked line in its segment.
func (j *Journal) behind(mark *Mark) (b behind, err error) {
	f, err := os.Open(filepath.Join(j.dir, segmentName(mark.Head.Segment)))
	if err != nil {
		return b, err
	}
	defer f.Close()
	r := newLineReader(f)
	for {
		raw, err := r.next()
		if err == io.EOF {
			return b, nil
		}
		if err != nil {
			return b, err
		}
		if !b.found {
			b.end += raw.size
			b.found = !raw.torn && sha256.Sum256(raw.text) == mark.Line
			continue
		}
		if raw.torn {
			return b, nil
		}
		if b.lines++; b.lines > 1 {
			continue
		}
		if l, err := parseLine(raw.text); err == nil && l.Kind == kindHead && !l.Head.Closed && l.Prev == mark.Line &&
			l.holdsHead(raw.text, mark.Instance, mark.Head.Segment) && l.Head.signedBy(mark.Instance, j.keys.keys()) {
			b.resumed = true
			return b, nil
		}
	}
}

// countLines returns the number of lines of a file that were finished.
func countLines(path string) (n int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for r := newLineReader(f); ; n++ {
		raw, err := r.next()
		if err == io.EOF || raw.torn {
			return n, nil
		}
		if err != nil {
			return n, err
		}
	}
}

// cutTo cuts a file off at an offset; what was behind it is on disk in another
// file before it is gone from this one.
func cutTo(path string, at int64, to string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Seek(at, io.SeekStart); err != nil {
		return err
	}
	// What is there is of an attempt that was cut short, or not ours: it must not
	// lead anywhere else.
	if err := os.Remove(to); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	w, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(w, f)
	if err := errors.Join(err, w.Sync(), w.Close()); err != nil {
		return err
	}
	return f.Truncate(at)
}
