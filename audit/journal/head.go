package journal

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"time"
)

// A Head says under a signature what the chain was: its line Seq has the SHA-256
// Hash. With it, every line up to Seq is what it was at that time. It stands in
// the very next line, so that this line is fixed by the signature too.
type Head struct {
	Seq     int64     `json:"seq"`
	Hash    digest    `json:"hash"`
	At      time.Time `json:"at"`
	Segment int64     `json:"segment"` // of the line that holds the Head
	// Closed says that the journal ended cleanly with the line that holds the
	// Head: nothing but another Head may follow upon it.
	Closed bool `json:"closed,omitempty"`
	// Oldest is where the journal begins from now on: retention may delete what is
	// before it, and nobody else may.
	Oldest *Start `json:"oldest,omitempty"`
	// Key names the key that signed, as KeyID does.
	Key       string `json:"key,omitempty"`
	Signature []byte `json:"signature"` // Ed25519 (RFC 8032) over the encoding of the rest
}

// message is what is signed: a name that no other use of the key has, then each
// value in a form of its own length.
func (h *Head) message(instance string) []byte {
	b := []byte("cardea journal head, format 1\x00")
	b = binary.BigEndian.AppendUint64(b, uint64(len(instance)))
	b = append(b, instance...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Seq))
	b = append(b, h.Hash[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(h.At.Unix()))
	b = binary.BigEndian.AppendUint64(b, uint64(h.At.Nanosecond()))
	b = binary.BigEndian.AppendUint64(b, uint64(h.Segment))
	// What follows is there or not, each with its name: heads without it stay good.
	if o := h.Oldest; o != nil {
		b = append(b, "oldest"...)
		b = binary.BigEndian.AppendUint64(b, uint64(o.Segment))
		b = binary.BigEndian.AppendUint64(b, uint64(o.Seq))
		b = append(b, o.Prev[:]...)
	}
	if h.Key != "" {
		b = append(b, "key"...)
		b = binary.BigEndian.AppendUint64(b, uint64(len(h.Key)))
		b = append(b, h.Key...)
	}
	if h.Closed {
		b = append(b, "closed"...)
	}
	return b
}

func (h *Head) sign(instance string, s crypto.Signer) error {
	if key, ok := s.Public().(ed25519.PublicKey); ok {
		h.Key = KeyID(key)
	}
	sig, err := s.Sign(rand.Reader, h.message(instance), crypto.Hash(0))
	if err != nil {
		return fmt.Errorf("signing the head of the journal: %w", err)
	}
	h.Signature = sig
	return nil
}

// signedBy reports whether one of keys made the signature.
func (h *Head) signedBy(instance string, keys []ed25519.PublicKey) bool {
	m := h.message(instance)
	for _, k := range keys {
		if len(k) == ed25519.PublicKeySize && (h.Key == "" || h.Key == KeyID(k)) && ed25519.Verify(k, m, h.Signature) {
			return true
		}
	}
	return false
}

// A Mark is what is kept of a journal outside of its files, so that a tail that
// was cut off and segments that were taken away are noticed.
type Mark struct {
	Instance string `json:"instance"`
	Head     Head   `json:"head"`
	Line     digest `json:"line"`              // the SHA-256 of the line that holds the Head
	Oldest   Start  `json:"oldest"`            // what retention has left; the Head says so too, under its signature
	Records  int64  `json:"records,omitempty"` // of the chain, before the Head
	// Foreign is what was found behind a clean end and is not yet written down in
	// the journal; nil if there is nothing.
	Foreign *Foreign `json:"foreign,omitempty"`
}

// Foreign says what stood behind a clean end of the journal, where nobody writes
// but the journal itself, which then begins with a signed head.
type Foreign struct {
	Lines int64    `json:"lines"`
	Files []string `json:"files"` // in the directory of the journal, where the lines are now
}

// A Start is where a segment begins.
type Start struct {
	Segment int64  `json:"segment"`
	Seq     int64  `json:"seq"`
	Prev    digest `json:"prev"`
}

// oldestSigned reports whether the signed Head says what Oldest says. Heads of
// earlier versions say nothing about it.
func (m *Mark) oldestSigned() bool { return m.Head.Oldest == nil || *m.Head.Oldest == m.Oldest }

// distrust puts back where the journal begins, if no key vouches for what the Mark
// says of it: whoever writes to the store must not have segments deleted, nor have
// us sign that they were ours to delete.
func (m *Mark) distrust(keys []ed25519.PublicKey) bool {
	switch {
	case !m.Head.signedBy(m.Instance, keys):
		m.Oldest = Start{Segment: 1, Seq: 1}
	case !m.oldestSigned():
		m.Oldest = *m.Head.Oldest
	default:
		return false
	}
	return true
}

// line is the number of the line that holds the marked head.
func (m *Mark) line() int64 { return m.Head.Seq + 1 }

// Marks keeps small values under a name, durably; a store does.
type Marks interface {
	SetMark(ctx context.Context, name string, value []byte) error
	Mark(ctx context.Context, name string) ([]byte, error) // nil if there is none
}

// MarkName is the name under which the Mark of an instance's journal is kept.
func MarkName(instance string) string { return "journal/" + instance + "/head" }

// ReadMark returns the Mark of an instance's journal, nil if there is none.
func ReadMark(ctx context.Context, marks Marks, instance string) (*Mark, error) {
	b, err := marks.Mark(ctx, MarkName(instance))
	if err != nil {
		return nil, fmt.Errorf("reading the mark of the journal: %w", err)
	}
	if len(b) == 0 {
		return nil, nil
	}
	var m Mark
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("reading the mark of the journal: %w", err)
	}
	return &m, nil
}

func writeMark(ctx context.Context, marks Marks, m *Mark) error {
	b, err := json.Marshal(m)
	if err == nil {
		err = marks.SetMark(ctx, MarkName(m.Instance), b)
	}
	if err != nil {
		return fmt.Errorf("keeping the mark of the journal: %w", err)
	}
	return nil
}
