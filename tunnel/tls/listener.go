package tls

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"time"

	"cardea/wire/frame"
)

// A Listener takes streams that a gateway opens to this device, over reverse links: the
// device dials, and the gateway asks. The fields must not be changed while it is in use.
type Listener struct {
	Dialer *Dialer // how the gateway is reached, and as which Session
	// Handle is given a stream and the target that was asked for, which is the
	// gateway's word. The conn is a [tunnel.Conn] and a [tunnel.Teller]: Handle tells
	// the verdict first, and in the end the conn must be closed or reset, by then or
	// later. When the Listener ends, it is reset.
	Handle func(target string, conn net.Conn)
	// Links is how many there are at most, each with one stream, whatever the gateway asks
	// for; 0 is 8192.
	Links int
	Log   *slog.Logger
}

// How many links a Listener keeps.
const (
	fewest   = 2               // that wait for a stream
	most     = 16              // of those: it keeps twice as many each time that the last was taken
	surplus  = 2 * time.Minute // how long one more than the fewest waits
	goodLife = 5 * time.Second // who lives shorter counts as one that has failed
	allLinks = 8192
)

// How long a Listener waits after a failure before it tries again, less up to a half by
// chance.
const (
	firstPause = 50 * time.Millisecond
	mostPause  = time.Second
)

// Run keeps links to the gateway, however often they are lost, until ctx is done. Then it
// returns nil, and nothing of it is left.
func (l *Listener) Run(ctx context.Context) error {
	p := &pool{want: fewest, all: cmp.Or(l.Links, allLinks), changed: make(chan struct{}, 1)}
	var links sync.WaitGroup
	defer links.Wait()
	pause, failing, full := firstPause, false, false
	for ctx.Err() == nil {
		now := p.look()
		if now.made && failing {
			l.Log.Info("the gateway can open connections to this device again", "gateway", l.Dialer.Address)
			failing = false
		}
		if now.good {
			pause = firstPause
		}
		if now.full && !full {
			l.Log.Warn("this device carries as many connections as it may: the gateway can open no other ones", "links", p.all)
		}
		full = now.full
		if now.failed != nil {
			if !failing {
				l.Log.Warn("the gateway cannot open connections to this device, which tries on", "gateway", l.Dialer.Address, "error", now.failed)
				failing = true
			}
			sleep(ctx, pause/2+rand.N(pause/2))
			pause = min(2*pause, mostPause)
			continue
		}
		for range now.missing {
			links.Go(func() {
				defer p.end()
				l.link(ctx, p)
			})
		}
		select {
		case <-ctx.Done():
		case <-p.changed:
		}
	}
	return nil
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// link makes a link and serves it until it ends.
func (l *Listener) link(ctx context.Context, p *pool) {
	k, err := l.connect(ctx)
	if err != nil {
		p.fail(err)
		return
	}
	defer k.conn.Close()
	stop := context.AfterFunc(ctx, k.stop)
	defer stop()
	if err := k.greet(handshakeTime); err != nil {
		p.fail(cmp.Or(refusedCertificate(err), fmt.Errorf("the gateway takes no connection that serves: %s", lossWords(err))))
		return
	}
	p.begin()
	since := time.Now()
	for {
		f, err := l.next(k, p)
		if err != nil {
			p.lose(err, time.Since(since) > goodLife)
			return
		}
		p.take()
		if l.carry(ctx, k, f.Open.Service) != nil || !p.rejoin() {
			return
		}
		since = time.Time{} // it was good for something
	}
}

// connect makes a connection to the gateway.
func (l *Listener) connect(ctx context.Context) (*link, error) {
	config, err := l.Dialer.configure(ctx)
	if err != nil {
		return nil, err
	}
	conn, sock, err := l.Dialer.connect(ctx, config, GatewayName(l.Dialer.Domain), ServeProtocol)
	if err != nil {
		return nil, err
	}
	watch(sock.Conn)
	return newLink(conn, sock), nil
}

// next waits for the gateway to ask for a stream. The error is nobody's fault if it is
// errStopped.
func (l *Listener) next(k *link, p *pool) (frame.Frame, error) {
	k.rest()
	defer k.work()
	for {
		f, err := k.expect(frame.TypeOpen, surplus)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return f, err
		}
		if p.tooMany() {
			return f, errStopped
		}
	}
}

// carry gives a stream to Handle and brings it to its end.
func (l *Listener) carry(ctx context.Context, k *link, target string) error {
	over := make(chan struct{})
	conn := &arrival{stream: stream{link: k, over: func() { close(over) }, silent: errUntold}}
	stop := context.AfterFunc(ctx, func() { conn.Reset("the device has left") })
	defer stop()
	l.Handle(target, conn)
	<-over
	return conn.settle()
}

// A pool counts the links of a Listener. A link is ready while it waits for a stream, and
// from when look has asked for it.
type pool struct {
	changed chan struct{} // something has, since look

	mu      sync.Mutex
	want    int // how many links shall be ready
	all     int // how many there may be at most
	links   int // how many there are
	ready   int
	waiting int // those that wait
	last    events
}

// events are what has happened since Run has looked last.
type events struct {
	missing int   // links that are to be made
	full    bool  // more are missing, and there may be none
	made    bool  // one was made
	good    bool  // one has carried a stream, or has lasted
	failed  error // one could not be made, or was lost at once
}

// look returns what has happened. The links that are missing count as ready.
func (p *pool) look() events {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.last
	p.last = events{}
	if e.failed == nil {
		want := max(p.want-p.ready, 0)
		e.missing = min(want, p.all-p.links)
		e.full = want > 0 && e.missing == 0
		p.ready += e.missing
		p.links += e.missing
	}
	return e
}

// happen changes the pool and wakes Run.
func (p *pool) happen(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// end notes that a link is over.
func (p *pool) end() { p.happen(func() { p.links-- }) }

// fail notes that a link could not be made.
func (p *pool) fail(err error) {
	p.happen(func() {
		p.ready--
		p.want = fewest
		p.last.failed = err
	})
}

// begin notes that a link was made, and waits.
func (p *pool) begin() {
	p.happen(func() {
		p.waiting++
		p.last.made = true
	})
}

// take notes that a link that waited carries a stream.
func (p *pool) take() {
	p.happen(func() {
		p.ready--
		p.waiting--
		p.last.good = true
		if p.waiting == 0 {
			p.want = min(2*p.want, most)
		}
	})
}

// rejoin makes a link that has carried a stream wait again, and reports false if there
// are enough.
func (p *pool) rejoin() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready >= p.want {
		return false
	}
	p.ready++
	p.waiting++
	return true
}

// lose notes that a link that waited is over, and why.
func (p *pool) lose(err error, lasted bool) {
	p.happen(func() {
		p.ready--
		p.waiting--
		switch {
		case err == errStopped:
		case lasted:
			p.last.good = true
		default:
			p.want = fewest
			p.last.failed = fmt.Errorf("the gateway has closed a connection that serves: %s", lossWords(err))
		}
	})
}

// tooMany tells whether a link that has waited long is more than are needed, and if so
// keeps one less from now on.
func (p *pool) tooMany() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ready <= fewest {
		return false
	}
	p.want = max(fewest, p.ready-1)
	return true
}
