package server

import (
	"os"

	"golang.org/x/sys/unix"
)

// mayMakeInterfaces reports whether this process may make network interfaces.
func mayMakeInterfaces() bool {
	var data [2]unix.CapUserData
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if unix.Capget(&header, &data[0]) != nil || data[0].Effective&(1<<unix.CAP_NET_ADMIN) == 0 {
		return false
	}
	_, err := os.Stat("/dev/net/tun")
	return err == nil
}
