package proxy

import (
	"context"
	"sync"
	"time"

	"cardea/api"
)

// question asks the Decider, who has AskTimeout from req.Now to answer.
func (g *Gate) question(ctx context.Context, req api.Request) (api.Decision, error) {
	if g.InLine {
		return g.Decider.Decide(ctx, req)
	}
	patience := g.AskTimeout
	if patience <= 0 {
		patience = 5 * time.Second
	}
	q := &bounded{Context: ctx, until: req.Now.Add(patience)}
	defer q.end()
	return g.Decider.Decide(q, req)
}

// A bounded context ends at a time. It is context.WithDeadline for calls that
// most often do not wait: it makes a timer for those only that do. Once for each
// connection that is what a decision costs, or nothing.
type bounded struct {
	context.Context
	until time.Time

	mu     sync.Mutex
	timed  context.Context // nil until somebody wants to wait
	cancel context.CancelFunc
}

// Deadline implements context.Context.
func (b *bounded) Deadline() (time.Time, bool) {
	if d, ok := b.Context.Deadline(); ok && d.Before(b.until) {
		return d, true
	}
	return b.until, true
}

// Done implements context.Context.
func (b *bounded) Done() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed == nil {
		b.timed, b.cancel = context.WithDeadline(b.Context, b.until)
	}
	return b.timed.Done()
}

// Err implements context.Context.
func (b *bounded) Err() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed != nil {
		return b.timed.Err()
	}
	if err := b.Context.Err(); err != nil {
		return err
	}
	if !time.Now().Before(b.until) {
		return context.DeadlineExceeded
	}
	return nil
}

// Value implements context.Context. Contexts that are made from this one find
// their parent by it.
func (b *bounded) Value(key any) any {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.timed != nil {
		return b.timed.Value(key)
	}
	return b.Context.Value(key)
}

// end cancels what was made.
func (b *bounded) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.cancel != nil {
		b.cancel()
	}
}
