//go:build unix

package client

import "syscall"

// ownSession keeps a process from ending with the terminal it was started from.
func ownSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }
