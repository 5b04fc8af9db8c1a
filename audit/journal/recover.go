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

	"cardea/api"
	"cardea/audit"
)

// crashed is the close reason of a connection that was open when its process
// died; relay.Crashed.
const crashed = "CRASHED"

// An end is what the last segments say of where the chain ends.
type end struct {
	seq      int64
	records  int64
	prev     digest
	open     map[string]place
	unsigned int64 // lines after the last head
	closed   bool  // the last line is the head of a clean end
	size     int64 // of the last segment, without a line that was never finished
	cut      int64 // bytes of such a line
	marked   bool  // the line that the mark is about was read …
	differs  bool  // … and it is another
	ours     bool  // some line is of this instance
	damaged  int   // lines that are not, or cannot be read
}

// recover reads where the chain ends, mends what a crash left and writes down
// what it found.
func (j *Journal) recover(ctx context.Context) error {
	t, k := &j.tail, &j.keeper
	mark, err := ReadMark(ctx, j.marks, t.instance)
	if err != nil {
		return err
	}
	if mark != nil && mark.distrust(j.keys.keys()) {
		j.log.Error("where the journal begins is not signed in its mark: nothing is deleted because of it", "instance", t.instance)
	}
	segments, cut, err := j.segments(mark)
	if err != nil {
		return err
	}
	segments, foreign, err := j.setAside(ctx, mark, segments)
	if err != nil {
		return err
	}
	var missing *gap
	var taken int64
	if mark != nil {
		k.mark, k.kept, k.letGo = mark, mark, mark.Oldest
	}
	if len(segments) == 0 {
		if mark != nil {
			missing = &gap{From: mark.Oldest.Seq, To: mark.line(), Words: "all segments are gone"}
			t.segment, t.seq, t.records, t.prev = mark.Head.Segment, mark.line(), mark.Records, mark.Line
		}
		if err := t.rotate(); err != nil {
			return err
		}
	} else {
		e, err := j.readEnd(ctx, segments, mark)
		if err != nil {
			return err
		}
		cut += e.cut
		missing, taken = e.missing(mark), e.unsigned
		if mark != nil { // of those that are missing the number counts
			e.records = max(e.records, mark.Records)
		}
		if e.damaged > 0 {
			j.log.Error("lines of the journal cannot be read", "lines", e.damaged)
		}
		if err := t.resume(segments, e); err != nil {
			return err
		}
		if mark == nil {
			k.letGo = segments[0].Start
		}
		if e.closed {
			// Before anything else, and on disk: what stands behind a clean end
			// without it is not ours.
			if err := errors.Join(t.sign(false), k.sync()); err != nil {
				return err
			}
		}
	}
	if missing != nil {
		j.log.Error("lines of the journal are missing", "from", missing.From, "to", missing.To, "why", missing.Words)
	}
	if foreign != nil {
		j.log.Error("lines were added to the journal while nothing ran; they were set aside", "lines", foreign.Lines, "files", foreign.Files)
	}
	if err := j.report(mark == nil && len(segments) > 0, foreign, taken, cut, missing); err != nil {
		return err
	}
	if err := j.endAll(ctx); err != nil {
		return err
	}
	if err := t.head(); err != nil {
		return err
	}
	if k.mark.Head.Closed { // a start was cut short after its first head
		if err := t.sign(false); err != nil {
			return err
		}
	}
	_, err = k.keep(ctx)
	return err
}

// segments returns the segments that are to be read. It removes what retention
// had let go, and files at the end in which no line was finished; cut is the
// bytes in those.
func (j *Journal) segments(mark *Mark) (all []segment, cut int64, err error) {
	ns, err := listSegments(j.dir)
	if err != nil {
		return nil, 0, err
	}
	for _, n := range ns {
		s, err := readSegment(j.dir, n)
		if err != nil {
			return nil, 0, err
		}
		if mark != nil && n < mark.Oldest.Segment {
			if err := os.Remove(filepath.Join(j.dir, segmentName(n))); err != nil {
				return nil, 0, err
			}
			continue
		}
		all = append(all, s)
	}
	for len(all) > 0 {
		last := all[len(all)-1]
		torn, err := onlyTorn(filepath.Join(j.dir, segmentName(last.Segment)))
		if err != nil || !torn {
			return all, cut, err
		}
		if err := os.Remove(filepath.Join(j.dir, segmentName(last.Segment))); err != nil {
			return nil, 0, err
		}
		cut += last.size
		all = all[:len(all)-1]
	}
	return all, cut, nil
}

// onlyTorn reports whether a file holds no finished line.
func onlyTorn(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	raw, err := newLineReader(f).next()
	if err == io.EOF {
		return true, nil
	}
	return raw.torn, err
}

// readEnd reads the last segments: those from the last one whose first lines say
// what was open before it, and from the one that the mark is about. Damage further up is for Verify to find; what cannot
// be read at the end counts as a line, so that it stays and is found too.
func (j *Journal) readEnd(ctx context.Context, segments []segment, mark *Mark) (*end, error) {
	from := len(segments) - 1
	for ; from > 0; from-- {
		if whole, err := knowsOpen(filepath.Join(j.dir, segmentName(segments[from].Segment))); err != nil {
			return nil, err
		} else if whole && (mark == nil || segments[from].Segment <= mark.Head.Segment) {
			break
		}
	}
	e := &end{open: map[string]place{}, seq: max(0, segments[from].Seq-1), prev: segments[from].Prev}
	for _, s := range segments[from:] {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := j.readEndOf(e, s, s.Segment == segments[from].Segment, mark); err != nil {
			return nil, fmt.Errorf("%s: %w", segmentName(s.Segment), err)
		}
	}
	if !e.ours {
		return nil, fmt.Errorf("%s holds no line of the journal of instance %q", j.dir, j.tail.instance)
	}
	return e, nil
}

// readEndOf reads one segment.
func (j *Journal) readEndOf(e *end, s segment, first bool, mark *Mark) error {
	f, err := os.Open(filepath.Join(j.dir, segmentName(s.Segment)))
	if err != nil {
		return err
	}
	defer f.Close()
	r := newLineReader(f)
	e.size, e.cut = 0, 0
	for {
		raw, err := r.next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if raw.torn {
			e.cut = raw.size
			return nil
		}
		at := place{Segment: s.Segment, Offset: e.size}
		e.size += raw.size
		e.seq++
		e.prev = sha256.Sum256(raw.text)
		e.unsigned++
		e.closed = false
		l, err := parseLine(raw.text)
		if err != nil {
			e.damaged++
			continue
		}
		if l.Instance != j.tail.instance {
			e.damaged++
			continue
		}
		e.ours = true
		e.seq = max(e.seq, l.Seq)
		e.read(l, at, first)
		if mark != nil && l.Seq == mark.line() {
			e.marked, e.differs = true, e.prev != mark.Line
		}
	}
}

// read takes in what a line says.
func (e *end) read(l *line, at place, first bool) {
	switch l.Kind {
	case kindHead:
		e.unsigned, e.closed = 0, l.Head.Closed
	case kindOpen:
		if first {
			e.records = max(e.records, l.Open.Records)
			for _, c := range l.Open.Connections {
				e.open[c.ID] = c.place
			}
		}
	case kindRecord:
		e.records++
		m, err := l.move()
		switch {
		case err != nil:
			e.damaged++
		case m.typ == api.LogStart:
			e.open[m.id] = at
		case m.typ == api.LogEnd:
			delete(e.open, m.id)
		}
	}
}

// missing says what is not there although the mark says that it was.
func (e *end) missing(mark *Mark) *gap {
	switch {
	case mark == nil:
		return nil
	case e.seq < mark.line():
		return &gap{From: e.seq + 1, To: mark.line(), Words: "the end of the journal was cut off"}
	case e.differs:
		return &gap{From: mark.line(), To: mark.line(), Words: "the last line that was signed and kept is another one now"}
	case !e.marked && mark.line() >= mark.Oldest.Seq:
		return &gap{From: mark.line(), To: mark.line(), Words: "the last line that was signed and kept is not there"}
	}
	return nil
}

// knowsOpen reports whether the first lines of a segment are all there.
func knowsOpen(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	r := newLineReader(f)
	for {
		raw, err := r.next()
		if err == io.EOF {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		l, err := parseLine(raw.text)
		if err != nil || raw.torn || l.Kind != kindOpen {
			return false, nil
		}
		if l.Open.Left == 0 {
			return true, nil
		}
	}
}

// resume goes on where the chain ends.
func (t *tail) resume(segments []segment, e *end) error {
	last := &segments[len(segments)-1]
	f, err := openFile(filepath.Join(t.dir, segmentName(last.Segment)), os.O_WRONLY)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	last.size = e.size
	for _, s := range segments {
		t.index.start(s)
	}
	t.file, t.info, t.segment, t.size = f, info, last.Segment, e.size
	t.begun, t.before = last.at, last.records
	t.seq, t.records, t.prev, t.open, t.unsigned = e.seq, e.records, e.prev, e.open, e.unsigned
	t.rough = true
	t.keeper.rotated(f, segments[0].Start)
	t.keeper.wrote(audit.Position{Line: t.seq, Record: t.records}, false, t.now())
	return f.Truncate(e.size)
}

// report writes down what was found.
func (j *Journal) report(unmarked bool, foreign *Foreign, taken, cut int64, missing *gap) error {
	d := j.tail.draft()
	if foreign != nil {
		d.say(kindForeign, foreign)
	}
	if taken > 0 {
		d.say(kindRepair, repair{Words: "the lines after the last signed head were taken over after a crash", Taken: taken})
	}
	if missing != nil {
		d.miss(*missing)
	}
	if cut > 0 {
		d.say(kindRepair, repair{Words: "the last line was not finished and is cut off", Cut: cut})
	}
	if unmarked {
		d.say(kindRepair, repair{Words: "no mark of this journal is kept: had its end been cut off, nobody could tell"})
	}
	if d.lines == 0 {
		return nil
	}
	return j.tail.commit(d)
}

// endAll writes an END for each connection that has none.
func (j *Journal) endAll(ctx context.Context) error {
	const many = 1000 // at once
	open := j.tail.open
	ids := slices.Sorted(func(yield func(string) bool) {
		for id := range open {
			if !yield(id) {
				return
			}
		}
	})
	for some := range slices.Chunk(ids, many) {
		if err := ctx.Err(); err != nil {
			return err
		}
		e := new(records)
		for _, id := range some {
			if err := e.encode(j.endOf(id, open[id])); err != nil {
				return err
			}
		}
		if err := j.tail.write(true, e); err != nil {
			return err
		}
	}
	if len(ids) > 0 {
		j.log.Warn("connections were open when this process ended the last time", "connections", len(ids))
	}
	return nil
}

// endOf returns the END of a connection whose process is gone. It says what its
// START said, if that is still there.
func (j *Journal) endOf(id string, at place) *api.AccessLog {
	now := j.tail.now().UTC()
	unknown := int64(-1)
	words := "the process ended while the connection was open"
	rec, err := readRecord(filepath.Join(j.dir, segmentName(at.Segment)), at.Offset)
	if err != nil || rec.Entry.Common.ConnectionID != id {
		words += "; its START is not kept any more"
		rec = audit.New(now)
		rec.Entry.Common = api.AccessLogCommon{ConnectionID: id, IsAuthorized: true, Status: api.StatusAllowed}
	}
	rec.Metadata.ID, rec.Metadata.CreatedAt = api.NewID(), now
	rec.Entry.Common.EndedAt = now
	flow := api.TCPInfo{Type: api.LogEnd, ReceivedBytes: &unknown, SentBytes: &unknown, CloseReason: crashed, Error: words}
	if rec.Entry.Info.UDP != nil {
		rec.Entry.Info.UDP = &api.UDPInfo{TCPInfo: flow, ReceivedPackets: &unknown, SentPackets: &unknown}
	} else {
		rec.Entry.Info = api.AccessLogInfo{TCP: &flow}
	}
	return rec
}

// readRecord reads the record that stands at an offset of a segment.
func readRecord(path string, offset int64) (*api.AccessLog, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	raw, err := newLineReaderSize(f, 4<<10).next()
	if err != nil {
		return nil, err
	}
	l, err := parseLine(raw.text)
	if err != nil {
		return nil, err
	}
	return l.record()
}
