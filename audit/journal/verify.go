package journal

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cardea/api"
)

// maxFindings is how many findings are listed; the rest is counted.
const maxFindings = 100

// Verify reports whether this journal is whole, up to what is written now.
// Retention waits until it is done.
func (j *Journal) Verify(ctx context.Context) (api.VerifyReport, error) {
	j.keeper.reading.RLock()
	defer j.keeper.reading.RUnlock()
	// The mark first: what is written later cannot be before it.
	mark, err := ReadMark(ctx, j.marks, j.keeper.instance)
	if err != nil {
		return api.VerifyReport{}, err
	}
	segments, _ := j.index.view()
	if mark != nil { // what retention let go is still there until we are done
		segments = slices.DeleteFunc(segments, func(s segment) bool { return s.Segment < mark.Oldest.Segment })
	}
	v := &verifier{dir: j.dir, keys: j.keys.keys(), mark: mark}
	report, err := v.run(ctx, segments)
	if err == nil && mark == nil {
		findUnmarked(&report)
	}
	return report, err
}

// findUnmarked adds that there is no mark, where there must be one.
func findUnmarked(r *api.VerifyReport) {
	r.OK = false
	r.Findings = append(r.Findings, "No mark of this journal is kept: whether its end was cut off cannot be told.")
}

// VerifyLive is [Verify] for the journal of an instance that another process may be
// writing meanwhile, or deleting from by retention, with the mark that marks keeps.
func VerifyLive(ctx context.Context, dir, instance string, keys []ed25519.PublicKey, marks Marks) (api.VerifyReport, error) {
	for {
		mark, err := ReadMark(ctx, marks, instance)
		if err != nil {
			return api.VerifyReport{}, err
		}
		report, err := verifyDir(ctx, dir, keys, mark, true)
		if err != nil {
			return api.VerifyReport{}, err
		}
		if mark == nil {
			findUnmarked(&report)
		}
		if mark == nil || report.OK {
			return report, nil
		}
		now, err := ReadMark(ctx, marks, instance)
		if err != nil {
			return api.VerifyReport{}, err
		}
		if now == nil || now.Oldest == mark.Oldest {
			return report, nil
		}
		// Retention was here; what is missing may be what it let go. It does so
		// segment by segment, and so not for ever.
	}
}

// Join makes one report of those of several journals, whose names begin what is said
// about them.
func Join(reports map[string]api.VerifyReport) api.VerifyReport {
	all := api.VerifyReport{OK: true}
	for _, name := range slices.Sorted(maps.Keys(reports)) {
		r := reports[name]
		all.OK = all.OK && r.OK
		all.Records += r.Records
		all.Segments += r.Segments
		all.Heads += r.Heads
		all.Open += r.Open
		for _, words := range r.Findings {
			all.Findings = append(all.Findings, name+": "+words)
		}
		for _, words := range r.Notes {
			all.Notes = append(all.Notes, name+": "+words)
		}
	}
	return all
}

// Verify reports whether the journal in dir is whole: that no line was changed,
// left out or added, that each head is signed by one of keys, and that what mark
// says is there. It needs nothing else, and dir may be a copy. Where the journal
// begins must be where the mark, or without one its last head, says that retention
// let it begin. Without a mark it cannot tell whether the end was cut off, and says
// so in a note. The error is about reading; what is wrong with the journal is in
// the report.
func Verify(ctx context.Context, dir string, keys []ed25519.PublicKey, mark *Mark) (api.VerifyReport, error) {
	return verifyDir(ctx, dir, keys, mark, false)
}

// verifyDir is Verify. If the journal is live, a line at its end that is not finished is
// being written.
func verifyDir(ctx context.Context, dir string, keys []ed25519.PublicKey, mark *Mark, live bool) (api.VerifyReport, error) {
	ns, err := listSegments(dir)
	if err != nil {
		return api.VerifyReport{}, fmt.Errorf("verifying the journal: %w", err)
	}
	var segments []segment
	for _, n := range ns {
		if mark != nil && n < mark.Oldest.Segment {
			continue // retention let it go
		}
		s, err := readSegment(dir, n)
		if live && errors.Is(err, os.ErrNotExist) {
			continue // retention was here
		}
		if err != nil {
			return api.VerifyReport{}, fmt.Errorf("verifying the journal: %w", err)
		}
		segments = append(segments, s)
	}
	if n := len(segments); live && n > 0 {
		last := &segments[n-1]
		if last.size, err = wholeLines(filepath.Join(dir, segmentName(last.Segment)), last.size); err != nil {
			return api.VerifyReport{}, fmt.Errorf("verifying the journal: %w", err)
		}
		if last.Seq == 0 && last.size == 0 { // it is being begun
			segments = segments[:n-1]
		}
	}
	v := &verifier{dir: dir, keys: keys, mark: mark}
	if mark == nil && !live {
		v.note("No mark was given: if the end of the journal was cut off, nobody could tell.")
	}
	return v.run(ctx, segments)
}

// A verifier reads a journal once, from its first line to its last.
type verifier struct {
	dir  string
	keys []ed25519.PublicKey
	mark *Mark

	report   api.VerifyReport
	more     int // findings that are not listed
	instance string
	start    Start           // what stands first
	head     *Head           // the last one that is good
	key      string          // that signed it
	retired  map[string]bool // keys that signed before that
	first    bool            // the first segment is being read
	segment  int64           // that is being read
	line     int             // in it, from 1
	seq      int64           // of the line before
	prev     digest
	begun    bool // there was a line before
	unsigned int64
	closed   bool            // the line before says that the journal ended cleanly
	marked   bool            // the marked line was there
	open     map[string]bool // connections that had a START and no END
	listed   map[string]bool // what the first lines of the segment say of it
	listing  bool            // in these lines
}

func (v *verifier) run(ctx context.Context, segments []segment) (api.VerifyReport, error) {
	v.open, v.retired = map[string]bool{}, map[string]bool{}
	if v.mark != nil {
		v.instance = v.mark.Instance
		if !v.mark.Head.signedBy(v.instance, v.keys) {
			v.find("The mark that is kept outside of the journal is not signed by a known key.")
		}
		if !v.mark.oldestSigned() {
			v.find("The mark says that the journal begins with line %d of the chain, and its signature does not.", v.mark.Oldest.Seq)
		}
	}
	v.report.Segments = len(segments)
	for i, s := range segments {
		if i > 0 && s.Segment != segments[i-1].Segment+1 {
			v.find("Segments %s to %s are missing.", segmentName(segments[i-1].Segment+1), segmentName(s.Segment-1))
		}
		v.first = i == 0
		if err := v.read(ctx, s, i == len(segments)-1); err != nil {
			return api.VerifyReport{}, fmt.Errorf("verifying the journal: %w", err)
		}
	}
	v.end()
	return v.report, nil
}

// end judges what only the whole can tell.
func (v *verifier) end() {
	switch {
	case v.mark == nil && v.report.Heads == 0 && v.begun:
		v.find("No line is signed: such a journal proves nothing.")
	case v.mark == nil:
	case v.seq < v.mark.line():
		v.find("The end was cut off: the journal ends with line %d of the chain, and the store keeps a signed head in line %d.", v.seq, v.mark.line())
	case !v.marked:
		v.find("Line %d of the chain, whose signed head the store keeps, is not there.", v.mark.line())
	}
	v.checkStart()
	if v.unsigned > 0 {
		v.note("The last %d lines are not signed yet.", v.unsigned)
	}
	v.report.Open = int64(len(v.open))
	if v.more > 0 {
		v.report.Findings = append(v.report.Findings, fmt.Sprintf("There are %d more findings.", v.more))
	}
	v.report.OK = len(v.report.Findings) == 0
}

// find adds a finding about the journal.
func (v *verifier) find(words string, args ...any) {
	if len(v.report.Findings) == maxFindings {
		v.more++
		return
	}
	v.report.Findings = append(v.report.Findings, fmt.Sprintf(words, args...))
}

// findHere adds a finding about the line that is being read.
func (v *verifier) findHere(words string, args ...any) {
	v.find("%s line %d %s.", segmentName(v.segment), v.line, fmt.Sprintf(words, args...))
}

func (v *verifier) note(words string, args ...any) {
	v.report.Notes = append(v.report.Notes, fmt.Sprintf(words, args...))
}

// read reads a segment.
func (v *verifier) read(ctx context.Context, s segment, last bool) error {
	f, err := os.Open(filepath.Join(v.dir, segmentName(s.Segment)))
	if errors.Is(err, os.ErrNotExist) {
		v.find("Segment %s is missing.", segmentName(s.Segment))
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	v.segment, v.line, v.listed, v.listing = s.Segment, 0, map[string]bool{}, true
	r := newLineReader(io.LimitReader(f, s.size))
	var offset int64
	for {
		if v.line%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		raw, err := r.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		v.line++
		switch {
		case raw.torn && last && (v.mark == nil || v.seq >= v.mark.line()):
			v.note("%s line %d was never finished, as a crash may leave it; the next start cuts it off.", segmentName(v.segment), v.line)
			return nil
		case raw.torn:
			v.findHere("has no end")
		case raw.long:
			v.findHere("is longer than %d bytes", maxLine)
		}
		v.check(raw.text)
		offset += raw.size
	}
	if offset < s.size {
		v.find("%s is %d bytes long, and %d were written.", segmentName(v.segment), offset, s.size)
	}
	return nil
}

// check checks a line.
func (v *verifier) check(text []byte) {
	hash := digest(sha256.Sum256(text))
	l, err := parseLine(text)
	if err != nil {
		// What comes after it must still follow upon it.
		v.findHere("%v", err)
		v.seq, v.prev, v.begun, v.closed = v.seq+1, hash, true, false
		return
	}
	if v.closed && (l.Kind != kindHead || l.Head.Closed) {
		v.findHere("stands behind a clean end of the journal, where only a signed head may stand: it was added while nothing ran")
	}
	v.closed = false
	v.checkPlace(l)
	v.seq, v.prev, v.begun = max(v.seq+1, l.Seq), hash, true
	if v.mark != nil && l.Seq == v.mark.line() {
		v.marked = true
		if hash != v.mark.Line {
			v.findHere("is not the line that was signed and whose hash the store keeps")
		}
	}
	v.unsigned++
	if v.listing && l.Kind != kindOpen {
		v.checkListed(l)
	}
	switch l.Kind {
	case kindRecord:
		v.checkRecord(l)
	case kindHead:
		v.checkHead(l, text)
	case kindOpen:
		v.checkOpen(l)
	case kindRepair:
		v.note("%s line %d: %s.", segmentName(v.segment), v.line, l.Repair.words())
	case kindGap:
		v.findHere("says that lines %d to %d of the chain are missing: %s", l.Gap.From, l.Gap.To, l.Gap.Words)
	case kindForeign:
		v.findHere("says that %d lines were added behind a clean end of the journal while nothing ran; they were set aside in %s",
			l.Foreign.Lines, strings.Join(l.Foreign.Files, ", "))
	}
}

func (r *repair) words() string {
	w := r.Words
	if r.Cut > 0 {
		w += fmt.Sprintf(" (%d bytes)", r.Cut)
	}
	if r.Taken > 0 {
		w += fmt.Sprintf(" (%d lines)", r.Taken)
	}
	if r.Refused > 0 {
		w += fmt.Sprintf(" (%d records were refused)", r.Refused)
	}
	return w
}

// checkPlace checks that a line follows upon the one before.
func (v *verifier) checkPlace(l *line) {
	if v.instance == "" {
		v.instance = l.Instance
	}
	if l.Instance != v.instance {
		v.findHere("is of the journal of %q, not %q", l.Instance, v.instance)
	}
	if !v.begun {
		v.start = Start{Segment: v.segment, Seq: l.Seq, Prev: l.Prev}
		return
	}
	jump := l.Kind == kindGap && l.Seq == l.Gap.To+1 && l.Seq > v.seq
	if l.Seq != v.seq+1 && !jump {
		v.findHere("is line %d of the chain, and comes after line %d", l.Seq, v.seq)
	}
	if l.Prev != v.prev {
		v.findHere("does not follow upon the line before it: one of the two was changed, or lines between them are gone")
	}
}

// checkStart checks that the journal begins where retention left it to begin.
func (v *verifier) checkStart() {
	if !v.begun {
		return
	}
	oldest, name := Start{Seq: 1}, segmentName(v.start.Segment)
	switch {
	case v.mark != nil:
		oldest = v.mark.Oldest
	case v.head != nil && v.head.Oldest != nil:
		oldest = *v.head.Oldest
	case v.start.Seq > 1:
		v.note("The journal begins with line %d of the chain; whether retention deleted what was before it cannot be told without a mark.", v.start.Seq)
		return
	}
	switch {
	case v.start.Seq > oldest.Seq:
		v.find("%s line 1 is line %d of the chain and the first; lines %d to %d were removed, and not by retention.",
			name, v.start.Seq, oldest.Seq, v.start.Seq-1)
	case v.mark == nil && v.start.Seq < oldest.Seq:
		v.note("Retention let go of what is before line %d of the chain, and the journal begins with line %d.", oldest.Seq, v.start.Seq)
	case v.start.Seq < oldest.Seq || v.start.Prev != oldest.Prev:
		v.find("%s line 1 is not the line with which the journal begins.", name)
	case oldest.Seq > 1:
		v.note("The journal begins with line %d of the chain: retention deleted what was before it.", oldest.Seq)
	}
}

// checkOpen takes in what the first lines of a segment say was open before it.
func (v *verifier) checkOpen(l *line) {
	if !v.listing {
		v.findHere("lists open connections, and is not at the beginning of the segment")
		return
	}
	for _, c := range l.Open.Connections {
		v.listed[c.ID] = true
	}
	if l.Open.Left == 0 {
		v.checkListed(l)
	}
}

// checkListed compares what the first lines of a segment list with what the
// records before it say. Before the first segment that is kept there are none to
// compare with, unless it is the first of all.
func (v *verifier) checkListed(l *line) {
	v.listing = false
	if !v.first || l.Seq == 1 {
		if !maps.Equal(v.listed, v.open) {
			v.findHere("ends the list of the connections that were open, and it is not what the records before it say")
		}
	}
	v.open = v.listed
}

// checkRecord checks that connections start once and end once.
func (v *verifier) checkRecord(l *line) {
	v.report.Records++
	m, err := l.move()
	switch {
	case err != nil:
		v.findHere("%v", err)
	case m.typ == api.LogStart && v.open[m.id]:
		v.findHere("is a second START of connection %q", m.id)
	case m.typ == api.LogStart:
		v.open[m.id] = true
	case m.typ == api.LogEnd && !v.open[m.id]:
		v.findHere("is an END of connection %q, which has no START or has ended before", m.id)
	case m.typ == api.LogEnd:
		delete(v.open, m.id)
	}
}

// checkHead checks a signature, and that the line says nothing beside what is
// signed.
func (v *verifier) checkHead(l *line, text []byte) {
	h := l.Head
	if !l.holdsHead(text, v.instance, v.segment) {
		v.findHere("holds a signed head that is not of this place")
		return
	}
	if !h.signedBy(v.instance, v.keys) {
		v.findHere("holds a head that is not signed by a known key")
		return
	}
	if h.Key != v.key {
		if v.retired[h.Key] {
			v.findHere("holds a head of the key %s, which had been replaced by another", h.Key)
		}
		v.retired[v.key], v.key = true, h.Key
	}
	v.report.Heads++
	v.head, v.unsigned, v.closed = h, 0, h.Closed
}
