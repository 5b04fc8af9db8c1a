package ingress

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/wire/hello"
	"cardea/wire/proxyproto"
)

// mostRead is how many bytes of a connection its loop reads for a visit: before that
// the parsers have said what they make of it.
const mostRead = proxyproto.MaxV2 + hello.MaxWire

// A pending is a visit for which the loop waits that accepted the connection: no
// goroutine is its own. What may block goes on in one.
type pending struct {
	visit
	ctx  context.Context
	stop func() bool // of waiting for ctx

	mu   sync.Mutex                  // of the visit: the loop has it, or who ends it from elsewhere
	over bool                        // the connection was given away, or ended
	tcp  atomic.Pointer[net.TCPConn] // what it was given away as, if that was to a goroutine
}

// await waits for what has to be read of a raw connection.
func (v *visit) await(ctx context.Context) {
	p := &pending{visit: *v, ctx: ctx}
	p.router.serving.Add(1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.stop = context.AfterFunc(ctx, func() { p.abort(errStopping) })
	p.proceed()
}

// proceed goes on as far as what was read allows. As are the methods below it, it is
// called by the loop, with mu.
func (p *pending) proceed() {
	for p.stage = p.next(); p.stage != ready; p.stage = p.next() {
		if err := p.begin(p); err != nil {
			p.fail(err)
			return
		}
		if p.place != nil && !p.place.isGiven() {
			p.away()
			return
		}
		within := p.within()
		p.until = time.Now().Add(within)
		waits, err := true, error(nil)
		if len(p.read) > 0 {
			waits, err = p.look()
		}
		if p.over {
			return
		}
		if waits && err == nil {
			p.raw.Await(within, mostRead, p.got)
			return
		}
		if err = p.passed(err); err != nil {
			p.fail(err)
			return
		}
	}
	p.settle()
}

// look looks at what was read, as hear does, if that is not for a goroutine.
func (p *pending) look() (more bool, err error) {
	if p.stage == opening && p.listener.asks {
		p.away() // there may be something to answer
		return false, nil
	}
	return p.hear()
}

// got is told by the loop what was read.
func (p *pending) got(read []byte, err error) (more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.read = nil }() // it is the loop's
	if p.over {
		return false
	}
	if err != nil {
		err = p.lost(err)
	} else {
		p.read = read
		more, err = p.look()
	}
	switch {
	case p.over:
		return false
	case more && err == nil:
		return true
	}
	if err = p.passed(err); err != nil {
		p.fail(err)
	} else {
		p.proceed()
	}
	return false
}

// settle ends a visit whose row can be told.
func (p *pending) settle() {
	err := p.row()
	switch {
	case err == nil && p.found.Terminate != nil:
		p.away()
		return
	case err == nil:
		err = p.leave(false, nil)
	}
	if err == nil && !p.stop() {
		err = errStopping
	}
	if err != nil {
		p.fail(err)
		return
	}
	p.over = true
	p.arrive(p.raw, nil)
	p.router.serving.Done()
}

// fail refuses the connection.
func (p *pending) fail(err error) {
	p.over = true
	p.stop()
	p.refuse(p.leave(false, err))
	p.router.serving.Done()
}

// away gives the visit to a goroutine.
func (p *pending) away() {
	conn, read, err := p.raw.TCP()
	if err != nil {
		p.fail(err)
		return
	}
	p.over = true
	p.stop()
	v := p.visit
	v.raw, v.conn, v.read = nil, conn, read
	p.tcp.Store(conn)
	p.router.serving.Go(func() { v.run(p.ctx) })
	p.router.serving.Done()
}

// abort ends the visit from outside the loop, for a reason.
func (p *pending) abort(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.over {
		p.fail(err)
	} else if c := p.tcp.Load(); c != nil {
		abort(c)
	}
}

// Close is called by an [Admission] that needs the place. Whoever asks it holds another
// visit, perhaps one that is being ended from here: so it does not wait.
func (p *pending) Close() error {
	p.router.serving.Go(func() { p.abort(errDisplaced) })
	return nil
}

// SyscallConn implements syscall.Conn: an [Admission] asks whether something came that
// was not read yet.
func (p *pending) SyscallConn() (syscall.RawConn, error) {
	if c := p.tcp.Load(); c != nil {
		return c.SyscallConn()
	}
	if c, ok := p.raw.(syscall.Conn); ok {
		return c.SyscallConn()
	}
	return nil, errors.ErrUnsupported
}
