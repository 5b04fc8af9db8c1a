// Package backup writes all Objects of a store to a file while it serves, and
// replaces those of a store by what a file has.
//
// # The file
//
// A backup is UTF-8 text, one JSON object a line:
//
//	{"cardea":"backup","format":2,"revision":"1.42","at":"…","domain":"…","program":"…"}
//	{"key":{"group":"core","kind":"User","name":"alice"},"uid":"…","object":{…}}
//	…
//	{"objects":1,"sha256":"…","keyID":"…","mac":"…"}
//
// The last line has the number of Objects and the SHA-256, in hexadecimal, of all
// bytes before it, which tells a file that was cut short or damaged from a whole
// one. Who wrote it is told by mac, which an [Authenticator] made of that SHA-256
// with the key that keyID names: whoever has no such key cannot add an Object, for
// all that anybody can compute the SHA-256 anew. Objects come in the order of their
// keys.
//
// Format 1 had neither keyID nor mac.
//
// # What is in it, and what is not
//
// All Objects are, as they are stored: the values of Secrets sealed, and of no use
// without the key that is in keys/seal.key of the data directory and not in the
// store. History and marks are not: a mark says how far the journal of one process
// got, which is true of the directory of that journal and not of the cluster.
//
// A restored cluster is what it was: a Session or Credential that was revoked
// after the backup is there again.
package backup

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"
	"time"

	"cardea/api"
	"cardea/store"
)

// Format is the version of the format that Write writes, and the newest that
// Restore reads.
const Format = 2

// purpose is what an Authenticator vouches for.
const purpose = "backup"

// An Authenticator vouches for backups by a key that is not in them.
type Authenticator interface {
	// Authenticate returns a code of a digest that only who has the key of that id
	// can make. It is for one purpose only.
	Authenticate(purpose string, digest []byte) (keyID string, mac []byte)
	// Authentic says what is wrong with a code, or why that cannot be told.
	Authentic(purpose, keyID string, digest, mac []byte) error
}

// magic is what the first line says it is.
const magic = "backup"

// maxLine is how long a line may be: an Object, its key, and what is round them.
const maxLine = store.MaxObject + 8*store.MaxKey

// ErrInvalid is in every error of Restore and Verify that says what is wrong with
// the backup.
var ErrInvalid = errors.New("the backup cannot be used")

// errEnd says that the last line was right, and the last.
var errEnd = errors.New("end of the backup")

// A Header says of what the backup is. It is the first line.
type Header struct {
	Cardea   string       `json:"cardea"` // "backup"
	Format   int          `json:"format"`
	Revision api.Revision `json:"revision"` // of the state that it holds
	At       time.Time    `json:"at"`
	Domain   string       `json:"domain,omitempty"`  // of the cluster
	Program  string       `json:"program,omitempty"` // the version of Cardea that wrote it
}

// A line is one Object, or, as the last one, how many there were.
type line struct {
	Key    *api.Key        `json:"key,omitempty"`
	UID    string          `json:"uid,omitempty"`
	Object json.RawMessage `json:"object,omitempty"`

	Objects *int   `json:"objects,omitempty"`
	SHA256  string `json:"sha256,omitempty"`
	KeyID   string `json:"keyID,omitempty"`
	MAC     string `json:"mac,omitempty"`
}

// A Summary says what was written or read.
type Summary struct {
	Header
	Objects int
	// Restored is the revision with which the new epoch begins; zero unless the
	// backup was restored.
	Restored api.Revision
}

// Options of Write; the first two are for people.
type Options struct {
	Domain  string // of the cluster
	Program string // the version of this program
	// Authenticator vouches for what is written; nil is nobody.
	Authenticator Authenticator
}

// Write writes a consistent view of all Objects to w, which should be quick, as it
// holds one place of those who read the store. It needs little memory. After an
// error what was written is of no use, and Restore says so.
func Write(ctx context.Context, st store.Store, w io.Writer, opts Options) (Summary, error) {
	sum := Summary{Header: Header{Cardea: magic, Format: Format, At: time.Now().UTC(), Domain: opts.Domain, Program: opts.Program}}
	digest := sha256.New()
	buffered := bufio.NewWriterSize(w, 64<<10)
	out := json.NewEncoder(io.MultiWriter(buffered, digest))
	out.SetEscapeHTML(false) // Objects stay as they are, byte for byte
	err := st.View(ctx, func(now store.Reader) error {
		sum.Revision = now.Revision()
		if err := out.Encode(sum.Header); err != nil {
			return err
		}
		for r, err := range now.All() {
			if err != nil {
				return err
			}
			if err := out.Encode(line{Key: &r.Key, UID: r.UID, Object: r.JSON}); err != nil {
				return fmt.Errorf("%s: %w", r.Key, err)
			}
			sum.Objects++
		}
		return nil
	})
	if err == nil {
		all := digest.Sum(nil)
		last := line{Objects: &sum.Objects, SHA256: hex.EncodeToString(all)}
		if a := opts.Authenticator; a != nil {
			id, mac := a.Authenticate(purpose, all)
			last.KeyID, last.MAC = id, hex.EncodeToString(mac)
		}
		err = out.Encode(last)
	}
	if err == nil {
		err = buffered.Flush()
	}
	if err != nil {
		return Summary{}, fmt.Errorf("backup: %w", err)
	}
	return sum, nil
}

// Restore replaces everything in a store by what a backup has, and begins a new
// epoch: every watcher lists again. It reads r once, to its end, in little memory,
// and commits only when all of it has proved right; an error means that nothing
// was changed. It does not check Objects against each other: that was done when
// they were written, by whom auth has to vouch for. A nil auth asks nobody.
func Restore(ctx context.Context, st store.Store, r io.Reader, actor string, auth Authenticator) (Summary, error) {
	b := newReader(r, auth)
	// Before a place is taken: it is the most likely to be wrong.
	if err := b.header(); err != nil {
		return Summary{}, err
	}
	at, err := st.Renew(ctx, actor, b.objects())
	if err != nil {
		return Summary{}, b.explain("restore", err)
	}
	return Summary{Header: b.head, Objects: b.count, Restored: at}, nil
}

// Verify reads a backup to its end, and says what is in it or wrong with it. With a
// nil auth it tells what is damaged, and not who wrote it.
func Verify(ctx context.Context, r io.Reader, auth Authenticator) (Summary, error) {
	b := newReader(r, auth)
	if err := b.header(); err != nil {
		return Summary{}, err
	}
	for _, err := range store.Checked(ctx, b.objects()) {
		if err != nil {
			return Summary{}, b.explain("verify", err)
		}
	}
	return Summary{Header: b.head, Objects: b.count}, nil
}

// A reader reads a backup, line by line.
type reader struct {
	in     *bufio.Reader
	digest hash.Hash // of all lines before the one that was read last
	last   []byte    // that one
	lines  int
	auth   Authenticator // nil for none

	head  Header
	count int
}

func newReader(r io.Reader, auth Authenticator) *reader {
	return &reader{in: bufio.NewReaderSize(r, 64<<10), digest: sha256.New(), auth: auth}
}

// bad says what is wrong with the line that was read last.
func (b *reader) bad(format string, args ...any) error {
	return fmt.Errorf("%w: line %d: %w", ErrInvalid, b.lines, fmt.Errorf(format, args...))
}

// explain tells what is wrong with the backup from what is wrong with the rest.
func (b *reader) explain(doing string, err error) error {
	switch {
	case errors.Is(err, ErrInvalid):
		return err
	case api.HasCode(err, api.CodeInvalid): // what no store takes
		return b.bad("%w", err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// next reads a line. At the end of the backup it returns io.EOF.
func (b *reader) next() ([]byte, error) {
	b.digest.Write(b.last)
	b.last = b.last[:0]
	b.lines++
	for {
		part, err := b.in.ReadSlice('\n')
		b.last = append(b.last, part...)
		switch {
		case err == nil:
			return b.last, nil
		case len(b.last) > maxLine:
			return nil, b.bad("it is longer than %d bytes", maxLine)
		case errors.Is(err, io.EOF) && len(b.last) == 0:
			return nil, io.EOF
		case errors.Is(err, io.EOF):
			return nil, b.bad("it is cut short")
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, fmt.Errorf("read the backup: %w", err)
		}
	}
}

// header reads the first line.
func (b *reader) header() error {
	text, err := b.next()
	if errors.Is(err, io.EOF) {
		return b.bad("it is empty")
	}
	if err != nil {
		return err
	}
	// Not strict: a newer format may say more, and is refused by its number.
	if err := json.Unmarshal(text, &b.head); err != nil || b.head.Cardea != magic {
		return b.bad("this is no backup of Cardea")
	}
	if b.head.Format > Format {
		by := b.head.Program
		if by == "" {
			by = "the version that wrote it"
		}
		return b.bad("it has format %d, this binary knows up to %d: use cardea ≥ %s", b.head.Format, Format, by)
	}
	if b.head.Format < 1 {
		return b.bad("it has format %d, which no version of Cardea writes", b.head.Format)
	}
	return nil
}

// objects yields the Objects, and an error unless all of the rest is right.
func (b *reader) objects() iter.Seq2[store.Record, error] {
	return func(yield func(store.Record, error) bool) {
		for {
			r, err := b.object()
			if errors.Is(err, errEnd) {
				return
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// object reads an Object, or the last line, and then returns errEnd.
func (b *reader) object() (store.Record, error) {
	text, err := b.next()
	if errors.Is(err, io.EOF) {
		return store.Record{}, b.bad("the backup is cut short: it ends without its last line")
	}
	if err != nil {
		return store.Record{}, err
	}
	var l line
	if err := strict(text, &l); err != nil {
		return store.Record{}, b.bad("%w", err)
	}
	switch {
	case l.Objects == nil && l.SHA256 == "" && l.KeyID == "" && l.MAC == "" && l.Key != nil && len(l.Object) > 0:
		b.count++
		return store.Record{Key: *l.Key, UID: l.UID, JSON: l.Object}, nil
	case l.Objects != nil && l.Key == nil && l.UID == "" && len(l.Object) == 0:
		return store.Record{}, b.end(l)
	}
	return store.Record{}, b.bad("it is neither an Object nor the last line")
}

// end checks the last line and that it is. It returns errEnd if all is right.
func (b *reader) end(l line) error {
	all := b.digest.Sum(nil)
	sum, err := hex.DecodeString(l.SHA256)
	if err != nil || !bytes.Equal(sum, all) {
		return b.bad("the backup was altered: its SHA-256 is not what the last line says")
	}
	if *l.Objects != b.count {
		return b.bad("the last line counts %d Objects, and there are %d", *l.Objects, b.count)
	}
	if err := b.authentic(l, all); err != nil {
		return err
	}
	switch _, err := b.next(); {
	case errors.Is(err, io.EOF):
		return errEnd
	case err == nil:
		return b.bad("there is more after the last line")
	default:
		return err
	}
}

// authentic checks who vouches for the backup, if that is asked for.
func (b *reader) authentic(l line, all []byte) error {
	if b.auth == nil {
		return nil
	}
	if l.KeyID == "" || l.MAC == "" {
		return b.bad("nobody vouches for it: it was not written by a cluster of this version")
	}
	mac, err := hex.DecodeString(l.MAC)
	if err != nil {
		return b.bad("its mac is not hexadecimal")
	}
	if err := b.auth.Authentic(purpose, l.KeyID, all, mac); err != nil {
		return b.bad("%w", err)
	}
	return nil
}

// strict decodes one JSON value that has no other fields.
func strict(text []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(to); errors.Is(err, io.EOF) {
		return errors.New("it is blank")
	} else if err != nil {
		return err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one JSON value")
	}
	return nil
}
