package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"cardea/api"
)

// checkWhole refuses a data directory from which a part is missing: to make the
// part anew would found another cluster in the place of the one that was there.
func checkWhole(cfg Config) error {
	there := func(name string) bool {
		_, err := os.Stat(filepath.Join(cfg.DataDir, name))
		return err == nil
	}
	db, key, log := there(storeFile), there(keyFile), there(logDir)
	switch {
	case cfg.Store != "" && db:
		return fmt.Errorf("the data directory holds the resources of a cluster (%s) and --store names another place; choose another --data-dir, or leave --store out", storeFile)
	case cfg.Store != "" && log && !key:
		return fmt.Errorf("%s is missing from the data directory, whose %s belongs to a cluster; restore it from a backup", keyFile, logDir)
	case cfg.Store != "":
	case db && !key:
		return fmt.Errorf("%s is missing from the data directory, and %s cannot be read without it; restore it from a backup", keyFile, storeFile)
	case !db && log: // a first start that was cut short has no log yet
		return fmt.Errorf("%s is missing from the data directory, whose %s belongs to a cluster; restore it (cardea restore), give the --store that it had, or choose an empty directory with --data-dir", storeFile, logDir)
	}
	return nil
}

// listen opens a port of the cluster, which a flag has named.
func listen(ctx context.Context, flag, address string) (net.Listener, error) {
	var lc net.ListenConfig
	lc.SetMultipathTCP(false) // it costs at each accept, and the relay splices plain TCP
	network := "tcp"
	if host, _, err := net.SplitHostPort(address); err == nil {
		if ip, err := netip.ParseAddr(host); err == nil && ip.Is4() {
			network = "tcp4" // 0.0.0.0 is every address of IPv4, and no other
		}
	}
	l, err := lc.Listen(ctx, network, address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(address)
		return nil, fmt.Errorf("the address %s is taken by another program (find it with: ss -tanp 'sport = :%s'); choose another with %s", address, port, flag)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("the address %s may not be listened to by this user; choose a port above 1023 with %s", address, flag)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("the address %s is not one of this machine; choose another with %s", address, flag)
	case err != nil:
		return nil, fmt.Errorf("%s %s: %w", flag, address, err)
	}
	return l, nil
}

// descriptors raises the limit of open descriptors to what this process may have,
// and returns it.
func descriptors() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return 1024 // what POSIX systems have at least
	}
	if l.Cur < l.Max {
		raised := unix.Rlimit{Cur: l.Max, Max: l.Max}
		if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
			l = raised
		}
	}
	return int(min(l.Cur, 1<<20))
}

// isLoopback reports whether only this machine can connect to a.
func isLoopback(a net.Addr) bool {
	t, ok := a.(*net.TCPAddr)
	return ok && t.IP.IsLoopback()
}

// openDataDir makes the directory, if need be, and locks it for this process.
func openDataDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(keyFile)), 0o700); err != nil {
		return nil, fmt.Errorf("the data directory cannot be made: %w; choose another with --data-dir", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("the data directory must be this user's alone: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, dataDirInUse(dir)
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// dataDirInUse says that another process has a data directory.
func dataDirInUse(dir string) error {
	e := api.Errorf(api.CodeConflict, "the data directory %s is in use by another cardea", dir)
	e.Hint = "stop that one first, or choose another with --data-dir; to let a new binary take its place: cardea upgrade --data-dir " + dir
	return e
}

// inUse reports whether another process has a data directory.
func inUse(dir string) bool {
	f, err := os.Open(filepath.Join(dir, lockFile))
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}
