package server

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// An entrance is a listener at which connections wait until it is opened, and that
// can be left to another process that has the same socket: those who have come in
// stay, and those who wait are that one's.
type entrance struct {
	net.Listener
	opened, left, closed chan struct{}
	opening, leaving     sync.Once
	closing              sync.Once

	mu     sync.Mutex
	paused chan struct{} // closed by resume; nil if nothing is paused
}

func newEntrance(l net.Listener) *entrance {
	return &entrance{Listener: l, opened: make(chan struct{}), left: make(chan struct{}), closed: make(chan struct{})}
}

// open lets connections in.
func (e *entrance) open() { e.opening.Do(func() { close(e.opened) }) }

// leave takes no more connections. Who accepts goes on waiting, until Close.
func (e *entrance) leave() {
	e.leaving.Do(func() {
		close(e.left)
		e.Listener.Close() // a descriptor; the socket lives on
	})
}

// pause takes no more connections until resume: those who wait are for who else has the
// socket.
func (e *entrance) pause() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.paused == nil {
		e.paused = make(chan struct{})
		e.deadline(time.Unix(1, 0))
	}
}

// resume ends pause.
func (e *entrance) resume() {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.paused != nil {
		e.deadline(time.Time{})
		close(e.paused)
		e.paused = nil
	}
}

// deadline is of this process alone, and not of the socket.
func (e *entrance) deadline(t time.Time) {
	e.Listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(t)
}

// resumed returns what is closed when the entrance is not paused any more.
func (e *entrance) resumed() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.paused != nil {
		return e.paused
	}
	return e.opened
}

// Accept implements net.Listener.
func (e *entrance) Accept() (net.Conn, error) {
	select {
	case <-e.opened:
	case <-e.closed:
		return nil, net.ErrClosed
	}
	for {
		c, err := e.Listener.Accept()
		if err == nil {
			return c, nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // only pause makes that
			select {
			case <-e.resumed():
				continue
			case <-e.left:
			case <-e.closed:
			}
		}
		select {
		case <-e.left:
			<-e.closed
			return nil, net.ErrClosed
		case <-e.closed:
			return nil, net.ErrClosed
		default:
			return nil, err
		}
	}
}

// Close implements net.Listener.
func (e *entrance) Close() error {
	e.closing.Do(func() { close(e.closed) })
	return e.Listener.Close()
}

// file returns a descriptor of the socket, for another process.
func (e *entrance) file() (*os.File, error) {
	return e.Listener.(interface{ File() (*os.File, error) }).File()
}
