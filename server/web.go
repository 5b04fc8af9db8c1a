package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// Limits of the API's connections.
const (
	webHeaderTimeout = 10 * time.Second
	webReadTimeout   = time.Minute
	webIdleTimeout   = 2 * time.Minute
	webHeaderBytes   = 64 << 10
	webGrace         = 5 * time.Second
)

// A web serves the API on connections that the tunnel sorts out: it is the
// listener of an http.Server that listens to nothing itself.
type web struct {
	server *http.Server
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newWeb(h http.Handler, log *slog.Logger) *web {
	return &web{
		server: &http.Server{
			Handler: h, ReadHeaderTimeout: webHeaderTimeout, ReadTimeout: webReadTimeout, IdleTimeout: webIdleTimeout,
			MaxHeaderBytes: webHeaderBytes, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
		},
		conns: make(chan net.Conn), closed: make(chan struct{}),
	}
}

// take hands a connection over.
func (w *web) take(c *tls.Conn) {
	select {
	case w.conns <- c:
	case <-w.closed:
		c.Close()
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
