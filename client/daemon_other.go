//go:build !unix

package client

import "syscall"

// ownSession is not known here.
func ownSession() *syscall.SysProcAttr { return nil }
