package client

import (
	"errors"
	"net"
	"path/filepath"
	"testing"
)

// TestDaemonThatIsEnding calls one that breaks the call off as it ends: it is none.
func TestDaemonThatIsEnding(t *testing.T) {
	home := t.TempDir()
	held, err := tryLock(filepath.Join(home, daemonLock))
	if err != nil {
		t.Fatal(err)
	}
	socket, release, err := socketPath(home)
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if c, err := l.Accept(); err == nil {
			c.Close()
		}
		l.Close()
		held.Close()
	}()
	if _, err := Running(t.Context(), home); !errors.Is(err, ErrNotRunning) {
		t.Errorf("got %v", err)
	}
	<-done
}
