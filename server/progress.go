package server

import (
	"context"
	"sync"

	"cardea/api"
)

// progress is how far something that follows the store has got: what it makes of the
// store is in force up to a revision. The zero value has not begun.
type progress struct {
	mu      sync.Mutex
	reached api.Revision
	moved   chan struct{} // closed, and made anew, when reached moves; nil if nobody waits
}

// reach notes of which revision what is in force is.
func (p *progress) reach(at api.Revision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.set(at)
}

// advance is reach, unless a later one was reached before.
func (p *progress) advance(at api.Revision) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reached.Compare(at) < 0 {
		p.set(at)
	}
}

// set is called with mu held.
func (p *progress) set(at api.Revision) {
	p.reached = at
	if p.moved != nil {
		close(p.moved)
		p.moved = nil
	}
}

// revision returns what was reached.
func (p *progress) revision() api.Revision {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reached
}

// await returns when what is in force is of that revision or a later one.
func (p *progress) await(ctx context.Context, rev api.Revision) error {
	for {
		p.mu.Lock()
		if p.reached.Compare(rev) >= 0 {
			p.mu.Unlock()
			return nil
		}
		if p.moved == nil {
			p.moved = make(chan struct{})
		}
		moved := p.moved
		p.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
