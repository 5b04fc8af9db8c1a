//go:build linux

package loop

import (
	"golang.org/x/sys/unix"
)

const (
	// pipeSize is asked of the kernel. What all pipes of a user may hold together is
	// limited (pipe(7), pipe-user-pages-soft).
	pipeSize = 256 << 10
	// mostPipes is how many a loop makes: those whose other side is slow keep them.
	// Beyond that it copies.
	mostPipes = 128
	// freePipes is how many are kept for the next borrower, and freeBuffers likewise.
	freePipes   = 16
	freeBuffers = 64
)

// pipe is a kernel pipe, two descriptors.
type pipe struct {
	r, w  int32
	size  int // bytes; what one splice moves at most
	whole hold
}

// hold returns what a way holds that has n bytes in p.
func (p *pipe) hold(n int) *hold {
	p.whole = hold{pipe: p, n: n}
	return &p.whole
}

// pipes lends the empty pipes and the buffers of a loop, what was last in use first.
type pipes struct {
	free    []*pipe
	made    int // that are not closed
	buffers [][]byte
}

// get returns an empty pipe, nil if there can be no more.
func (s *pipes) get() *pipe {
	if last := len(s.free) - 1; last >= 0 {
		p := s.free[last]
		s.free = s.free[:last]
		return p
	}
	if s.made == mostPipes {
		return nil
	}
	var fds [2]int
	if unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK) != nil {
		return nil
	}
	s.made++
	p := &pipe{r: int32(fds[0]), w: int32(fds[1]), size: 64 << 10} // the size of a new pipe, pipe(7)
	if size, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize); err == nil {
		p.size = size
	}
	return p
}

// put takes back a pipe, which must be empty.
func (s *pipes) put(p *pipe) {
	if len(s.free) < freePipes {
		s.free = append(s.free, p)
		return
	}
	s.lose(p)
}

// lose closes a pipe. One that is not empty cannot be lent again.
func (s *pipes) lose(p *pipe) {
	closeFD(p.r)
	closeFD(p.w)
	s.made--
}

// buffer returns an empty buffer of bufferSize.
func (s *pipes) buffer() []byte {
	if last := len(s.buffers) - 1; last >= 0 {
		b := s.buffers[last]
		s.buffers = s.buffers[:last]
		return b
	}
	return make([]byte, 0, bufferSize)
}

// putBuffer takes back a buffer, wherever it is from.
func (s *pipes) putBuffer(b []byte) {
	if cap(b) == bufferSize && len(s.buffers) < freeBuffers {
		s.buffers = append(s.buffers, b[:0])
	}
}

// close gives the free pipes back to the kernel.
func (s *pipes) close() {
	for _, p := range s.free {
		s.lose(p)
	}
	s.free, s.buffers = nil, nil
}
