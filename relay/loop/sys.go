//go:build linux

package loop

import (
	"net"
	"net/netip"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of a loop do not block, and so go past the Go scheduler
// (RawSyscall). A signal that comes before they have done anything repeats them.

func read(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func write(fd int32, b []byte) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// splice moves up to n bytes between a pipe and a socket.
func splice(from, to int32, n int) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

func closeFD(fd int32) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

// resetFD closes a TCP connection so that its peer sees a reset.
func resetFD(fd int32) {
	linger := unix.Linger{Onoff: 1}
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER, uintptr(unsafe.Pointer(&linger)), unsafe.Sizeof(linger), 0)
	closeFD(fd)
}

// shutdownWrite sends the end.
func shutdownWrite(fd int32) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

func setOption(fd int32, level, name int, value int32) {
	unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(name), uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
}

// pendingError returns, and clears, the error of a socket.
func pendingError(fd int32) syscall.Errno {
	value, size := int32(0), uint32(4)
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR, uintptr(unsafe.Pointer(&value)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return errno
	}
	return syscall.Errno(value)
}

// keepAlive has the kernel look after a peer that is silent for 30 seconds, as package
// net is asked to elsewhere: three times, every 10 seconds.
func keepAlive(fd int32) {
	setOption(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	setOption(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 30)
	setOption(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 10)
	setOption(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 3)
}

func noDelay(fd int32) { setOption(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// atMark tells whether the next byte of a socket is an urgent one.
func atMark(fd int32) bool {
	mark := int32(0)
	_, _, errno := unix.RawSyscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCATMARK, uintptr(unsafe.Pointer(&mark)))
	return errno == 0 && mark != 0
}

// canRead asks the kernel whether a socket can be read, be it of its end.
func canRead(fd int32) bool {
	set := []unix.PollFd{{Fd: fd, Events: unix.POLLIN}}
	n, err := unix.Poll(set, 0)
	return n > 0 || err == unix.EINTR
}

// accept4 takes the next connection of a listener.
func accept4(fd int32, from *address) (int32, syscall.Errno) {
	for {
		from.size = uint32(unsafe.Sizeof(from.raw))
		n, _, errno := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(&from.raw)), uintptr(unsafe.Pointer(&from.size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if errno != unix.EINTR {
			return int32(n), errno
		}
	}
}

// tcpSocket makes a socket for connecting to an address.
func tcpSocket(to netip.Addr) (int32, syscall.Errno) {
	family := uintptr(unix.AF_INET6)
	if to.Is4() {
		family = unix.AF_INET
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	return int32(fd), errno
}

// connect begins to connect a socket: EINPROGRESS is the usual answer.
func connect(fd int32, to *address) syscall.Errno {
	for {
		_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&to.raw)), uintptr(to.size))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// localAddr returns the address of this end of a socket.
func localAddr(fd int32) netip.AddrPort {
	var a address
	a.size = uint32(unsafe.Sizeof(a.raw))
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&a.raw)), uintptr(unsafe.Pointer(&a.size)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return a.get()
}

// address is a socket address as the kernel has it.
type address struct {
	raw  unix.RawSockaddrInet6 // the larger of the two
	size uint32
}

// get returns the address; IPv4 within IPv6 is IPv4.
func (a *address) get() netip.AddrPort {
	switch a.raw.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), hostOrder(in.Port))
	case unix.AF_INET6:
		ip := netip.AddrFrom16(a.raw.Addr).Unmap()
		if a.raw.Scope_id != 0 && ip.Is6() {
			ip = ip.WithZone(zoneName(a.raw.Scope_id))
		}
		return netip.AddrPortFrom(ip, hostOrder(a.raw.Port))
	}
	return netip.AddrPort{}
}

// set stores an address to connect to.
func (a *address) set(to netip.AddrPort) {
	ip := to.Addr()
	if ip.Is4() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&a.raw))
		*in = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: hostOrder(to.Port()), Addr: ip.As4()}
		a.size = unix.SizeofSockaddrInet4
		return
	}
	a.raw = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: hostOrder(to.Port()), Addr: ip.As16(), Scope_id: zoneIndex(ip.Zone())}
	a.size = unix.SizeofSockaddrInet6
}

// hostOrder turns a port from network to host order, and back.
func hostOrder(port uint16) uint16 {
	b := (*[2]byte)(unsafe.Pointer(&port))
	return uint16(b[0])<<8 | uint16(b[1])
}

// zoneName and zoneIndex translate the zones of link-local addresses, as package net
// does.
func zoneName(index uint32) string {
	if i, err := net.InterfaceByIndex(int(index)); err == nil {
		return i.Name
	}
	return strconv.FormatUint(uint64(index), 10)
}

func zoneIndex(name string) uint32 {
	if name == "" {
		return 0
	}
	if i, err := net.InterfaceByName(name); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(name, 10, 32)
	return uint32(n)
}

// watchAll is what every connection is registered for.
const watchAll = unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET&0xffffffff

// register adds a descriptor to an epoll, with two words that come with its events.
func register(epoll, fd int32, events uint32, a, b int32) syscall.Errno {
	e := unix.EpollEvent{Events: events, Fd: a, Pad: b}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_ADD, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
	return errno
}

func unregister(epoll, fd int32) {
	e := unix.EpollEvent{}
	unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epoll), unix.EPOLL_CTL_DEL, uintptr(fd), uintptr(unsafe.Pointer(&e)), 0, 0)
}

// pollNow returns the events that there are.
func pollNow(epoll int32, events []unix.EpollEvent) int {
	n, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// pollWait waits for events for so many milliseconds, or without end if negative. It
// lets other goroutines have the processor.
func pollWait(epoll int32, events []unix.EpollEvent, timeout int) int {
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epoll), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout), 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}
