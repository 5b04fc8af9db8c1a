package wireguard

import (
	"errors"
	"sync"
	"time"

	"cardea/api"
	"cardea/tunnel"
)

// teller tells a Session out of band what became of a connection.
type teller struct {
	g       *Gateway
	session string
	service string

	mu               sync.Mutex
	decided, refused bool
	id               string // of the decision
}

// verdict tells of a refusal.
func (t *teller) verdict(v api.Verdict) error {
	t.mu.Lock()
	if t.decided {
		t.mu.Unlock()
		return errors.New("tunnel: the Verdict was told before")
	}
	t.decided, t.refused, t.id = true, v.Code != api.VerdictOK, v.DecisionID
	refused := t.refused
	t.mu.Unlock()
	if refused {
		t.tell(v.DecisionID, tunnel.Refused(t.service, v).Error())
	}
	return nil
}

// reset tells of a connection that was cut, unless the client itself has done so, or was
// told already.
func (t *teller) reset(reason string) {
	t.mu.Lock()
	refused, id := t.refused, t.id
	t.mu.Unlock()
	if refused || reason == "CLIENT_RESET" || reason == "CLIENT_CLOSED" {
		return
	}
	t.tell(id, "the connection to Service "+t.service+" was cut: "+reason)
}

func (t *teller) tell(id, words string) {
	if t.g.Tell != nil {
		t.g.Tell(t.session, api.NetworkRefusal{At: time.Now(), Service: t.service, DecisionID: id, Words: words})
	}
}

func (t *teller) isRefused() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.refused
}

// registered is a TCP connection of a Session, which knows it as long as it is open.
type registered struct {
	tunnel.Conn
	s      *session
	teller teller
	once   sync.Once
}

// register notes a conn, unless the Session is gone.
func (s *session) register(r *registered) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return false
	}
	if s.conns == nil {
		s.conns = map[resetter]struct{}{}
	}
	s.conns[r] = struct{}{}
	return true
}

func (r *registered) leave() (first bool) {
	r.once.Do(func() {
		first = true
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		delete(r.s.conns, r)
	})
	return first
}

// Close implements net.Conn.
func (r *registered) Close() error {
	r.leave()
	return r.Conn.Close()
}

// Reset implements tunnel.Conn.
func (r *registered) Reset(reason string) error {
	if r.leave() {
		r.teller.reset(reason)
	}
	return r.Conn.Reset(reason)
}

// Verdict implements tunnel.Teller.
func (r *registered) Verdict(v api.Verdict) error { return r.teller.verdict(v) }

// watched is registered for a conn that can tell of a reset by itself.
type watched struct{ registered }

var (
	_ tunnel.Conn    = (*watched)(nil)
	_ tunnel.Teller  = (*watched)(nil)
	_ tunnel.Watcher = (*watched)(nil)
)

// WaitReset implements tunnel.Watcher.
func (w *watched) WaitReset() error { return w.Conn.(tunnel.Watcher).WaitReset() }
