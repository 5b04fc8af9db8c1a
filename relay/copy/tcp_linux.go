package copy

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ends returns how the two legs are read and written: TCP connections through
// their descriptors, others as plain streams.
func (d *direction) ends() (source, sink) {
	var in source
	if d.from.isTCP() {
		s := &tcpSource{raw: d.from.raw, engine: d.live.engine, splices: d.to.isTCP()}
		s.attempt = s.try
		in = s
	} else {
		in = d.plainSource()
	}
	if !d.to.isTCP() {
		return in, d.plainSink()
	}
	s := &tcpSink{raw: d.to.raw, direction: d}
	s.attempt = s.try
	return in, s
}

// isTCP reports whether what is read and written is the TCP connection itself.
func (g *leg) isTCP() bool {
	_, ok := g.conn.(*net.TCPConn)
	return ok && g.raw != nil
}

// tcpSource reads a TCP connection. It waits with empty hands: buffer or pipe are
// taken when the socket may be readable, and given back at once if it is not.
type tcpSource struct {
	raw     syscall.RawConn
	engine  *Engine
	splices bool                  // the sink can take a pipe
	bulk    bool                  // the last read filled the buffer
	attempt func(fd uintptr) bool // try; bound once

	most int   // what try may bring
	got  chunk // what it brought
	err  error
}

func (s *tcpSource) read(most int) (chunk, error) {
	s.most, s.got, s.err = most, chunk{}, nil
	if err := s.raw.Read(s.attempt); err != nil {
		return chunk{}, err
	}
	return s.got, s.err
}

// try reads once and reports whether that is an answer; false waits for the
// socket to become readable. It must not block: Close waits for it.
func (s *tcpSource) try(fd uintptr) bool {
	if s.bulk && s.splices && s.trySplice(int(fd)) {
		return true
	}
	b := s.engine.buffers.get(true)
	room := len(b)
	if s.splices {
		room = bufferSize // what fills it is better spliced
	}
	n, err := readNow(int(fd), b[:min(room, s.most)])
	if n > 0 {
		s.bulk = n == room
		s.got = chunk{buffer: b, n: n}
		return true
	}
	s.engine.buffers.put(b)
	switch err {
	case nil:
		s.err = io.EOF
	case unix.EAGAIN:
		return false
	default:
		s.err = os.NewSyscallError("read", err)
	}
	return true
}

// trySplice reads into a pipe. It reports false when a plain read has to find
// out more. That is so also for the end of the stream and for an empty socket:
// splice stops before an urgent byte and says either, while a read steps over it.
func (s *tcpSource) trySplice(fd int) bool {
	p, err := s.engine.pipes.get()
	if err != nil {
		return false // no descriptors left: copy
	}
	n, err := ignoringEINTR(func() (int, error) { return splice(fd, p.w, min(p.size, s.most)) })
	if n > 0 {
		s.bulk = n >= bufferSize
		s.got = chunk{pipe: p, n: n}
		return true
	}
	s.engine.pipes.put(p)
	switch err {
	case nil, unix.EAGAIN:
		return false
	case unix.EINVAL, unix.ENOSYS, unix.EOPNOTSUPP, unix.EPERM:
		s.splices = false
		return false
	default:
		// The kernel reports a reset only once: a read would say end of file.
		s.err = os.NewSyscallError("splice", err)
		return true
	}
}

// tcpSink writes to a TCP connection, from a buffer or a pipe.
type tcpSink struct {
	raw       syscall.RawConn
	direction *direction
	attempt   func(fd uintptr) bool // try; bound once

	todo *chunk // what try writes
	most int    // how much of it
	err  error
}

func (s *tcpSink) write(c *chunk, most int) error {
	s.todo, s.most, s.err = c, min(c.n, most), nil
	if err := s.raw.Write(s.attempt); err != nil {
		return err
	}
	return s.err
}

// try writes until all is written or the socket full, and reports whether that is
// all that can be done; false waits for the socket to become writable. It must not
// block.
func (s *tcpSink) try(fd uintptr) bool {
	c := s.todo
	for s.most > 0 {
		n, err := ignoringEINTR(func() (int, error) {
			if c.pipe != nil {
				return splice(c.pipe.r, int(fd), s.most)
			}
			return unix.Write(int(fd), c.buffer[c.off:c.off+s.most])
		})
		switch {
		case err == unix.EAGAIN:
			return false
		case err != nil:
			s.err = os.NewSyscallError("write", err)
			return true
		case n == 0:
			s.err = io.ErrShortWrite
			return true
		}
		c.off, c.n, s.most = c.off+n, c.n-n, s.most-n
		s.direction.count(n)
	}
	return true
}

// splice moves up to n bytes between a pipe and a non-blocking socket.
func splice(from, to, n int) (int, error) {
	moved, err := unix.Splice(from, nil, to, nil, n, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
	return int(moved), err
}

// readNow reads what is there, or fails with EAGAIN when nothing is.
//
// A kernel's EAGAIN is not believed at an urgent byte: a read that begins there
// gives up, whatever lies behind the byte, if a signal is just then pending for its
// thread (tcp_recvmsg_locked in Linux), and the Go runtime interrupts its threads
// with signals. The poller would not tell of those bytes again.
func readNow(fd int, b []byte) (int, error) {
	for {
		n, err := ignoringEINTR(func() (int, error) { return unix.Read(fd, b) })
		// Behind an urgent byte may lie something, be it the end.
		if err != unix.EAGAIN || !atMark(fd) || poll(uintptr(fd), unix.POLLIN) == 0 {
			return n, err
		}
	}
}

// atMark tells whether the next byte of a TCP connection is an urgent one. It is
// asked each time that a connection runs dry, and so goes without the scheduler.
func atMark(fd int) bool {
	mark := int32(0)
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCATMARK, uintptr(unsafe.Pointer(&mark)))
	return errno == 0 && mark != 0
}

// poll returns which of the events a descriptor has now, and POLLERR or POLLHUP.
func poll(fd uintptr, events int16) int16 {
	set := []unix.PollFd{{Fd: int32(fd), Events: events}}
	if _, err := ignoringEINTR(func() (int, error) { return unix.Poll(set, 0) }); err != nil {
		return 0
	}
	return set[0].Revents
}

// ignoringEINTR repeats a call that a signal interrupted before it did anything.
func ignoringEINTR(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if err != unix.EINTR {
			return n, err
		}
	}
}

// tcpClosed tells whether the kernel holds the connection for closed in both
// directions.
func (g *leg) tcpClosed() bool {
	closed := false
	g.raw.Control(func(fd uintptr) { closed = isClosed(fd) })
	return closed
}

func isClosed(fd uintptr) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	return err == nil && info.State == unix.BPF_TCP_CLOSE
}

// waitTCP waits until the kernel holds a TCP connection whose end of file was read
// for closed in both directions, and returns why: a reset of the peer, or that
// keepalive or a write found it dead. It looks when the poller has news of the
// socket, of which there is little, and of a reset at once.
func (g *leg) waitTCP() error {
	var why error
	err := g.raw.Read(func(fd uintptr) bool {
		if !isClosed(fd) || g.shut.Load() {
			return false
		}
		why = os.NewSyscallError("wait", whyLost(fd))
		return true
	})
	return errors.Join(err, why)
}

// lostTCP returns why the peer is gone, if it is, although there may be bytes of it
// to read.
func (g *leg) lostTCP() (why error) {
	err := g.raw.Control(func(fd uintptr) {
		if events := poll(fd, 0); events&unix.POLLERR != 0 {
			why = os.NewSyscallError("poll", whyLost(fd))
		}
	})
	return errors.Join(err, why)
}

// whyLost takes the error of a connection that has one. A reset behind an end of file
// is an EPIPE to Linux (tcp_reset), and none any more if a write was told of it.
func whyLost(fd uintptr) error {
	errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 && syscall.Errno(errno) != unix.EPIPE {
		return syscall.Errno(errno)
	}
	return syscall.ECONNRESET
}
