package kernel

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// A space is a network namespace.
type space struct{ file *os.File }

// here is the namespace of the thread.
func here() (space, error) {
	f, err := os.Open("/proc/thread-self/ns/net")
	return space{f}, err
}

// do calls f within the namespace. What it opens stays there.
func (s space) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		own, err := here()
		if err == nil {
			defer own.file.Close()
			if err = s.enter(); err == nil {
				err = f()
			}
			if own.enter() == nil {
				runtime.UnlockOSThread() // else the thread ends with the goroutine
			}
		}
		done <- err
	}()
	return <-done
}

func (s space) enter() error {
	if err := unix.Setns(int(s.file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter a network namespace: %w", err)
	}
	return nil
}

// another makes a namespace, in which there is nothing.
func (s space) another() (made space, err error) {
	err = s.do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		made, err = here()
		return err
	})
	return made, err
}

func (s space) close() {
	if s.file != nil {
		s.file.Close()
	}
}
