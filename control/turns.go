package control

import (
	"context"
	"sync"
)

// turns lets so many do something at once in one name; whoever comes later waits.
type turns struct {
	most int

	mu sync.Mutex
	of map[string]*turn
}

// A turn is that of one name.
type turn struct {
	taken chan struct{} // holds a token for each who has it
	users int           // who have it or wait for it
}

func newTurns(most int) *turns { return &turns{most: most, of: map[string]*turn{}} }

// take waits until there is room in that name; done makes room again. The error is
// that of ctx.
func (t *turns) take(ctx context.Context, name string) (done func(), err error) {
	t.mu.Lock()
	x := t.of[name]
	if x == nil {
		x = &turn{taken: make(chan struct{}, t.most)}
		t.of[name] = x
	}
	x.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if x.users--; x.users == 0 {
			delete(t.of, name)
		}
	}
	select {
	case x.taken <- struct{}{}:
		return func() { <-x.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
