package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Limits of the API's connections.
const (
	webHeaderTimeout = 10 * time.Second
	webReadTimeout   = time.Minute
	webWriteTimeout  = time.Minute // of an answer; a stream has as long for each line
	webIdleTimeout   = 2 * time.Minute
	webHeaderBytes   = 64 << 10
	webGrace         = 5 * time.Second
	// Connections to the API that are open at once: of all, a part of the
	// descriptors of this process; of one address, a part of those. Most who
	// connect here have proved nothing yet.
	webShare    = 4
	webOneShare = 4
)

// A web serves the API on connections that the tunnel sorts out: it is the
// listener of an http.Server that listens to nothing itself.
type web struct {
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	most int // connections at once
	open map[net.Conn]netip.Addr
	from map[netip.Addr]int // how many of open
}

// newWeb returns a web for a process that can have so many descriptors.
func newWeb(h http.Handler, descriptors int, log *slog.Logger) *web {
	w := &web{
		server: &http.Server{
			Handler: h, ReadHeaderTimeout: webHeaderTimeout, ReadTimeout: webReadTimeout, WriteTimeout: webWriteTimeout, IdleTimeout: webIdleTimeout,
			MaxHeaderBytes: webHeaderBytes, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		conns: make(chan net.Conn), closed: make(chan struct{}),
		most: max(descriptors/webShare, 1), open: map[net.Conn]netip.Addr{}, from: map[netip.Addr]int{},
	}
	w.server.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateClosed || s == http.StateHijacked {
			w.leave(c)
		}
	}
	return w
}

// take hands a connection over, or closes it if there are too many.
func (w *web) take(c *tls.Conn) {
	if !w.enter(c) {
		c.NetConn().Close() // without a goodbye, which could block
		return
	}
	select {
	case w.conns <- c:
	case <-w.closed:
		w.leave(c)
		c.Close()
	}
}

// enter counts a connection in, unless there are too many of its address or of
// all.
func (w *web) enter(c net.Conn) bool {
	var from netip.Addr
	if a, ok := c.RemoteAddr().(*net.TCPAddr); ok {
		from = a.AddrPort().Addr().Unmap()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.open) >= w.most || w.from[from] >= max(w.most/webOneShare, 1) {
		return false
	}
	w.open[c] = from
	w.from[from]++
	return true
}

// leave counts a connection out.
func (w *web) leave(c net.Conn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	from, ok := w.open[c]
	if !ok {
		return
	}
	delete(w.open, c)
	if w.from[from]--; w.from[from] == 0 {
		delete(w.from, from)
	}
}

// run serves until ctx is done, gives calls that are under way a moment, and ends
// those that wait for news.
func (w *web) run(ctx context.Context) error {
	w.server.BaseContext = func(net.Listener) context.Context { return ctx }
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), webGrace)
		defer cancel()
		if w.server.Shutdown(grace) != nil {
			w.server.Close()
		}
	}()
	err := w.server.Serve(w)
	if ctx.Err() != nil {
		<-done
		return nil
	}
	return err
}

// Accept implements net.Listener.
func (w *web) Accept() (net.Conn, error) {
	select {
	case c := <-w.conns:
		return c, nil
	case <-w.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (w *web) Close() error {
	w.once.Do(func() { close(w.closed) })
	return nil
}

// Addr implements net.Listener.
func (w *web) Addr() net.Addr { return &net.TCPAddr{} }
