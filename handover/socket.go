package handover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// maxSocketPath is the longest path that the address of a Unix socket has room for
// everywhere.
const maxSocketPath = 100

// Listen listens at a path, in place of whoever did before: the caller knows, by a
// lock, that nobody does now. Only processes of this user, and of root, are accepted
// there. The directory should be this user's alone.
func Listen(ctx context.Context, path string) (*net.UnixListener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	short, release, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer release()
	l, err := new(net.ListenConfig).Listen(ctx, "unix", short)
	if err != nil {
		return nil, err
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // another process may be listening by then
	if err := os.Chmod(path, 0o600); err != nil {
		u.Close()
		return nil, err
	}
	return u, nil
}

// ListenerOf returns the listener that a descriptor is of, which it takes over.
func ListenerOf(f *os.File) (net.Listener, error) {
	l, err := net.FileListener(f)
	f.Close()
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return l, err
}

// PacketConnOf returns the socket of UDP that a descriptor is of, which it takes over.
func PacketConnOf(f *os.File) (*net.UDPConn, error) {
	c, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, errors.New("it is no socket of UDP")
	}
	return u, nil
}

// Dial connects to who listens at a path.
func Dial(ctx context.Context, path string) (*net.UnixConn, error) {
	short, release, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer release()
	c, err := new(net.Dialer).DialContext(ctx, "unix", short)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil
}

// shorten returns a path that an address has room for; it is good until release.
func shorten(path string) (short string, release func(), err error) {
	if len(path) <= maxSocketPath {
		return path, func() {}, nil
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return "", nil, err
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(path)), func() { dir.Close() }, nil
}

// Trusted reports why a connection is not to be listened to: who is at its other end
// is neither this process's user nor root.
func Trusted(c *net.UnixConn) error {
	uid, known, err := peer(c)
	switch {
	case err != nil:
		return err
	case known && uid != os.Geteuid() && uid != 0:
		return fmt.Errorf("a process of user %d may not talk to one of user %d", uid, os.Geteuid())
	}
	return nil
}
