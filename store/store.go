// Package store keeps Objects, tells what changed, and in which order.
//
// Implementations live beside it: memory (tests and throw-away clusters), sqlite
// (one machine) and postgres (a cluster). Package storetest holds the contract
// that they all pass; backup writes a store to a file and reads it back.
//
// # Contract
//
// Every commit has one [api.Revision], greater than that of every commit before
// it, and all its changes become visible together. The revision is taken as the
// last act of a transaction, under the lock that is held until it commits, so
// that nobody ever sees revision n+1 without n.
//
// Objects are a view of the changes: watch, history and current state read the
// same rows.
//
// The numbers of revisions go on for ever; an epoch is a stretch of them in which
// nothing was taken back. A new one begins when the store is replaced whole
// ([Store.Renew]) or turns out to be a copy of itself that may have lost commits.
// Nothing can be watched across that: whoever follows lists again.
//
// Nothing on the path of connections writes to a store.
package store

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"strings"
	"time"
	"unicode/utf8"

	"cardea/api"
)

// Limits of what a Store takes.
const (
	MaxObject = 16 << 20 // bytes of JSON of one Object
	MaxKey    = 2 << 10  // bytes of one key, all parts together
	MaxMark   = 64 << 10 // bytes of one mark
)

// A Record is one Object as it is stored.
type Record struct {
	Key      api.Key
	UID      string
	Revision api.Revision    // of the commit that wrote it; zero inside the transaction that writes it
	JSON     json.RawMessage // the Object; shared, not to be written to
}

// A Change is one Object that a commit wrote or deleted. A deletion carries the
// Object as it was last.
type Change struct {
	Record
	Deleted bool
}

// A Commit is what one transaction changed in effect, in the order in which the
// Objects were first written: an Object written twice is one Change, one that
// was made and deleted again is none, and one that was deleted and made anew
// under another UID is a deletion and a Change.
type Commit struct {
	Revision api.Revision
	At       time.Time
	Actor    string // who did it, for the history: a Session's name, "system"
	Changes  []Change
}

// Errors of a Store. An Object that does not exist is an [api.Error] of code
// NOT_FOUND.
var (
	// ErrCompacted says that history no longer reaches back to where a watch was
	// to begin, or that the epoch changed, or that the watcher fell too far
	// behind: list again, and watch from the revision of the list.
	ErrCompacted = errors.New("store: history does not reach back that far; list again")
	// ErrClosed is what everything returns after Close.
	ErrClosed = errors.New("store: closed")
)

// A Reader reads one consistent state.
type Reader interface {
	// Get returns the Object of that key.
	Get(k api.Key) (Record, error)
	// List calls for each Object of a group and kind, ordered by namespace, then
	// name; an empty kind means all of the group, ordered by kind first. It shows
	// the state in which it began: the loop may write.
	List(group, kind string) iter.Seq2[Record, error]
	// ListAfter is List of the group and kind of k, from the Object that comes
	// next after k, which need not exist. It does not read what comes before.
	ListAfter(k api.Key) iter.Seq2[Record, error]
	// All calls for each Object of every group, as List does, ordered by group
	// first.
	All() iter.Seq2[Record, error]
	// Revision is that of the state.
	Revision() api.Revision
}

// A Tx is a transaction: it reads what it wrote. It is for one goroutine.
type Tx interface {
	Reader
	// Put writes r (its Revision is ignored); its JSON is the Store's from then
	// on. A name is unique within (group, kind, namespace): CONFLICT if an Object
	// of another UID has it. INVALID if the key has no kind or name, something is
	// not UTF-8 or has a NUL, or the key is longer than MaxKey or the JSON than
	// MaxObject.
	Put(r Record) error
	// Delete removes the Object of that key; NOT_FOUND if there is none.
	Delete(k api.Key) error
}

// A Store keeps Objects. The functions that are handed to View and Update must
// be short and must not call the Store: they hold a place that others wait for.
type Store interface {
	// View calls f with a consistent state. f must not keep the Reader.
	View(ctx context.Context, f func(Reader) error) error

	// Update runs f in a transaction and commits what it wrote, durably, if it
	// returns nil; otherwise nothing happened. Transactions happen one after the
	// other, so what f reads is what its writes are based on. f may be called
	// again if the store had to try again. A transaction that changes nothing
	// makes no commit; the revision returned is then the current one. If ctx ends
	// before f began, f is not called and the error is that of ctx. An error that
	// is neither f's nor ctx's is of the storage: what was not committed is lost.
	Update(ctx context.Context, actor string, f func(Tx) error) (api.Revision, error)

	// Renew replaces everything, durably, by the Objects that all yields, in the
	// order of [Reader.All] and each once, and begins a new epoch: one commit that
	// has them all. Every watcher gets ErrCompacted. If all yields an error, or
	// something that Put would refuse or that is out of order (INVALID), or if ctx
	// ends before all did, nothing happened and that is the error; all is ranged
	// over at most once, and must not call the Store. Marks stay as they are.
	Renew(ctx context.Context, actor string, all iter.Seq2[Record, error]) (api.Revision, error)

	// Watch yields every commit after from, once each, in order, and then waits
	// for more, until ctx is done (then it ends without an error) or it yields an
	// error, which is the last. The zero Revision asks for the whole history. Any
	// number of watchers may be there; a slow one delays nobody. A store on a
	// server that goes away and comes back goes on where it was.
	Watch(ctx context.Context, from api.Revision) iter.Seq2[Commit, error]

	// SetMark keeps a small value (at most MaxMark) under a name, durably, beside
	// the Objects: it makes no commit and no watcher hears of it; an empty value
	// removes it. Mark returns it, nil if there is none. A mark belongs to the
	// process that sets it (how far its journal got), and not to the cluster: a
	// backup has none.
	SetMark(ctx context.Context, name string, value []byte) error
	Mark(ctx context.Context, name string) ([]byte, error)

	// Close ends the watchers, waits for what is under way and releases
	// everything.
	Close() error
}

// CheckMark reports, for implementations, what is wrong with a mark.
func CheckMark(name string, value []byte) error {
	switch {
	case name == "":
		return api.Errorf(api.CodeInvalid, "a mark needs a name")
	case !IsText(name):
		return api.Errorf(api.CodeInvalid, "the name of a mark must be UTF-8 without NUL: %q", name)
	case len(value) > MaxMark:
		return api.Errorf(api.CodeInvalid, "the mark %q has %d bytes, more than %d", name, len(value), MaxMark)
	}
	return nil
}

// IsText reports whether every database can keep s as text.
func IsText(s string) bool { return utf8.ValidString(s) && !strings.Contains(s, "\x00") }

// ActorText returns, for implementations, an actor as every database can keep it.
func ActorText(actor string) string {
	return strings.ReplaceAll(strings.ToValidUTF8(actor, "\uFFFD"), "\x00", "\uFFFD")
}
