package journal

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/audit"
)

// A file is what a segment is written to.
type file interface {
	WriteAt(b []byte, at int64) (int, error)
	Truncate(size int64) error
	Sync() error
	Stat() (os.FileInfo, error)
	Close() error
}

// createFile makes the file of a segment. One that is there was never begun to
// be used: the numbers of segments are not given twice.
func createFile(path string) (file, error) {
	return openFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY)
}

// openFile opens the file of a segment to write to it.
func openFile(path string, flag int) (file, error) {
	f, err := os.OpenFile(path, flag, 0o600)
	if err != nil {
		return nil, err
	}
	return dataFile{f}, nil
}

// A dataFile syncs its data, and of what else is known of it only what is needed
// to find them.
type dataFile struct{ *os.File }

// Sync implements file.
func (f dataFile) Sync() error { return datasync(f.File) }

// A tail is the end of the chain, where it grows. It is used by one goroutine
// at a time.
//
// What it says of the chain (file to open) changes only when lines are written:
// a write that fails leaves no trace but trouble.
type tail struct {
	dir         string
	instance    string
	segmentSize int64
	disk        *atomic.Bool // sync before a write counts
	keys        *keyring
	now         func() time.Time
	create      func(path string) (file, error)
	log         *slog.Logger
	index       *index
	keeper      *keeper

	file     file // nil before there is a segment
	info     os.FileInfo
	segment  int64
	size     int64
	fresh    bool      // the segment has no more than its first lines
	begun    time.Time // when the segment was …
	before   int64     // … and the records of the chain before it
	seq      int64
	records  int64 // of the chain
	prev     digest
	open     map[string]place
	unsigned int64 // lines after the last head
	oldest   Start // that the last head says
	rough    bool  // something was written and not synced

	trouble error     // why the last write failed
	refused int64     // records since then
	checked time.Time // when the file was last where a reader looks for it
	last    draft     // its memory is used again
}

// A draft is lines that are about to be written at the end of a segment.
type draft struct {
	t       *tail
	at      time.Time
	segment int64
	base    int64 // offset of buf in the segment
	buf     []byte
	lines   int64
	seq     int64
	records int64
	prev    digest
	moves   []move
	places  []int64 // offsets of the lines that moves are about
	middle  []byte  // of a record's line, the same in all
	head    *Head
}

// draft begins a draft. The one before it is gone then.
func (t *tail) draft() *draft {
	d := &t.last
	clear(d.moves)          // holds strings
	if cap(d.buf) > 4<<20 { // one great batch must not be paid for ever after
		d.buf, d.moves, d.places = nil, nil, nil
	}
	*d = draft{t: t, at: t.now().UTC(), segment: t.segment, base: t.size, buf: d.buf[:0], seq: t.seq, prev: t.prev,
		moves: d.moves[:0], places: d.places[:0], middle: d.middle[:0]}
	return d
}

// add adds a line with a payload in JSON.
func (d *draft) add(k kind, payload []byte) {
	d.line(appendMiddle(nil, d.t.instance, d.at, k), payload)
}

// line adds a line of which all is given but its number and what is before it.
func (d *draft) line(middle, payload []byte) {
	start := len(d.buf)
	d.seq++
	d.buf = appendStart(d.buf, d.seq, d.prev)
	d.buf = append(d.buf, middle...)
	d.buf = append(d.buf, payload...)
	d.buf = append(d.buf, '}')
	d.prev = sha256.Sum256(d.buf[start:])
	d.buf = append(d.buf, '\n')
	d.lines++
}

// say adds a line of our own.
func (d *draft) say(k kind, v any) {
	b, err := audit.AppendJSON(nil, v)
	if err != nil {
		panic("journal: a line that does not marshal: " + err.Error())
	}
	d.add(k, b)
}

// miss adds a gap line after the lines that are missing.
func (d *draft) miss(g gap) {
	d.seq = max(d.seq, g.To)
	d.say(kindGap, g)
}

// record adds records.
func (d *draft) record(r *records) {
	if len(d.middle) == 0 {
		d.middle = appendMiddle(d.middle, d.t.instance, d.at, kindRecord)
	}
	start := 0
	for _, i := range r.items {
		text := r.text[start:i.end]
		start = i.end
		if i.withdrawn {
			continue
		}
		if m := i.move; m.typ == api.LogStart || m.typ == api.LogEnd {
			d.moves, d.places = append(d.moves, m), append(d.places, d.base+int64(len(d.buf)))
		}
		d.line(d.middle, text)
		d.records++
	}
}

// sign adds a head of all that is before it; closed says that nothing will come
// after it.
func (d *draft) sign(closed bool) error {
	oldest := d.t.keeper.begins()
	h := &Head{Seq: d.seq, Hash: d.prev, At: d.at, Segment: d.segment, Closed: closed, Oldest: &oldest}
	if err := h.sign(d.t.instance, d.t.keys.signer()); err != nil {
		return err
	}
	b, err := json.Marshal(h)
	if err != nil {
		return err
	}
	d.add(kindHead, b)
	d.head = h
	return nil
}

// first adds the first lines of a segment, each an openSet. There may be many thousands
// of connections, and all who write wait, so it is written out by hand.
func (d *draft) first() {
	left := len(d.t.open)
	var b []byte
	begin := func() {
		b = append(b[:0], `{"format":`...)
		b = strconv.AppendInt(b, format, 10)
		if d.t.records > 0 {
			b = append(b, `,"records":`...)
			b = strconv.AppendInt(b, d.t.records, 10)
		}
		b = append(b, `,"connections":[`...)
	}
	end := func() {
		b = append(b, `],"left":`...)
		b = strconv.AppendInt(b, int64(left), 10)
		d.add(kindOpen, append(b, '}'))
	}
	begin()
	n := 0
	for id, p := range d.t.open {
		if n == openPerLine {
			end()
			begin()
			n = 0
		}
		if n > 0 {
			b = append(b, ',')
		}
		b = audit.AppendText(append(b, `{"id":`...), id)
		b = append(b, `,"segment":`...)
		b = strconv.AppendInt(b, p.Segment, 10)
		b = append(b, `,"offset":`...)
		b = strconv.AppendInt(b, p.Offset, 10)
		b = append(b, '}')
		n++
		left--
	}
	end()
}

// write writes records, all or none of them. If nothing can be written it fails at
// once, unless it is to mend that.
func (t *tail) write(mend bool, all ...*records) error {
	bytes := 0
	for _, r := range all {
		bytes += len(r.text)
	}
	if bytes == 0 && t.trouble == nil {
		return nil
	}
	if err := t.ready(mend, int64(bytes)); err != nil {
		return err
	}
	d := t.draft()
	if t.trouble != nil {
		d.say(kindRepair, repair{Words: t.trouble.Error(), Refused: t.refused})
	}
	for _, r := range all {
		d.record(r)
	}
	if d.lines == 0 { // all were withdrawn
		return nil
	}
	return t.commit(d)
}

// head signs the end of the chain if there is something new to say of it.
func (t *tail) head() error {
	if t.unsigned == 0 && t.oldest == t.keeper.begins() {
		return nil
	}
	return t.sign(false)
}

// sign signs the end of the chain. closed says that it is a clean end; what is
// signed after one begins with a head.
func (t *tail) sign(closed bool) error {
	d := t.draft()
	if err := d.sign(closed); err != nil {
		return err
	}
	return t.commit(d)
}

// ages returns in how long the segment, if it holds records, is so old that more
// should not come to them: retention deletes whole segments.
func (t *tail) ages() time.Duration {
	if t.records <= t.before {
		return math.MaxInt64
	}
	return t.keeper.span() - t.now().Sub(t.begun)
}

// ready makes sure that so many bytes of records can be written: it mends what
// is broken, if it may, and begins a new segment if this one is full or old.
func (t *tail) ready(mend bool, bytes int64) error {
	if err := t.keeper.failure(); err != nil {
		t.fail(fmt.Errorf("lines up to %d may not have reached the disk: %w", t.seq, err))
	}
	if t.trouble != nil {
		if !mend {
			return t.trouble
		}
		if err := t.mend(); err != nil {
			return err
		}
	}
	if t.rough && t.disk.Load() {
		// It was not asked for when that was written; what comes now relies on it.
		if err := t.keeper.sync(); err != nil {
			return t.fail(err)
		}
		t.rough = false
	}
	if t.fresh || t.size+bytes <= t.segmentSize && t.ages() > 0 {
		return nil
	}
	if err := t.head(); err != nil {
		if t.trouble != nil {
			return err
		}
		t.log.Error("the end of a segment of the journal is not signed", "segment", t.segment, "err", err)
	}
	return t.rotate()
}

// mend brings the files to where the tail thinks that they are.
func (t *tail) mend() error {
	if err := t.linked(t.info, t.segment); err != nil {
		// What was in it is lost, which Verify finds. The directory is not made
		// again: it may be the place of a volume that is not there now.
		if _, derr := os.Stat(t.dir); derr != nil {
			return t.fail(err)
		}
		if err := t.rotate(); err != nil {
			return err
		}
	} else if err := t.file.Truncate(t.size); err != nil {
		return t.fail(err)
	}
	if err := t.keeper.sync(); err != nil {
		return t.fail(err)
	}
	return nil
}

// rotate begins a new segment.
func (t *tail) rotate() error {
	d := t.draft()
	d.segment, d.base = t.segment+1, 0
	d.first()
	path := filepath.Join(t.dir, segmentName(d.segment))
	f, err := t.create(path)
	if err != nil {
		return t.fail(err)
	}
	info, err := f.Stat()
	if err == nil {
		err = t.put(f, info, d)
	}
	if err == nil && t.disk.Load() {
		err = t.keeper.names.sync()
	}
	if err != nil {
		f.Close()
		os.Remove(path)
		return t.fail(err)
	}
	begun := segment{Start: Start{Segment: d.segment, Seq: t.seq + 1, Prev: t.prev}, at: d.at, records: t.records, size: int64(len(d.buf))}
	t.file, t.info, t.segment, t.begun, t.before = f, info, d.segment, d.at, t.records
	t.index.start(begun)
	t.keeper.rotated(f, begun.Start)
	t.adopt(d)
	t.fresh = true
	return nil
}

// commit writes a draft to the segment.
func (t *tail) commit(d *draft) error {
	if err := t.put(t.file, t.info, d); err != nil {
		// At best nothing is left of it; else mend tries again before anything
		// is written.
		t.file.Truncate(t.size)
		return t.fail(err)
	}
	t.adopt(d)
	t.fresh = false
	t.index.grow(t.size)
	if t.trouble != nil {
		t.log.Info("the journal is written again", "refused", t.refused)
		t.trouble, t.refused = nil, 0
	}
	return nil
}

// put writes a draft so that it is where a reader will look for it: each few
// milliseconds it looks itself.
func (t *tail) put(f file, info os.FileInfo, d *draft) error {
	if _, err := f.WriteAt(d.buf, d.base); err != nil {
		return err
	}
	if age := d.at.Sub(t.checked); d.segment != t.segment || age < 0 || age >= lull || t.disk.Load() {
		if err := t.linked(info, d.segment); err != nil {
			return err
		}
		t.checked = d.at
	}
	if t.disk.Load() {
		return f.Sync()
	}
	t.rough = true
	return nil
}

// linked reports that the file that was opened is no longer the file of a
// segment: what is written to it is gone once this process is.
func (t *tail) linked(opened os.FileInfo, n int64) error {
	is, err := os.Lstat(filepath.Join(t.dir, segmentName(n)))
	if err != nil {
		return err
	}
	if !os.SameFile(opened, is) {
		return fmt.Errorf("segment %s of the journal was replaced by another file", segmentName(n))
	}
	return nil
}

// adopt makes a draft that is written part of the chain.
func (t *tail) adopt(d *draft) {
	t.size, t.seq, t.prev = d.base+int64(len(d.buf)), d.seq, d.prev
	t.unsigned += d.lines
	t.records += d.records
	for i, m := range d.moves {
		if m.typ == api.LogStart {
			t.open[m.id] = place{Segment: d.segment, Offset: d.places[i]}
		} else {
			delete(t.open, m.id)
		}
	}
	t.keeper.wrote(audit.Position{Line: t.seq, Record: t.records}, !t.rough, d.at)
	if d.head != nil {
		t.unsigned, t.oldest = 0, *d.head.Oldest
		t.keeper.signed(d.head, d.prev, t.records)
	}
}

// fail remembers why nothing can be written.
func (t *tail) fail(err error) error {
	err = fmt.Errorf("writing the journal: %w", err)
	if t.trouble == nil {
		t.log.Error("the journal cannot be written: new connections are refused", "err", err)
	}
	t.trouble = err
	return err
}
