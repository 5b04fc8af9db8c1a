package client

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// MayInterface reports whether this process may try to make a network interface: it is
// root's, or has CAP_NET_ADMIN.
func MayInterface() bool {
	if os.Geteuid() == 0 {
		return true
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return false
	}
	return caps[0].Effective&(1<<unix.CAP_NET_ADMIN) != 0
}

// IsOthers reports whether a home is that of another user of this machine, who cannot ask
// what this process runs in it.
func IsOthers(home string) bool {
	i, err := os.Stat(home)
	if err != nil {
		return false
	}
	s, ok := i.Sys().(*syscall.Stat_t)
	return ok && int(s.Uid) != os.Geteuid()
}
