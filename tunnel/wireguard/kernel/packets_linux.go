package kernel

import (
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// packetBuffer is the size of the buffer of a packet socket in bytes, as far as the kernel
// allows it.
const packetBuffer = 4 << 20

// ethernetHeader is the size of a header of the loopback interface.
const ethernetHeader = 14

// packets opens the packet sockets. The thread must be inside.
func (l *Link) packets(lo int, services []netip.Prefix) error {
	program, err := filter(taken(services), true)
	if err != nil {
		return err
	}
	if l.socket, err = packetSocket(l.index, unix.ETH_P_ALL, program); err != nil {
		return err
	}
	l.loop, err = packetSocket(lo, 0, nil)
	return err
}

// packetSocket returns a socket for packets of a protocol at an interface, none if it is 0.
func packetSocket(index int, protocol uint16, program []bpf.RawInstruction) (*os.File, error) {
	// Bound only behind its filter, so that it never gets what it should not.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_RCVBUFFORCE} {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, packetBuffer)
	}
	if len(program) > 0 {
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{
			Len: uint16(len(program)), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0])),
		})
	}
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
	}
	if err == nil {
		network := protocol<<8 | protocol>>8
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: index})
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("packet socket: %w", err)
	}
	return os.NewFile(uintptr(fd), "packets"), nil
}

// Take gives the kernel a packet of a peer that it has not taken by itself.
func (l *Link) Take(packet []byte) error {
	frame := make([]byte, ethernetHeader, ethernetHeader+len(packet))
	frame[12], frame[13] = 0x08, 0x00 // IPv4
	if packet[0]>>4 == 6 {
		frame[12], frame[13] = 0x86, 0xdd
	}
	_, err := l.loop.Write(append(frame, packet...))
	return err
}

// Read waits for a packet of a peer that the kernel has not taken.
func (l *Link) Read(packet []byte) (int, error) { return l.socket.Read(packet) }

// Write sends a packet to the peer that has its destination.
func (l *Link) Write(packet []byte) (int, error) { return l.socket.Write(packet) }
