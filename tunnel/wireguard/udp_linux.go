package wireguard

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
)

const (
	// segments is how many datagrams the kernel takes, or gives, in one piece.
	segments = 64
	// mostPiece is the size of the largest piece: what a datagram of IPv4 can carry.
	mostPiece = 1<<16 - 1 - 20 - 8
	// socketBuffer is that of each direction, as far as the kernel allows it.
	socketBuffer = 7 << 20
)

// udpBind is the bind of a device by UDP: many datagrams with one call, of which the kernel
// takes and gives those of one peer in one piece (UDP_SEGMENT and UDP_GRO of udp(7)).
// What the library's bind cannot do is why it is here: to listen at one address alone,
// and to answer from the address that was asked where the kernel gives pieces.
type udpBind struct {
	only    netip.Addr // the address that is listened at; all if it is not valid
	answers bool       // from the address that was asked; else from what the route says
	inherit inherit    // the sockets of the process before

	mu     sync.Mutex
	v4, v6 *socket
}

// newUDP returns a bind at an address, or at all if it is not valid.
func newUDP(only netip.Addr, answers bool, inherit inherit) conn.Bind {
	return &udpBind{only: only, answers: answers, inherit: inherit}
}

// socket is one of a family.
type socket struct {
	*net.UDPConn
	batch interface {
		ReadBatch([]ipv4.Message, int) (int, error)
		WriteBatch([]ipv4.Message, int) (int, error)
	}
	whole atomic.Bool // the kernel does not cut pieces here
}

// Open implements conn.Bind.
func (u *udpBind) Open(port uint16) (fns []conn.ReceiveFunc, actual uint16, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.v4 != nil || u.v6 != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	for range 100 { // a port that is free for one family may be taken of the other
		if actual, err = u.listen(port); port != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, 0, err
	}
	for _, s := range []*socket{u.v4, u.v6} {
		if s != nil {
			fns = append(fns, s.receiver())
		}
	}
	return fns, actual, nil
}

// listen opens the sockets. A family that the machine does not have is left out.
func (u *udpBind) listen(port uint16) (uint16, error) {
	failed := error(syscall.EAFNOSUPPORT)
	if !u.only.IsValid() || u.only.Is4() {
		at := netip.IPv4Unspecified()
		if u.only.IsValid() {
			at = u.only
		}
		s, err := u.open("udp4", netip.AddrPortFrom(at, port))
		if err != nil && !errors.Is(err, syscall.EAFNOSUPPORT) {
			return 0, err
		}
		if u.v4 = s; s != nil {
			s.batch, failed = ipv4.NewPacketConn(s.UDPConn), nil
			port = s.port()
		}
	}
	if !u.only.IsValid() || u.only.Is6() {
		at := netip.IPv6Unspecified()
		if u.only.IsValid() {
			at = u.only
		}
		s, err := u.open("udp6", netip.AddrPortFrom(at, port))
		if err != nil && !errors.Is(err, syscall.EAFNOSUPPORT) {
			u.shut()
			return 0, err
		}
		if u.v6 = s; s != nil {
			s.batch, failed = ipv6.NewPacketConn(s.UDPConn), nil
			port = s.port()
		}
	}
	return port, failed
}

func (s *socket) port() uint16 { return s.LocalAddr().(*net.UDPAddr).AddrPort().Port() }

// open opens the socket of a family, or takes over that of the process before.
func (u *udpBind) open(network string, at netip.AddrPort) (*socket, error) {
	if f := u.inherit.take(network); f != nil {
		c, err := net.FilePacketConn(f)
		f.Close()
		if err != nil {
			return nil, err
		}
		return &socket{UDPConn: c.(*net.UDPConn)}, nil // it is set up
	}
	return listenAt(network, at)
}

// bequeath implements heritable.
func (u *udpBind) bequeath(add func(name string, of syscall.Conn) error) (err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for name, s := range map[string]*socket{"udp4": u.v4, "udp6": u.v6} {
		if s != nil {
			err = errors.Join(err, add(name, s))
		}
	}
	return err
}

func listenAt(network string, at netip.AddrPort) (*socket, error) {
	c, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at)) // udp6 is IPv6 alone
	if err != nil {
		return nil, err
	}
	raw, err := c.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) { failed = prepare(int(fd), network == "udp6") })
		err = errors.Join(err, failed)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &socket{UDPConn: c}, nil
}

// prepare sets a socket up. What only makes it faster may fail.
func prepare(fd int, six bool) error {
	for _, o := range []int{unix.SO_RCVBUF, unix.SO_SNDBUF, unix.SO_RCVBUFFORCE, unix.SO_SNDBUFFORCE} {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, o, socketBuffer)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	if !six {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
}

// Close implements conn.Bind.
func (u *udpBind) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.shut()
}

// shut closes what is open; u.mu is held.
func (u *udpBind) shut() (err error) {
	for _, s := range []*socket{u.v4, u.v6} {
		if s != nil {
			err = errors.Join(err, s.Close())
		}
	}
	u.v4, u.v6 = nil, nil
	return err
}

// SetMark implements conn.Bind.
func (u *udpBind) SetMark(mark uint32) (err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range []*socket{u.v4, u.v6} {
		if s == nil {
			continue
		}
		c, e := s.SyscallConn()
		if e == nil {
			e = c.Control(func(fd uintptr) {
				err = errors.Join(err, unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark)))
			})
		}
		err = errors.Join(err, e)
	}
	return err
}

// BatchSize implements conn.Bind.
func (u *udpBind) BatchSize() int { return conn.IdealBatchSize }

// ParseEndpoint implements conn.Bind.
func (u *udpBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	to, err := netip.ParseAddrPort(s)
	if err != nil {
		return nil, err
	}
	return &udpEndpoint{to: to}, nil
}

// receiver returns what the device reads by.
func (s *socket) receiver() conn.ReceiveFunc {
	pieces := make([]ipv4.Message, conn.IdealBatchSize/segments)
	for i := range pieces {
		pieces[i].Buffers, pieces[i].OOB = [][]byte{make([]byte, 1<<16)}, make([]byte, 128)
	}
	return func(packets [][]byte, sizes []int, eps []conn.Endpoint) (n int, err error) {
		got, err := s.batch.ReadBatch(pieces, 0)
		if err != nil {
			return 0, err
		}
		for i := range pieces[:got] {
			p := &pieces[i]
			e := &udpEndpoint{}
			if a, ok := p.Addr.(*net.UDPAddr); ok {
				e.to = netip.AddrPortFrom(a.AddrPort().Addr().Unmap(), uint16(a.Port))
			}
			var each int
			each, e.from = readControl(p.OOB[:p.NN])
			if each == 0 {
				each = p.N
			}
			for rest := p.Buffers[0][:p.N]; len(rest) > 0 && n < len(packets); n++ {
				datagram := rest[:min(each, len(rest))]
				sizes[n], eps[n] = copy(packets[n], datagram), e
				rest = rest[len(datagram):]
			}
		}
		return n, nil
	}
}

// readControl returns the size of the datagrams of a piece, 0 if it is one, and the
// address that they were sent to.
func readControl(b []byte) (each int, to netip.Addr) {
	for len(b) >= unix.SizeofCmsghdr {
		h, data, rest, err := unix.ParseOneSocketControlMessage(b)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.SOL_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			each = int(binary.NativeEndian.Uint32(data))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			to = netip.AddrFrom4([4]byte(data[4:8])) // ipi_spec_dst of ip(7)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			to = netip.AddrFrom16([16]byte(data[:16]))
		}
		b = rest
	}
	return each, to
}

// outgoing is what a Send takes.
type outgoing struct {
	pieces []ipv4.Message
	to     net.UDPAddr
	ip     [16]byte
}

var outgoings = sync.Pool{New: func() any {
	o := &outgoing{pieces: make([]ipv4.Message, conn.IdealBatchSize)}
	for i := range o.pieces {
		o.pieces[i].Addr, o.pieces[i].OOB = &o.to, make([]byte, 0, 96)
	}
	return o
}}

// Send implements conn.Bind.
func (u *udpBind) Send(packets [][]byte, to conn.Endpoint) error {
	e, ok := to.(*udpEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	u.mu.Lock()
	s := u.v6
	if e.to.Addr().Is4() {
		s = u.v4
	}
	u.mu.Unlock()
	if s == nil {
		return syscall.EAFNOSUPPORT
	}
	from := netip.Addr{}
	if u.answers {
		from = e.from
	}
	err := s.send(packets, e.to, from)
	if from.IsValid() && (errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.EADDRNOTAVAIL)) {
		err = s.send(packets, e.to, netip.Addr{}) // the address may not be this machine's any more
	}
	return err
}

// send sends packets, those that may go in one piece together.
func (s *socket) send(packets [][]byte, to netip.AddrPort, from netip.Addr) error {
	o := outgoings.Get().(*outgoing)
	defer o.put()
	o.to.Port, o.to.Zone = int(to.Port()), to.Addr().Zone()
	if to.Addr().Is4() {
		ip := to.Addr().As4()
		o.to.IP = o.ip[:copy(o.ip[:], ip[:])]
	} else {
		o.ip = to.Addr().As16()
		o.to.IP = o.ip[:]
	}
	err := s.write(o.fill(packets, from, !s.whole.Load()))
	if errors.Is(err, syscall.EIO) && !s.whole.Swap(true) { // no checksum offload (udp(7))
		err = s.write(o.fill(packets, from, false))
	}
	return err
}

// fill makes pieces of packets: of as many of one size as may go in one, and behind them
// one that is smaller.
func (o *outgoing) fill(packets [][]byte, from netip.Addr, together bool) []ipv4.Message {
	n, size, ended := 0, 0, true
	for _, p := range packets {
		last := max(n-1, 0)
		if ended || !together || len(p) > len(o.pieces[last].Buffers[0]) || len(o.pieces[last].Buffers) == segments || size+len(p) > mostPiece {
			m := &o.pieces[n]
			m.Buffers, m.OOB = append(m.Buffers[:0], p), appendFrom(m.OOB[:0], from)
			n, size, ended = n+1, len(p), false
			continue
		}
		m := &o.pieces[last]
		m.Buffers = append(m.Buffers, p)
		size += len(p)
		ended = len(p) < len(m.Buffers[0])
	}
	for i := range o.pieces[:n] {
		if m := &o.pieces[i]; len(m.Buffers) > 1 {
			m.OOB = binary.NativeEndian.AppendUint16(appendControl(m.OOB, unix.SOL_UDP, unix.UDP_SEGMENT, 2), uint16(len(m.Buffers[0])))
			m.OOB = m.OOB[:len(m.OOB)+unix.CmsgSpace(2)-unix.CmsgLen(2)]
		}
	}
	return o.pieces[:n]
}

// put gives an outgoing back, with nobody's packets in it.
func (o *outgoing) put() {
	for i := range o.pieces {
		clear(o.pieces[i].Buffers)
		o.pieces[i].Buffers = o.pieces[i].Buffers[:0]
	}
	outgoings.Put(o)
}

func (s *socket) write(pieces []ipv4.Message) error {
	for len(pieces) > 0 {
		n, err := s.batch.WriteBatch(pieces, 0)
		if err != nil {
			return err
		}
		pieces = pieces[n:]
	}
	return nil
}

// appendFrom appends the control message that says from which address is sent.
func appendFrom(b []byte, from netip.Addr) []byte {
	switch {
	case from.Is4():
		b = appendControl(b, unix.IPPROTO_IP, unix.IP_PKTINFO, unix.SizeofInet4Pktinfo)
		ip := from.As4()
		b = append(b, 0, 0, 0, 0)
		b = append(b, ip[:]...)
		b = append(b, 0, 0, 0, 0)
		b = append(b, make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo)-unix.CmsgLen(unix.SizeofInet4Pktinfo))...)
	case from.Is6():
		b = appendControl(b, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, unix.SizeofInet6Pktinfo)
		ip := from.As16()
		b = append(b, ip[:]...)
		b = append(b, 0, 0, 0, 0)
		b = append(b, make([]byte, unix.CmsgSpace(unix.SizeofInet6Pktinfo)-unix.CmsgLen(unix.SizeofInet6Pktinfo))...)
	}
	return b
}

// appendControl appends the head of a control message with so many bytes of data, which
// follow it (cmsg(3)).
func appendControl(b []byte, level, kind int32, data int) []byte {
	at := len(b)
	b = append(b, make([]byte, unix.CmsgLen(0))...)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[at]))
	h.Level, h.Type = level, kind
	h.SetLen(unix.CmsgLen(data))
	return b
}

// udpEndpoint is where a peer is, and the address by which it has asked.
type udpEndpoint struct {
	to   netip.AddrPort
	from netip.Addr
}

var _ conn.Endpoint = (*udpEndpoint)(nil)

func (e *udpEndpoint) ClearSrc()           { e.from = netip.Addr{} }
func (e *udpEndpoint) SrcToString() string { return e.from.String() }
func (e *udpEndpoint) SrcIP() netip.Addr   { return e.from }
func (e *udpEndpoint) DstIP() netip.Addr   { return e.to.Addr() }
func (e *udpEndpoint) DstToString() string { return e.to.String() }

// DstToBytes is what a cookie is made for.
func (e *udpEndpoint) DstToBytes() []byte {
	b, _ := e.to.MarshalBinary()
	return b
}
