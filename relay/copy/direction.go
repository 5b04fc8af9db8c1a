package copy

import (
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
)

// bufferSize is what one read takes. A read that fills it is bulk.
const bufferSize = 16 << 10

// direction carries the bytes of one leg to the other.
type direction struct {
	live     *live
	from, to *leg
	source   source
	sink     sink
	moved    atomic.Int64 // bytes written to the other leg
}

// chunk is what one read brought: bytes in a borrowed buffer or, with buffer nil,
// in a borrowed pipe.
type chunk struct {
	buffer *buffer
	pipe   *pipe
	n      int // bytes not yet written
	off    int // where in the buffer they begin
}

// source reads the next chunk, waiting for it. The end is io.EOF.
type source interface{ read() (chunk, error) }

// sink writes a chunk whole, or fails and leaves in it what was not written.
type sink interface{ write(*chunk) error }

func (d *direction) init(l *live, from, to *leg) {
	d.live, d.from, d.to = l, from, to
	d.source, d.sink = d.ends()
}

// run carries until the end, stays to watch its source for as long as the other
// direction goes on, and leaves the relay.
func (d *direction) run() {
	defer d.live.leave()
	finished := d.pass()
	if last := d.live.stopped(); finished && !last {
		d.watch()
	}
}

// pass carries until the end and tells the relay how it ended. It reports whether
// that was a clean end, which the other leg was told of.
func (d *direction) pass() bool {
	failed, err := d.carry()
	if failed == nil && d.live.finished(d) {
		err = d.to.closeWrite()
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			d.live.hangUp(d)
		case err != nil:
			failed = d.to
		default:
			return true
		}
	}
	if failed == nil || !d.live.fail(failed.lost, err) {
		return false
	}
	if failed == d.to {
		d.live.deaf(d)
	} else {
		d.live.reset()
	}
	return false
}

// watch sees that d.from, which has half-closed, is reset or lost. The end of the
// relay closes d.from, and so ends it too.
func (d *direction) watch() {
	err := d.from.waitReset()
	if d.from.shut.Load() {
		return // both directions have finished: what became of d.from then is its own business
	}
	if err != nil && d.live.fail(d.from.lost, err) {
		d.live.reset()
	}
}

// carry moves bytes until the end of d.from, or until a leg fails, which it
// returns.
func (d *direction) carry() (failed *leg, err error) {
	if len(d.from.unread) > 0 {
		n, err := d.to.conn.Write(d.from.unread)
		d.count(n)
		if err != nil {
			return d.to, err
		}
		d.from.unread = nil
	}
	for {
		c, err := d.source.read()
		switch {
		case err == io.EOF && d.from.wasReset():
			return d.from, syscall.ECONNRESET
		case err == io.EOF:
			return nil, nil
		case err != nil:
			return d.from, err
		}
		err = d.sink.write(&c)
		d.live.engine.release(c)
		if err != nil {
			return d.to, err
		}
	}
}

// count takes n bytes as delivered.
func (d *direction) count(n int) {
	if n <= 0 {
		return
	}
	d.moved.Add(int64(n))
	if d.live.limits.Idle > 0 {
		d.live.active.Store(int64(d.live.engine.now()))
	}
}

// release gives back what a chunk borrowed. A pipe that is not empty cannot be
// lent again.
func (e *Engine) release(c chunk) {
	switch {
	case c.buffer != nil:
		e.buffers.put(c.buffer)
	case c.n == 0:
		e.pipes.put(c.pipe)
	default:
		c.pipe.close()
	}
}

// plainSource reads any stream. It holds a buffer while it waits.
type plainSource struct {
	conn    net.Conn
	buffers *buffers
	err     error // came with bytes; returned after them
}

func (s *plainSource) read() (chunk, error) {
	b := s.buffers.get()
	n := 0
	for n == 0 && s.err == nil {
		n, s.err = s.conn.Read(b[:])
	}
	if n == 0 {
		s.buffers.put(b)
		return chunk{}, s.err
	}
	return chunk{buffer: b, n: n}, nil
}

// plainSink writes to any stream.
type plainSink struct {
	conn  net.Conn
	count func(int)
}

func (s *plainSink) write(c *chunk) error {
	n, err := s.conn.Write(c.buffer[c.off : c.off+c.n])
	s.count(n)
	c.off, c.n = c.off+n, c.n-n
	return err
}

// plainEnds are the ends of a direction between any two streams.
func (d *direction) plainEnds() (source, sink) {
	return &plainSource{conn: d.from.conn, buffers: &d.live.engine.buffers}, &plainSink{conn: d.to.conn, count: d.count}
}

// buffer is what a read that does not splice goes through.
type buffer [bufferSize]byte

// buffers lends buffers.
type buffers struct{ pool sync.Pool }

func (p *buffers) get() *buffer {
	if b, ok := p.pool.Get().(*buffer); ok {
		return b
	}
	return new(buffer)
}

func (p *buffers) put(b *buffer) { p.pool.Put(b) }
