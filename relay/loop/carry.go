//go:build linux

package loop

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// bufferSize is what one read takes. A read that fills it is bulk.
const bufferSize = 16 << 10

// hold is what a way has read and not yet delivered: bytes in a buffer or, with buffer
// nil, in a pipe.
type hold struct {
	buffer []byte
	pipe   *pipe
	n      int // bytes
	off    int // where in the buffer they begin
	silent int // how many of them, from the first, are nobody's
}

// ahead has bytes delivered before those that are read from now on.
func (w *way) ahead(b []byte) {
	if len(b) > 0 {
		w.hold = &hold{buffer: b, n: len(b)}
	}
}

// drop forgets what a way has not delivered.
func (l *loop) drop(w *way) {
	if w.hold == nil {
		return
	}
	if p := w.hold.pipe; p != nil {
		l.pipes.lose(p)
	} else {
		l.pipes.putBuffer(w.hold.buffer)
	}
	w.hold = nil
}

// carry moves bytes of way i until there are none, the other side takes none, or its
// turn is over.
func (c *live) carry(i int) {
	w, from := &c.ways[i], &c.legs[i]
	for left := turn; c.phase == relaying; {
		if w.hold != nil && !c.flush(i) {
			return
		}
		if c.phase != relaying || w.over || !from.is(readable) {
			return
		}
		if left <= 0 {
			c.loop.again(c, i)
			return
		}
		most := c.allowed(i, left)
		if most == 0 {
			return
		}
		if w.bulk && most >= bufferSize {
			left -= c.splice(i, most)
		} else {
			left -= c.copy(i, most)
		}
	}
}

// copy reads once and delivers that. It returns how much was read.
func (c *live) copy(i, most int) int {
	w, from := &c.ways[i], &c.legs[i]
	b := c.loop.buffer[:min(most, bufferSize)]
	n, errno := read(from.fd, b)
	switch {
	case n > 0 && errno == 0:
		if n < len(b) && !from.is(wary) {
			from.clear(readable)
		}
		w.bulk = n == bufferSize && !w.plain
		c.spend(i, n)
		c.deliver(i, b[:n])
		return n
	case errno == 0:
		c.sourceEnded(i)
	case errno == unix.EAGAIN:
		from.drained()
	default:
		c.cut(lost(i), os.NewSyscallError("read", errno))
	}
	return 0
}

// drained takes note that the kernel has said that there is nothing to read. It is not
// believed at an urgent byte: a read that begins there gives up, whatever lies behind
// the byte, if a signal is just then pending for its thread (tcp_recvmsg_locked in
// Linux), and the Go runtime interrupts its threads with signals.
func (g *leg) drained() {
	if !g.is(wary) || !atMark(g.fd) || !canRead(g.fd) {
		g.clear(readable)
	}
}

// deliver writes b, and holds what is not taken.
func (c *live) deliver(i int, b []byte) {
	to := &c.legs[1-i]
	n, errno := write(to.fd, b)
	if errno != 0 {
		n = 0
	}
	c.count(i, n)
	if n == len(b) || c.phase != relaying {
		return
	}
	if errno != 0 && errno != unix.EAGAIN {
		c.undelivered(i, os.NewSyscallError("write", errno))
		return
	}
	to.set(stuck)
	rest := append(c.loop.pipes.buffer(), b[n:]...)
	c.ways[i].hold = &hold{buffer: rest, n: len(rest)}
}

// splice moves bytes through a pipe. It returns how many were read. When the kernel
// says that there are none, a plain read finds out more: splice stops before an urgent
// byte, and says that it is the end, while a read steps over it.
func (c *live) splice(i, most int) int {
	l, w, from := c.loop, &c.ways[i], &c.legs[i]
	p := l.pipes.get()
	if p == nil { // no descriptors left
		w.bulk = false
		return 0
	}
	n, errno := splice(from.fd, p.w, min(most, p.size))
	if n > 0 && errno == 0 {
		w.bulk = n >= bufferSize
		c.spend(i, n)
		w.hold = p.hold(n)
		c.flush(i)
		return n
	}
	l.pipes.put(p)
	switch errno {
	case 0:
		w.bulk = false
	case unix.EAGAIN:
		if w.bulk = !from.is(wary); w.bulk {
			from.clear(readable)
		}
	case unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM:
		w.bulk, w.plain = false, true
	default: // told once: a read would say end of file
		c.cut(lost(i), os.NewSyscallError("splice", errno))
	}
	return 0
}

// flush writes what way i holds. It reports whether it holds nothing any more.
func (c *live) flush(i int) bool {
	w, to := &c.ways[i], &c.legs[1-i]
	for h := w.hold; h.n > 0; {
		if to.is(stuck) {
			return false
		}
		var n int
		var errno syscall.Errno
		if h.pipe != nil {
			n, errno = splice(h.pipe.r, to.fd, h.n)
		} else {
			n, errno = write(to.fd, h.buffer[h.off:h.off+h.n])
		}
		switch {
		case errno == unix.EAGAIN:
			to.set(stuck)
			return false
		case errno != 0:
			c.undelivered(i, os.NewSyscallError("write", errno))
			return false
		case n == 0:
			c.undelivered(i, io.ErrShortWrite)
			return false
		}
		h.off, h.n = h.off+n, h.n-n
		silent := min(h.silent, n)
		h.silent -= silent
		c.count(i, n-silent)
		if c.phase != relaying {
			return false
		}
	}
	if p := w.hold.pipe; p != nil {
		c.loop.pipes.put(p)
	} else {
		c.loop.pipes.putBuffer(w.hold.buffer)
	}
	w.hold = nil
	return true
}

// count takes n bytes as delivered.
func (c *live) count(i, n int) {
	if n == 0 {
		return
	}
	c.ways[i].moved.Add(int64(n))
	c.active = c.loop.now
	c.full()
}
