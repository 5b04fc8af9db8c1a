package copy

import (
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/relay"
)

const (
	// bufferSize is what one read must bring to be bulk.
	bufferSize = 16 << 10
	// largeSize is what a read takes that is not of a socket to a socket: what both ends
	// cost for each read and each write is more than what they cost for its bytes.
	largeSize = 64 << 10
	// turn is how much a direction carries before others have the processor. To offer it
	// can wake a thread, which costs as much as some KiB.
	turn = 128 << 10
	// smallSize is what a read takes that has to hold its buffer while it waits, as
	// long as that is enough.
	smallSize = 2 << 10
	// patience is how long a large buffer is held for bulk that may go on.
	patience = time.Second
)

// direction carries the bytes of one leg to the other.
type direction struct {
	live     *live
	from, to *leg
	source   source
	sink     sink
	moved    atomic.Int64 // bytes written to the other leg
	rate     atomic.Int64 // how many a second may be; zero is any number
	throttle *throttle    // keeps rate, if there is one
}

// chunk is what one read brought: bytes in a borrowed buffer or, with buffer nil,
// in a borrowed pipe.
type chunk struct {
	buffer []byte
	pipe   *pipe
	n      int // bytes not yet written
	off    int // where in the buffer they begin
}

// source reads the next chunk, waiting for it, of at most so many bytes. The end is
// io.EOF.
type source interface {
	read(most int) (chunk, error)
}

// sink writes so many bytes of a chunk, or all if there are fewer. The chunk keeps
// what was not written.
type sink interface {
	write(c *chunk, most int) error
}

func (d *direction) init(l *live, from, to *leg) {
	d.live, d.from, d.to = l, from, to
	d.source, d.sink = d.ends()
}

// plainSource returns how any leg is read.
func (d *direction) plainSource() source {
	return &plainSource{leg: d.from, buffers: &d.live.engine.buffers, patience: d.live.engine.patience}
}

// plainSink returns how any leg is written.
func (d *direction) plainSink() sink { return plainSink{d} }

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
	if failed == nil {
		return false
	}
	why := failed.lost
	if _, ok := errors.AsType[relay.Departure](err); ok && failed == d.from {
		why, err = d.to.closed, nil // d.from has our end because d.to had sent its own
	}
	if !d.live.fail(why, err) {
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
	ahead := chunk{buffer: d.from.unread, n: len(d.from.unread)}
	if failed, err := d.deliver(&ahead); failed != nil {
		return failed, err
	}
	d.from.unread = nil
	carried := 0 // since the processor was offered to others
	for {
		most, err := d.allowance()
		if err != nil {
			return d.from, err
		}
		c, err := d.source.read(most)
		switch {
		case err == io.EOF && d.from.wasReset():
			return d.from, syscall.ECONNRESET
		case err == io.EOF:
			return nil, nil
		case err != nil:
			return d.from, err
		}
		carried += c.n
		failed, err := d.deliver(&c)
		d.live.engine.release(c)
		if failed != nil {
			return failed, err
		}
		if carried >= turn {
			runtime.Gosched() // who never has to wait would keep the processor
			carried = 0
		}
	}
}

// deliver writes a chunk whole, or fails and leaves in it what was not written. What
// was read within the allowance goes at once; more than that was read only before the
// relay started, or before the rate became less.
func (d *direction) deliver(c *chunk) (failed *leg, err error) {
	for c.n > 0 {
		most, err := d.allowance()
		if err != nil {
			return d.from, err
		}
		if err := d.sink.write(c, most); err != nil {
			return d.to, err
		}
	}
	return nil, nil
}

// count takes n bytes as delivered.
func (d *direction) count(n int) {
	if n <= 0 {
		return
	}
	d.moved.Add(int64(n))
	if d.throttle != nil {
		d.throttle.take(n, d.live.engine.now())
	}
	if d.live.idles.Load() {
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

// plainSource reads any stream. It holds a buffer while it waits: a small one,
// which suffices for messages, until a read fills it; then a large one until a
// read brings little, or for patience at most. To go back once in a while in the
// midst of bulk costs one short read.
type plainSource struct {
	leg      *leg
	buffers  *buffers
	patience time.Duration // with a large buffer
	bulk     bool          // the last read wanted a large buffer
	timed    bool          // a deadline for bulk is set
	err      error         // came with bytes; returned after them
}

func (s *plainSource) read(most int) (chunk, error) {
	for {
		b := s.buffers.get(s.bulk)
		n := 0
		for n == 0 && s.err == nil {
			n, s.err = s.leg.conn.Read(b[:min(len(b), most)])
		}
		if n == 0 {
			s.buffers.put(b)
			again := s.timed && errors.Is(s.err, os.ErrDeadlineExceeded) && !s.leg.isLast()
			s.expect(false) // no deadline outlasts the last read
			if !again {
				return chunk{}, s.err
			}
			s.err = nil
			continue
		}
		// A stream of records may give one in each read. Of one that is as large as
		// they get the first, small read has taken a part.
		s.expect(n == len(b) || n >= bufferSize/2)
		return chunk{buffer: b, n: n}, nil
	}
}

// expect says whether there is bulk to come.
func (s *plainSource) expect(bulk bool) {
	if bulk == s.bulk {
		return
	}
	var until time.Time
	if bulk {
		until = time.Now().Add(s.patience)
	}
	s.bulk, s.timed = bulk, s.leg.readBy(until) == nil && bulk
}

// plainSink writes to any stream.
type plainSink struct{ *direction }

func (s plainSink) write(c *chunk, most int) error {
	n, err := s.to.conn.Write(c.buffer[c.off : c.off+min(c.n, most)])
	s.count(n)
	c.off, c.n = c.off+n, c.n-n
	return err
}

// buffers lends buffers of two sizes.
type buffers struct{ large, small sync.Pool }

func (p *buffers) get(large bool) []byte {
	if large {
		if b, ok := p.large.Get().(*[largeSize]byte); ok {
			return b[:]
		}
		return make([]byte, largeSize)
	}
	if b, ok := p.small.Get().(*[smallSize]byte); ok {
		return b[:]
	}
	return make([]byte, smallSize)
}

func (p *buffers) put(b []byte) {
	if len(b) == largeSize {
		p.large.Put((*[largeSize]byte)(b))
	} else {
		p.small.Put((*[smallSize]byte)(b))
	}
}
