package journal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"cardea/api"
	"cardea/audit"
)

// An OvertakenError says that retention deleted lines before they were read.
type OvertakenError struct {
	From, To int64 // line numbers
	Lost     int64 // records among them

	records int64 // of the chain, up to To
}

// Error implements error.
func (e *OvertakenError) Error() string {
	return fmt.Sprintf("lines %d to %d of the journal were deleted by retention before they were read", e.From, e.To)
}

// clockSlack is how far the clock of a record may be ahead of that of its line.
const clockSlack = time.Minute

// Records implements [audit.Reader]. It reads the files as they are when it gets
// to them, delays nobody, and works after Run has returned too. What it follows
// ends once Run has returned and everything was given. A line that cannot be read
// is left out with a word in the log of this process; Verify says more. It ends
// with an [OvertakenError] if retention is faster than the reader.
func (j *Journal) Records(ctx context.Context, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return selected(ctx, j.files(), q)
}

// A selection gives the records that a query asks for.
type selection struct {
	q      *audit.Query
	give   func(*api.AccessLog) bool
	last   []*api.AccessLog // the latest q.Limit of what is there, in a ring
	oldest int              // of them
}

// selected returns the records of files that a query asks for.
func selected(ctx context.Context, from files, q audit.Query) iter.Seq2[api.AccessLog, error] {
	return func(yield func(api.AccessLog, error) bool) {
		err := q.Validate()
		if err == nil {
			r := &selection{q: &q, give: func(rec *api.AccessLog) bool { return yield(*rec, nil) }}
			err = r.run(ctx, from)
		}
		if err != nil && !errors.Is(err, errStop) {
			yield(api.AccessLog{}, err)
		}
	}
}

// run gives what is there, and then what comes.
func (r *selection) run(ctx context.Context, from files) error {
	limit := r.q.Limit
	c := &cursor{files: from, since: r.q.Since, follow: r.q.Follow}
	c.take = func(l *line) (bool, error) {
		rec, err := l.record()
		switch {
		case err != nil:
			return true, err
		case !r.q.Match(rec):
			return true, nil
		case limit == 0:
			return r.give(rec), nil
		case len(r.last) < limit:
			r.last = append(r.last, rec)
		default:
			r.last[r.oldest] = rec
			r.oldest = (r.oldest + 1) % limit
		}
		return true, nil
	}
	c.caughtUp = func() bool { // what comes now does not count
		for i := range r.last {
			if !r.give(r.last[(r.oldest+i)%limit]) {
				return false
			}
		}
		limit, r.last = 0, nil
		return true
	}
	return c.run(ctx)
}

// Follow implements [audit.Source].
func (j *Journal) Follow(ctx context.Context, from audit.Position) iter.Seq2[audit.Entry, error] {
	return func(yield func(audit.Entry, error) bool) {
		if written, _ := j.End(); from.Line > written.Line {
			j.log.Warn("a place in the journal that somebody has kept is of another journal: everything is given again", "line", from.Line, "last", written.Line)
			from = audit.Position{}
		}
		c := &cursor{files: j.files(), at: from, follow: true}
		c.take = func(l *line) (bool, error) {
			return yield(audit.Entry{At: c.at, Time: l.At, JSON: l.Record}, nil), nil
		}
		for {
			err := c.run(ctx)
			over, overtaken := errors.AsType[*OvertakenError](err)
			if !overtaken {
				if err != nil && !errors.Is(err, errStop) && ctx.Err() == nil {
					yield(audit.Entry{}, err)
				}
				return
			}
			c.at = audit.Position{Line: over.To, Record: max(over.records, c.at.Record)}
			if over.Lost > 0 && !yield(audit.Entry{At: c.at, Time: j.keeper.now().UTC(), Lost: over.Lost}, nil) {
				return
			}
		}
	}
}

// End implements [audit.Source].
func (j *Journal) End() (written, durable audit.Position) {
	j.keeper.mu.Lock()
	defer j.keeper.mu.Unlock()
	return j.keeper.written, j.keeper.synced
}

// Sync implements [audit.Source].
func (j *Journal) Sync() error { return j.keeper.sync() }

// errStop says that no more is wanted.
var errStop = errors.New("stop")

// Files are the segments of a journal, to be read.
type files struct {
	dir string
	log *slog.Logger
	// view returns the segments as they are, and a channel that is closed when they may
	// have changed; nil if they will stay so.
	view func() ([]segment, <-chan struct{}, error)
}

func (j *Journal) files() files {
	return files{dir: j.dir, log: j.log, view: func() ([]segment, <-chan struct{}, error) {
		segments, changed := j.index.view()
		return segments, changed, nil
	}}
}

// A cursor is where somebody reads.
type cursor struct {
	files
	since  time.Time // what is older need not be read
	follow bool      // wait for more
	// take takes a record line, and says whether more is wanted; an error is about
	// this line. caughtUp, if it is not nil, is called once when all that was there
	// is taken.
	take     func(*line) (bool, error)
	caughtUp func() bool

	at   audit.Position // of the last line that was read, or passed over
	n    int64          // the segment that is open
	line int64          // the last line of it that was read
	file *os.File
	upTo io.LimitedReader // of file: what is written
	size int64            // how much of it was ever let through
	r    *lineReader      // of upTo
}

// run reads what is there, and then what comes.
func (c *cursor) run(ctx context.Context) error {
	defer c.close()
	changed, err := c.catchUp(ctx)
	if err != nil {
		return err
	}
	if c.caughtUp != nil && !c.caughtUp() {
		return errStop
	}
	for c.follow && changed != nil {
		select {
		case <-ctx.Done():
		case <-changed:
		}
		// What was written before ctx was done is given too: a server that stops
		// stops its connections first, and who looks on sees them end.
		last := ctx.Err() != nil
		if changed, err = c.catchUp(context.WithoutCancel(ctx)); err != nil || last {
			return err
		}
	}
	return nil
}

// catchUp reads all that is written, and returns a channel that is closed when
// there is more; nil if there will not be.
func (c *cursor) catchUp(ctx context.Context) (<-chan struct{}, error) {
	for {
		segments, changed, err := c.view()
		if err == nil {
			err = c.read(ctx, segments)
		}
		if errors.Is(err, os.ErrNotExist) {
			if now, _, err := c.view(); err == nil && len(now) > 0 && len(segments) > 0 && now[0].Seq != segments[0].Seq {
				continue // retention was here; read says whether that matters
			}
		}
		if c.follow && ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil, nil
		}
		return changed, err
	}
}

// read reads what is new in segments.
func (c *cursor) read(ctx context.Context, segments []segment) error {
	for i, s := range segments {
		if s.Segment < c.n {
			continue
		}
		if s.Segment > c.n {
			if c.at.Line > 0 && s.Seq > c.at.Line+1 && i == 0 {
				return &OvertakenError{From: c.at.Line + 1, To: s.Seq - 1, Lost: max(s.records-c.at.Record, 0), records: s.records}
			}
			if i+1 < len(segments) {
				next := segments[i+1]
				if next.Seq-1 <= c.at.Line || next.at.Before(c.since.Add(-clockSlack)) {
					continue
				}
			}
			if err := c.enter(s); err != nil {
				return err
			}
		} else if s.size < c.size {
			if err := c.goBack(ctx, s); err != nil {
				return err
			}
		}
		if err := c.readTo(ctx, s.size); err != nil {
			return err
		}
	}
	return nil
}

// enter opens a segment.
func (c *cursor) enter(s segment) error {
	f, err := os.Open(filepath.Join(c.dir, segmentName(s.Segment)))
	if err != nil {
		return err
	}
	c.close()
	c.file, c.n, c.line = f, s.Segment, s.Seq-1
	if c.line >= c.at.Line {
		c.at = audit.Position{Line: c.line, Record: s.records}
	}
	c.upTo, c.size = io.LimitedReader{R: f}, 0
	c.r = newLineReader(&c.upTo)
	return nil
}

// goBack goes to where the segment ends since another process cut off what it could
// not keep. The lines that come next have the numbers of those.
func (c *cursor) goBack(ctx context.Context, s segment) error {
	c.close()
	if err := c.enter(s); err != nil {
		return err
	}
	c.at = audit.Position{Line: s.Seq - 1, Record: s.records}
	take := c.take
	defer func() { c.take = take }()
	c.take = func(*line) (bool, error) { return true, nil }
	return c.readTo(ctx, s.size)
}

// readTo reads the segment up to an offset.
func (c *cursor) readTo(ctx context.Context, size int64) error {
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
		c.line = max(c.line+1, seqOf(raw.text))
		if c.line <= c.at.Line {
			continue // taken before
		}
		c.at.Line = c.line
		l, err := parseLine(raw.text)
		if err == nil {
			if l.Kind != kindRecord {
				continue
			}
			c.at.Record++
			var more bool
			if more, err = c.take(l); !more {
				return errStop
			}
		}
		if err != nil {
			c.log.Warn("a line of the journal is left out", "segment", c.n, "line", c.line, "err", err)
		}
	}
}

// close closes the segment; it is opened again by who goes on.
func (c *cursor) close() {
	if c.file != nil {
		c.file.Close()
		c.file, c.n = nil, 0
	}
}
