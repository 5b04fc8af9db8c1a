//go:build unix

package relaytest

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// noDescriptors has this process get no more descriptors until restore is called.
func noDescriptors() (restore func(), err error) {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	none := limit
	none.Cur = 0
	return func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) }, unix.Setrlimit(unix.RLIMIT_NOFILE, &none)
}

// duplicate returns another listener of the same socket.
func duplicate(fd uintptr) (net.Listener, error) {
	n, err := unix.Dup(int(fd))
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(n), "")
	defer f.Close()
	return net.FileListener(f)
}

// fullListener listens on loopback and lets nobody in any more: who connects waits for
// an answer. It returns where, and what lets one in and the next wait.
func fullListener() (address string, accept func() error, done func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return "", nil, nil, err
	}
	var waiting []int
	done = func() {
		for _, n := range append(waiting, fd) {
			unix.Close(n)
		}
	}
	fail := func(err error) (string, func() error, func(), error) {
		done()
		return "", nil, nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return fail(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		return fail(err)
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return fail(err)
	}
	// One more than the queue holds.
	for range 2 {
		n, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		if err != nil {
			return fail(err)
		}
		waiting = append(waiting, n)
		unix.SetNonblock(n, true)
		if err := unix.Connect(n, at); err != nil && err != unix.EINPROGRESS {
			return fail(err)
		}
	}
	accept = func() error {
		n, _, err := unix.Accept(fd)
		if err == nil {
			waiting = append(waiting, n)
		}
		return err
	}
	in := at.(*unix.SockaddrInet4)
	return (&net.TCPAddr{IP: in.Addr[:], Port: in.Port}).String(), accept, done, nil
}
