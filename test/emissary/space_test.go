package emissary_test

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"

	"golang.org/x/sys/unix"
)

// A space is a network namespace (network_namespaces(7)). It is gone when the last
// process and descriptor of it are.
type space struct{ file *os.File }

// newSpace makes a network namespace with nothing in it.
func newSpace() (*space, error) {
	s := new(space)
	return s, onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		s.file, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: nobody else gets this thread
		done <- f()
	}()
	return <-done
}

// do runs f in the namespace. Sockets that f opens, and processes that it starts,
// stay there; goroutines that it starts are not.
func (s *space) do(f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("setns: %w", err)
		}
		return f()
	})
}

func (s *space) close() { s.file.Close() }

// ip runs ip(8) in the namespace.
func (s *space) ip(args ...string) error {
	return s.do(func() error {
		if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
		return nil
	})
}

// newSpaces makes two namespaces with a wire between them.
func (g *game) newSpaces() (inside, outside *space) {
	var err error
	for _, s := range []**space{&inside, &outside} {
		if *s, err = newSpace(); err != nil {
			g.Fatal(err)
		}
		g.Cleanup((*s).close)
	}
	other := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), outside.file.Fd())
	for _, x := range []struct {
		s    *space
		args []string
	}{
		{inside, []string{"link", "set", "lo", "up"}},
		{outside, []string{"link", "set", "lo", "up"}},
		{inside, []string{"link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", other}},
		{inside, []string{"address", "add", clusterHost + "/16", "dev", "wire"}},
		{inside, []string{"address", "add", clusterHost6 + "/64", "dev", "wire", "nodad"}},
		{outside, []string{"address", "add", clientHost + "/16", "dev", "wire"}},
		{outside, []string{"address", "add", "fd77::2/64", "dev", "wire", "nodad"}},
		{inside, []string{"link", "set", "wire", "up"}},
		{outside, []string{"link", "set", "wire", "up"}},
	} {
		if err := x.s.ip(x.args...); err != nil {
			g.Fatal(err)
		}
	}
	return inside, outside
}
