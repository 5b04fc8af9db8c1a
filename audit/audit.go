// Package audit says what it is to keep the access log: who takes records
// ([Log]), who gives them back ([Reader], [Query]) or hands them on ([Source]),
// and how a record is made fit to be kept ([New], [Check], [AppendRecord]).
//
// Package journal keeps them in files that nobody can change unnoticed; package
// memory is its twin for tests; package merge reads several logs as one; package
// otlp sends them on to a collector; package refusals makes records of what was
// refused before anybody knew who it was. Package audittest holds every Ledger to
// the same promises.
package audit

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"cardea/api"
)

// A Log takes records.
//
// Append returns nil once the records are kept so that they survive the death of
// this process. An error means that none of them is, and that the caller must
// not do what they say: the log fails closed. The records of one call are kept
// next to each other, in their order; those of two calls of one caller in the
// order of the calls. Append does not keep recs and may be called by any number
// of goroutines. When ctx is done before the records are being written, its
// error is returned; once they are, Append waits for the outcome.
type Log interface {
	Append(ctx context.Context, recs ...*api.AccessLog) error
}

// A Ledger is a Log for those who cannot wait.
//
// Begin takes a record and does not wait: it is kept some milliseconds later, or when
// Keep is called, which returns once it is, and all that were taken before it. An error
// of Begin means that the record is not taken, one of Keep that it is not kept and will
// not be. Keep is to be called once for each Begin, and soon. Neither waits for anything
// but a write(2), unless Slow.
//
// Note takes the record of something that has happened, and so cannot be refused any
// more. It never waits. If the log cannot be written now the record is held, in the
// order of the calls, until it can; Owes returns how many are held so. The only error
// is one that to try again is in vain for. What is held when the log is closed is lost,
// which the log then says.
//
// Slow reports whether Append and Keep wait for the disk as things stand.
type Ledger interface {
	Log
	Begin(rec *api.AccessLog) (Mark, error)
	Keep(m Mark) error
	Note(rec *api.AccessLog) error
	Owes() int
	Slow() bool
}

// A Mark names a record that was begun.
type Mark int64

// A Reader gives back what a Log took.
//
// Records yields the records that match q, the oldest first, each once. With
// q.Follow it then waits for more, until ctx is done or the log is closed, gives
// what was taken before that, and ends without an error. An error is the last
// thing it yields.
type Reader interface {
	Records(ctx context.Context, q Query) iter.Seq2[api.AccessLog, error]
}

// A Source gives records to those who hand them on and must come back to where
// they were.
//
// Follow yields what stands behind a place, the oldest first, each once, waits for
// more, and ends without an error when ctx is done or when the log is closed and
// all that it took was given. Where what was to come next has been deleted, it
// says so with an Entry that has Lost, and goes on. A place that the log has not
// reached is of another log: everything is given. An error is the last thing it
// yields.
//
// End returns the place of the last record that was taken, and of the last one
// that survives the loss of power: who keeps a place for the next start keeps none
// behind that. Sync makes durable what was taken.
type Source interface {
	Follow(ctx context.Context, from Position) iter.Seq2[Entry, error]
	End() (written, durable Position)
	Sync() error
}

// A Position is a place in a log. The zero Position is before everything that is
// kept.
type Position struct {
	Line   int64 `json:"line"`   // of the log, from 1; records are not all that it holds
	Record int64 `json:"record"` // records up to that line, of all that the log ever took
}

// An Entry is what Follow yields: a record, or how many are gone.
type Entry struct {
	At   Position  // of this; with it, Follow goes on behind it
	Time time.Time // when it was written
	JSON []byte    // the record, an api.AccessLog as AppendRecord writes it; nil if Lost
	Lost int64     // so many records were deleted before they were given
}

// ErrClosed is what Append returns when the Log takes no more records.
var ErrClosed = errors.New("the access log is closed")

// New returns a record that was made at now and has an id of its own; the caller
// fills in the rest.
func New(now time.Time) *api.AccessLog {
	return &api.AccessLog{
		APIVersion: api.Version, Kind: "AccessLog",
		Metadata: api.AccessLogMetadata{ID: api.NewID(), CreatedAt: now.UTC()},
	}
}

// ErrMalformed is what Append returns, wrapped, for a record that cannot be kept
// as it is, now or ever: it lacks something, cannot be encoded or is too long.
// To try again is in vain.
var ErrMalformed = errors.New("malformed access log record")

// Check reports what a record lacks to be kept: every Log refuses it then. The
// error wraps [ErrMalformed].
func Check(rec *api.AccessLog) error {
	switch {
	case rec == nil:
		return fmt.Errorf("%w: is nil", ErrMalformed)
	case rec.APIVersion == "" || rec.Kind == "":
		return fmt.Errorf("%w: apiVersion and kind are required", ErrMalformed)
	case rec.Metadata.ID == "":
		return fmt.Errorf("%w: metadata.id is required", ErrMalformed)
	case rec.Metadata.CreatedAt.IsZero():
		return fmt.Errorf("%w: metadata.createdAt is required", ErrMalformed)
	}
	if t := TypeOf(rec); (t == api.LogStart || t == api.LogEnd) && rec.Entry.Common.ConnectionID == "" {
		return fmt.Errorf("%w: entry.common.connectionID is required for %s", ErrMalformed, t)
	}
	return nil
}
