package quic

import "sync"

// windows is an account of what clients may have under way to a Server: the flow windows
// of its connections, which are memory if nobody reads. Each connection begins with a
// window that nobody can take from it; it grows (as its streams are read, and fast) while
// the Session and the Server have room.
type windows struct {
	most, mostOfSession int64 // bytes

	mu  sync.Mutex
	all int64
	of  map[string]int64 // by Session
}

// A hold is what a connection has of windows.
type hold struct {
	windows *windows
	session string
	size    int64 // guarded by windows.mu
}

// open notes a connection of a Session, with the window that it begins with.
func (w *windows) open(session string) *hold {
	h := &hold{windows: w, session: session}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of == nil {
		w.of = map[string]int64{}
	}
	h.add(connWindow)
	return h
}

// grow reports whether there is room for so much more.
func (h *hold) grow(by uint64) bool {
	w := h.windows
	w.mu.Lock()
	defer w.mu.Unlock()
	if int64(by) > min(w.most-w.all, w.mostOfSession-w.of[h.session]) {
		return false
	}
	h.add(int64(by))
	return true
}

// close gives all of it back.
func (h *hold) close() {
	h.windows.mu.Lock()
	defer h.windows.mu.Unlock()
	h.add(-h.size)
}

// add changes the account; windows.mu must be held.
func (h *hold) add(n int64) {
	w := h.windows
	h.size += n
	w.all += n
	if w.of[h.session] += n; w.of[h.session] == 0 {
		delete(w.of, h.session)
	}
}
