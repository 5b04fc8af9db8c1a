package copy

import (
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
	from, to := d.from.rawTCP(), d.to.rawTCP()
	var in source
	if from == nil {
		in = d.plainSource()
	} else {
		s := &tcpSource{raw: from, engine: d.live.engine, splices: to != nil}
		s.attempt = s.try
		in = s
	}
	if to == nil {
		return in, d.plainSink()
	}
	s := &tcpSink{raw: to, direction: d}
	s.attempt = s.try
	return in, s
}

// rawTCP returns the descriptor of a leg that is a TCP connection, or nil.
func (g *leg) rawTCP() syscall.RawConn {
	tcp, ok := g.conn.(*net.TCPConn)
	if !ok {
		return nil
	}
	if g.raw == nil {
		if raw, err := tcp.SyscallConn(); err == nil {
			g.raw = raw
		}
	}
	return g.raw
}

// tcpSource reads a TCP connection. It waits with empty hands: buffer or pipe are
// taken when the socket may be readable, and given back at once if it is not.
type tcpSource struct {
	raw     syscall.RawConn
	engine  *Engine
	splices bool                  // the sink can take a pipe
	bulk    bool                  // the last read filled the buffer
	attempt func(fd uintptr) bool // try; bound once

	got chunk // what try brought
	err error
}

func (s *tcpSource) read() (chunk, error) {
	s.got, s.err = chunk{}, nil
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
	n, err := readNow(int(fd), b)
	if n > 0 {
		s.bulk = n == len(b)
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
	n, err := ignoringEINTR(func() (int, error) { return splice(fd, p.w, p.size) })
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
	err  error
}

func (s *tcpSink) write(c *chunk) error {
	s.todo, s.err = c, nil
	if err := s.raw.Write(s.attempt); err != nil {
		return err
	}
	return s.err
}

// try writes until the chunk is empty or the socket full, and reports whether
// that is all that can be done; false waits for the socket to become writable.
// It must not block.
func (s *tcpSink) try(fd uintptr) bool {
	c := s.todo
	for c.n > 0 {
		n, err := ignoringEINTR(func() (int, error) {
			if c.pipe != nil {
				return splice(c.pipe.r, int(fd), c.n)
			}
			return unix.Write(int(fd), c.buffer[c.off:c.off+c.n])
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
		c.off, c.n = c.off+n, c.n-n
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
		if err != unix.EAGAIN || !atMark(fd) || !readable(fd) {
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

// readable tells whether something lies behind an urgent byte, be it the end.
func readable(fd int) bool {
	set := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	n, err := ignoringEINTR(func() (int, error) { return unix.Poll(set, 0) })
	return n > 0 && err == nil
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
func tcpClosed(c *net.TCPConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	closed := false
	raw.Control(func(fd uintptr) { closed = isClosed(fd) })
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
	raw, err := g.tcp.SyscallConn()
	if err != nil {
		return err
	}
	why := syscall.ECONNRESET
	err = raw.Read(func(fd uintptr) bool {
		if !isClosed(fd) || g.shut.Load() {
			return false
		}
		// A reset behind an end of file is an EPIPE (tcp_reset in Linux).
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 && syscall.Errno(errno) != unix.EPIPE {
			why = syscall.Errno(errno)
		}
		return true
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("wait", why)
}
