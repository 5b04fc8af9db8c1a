package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
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
	// Connections to the API that are open at once: a part of the descriptors of
	// this process. Most who connect here have proved nothing yet.
	webShare = 4
)

// newHTTP returns what serves HTTP to people nobody knows anything of yet.
func newHTTP(h http.Handler, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler: h, ReadHeaderTimeout: webHeaderTimeout, ReadTimeout: webReadTimeout, WriteTimeout: webWriteTimeout, IdleTimeout: webIdleTimeout,
		MaxHeaderBytes: webHeaderBytes, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
}

// A web serves the API on connections that the tunnel sorts out: it is the
// listener of an http.Server that listens to nothing itself. A connection is a guest
// until it has become the one by which a Session knows its place in the private network:
// it has proved that Session then, which has one such connection at a time.
type web struct {
	server *http.Server
	guests *guests
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once

	following atomic.Int64  // calls that wait for news
	ending    chan struct{} // closed when they are to end
}

// newWeb returns a web for a process that can have so many descriptors.
func newWeb(h http.Handler, descriptors int, log *slog.Logger) *web {
	w := &web{guests: newGuests(descriptors / webShare), conns: make(chan net.Conn), closed: make(chan struct{}), ending: make(chan struct{})}
	w.server = newHTTP(w.endless(h), log)
	w.server.ConnState = w.guests.follow
	w.server.ConnContext = func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) }
	return w
}

// take hands a connection over, or closes it if there are too many.
func (w *web) take(c *tls.Conn) {
	if !w.guests.enter(c) {
		c.NetConn().Close() // without a goodbye, which could block
		return
	}
	select {
	case w.conns <- c:
	case <-w.closed:
		w.guests.leave(c)
		c.Close()
	}
}

// endless ends calls that wait for news, which would never end by themselves, when the
// others are given a moment.
func (w *web) endless(h http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if !waitsForNews(r) {
			h.ServeHTTP(rw, r)
			return
		}
		if r.URL.Path == connectPath {
			rw.Header().Set("Connection", "close") // it is no guest any more, and ends with the call
			rw = &settler{ResponseWriter: rw, settle: func() { w.guests.leave(r.Context().Value(connKey{}).(net.Conn)) }}
		} else {
			w.following.Add(1)
			defer w.following.Add(-1)
		}
		ctx, cancel := context.WithCancel(r.Context())
		var watching sync.WaitGroup
		defer watching.Wait()
		defer cancel()
		watching.Go(func() {
			select {
			case <-w.ending:
				cancel()
			case <-ctx.Done():
			}
		})
		h.ServeHTTP(rw, r.WithContext(ctx))
	})
}

// connectPath is the call by which a Session has its place in the private network.
const connectPath = "/api/connect"

// connKey is the key of the connection in the context of a call.
type connKey struct{}

// A settler tells when a call has been let in: its answer begins without a status.
type settler struct {
	http.ResponseWriter
	settle func()
	begun  bool
}

// WriteHeader implements http.ResponseWriter.
func (s *settler) WriteHeader(status int) {
	s.begun = true
	s.ResponseWriter.WriteHeader(status)
}

// FlushError is for http.ResponseController.
func (s *settler) FlushError() error {
	if !s.begun {
		s.begun = true
		s.settle()
	}
	return http.NewResponseController(s.ResponseWriter).Flush()
}

// Unwrap is for http.ResponseController.
func (s *settler) Unwrap() http.ResponseWriter { return s.ResponseWriter }

// waitsForNews reports whether a call goes on with what happens: the log that is
// followed, Objects that are watched.
func waitsForNews(r *http.Request) bool {
	if r.URL.Path == connectPath {
		return true
	}
	q := r.URL.Query()
	for _, name := range []string{"follow", "watch"} {
		if is, err := strconv.ParseBool(q.Get(name)); is && err == nil {
			return true
		}
	}
	return false
}

// calls returns how many connections have a call that ends by itself, or may be about to
// make one.
func (w *web) calls() int { return max(w.guests.count()-int(w.following.Load()), 0) }

// run serves until ctx is done, gives calls that are under way a moment, and ends
// those that wait for news.
func (w *web) run(ctx context.Context) error {
	calls, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	w.server.BaseContext = func(net.Listener) context.Context { return calls }
	done := make(chan struct{})
	go func() {
		defer close(done)
		<-ctx.Done()
		close(w.ending)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), webGrace)
		defer cancel()
		if w.server.Shutdown(grace) != nil {
			cut()
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

// leave lets each connection carry no further call: those without one are closed now,
// the others after theirs.
func (w *web) leave() { w.server.SetKeepAlivesEnabled(false) }

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
