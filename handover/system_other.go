//go:build !linux

package handover

import (
	"net"

	"golang.org/x/sys/unix"
)

// peer cannot tell here; the directory that the socket is in keeps others out.
func peer(*net.UnixConn) (uid int, known bool, err error) { return 0, false, nil }

// replace makes a descriptor another name of an open file.
func replace(of, name int) error { return unix.Dup2(of, name) }
