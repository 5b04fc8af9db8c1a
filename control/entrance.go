package control

import (
	"context"
	"sync"
	"time"

	"cardea/api"
)

// An entrance is what the calls to log in share.
type entrance struct {
	limiter     *limiter
	credentials *index
	sessions    *index

	mu    sync.Mutex
	turns map[string]*turn // by the name of a User
}

// A turn lets the logins of one User in one after the other.
type turn struct {
	taken chan struct{} // holds a token while somebody has it
	users int           // who have it or wait for it
}

func newEntrance(now func() time.Time) *entrance {
	return &entrance{
		limiter:     newLimiter(now),
		credentials: newIndex(api.KindCredential),
		sessions:    newIndex(api.KindSession),
		turns:       map[string]*turn{},
	}
}

// turn waits until nobody else of this process is logging in as that User. So
// what one finds there of his Sessions, before its transaction, is still so in it,
// unless some have ended.
func (e *entrance) turn(ctx context.Context, user string) (done func(), err error) {
	e.mu.Lock()
	t := e.turns[user]
	if t == nil {
		t = &turn{taken: make(chan struct{}, 1)}
		e.turns[user] = t
	}
	t.users++
	e.mu.Unlock()
	leave := func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		if t.users--; t.users == 0 {
			delete(e.turns, user)
		}
	}
	select {
	case t.taken <- struct{}{}:
		return func() { <-t.taken; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, ctx.Err()
	}
}
