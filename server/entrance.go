package server

import (
	"net"
	"os"
	"sync"
)

// An entrance is a listener at which connections wait until it is opened, and that
// can be left to another process that has the same socket: those who have come in
// stay, and those who wait are that one's.
type entrance struct {
	net.Listener
	opened, left, closed chan struct{}
	opening, leaving     sync.Once
	closing              sync.Once
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

// Accept implements net.Listener.
func (e *entrance) Accept() (net.Conn, error) {
	select {
	case <-e.opened:
	case <-e.closed:
		return nil, net.ErrClosed
	}
	c, err := e.Listener.Accept()
	if err == nil {
		return c, nil
	}
	select {
	case <-e.left:
		<-e.closed
		return nil, net.ErrClosed
	default:
		return nil, err
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
