package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"time"

	"cardea/api"
	"cardea/audit"
)

// An OvertakenError says that retention deleted lines before they were read.
type OvertakenError struct {
	From, To int64 // line numbers
}

// Error implements error.
func (e *OvertakenError) Error() string {
	return fmt.Sprintf("lines %d to %d of the journal were deleted by retention before they were read", e.From, e.To)
}

// clockSlack is how far the clock of a record may be ahead of that of its line.
const clockSlack = time.Minute

// Records implements [audit.Reader]. It reads the files as they are when it gets
// to them, delays nobody, and works after Run has returned too. A line that
// cannot be read is left out with a word in the log of this process; Verify says
// more. It ends with an [OvertakenError] if retention is faster than the reader.
func (j *Journal) Records(ctx context.Context, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return func(yield func(api.AccessLog, error) bool) {
		err := q.Validate()
		if err == nil {
			c := &cursor{j: j, q: &q}
			defer c.close()
			err = c.run(ctx, func(rec *api.AccessLog) bool { return yield(*rec, nil) })
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(api.AccessLog{}, err)
		}
	}
}

// errStop says that no more is wanted.
var errStop = errors.New("stop")

// A cursor is where a reader is.
type cursor struct {
	j    *Journal
	q    *audit.Query
	seq  int64 // the last line that was read, or passed over
	n    int64 // the segment that is open
	file *os.File
	upTo io.LimitedReader // of file: what is written
	size int64            // how much of it was ever let through
	r    *lineReader      // of upTo
}

// run gives what is there, and then what comes.
func (c *cursor) run(ctx context.Context, give func(*api.AccessLog) bool) error {
	var last []*api.AccessLog // the latest Limit, in a ring
	oldest := 0               // of them
	keep := func(rec *api.AccessLog) bool {
		if len(last) < c.q.Limit {
			last = append(last, rec)
		} else {
			last[oldest] = rec
			oldest = (oldest + 1) % len(last)
		}
		return true
	}
	if c.q.Limit == 0 {
		keep = give
	}
	changed, err := c.catchUp(ctx, keep)
	if err != nil {
		return err
	}
	for i := range last {
		if !give(last[(oldest+i)%len(last)]) {
			return errStop
		}
	}
	last = nil
	for c.q.Follow && changed != nil {
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
		if changed, err = c.catchUp(ctx, give); err != nil {
			return err
		}
	}
	return nil
}

// catchUp reads all that is written, and returns a channel that is closed when
// there is more; nil if there will not be.
func (c *cursor) catchUp(ctx context.Context, give func(*api.AccessLog) bool) (<-chan struct{}, error) {
	for {
		segments, changed := c.j.index.view()
		err := c.read(ctx, segments, give)
		if errors.Is(err, os.ErrNotExist) {
			if now, _ := c.j.index.view(); len(now) > 0 && now[0].Seq != segments[0].Seq {
				continue // retention was here; read says whether that matters
			}
		}
		if c.q.Follow && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil, nil
		}
		return changed, err
	}
}

// read reads what is new in segments.
func (c *cursor) read(ctx context.Context, segments []segment, give func(*api.AccessLog) bool) error {
	for i, s := range segments {
		if s.Segment < c.n {
			continue
		}
		if s.Segment > c.n {
			if c.seq > 0 && s.Seq > c.seq+1 && i == 0 {
				return &OvertakenError{From: c.seq + 1, To: s.Seq - 1}
			}
			if i+1 < len(segments) && segments[i+1].at.Before(c.q.Since.Add(-clockSlack)) {
				c.seq = segments[i+1].Seq - 1
				continue
			}
			if err := c.enter(s); err != nil {
				return err
			}
		}
		if err := c.readTo(ctx, s.size, give); err != nil {
			return err
		}
	}
	return nil
}

// enter opens a segment.
func (c *cursor) enter(s segment) error {
	f, err := os.Open(filepath.Join(c.j.dir, segmentName(s.Segment)))
	if err != nil {
		return err
	}
	c.close()
	c.file, c.n, c.seq = f, s.Segment, max(c.seq, s.Seq-1)
	c.upTo, c.size = io.LimitedReader{R: f}, 0
	c.r = newLineReader(&c.upTo)
	return nil
}

// readTo reads the segment up to an offset.
func (c *cursor) readTo(ctx context.Context, size int64, give func(*api.AccessLog) bool) error {
	c.upTo.N += size - c.size
	c.size = size
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		raw, err := c.r.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		c.seq++
		l, err := parseLine(raw.text)
		if err == nil {
			c.seq = max(c.seq, l.Seq)
			if l.Kind != kindRecord {
				continue
			}
			var rec *api.AccessLog
			if rec, err = l.record(); err == nil {
				if c.q.Match(rec) && !give(rec) {
					return errStop
				}
				continue
			}
		}
		c.j.log.Warn("a line of the journal is left out", "segment", c.n, "line", c.seq, "err", err)
	}
}

func (c *cursor) close() {
	if c.file != nil {
		c.file.Close()
		c.file = nil
	}
}
