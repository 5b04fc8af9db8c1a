package copy

import (
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	// pipeSize is asked of the kernel. More is not faster, and what all pipes of a
	// user may hold together is limited (pipe(7), pipe-user-pages-soft).
	pipeSize = 256 << 10
	// freePipes is how many are kept for the next borrower.
	freePipes = 64
)

// pipe is a kernel pipe, two descriptors.
type pipe struct {
	r, w int
	size int // bytes; what one splice moves at most
}

func newPipe() (*pipe, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	p := &pipe{r: fds[0], w: fds[1], size: 64 << 10} // the size of a new pipe, pipe(7)
	if size, err := unix.FcntlInt(uintptr(p.w), unix.F_SETPIPE_SZ, pipeSize); err == nil {
		p.size = size
	}
	return p, nil
}

func (p *pipe) close() {
	unix.Close(p.r)
	unix.Close(p.w)
}

// pipes lends empty pipes, the one that was last in use first.
type pipes struct {
	mu   sync.Mutex
	free []*pipe
}

func (s *pipes) get() (*pipe, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := len(s.free) - 1; last >= 0 {
		p := s.free[last]
		s.free = s.free[:last]
		return p, nil
	}
	return newPipe()
}

// put takes back a pipe, which must be empty.
func (s *pipes) put(p *pipe) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.free) < freePipes {
		s.free = append(s.free, p)
		return
	}
	p.close()
}

// close gives the free pipes back to the kernel.
func (s *pipes) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.free {
		p.close()
	}
	s.free = nil
}
