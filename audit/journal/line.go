package journal

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"time"

	"cardea/api"
	"cardea/audit"
)

// A segment is lines of JSON. Every line has seq, the number of the line in the
// whole chain, from 1, and prev, the SHA-256 of the line before it (without the
// line feed; of nothing: zeros). What it says is in the field that its kind
// names.
type line struct {
	Seq      int64     `json:"seq"`
	Prev     digest    `json:"prev"`
	Instance string    `json:"instance"`
	At       time.Time `json:"at"` // when it was written
	Kind     kind      `json:"kind"`

	Record  json.RawMessage `json:"record"` // an api.AccessLog
	Head    *Head           `json:"head"`
	Open    *openSet        `json:"open"`
	Repair  *repair         `json:"repair"`
	Gap     *gap            `json:"gap"`
	Foreign *Foreign        `json:"foreign"`
}

// kind says what a line is.
type kind string

const (
	kindRecord  kind = "record"  // one access log record
	kindHead    kind = "head"    // the signed state of the chain before this line
	kindOpen    kind = "open"    // the first lines of a segment: which connections are open
	kindRepair  kind = "repair"  // something went wrong, as it may, and nothing that was acknowledged is lost
	kindGap     kind = "gap"     // something is missing that was there
	kindForeign kind = "foreign" // something was there that the journal did not write
)

// An openSet lists connections that had a START and no END when the segment
// began, so that nobody needs to read those before it.
type openSet struct {
	Format      int        `json:"format"`            // of the segment
	Records     int64      `json:"records,omitempty"` // of the chain, before the segment
	Connections []openConn `json:"connections"`
	Left        int        `json:"left"` // how many more the next lines list
}

// format is the only format of a segment so far.
const format = 1

// openPerLine bounds the length of an open line.
const openPerLine = 250

// An openConn is a connection and where its START is.
type openConn struct {
	ID string `json:"id"`
	place
}

// A place is where a line begins.
type place struct {
	Segment int64 `json:"segment"`
	Offset  int64 `json:"offset"` // in bytes
}

// A repair says what was mended.
type repair struct {
	Words   string `json:"words"`
	Cut     int64  `json:"cut,omitempty"`     // bytes of a line that was never finished
	Taken   int64  `json:"taken,omitempty"`   // lines that no head had signed yet when the process died
	Refused int64  `json:"refused,omitempty"` // records that could not be written; their callers were told
}

// A gap says what is missing. The lines From to To are not there; their numbers
// are not given again.
type gap struct {
	From  int64  `json:"from"`
	To    int64  `json:"to"`
	Words string `json:"words"`
}

// A digest is a SHA-256, in hexadecimal in JSON.
type digest [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (d digest) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, d[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *digest) UnmarshalText(b []byte) error {
	if len(b) != hex.EncodedLen(len(d)) {
		return errors.New("a hash must be 64 hexadecimal digits")
	}
	_, err := hex.Decode(d[:], b)
	return err
}

// Limits of a line. Whoever reads a journal holds one line in memory.
const (
	maxRecord = 4 << 20           // bytes of one record
	maxLine   = maxRecord + 1<<10 // bytes of one line
	maxSeq    = 1 << 53           // lines of one chain; what every reader of JSON can count
)

// instanceRule is what the name of an instance looks like, so that it needs no
// escapes.
var instanceRule = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// appendLine appends a line, without the line feed, whose payload is JSON.
func appendLine(dst []byte, seq int64, prev digest, instance string, at time.Time, k kind, payload []byte) []byte {
	dst = appendStart(dst, seq, prev)
	dst = appendMiddle(dst, instance, at, k)
	dst = append(dst, payload...)
	return append(dst, '}')
}

// appendStart appends what of a line says where it stands.
func appendStart(dst []byte, seq int64, prev digest) []byte {
	dst = append(dst, `{"seq":`...)
	dst = strconv.AppendInt(dst, seq, 10)
	dst = append(dst, `,"prev":"`...)
	return hex.AppendEncode(dst, prev[:])
}

// appendMiddle appends what of a line comes between that and its payload.
func appendMiddle(dst []byte, instance string, at time.Time, k kind) []byte {
	dst = append(dst, `","instance":"`...)
	dst = append(dst, instance...)
	dst = append(dst, `","at":"`...)
	dst = at.AppendFormat(dst, time.RFC3339Nano)
	dst = append(dst, `","kind":"`...)
	dst = append(dst, k...)
	dst = append(dst, `","`...)
	dst = append(dst, k...)
	return append(dst, `":`...)
}

// parseLine reads a line, given without its line feed.
func parseLine(b []byte) (*line, error) {
	var l line
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("is no line of a journal: %w", err)
	}
	if l.Seq < 1 || l.Seq > maxSeq {
		return nil, fmt.Errorf("is no line of a journal: seq is %d", l.Seq)
	}
	said := false
	switch l.Kind {
	case kindRecord:
		said = len(l.Record) > 0
	case kindHead:
		said = l.Head != nil
	case kindOpen:
		said = l.Open != nil
		if said && l.Open.Format != format {
			return nil, fmt.Errorf("is of a segment of format %d, and only %d is known", l.Open.Format, format)
		}
	case kindRepair:
		said = l.Repair != nil
	case kindGap:
		said = l.Gap != nil
	case kindForeign:
		said = l.Foreign != nil
	default:
		return nil, fmt.Errorf("is of an unknown kind %q", l.Kind)
	}
	if !said {
		return nil, fmt.Errorf("is a %s line without %[1]s", l.Kind)
	}
	return &l, nil
}

// seqOf returns the number that a line says it has, without reading more of it; 0
// if it says none.
func seqOf(b []byte) int64 {
	b, ok := bytes.CutPrefix(b, []byte(`{"seq":`))
	digits, _, end := bytes.Cut(b[:min(len(b), 20)], []byte(","))
	n, err := strconv.ParseInt(string(digits), 10, 64)
	if !ok || !end || err != nil || n < 1 || n > maxSeq {
		return 0
	}
	return n
}

// record returns the access log record of a record line.
func (l *line) record() (*api.AccessLog, error) {
	var rec api.AccessLog
	if err := json.Unmarshal(l.Record, &rec); err != nil {
		return nil, fmt.Errorf("holds no access log record: %w", err)
	}
	return &rec, nil
}

// holdsHead reports whether text, the head line l, says nothing beside the head,
// and stands where the head says.
func (l *line) holdsHead(text []byte, instance string, segment int64) bool {
	h := l.Head
	b, err := json.Marshal(h)
	return err == nil && h.Segment == segment &&
		bytes.Equal(text, appendLine(nil, h.Seq+1, h.Hash, instance, h.At, kindHead, b))
}

// A move is what a record does to the set of open connections.
type move struct {
	id  string
	typ api.LogType // START or END; else the record does nothing
}

// moveOf returns what rec does to the set of open connections.
func moveOf(rec *api.AccessLog) move {
	return move{id: rec.Entry.Common.ConnectionID, typ: audit.TypeOf(rec)}
}

// move is moveOf for a record line; it reads no more than it needs.
func (l *line) move() (move, error) {
	var rec struct {
		Entry struct {
			Common struct {
				ConnectionID string `json:"connectionID"`
			} `json:"common"`
			Info api.AccessLogInfo `json:"info"`
		} `json:"entry"`
	}
	if err := json.Unmarshal(l.Record, &rec); err != nil {
		return move{}, fmt.Errorf("holds no access log record: %w", err)
	}
	return move{id: rec.Entry.Common.ConnectionID, typ: audit.TypeOf(&api.AccessLog{Entry: api.AccessLogEntry{Info: rec.Entry.Info}})}, nil
}

// A lineReader reads the lines of a segment. It holds at most one line, of at
// most maxLine bytes.
type lineReader struct {
	r    *bufio.Reader
	long []byte // a line that was longer than the buffer of r
}

func newLineReader(r io.Reader) *lineReader { return newLineReaderSize(r, 64<<10) }

// newLineReaderSize is newLineReader for who reads about so many bytes.
func newLineReaderSize(r io.Reader, size int) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, size)}
}

// A rawLine is a line as it stands in a segment.
type rawLine struct {
	text []byte // without the line feed; good until the next call
	size int64  // with the line feed
	torn bool   // the segment ends without the line feed
	long bool   // there was more than maxLine bytes; text is the beginning
}

// next returns the next line, and io.EOF after the last.
func (r *lineReader) next() (rawLine, error) {
	r.long = r.long[:0]
	var l rawLine
	for {
		b, err := r.r.ReadSlice('\n')
		l.size += int64(len(b))
		switch {
		case err == nil && len(r.long) == 0 && !l.long:
			l.text = b
		case len(r.long)+len(b) > maxLine+1:
			l.long = true
			r.long = append(r.long, b[:max(0, maxLine-len(r.long))]...)
		default:
			r.long = append(r.long, b...)
		}
		switch err {
		case bufio.ErrBufferFull:
			continue
		case nil:
		case io.EOF:
			if l.size == 0 {
				return rawLine{}, io.EOF
			}
			l.torn = true
		default:
			return rawLine{}, err
		}
		if l.text == nil {
			l.text = r.long
		}
		l.text = bytes.TrimSuffix(l.text, []byte("\n"))
		return l, nil
	}
}
