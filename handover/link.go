package handover

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
)

// A Link is a conversation of two processes of one user on one machine, in which
// either may ask and the other answers: one JSON value a message.
type Link struct {
	// Answer answers what the other end asks, with a [Then] if something is to follow. It
	// is called in a goroutine for each question; ctx ends with the Link.
	Answer func(ctx context.Context, what string, in json.RawMessage) (out any, err error)

	conn    net.Conn
	writing sync.Mutex
	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan<- spoken // nil once it is over
	over    chan struct{}
}

// spoken is one message: a question has What, an answer does not.
type spoken struct {
	ID    uint64          `json:"id"`
	What  string          `json:"what,omitempty"`
	Body  json.RawMessage `json:"body,omitempty"`
	Error string          `json:"error,omitempty"`
}

// ErrLinkOver says that the other end has gone before it answered.
var ErrLinkOver = errors.New("the other process has gone")

// An AnswerError is what the other end answers in place of an answer.
type AnswerError struct{ Words string }

// Error implements error.
func (e *AnswerError) Error() string { return e.Words }

// Then is an answer after which something is done: when it was sent, or could not be.
type Then struct {
	Answer any
	Do     func()
}

// NewLink returns a Link over a connection, which is its own from then on. [Link.Run]
// must be called.
func NewLink(c net.Conn, answer func(ctx context.Context, what string, in json.RawMessage) (any, error)) *Link {
	return &Link{Answer: answer, conn: c, waiting: map[uint64]chan<- spoken{}, over: make(chan struct{})}
}

// Over is closed when the Link has ended.
func (l *Link) Over() <-chan struct{} { return l.over }

// Close ends the Link.
func (l *Link) Close() { l.conn.Close() }

// Run carries the conversation until ctx is done or the other end goes, and returns
// when every answer that was being made is.
func (l *Link) Run(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(ctx, func() { l.conn.Close() })
	defer stop()
	var answering sync.WaitGroup
	defer answering.Wait()
	defer cancel()
	defer l.end()
	for in := json.NewDecoder(l.conn); ; {
		var m spoken
		if err := in.Decode(&m); err != nil {
			return
		}
		if m.What != "" {
			answering.Go(func() { l.answer(ctx, m) })
			continue
		}
		l.mu.Lock()
		to := l.waiting[m.ID]
		delete(l.waiting, m.ID)
		l.mu.Unlock()
		if to != nil {
			to <- m
		}
	}
}

// end lets nobody wait for an answer any more.
func (l *Link) end() {
	l.conn.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting = nil
	close(l.over)
}

func (l *Link) answer(ctx context.Context, m spoken) {
	out, err := l.Answer(ctx, m.What, m.Body)
	if then, ok := out.(Then); ok {
		out = then.Answer
		defer then.Do()
	}
	a := spoken{ID: m.ID}
	if err == nil {
		a.Body, err = json.Marshal(out)
	}
	if err != nil {
		a.Error = err.Error()
	}
	l.send(a)
}

func (l *Link) send(m spoken) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	l.writing.Lock()
	defer l.writing.Unlock()
	_, err = l.conn.Write(append(b, '\n'))
	if err != nil {
		l.conn.Close()
	}
	return err
}

// Ask asks the other end, and puts its answer into out unless that is nil. The error
// is an [*AnswerError] if it is the other end's.
func (l *Link) Ask(ctx context.Context, what string, in, out any) error {
	body, err := json.Marshal(in)
	if err != nil {
		return err
	}
	to := make(chan spoken, 1)
	l.mu.Lock()
	if l.waiting == nil {
		l.mu.Unlock()
		return ErrLinkOver
	}
	l.last++
	id := l.last
	l.waiting[id] = to
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting, id)
	}()
	if err := l.send(spoken{ID: id, What: what, Body: body}); err != nil {
		if slices.ContainsFunc([]error{net.ErrClosed, io.ErrClosedPipe, syscall.EPIPE, syscall.ECONNRESET}, func(gone error) bool { return errors.Is(err, gone) }) {
			err = ErrLinkOver
		}
		return err
	}
	var m spoken
	select {
	case m = <-to:
	case <-l.over:
		select {
		case m = <-to: // the answer came, and then the end
		default:
			return ErrLinkOver
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	if m.Error != "" {
		return &AnswerError{m.Error}
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(m.Body, out); err != nil {
		return fmt.Errorf("what the other process answered to %s is not understood: %w", what, err)
	}
	return nil
}
