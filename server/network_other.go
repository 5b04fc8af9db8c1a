//go:build !linux

package server

// mayMakeInterfaces reports whether this process may make network interfaces.
func mayMakeInterfaces() bool { return false }
