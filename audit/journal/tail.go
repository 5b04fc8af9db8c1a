package journal

import (
	"cmp"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
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

// An entry is the records of one call of Append, encoded.
type entry struct {
	text  []byte // one after the other
	ends  []int  // of each in text
	moves []move
}

func (e *entry) add(rec *api.AccessLog) error {
	if err := audit.Check(rec); err != nil {
		return err
	}
	start := len(e.text)
	text, err := audit.AppendRecord(e.text, rec)
	if err != nil {
		return err
	}
	if n := len(text) - start; n > maxRecord {
		return fmt.Errorf("%w: is %d bytes long, and at most %d can be kept", audit.ErrMalformed, n, maxRecord)
	}
	e.text, e.ends, e.moves = text, append(e.ends, len(text)), append(e.moves, moveOf(rec))
	return nil
}

func (e *entry) reset() {
	clear(e.moves)            // holds strings
	if cap(e.text) > 64<<10 { // one great record must not be paid for ever after
		e.text = nil
	}
	e.text, e.ends, e.moves = e.text[:0], e.ends[:0], e.moves[:0]
}

// A tail is the end of the chain, where it grows. It is used by one goroutine.
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

	trouble error // why the last write failed
	refused int64 // records since then
	buf     []byte
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
	head    *Head
}

func (t *tail) draft() *draft {
	return &draft{t: t, at: t.now().UTC(), segment: t.segment, base: t.size, buf: t.buf[:0], seq: t.seq, prev: t.prev}
}

// add adds a line with a payload in JSON.
func (d *draft) add(k kind, payload []byte) {
	start := len(d.buf)
	d.seq++
	d.buf = appendLine(d.buf, d.seq, d.prev, d.t.instance, d.at, k, payload)
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

// record adds the records of an entry.
func (d *draft) record(e *entry) {
	start := 0
	for i, end := range e.ends {
		if m := e.moves[i]; m.typ == api.LogStart || m.typ == api.LogEnd {
			d.moves, d.places = append(d.moves, m), append(d.places, d.base+int64(len(d.buf)))
		}
		d.add(kindRecord, e.text[start:end])
		d.records++
		start = end
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

// first adds the first lines of a segment.
func (d *draft) first() {
	var all []openConn
	for id, p := range d.t.open {
		all = append(all, openConn{ID: id, place: p})
	}
	slices.SortFunc(all, func(a, b openConn) int {
		return cmp.Or(cmp.Compare(a.Segment, b.Segment), cmp.Compare(a.Offset, b.Offset))
	})
	for {
		some := all[:min(len(all), openPerLine)]
		all = all[len(some):]
		d.say(kindOpen, openSet{Format: format, Records: d.t.records, Connections: some, Left: len(all)})
		if len(all) == 0 {
			return
		}
	}
}

// write writes entries, all or none of them.
func (t *tail) write(entries []*entry) error {
	var bytes, records int64
	for _, e := range entries {
		bytes += int64(len(e.text))
		records += int64(len(e.ends))
	}
	err := t.ready(bytes)
	if err == nil {
		d := t.draft()
		if t.trouble != nil {
			d.say(kindRepair, repair{Words: t.trouble.Error(), Refused: t.refused})
		}
		for _, e := range entries {
			d.record(e)
		}
		err = t.commit(d)
	}
	if err != nil {
		t.refused += records
	}
	return err
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

// aged reports whether the segment holds records and is old enough that more
// should not come to them: retention deletes whole segments.
func (t *tail) aged() bool {
	return t.records > t.before && t.now().Sub(t.begun) >= t.keeper.span()
}

// ready makes sure that so many bytes of records can be written: it mends what
// is broken and begins a new segment if this one is full or old.
func (t *tail) ready(bytes int64) error {
	if err := t.keeper.failure(); err != nil {
		t.fail(fmt.Errorf("lines up to %d may not have reached the disk: %w", t.seq, err))
	}
	if t.trouble != nil {
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
	if t.fresh || t.size+bytes <= t.segmentSize && !t.aged() {
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

// put writes a draft so that it is where a reader will look for it.
func (t *tail) put(f file, info os.FileInfo, d *draft) error {
	t.buf = d.buf
	if _, err := f.WriteAt(d.buf, d.base); err != nil {
		return err
	}
	if err := t.linked(info, d.segment); err != nil {
		return err
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
	t.keeper.wrote(audit.Position{Line: t.seq, Record: t.records}, !t.rough)
	if d.head != nil {
		t.unsigned, t.oldest = 0, *d.head.Oldest
		t.keeper.signed(d.head, d.prev, t.records)
	}
	if cap(t.buf) > 4<<20 { // one great batch must not be paid for ever after
		t.buf = nil
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
