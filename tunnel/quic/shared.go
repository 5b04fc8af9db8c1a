package quic

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cardea/handover"

	"github.com/quic-go/quic-go"
	"golang.org/x/net/ipv4"
)

// A Socket is a UDP socket for a [Server] that can be handed over to another process,
// without an end of the connections that there are.
//
// The IDs that a process gives its connections (RFC 9000, section 5.1) begin with a byte of
// its own, its mark. The newest process reads the socket, and passes on what is for
// connections of an older one, by a Unix socket; that one sends by the UDP socket itself. A
// handshake that is under way meanwhile begins again. Where nobody is left who passes
// anything on, as the newest has been killed, an older one is deaf, and its Server ends: the
// next process can open the port.
type Socket struct {
	socket
	batch *ipv4.PacketConn
	mark  byte
	older atomic.Pointer[[256]*os.File] // by their marks; nil if there are none
	inbox []byte                        // of receive

	mu     sync.Mutex
	next   net.Conn      // what a newer process passes on; nil unless it was handed over
	left   chan struct{} // closed by Leave
	closed bool          // by SetReadDeadline: the Server is ending
}

// SocketName is the name of the UDP socket among what is handed over.
const SocketName = "udp"

// idSize is that of a connection ID, with the mark.
const idSize = 8

// An inheritance is what a Socket is to know of the one before.
type inheritance struct {
	Mark  byte   `json:"mark"`            // its own
	Older []byte `json:"older,omitempty"` // those of the processes before
}

func olderName(mark byte) string { return fmt.Sprint("older ", mark) }

// Listen opens a Socket.
func Listen(at netip.AddrPort) (*Socket, error) {
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		return nil, err
	}
	return newSocket(c, 0), nil
}

func newSocket(c *net.UDPConn, mark byte) *Socket {
	return &Socket{socket: socket{c}, batch: ipv4.NewPacketConn(c), mark: mark, left: make(chan struct{})}
}

// Inherit takes over what [Socket.Bequeath] of the process before has returned; take
// returns a file, once. Without a socket among these it returns nil.
func Inherit(take func(name string) *os.File, text string) (*Socket, error) {
	f := take(SocketName)
	if f == nil {
		return nil, nil
	}
	c, err := net.FilePacketConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	udp, ok := c.(*net.UDPConn)
	if !ok {
		c.Close()
		return nil, errors.New("the socket of QUIC that was handed over is none of UDP")
	}
	var i inheritance
	if err := json.Unmarshal([]byte(text), &i); err != nil {
		c.Close()
		return nil, fmt.Errorf("what is known of the socket of QUIC that was handed over: %w", err)
	}
	s := newSocket(udp, i.Mark)
	var older [256]*os.File
	for _, mark := range i.Older {
		older[mark] = take(olderName(mark))
	}
	if len(i.Older) > 0 {
		s.older.Store(&older)
	}
	return s, nil
}

// Bequeath returns what another process is to have, which Inherit makes a Socket of; the
// caller closes the files. This one stays what it is until Leave.
func (s *Socket) Bequeath() (files map[string]*os.File, text string, err error) {
	files = map[string]*os.File{}
	i := inheritance{Older: []byte{s.mark}}
	defer func() {
		if err != nil {
			for _, f := range files {
				f.Close()
			}
			files = nil
		}
	}()
	if files[SocketName], err = s.File(); err != nil {
		return files, "", err
	}
	if older := s.older.Load(); older != nil {
		for mark, f := range older {
			if f == nil || gone(send(f, []byte{0})) { // no packet; who has ended does not get it, and its mark is free
				continue
			}
			i.Older = append(i.Older, byte(mark))
			if files[olderName(byte(mark))], err = handover.Duplicate(f, f.Name()); err != nil {
				return files, "", err
			}
		}
	}
	for slices.Contains(i.Older, i.Mark) {
		i.Mark++
	}
	ours, theirs, err := passage()
	if err != nil {
		return files, "", err
	}
	files[olderName(s.mark)] = theirs
	s.mu.Lock()
	if s.next != nil { // of one that did not come
		s.next.Close()
	}
	s.next = ours
	s.mu.Unlock()
	b, err := json.Marshal(i)
	return files, string(b), err
}

// Leave leaves the socket to the process that Bequeath was for. The Server goes on with the
// connections that it has.
func (s *Socket) Leave() {
	close(s.left)
	s.UDPConn.SetReadDeadline(time.Unix(1, 0))
}

// Close implements net.PacketConn.
func (s *Socket) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.next != nil {
		s.next.Close()
	}
	if older := s.older.Swap(nil); older != nil {
		for _, f := range older {
			if f != nil {
				f.Close()
			}
		}
	}
	return s.socket.Close()
}

// SetReadDeadline implements net.PacketConn. The Server ends reading by it.
func (s *Socket) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = !t.IsZero()
	if s.next != nil {
		s.next.SetReadDeadline(t)
	}
	return s.UDPConn.SetReadDeadline(t)
}

// ReadBatch reads packets. Those of connections of older processes have no bytes.
func (s *Socket) ReadBatch(packets []ipv4.Message, flags int) (int, error) {
	for {
		select {
		case <-s.left:
			return s.receive(&packets[0])
		default:
		}
		n, err := s.batch.ReadBatch(packets, flags)
		if errors.Is(err, os.ErrDeadlineExceeded) && s.wasLeft() {
			continue
		}
		if err != nil {
			return n, err
		}
		if older := s.older.Load(); older != nil {
			for i := range packets[:n] {
				s.sort(older, &packets[i])
			}
		}
		return n, nil
	}
}

// wasLeft reports whether reading has ended because of Leave.
func (s *Socket) wasLeft() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.left:
		return !s.closed
	default:
		return false
	}
}

// sort passes a packet on that is for a connection of an older process.
func (s *Socket) sort(older *[256]*os.File, p *ipv4.Message) {
	mark, ok := markOf(p.Buffers[0][:p.N])
	if !ok || mark == s.mark || older[mark] == nil {
		return
	}
	if err := pass(older[mark], p); gone(err) {
		return // and the client is told so
	}
	p.N = 0
}

// markOf returns the mark of the connection ID of a packet, if it is one that a server has
// made: of a packet with the short header, or of a handshake (RFC 9000, section 17).
func markOf(p []byte) (mark byte, ok bool) {
	const long, kind, handshake = 0x80, 0x30, 0x20
	const version1 = "\x00\x00\x00\x01"
	switch {
	case len(p) <= idSize:
		return 0, false
	case p[0]&long == 0:
		return p[1], true
	case p[0]&kind == handshake && string(p[1:5]) == version1 && p[5] == idSize:
		return p[6], true
	}
	return 0, false
}

// What is passed on is the sender's address and what the kernel has said beside the packet,
// each behind its length in a byte, and the packet.

func pass(to *os.File, p *ipv4.Message) error {
	from, ok := p.Addr.(*net.UDPAddr)
	if !ok {
		return nil
	}
	address, err := from.AddrPort().MarshalBinary()
	if err != nil || p.NN > 255 {
		return err
	}
	b := make([]byte, 0, 2+len(address)+p.NN+p.N)
	b = append(append(b, byte(len(address))), address...)
	b = append(append(b, byte(p.NN)), p.OOB[:p.NN]...)
	return send(to, append(b, p.Buffers[0][:p.N]...))
}

// ErrDeaf is what a [Server] ends with whose [Socket] was handed over to a process that has
// ended, so that nothing comes any more.
var ErrDeaf = errors.New("the process that has the socket of QUIC has ended")

// receive takes what was passed on.
func (s *Socket) receive(p *ipv4.Message) (int, error) {
	s.mu.Lock()
	next := s.next
	s.mu.Unlock()
	if next == nil {
		return 0, net.ErrClosed
	}
	if s.inbox == nil {
		s.inbox = make([]byte, 1<<16)
	}
	n, err := next.Read(s.inbox)
	if err == io.EOF {
		err = ErrDeaf
	}
	if err != nil {
		return 0, err
	}
	address, rest, ok := field(s.inbox[:n])
	var from netip.AddrPort
	if !ok || from.UnmarshalBinary(address) != nil {
		return 1, nothing(p)
	}
	beside, data, ok := field(rest)
	if !ok || len(beside) > len(p.OOB) || len(data) > len(p.Buffers[0]) {
		return 1, nothing(p)
	}
	p.Addr = net.UDPAddrFromAddrPort(from)
	p.NN, p.N = copy(p.OOB, beside), copy(p.Buffers[0], data)
	return 1, nil
}

// nothing makes a packet one that is not looked at.
func nothing(p *ipv4.Message) error {
	p.NN, p.N = 0, 0
	return nil
}

func field(b []byte) (value, rest []byte, ok bool) {
	if len(b) == 0 || len(b) <= int(b[0]) {
		return nil, nil, false
	}
	return b[1 : 1+b[0]], b[1+b[0]:], true
}

// passageBuffer is for what was passed on and waits, in bytes.
const passageBuffer = 4 << 20

// passage returns both ends of a Unix socket of datagrams, whose end can be seen where the
// system has such.
func passage() (ours net.Conn, theirs *os.File, err error) {
	syscall.ForkLock.RLock()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_SEQPACKET, 0)
	if errors.Is(err, syscall.EPROTONOSUPPORT) {
		fds, err = syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_DGRAM, 0)
	}
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	for _, fd := range fds {
		syscall.SetNonblock(fd, true)
		syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_SNDBUF, passageBuffer) // as far as it may
	}
	f := os.NewFile(uintptr(fds[0]), "passage")
	defer f.Close()
	theirs = os.NewFile(uintptr(fds[1]), "passage")
	if ours, err = net.FileConn(f); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// send sends a datagram, or loses it: nobody waits for an older process.
func send(to *os.File, b []byte) (err error) {
	raw, err := to.SyscallConn()
	if err != nil {
		return err
	}
	failed := raw.Control(func(fd uintptr) { _, err = syscall.Write(int(fd), b) })
	return errors.Join(failed, err)
}

// gone reports whether a process has ended to which something was sent.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ENOTCONN) || errors.Is(err, syscall.EPIPE)
}

// marked makes connection IDs that begin with a mark.
type marked byte

var _ quic.ConnectionIDGenerator = marked(0)

// GenerateConnectionID implements quic.ConnectionIDGenerator.
func (m marked) GenerateConnectionID() (quic.ConnectionID, error) {
	id := make([]byte, idSize)
	rand.Read(id)
	id[0] = byte(m)
	return quic.ConnectionIDFromBytes(id), nil
}

// ConnectionIDLen implements quic.ConnectionIDGenerator.
func (marked) ConnectionIDLen() int { return idSize }
