package wireguard

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// netstack is TCP and UDP in userspace, between packets and conns.
type netstack struct {
	*channel.Endpoint // its link, of which only what comes in is used
	stack             *stack.Stack
	out               *queue
}

// nic is the one interface of a netstack.
const nic = 1

// How long a TCP connection over the tunnel may be silent before its peer is asked, how
// often it is asked then, and how many times without an answer.
const (
	keepaliveIdle     = 60 * time.Second
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 8
)

// How many bytes a TCP connection holds for a peer that does not read, and of what an
// upstream does not take. They do not grow: see set.
const (
	sendSize    = 256 << 10
	receiveSize = 512 << 10
)

// newNetstack returns one that sends its packets to out. With addresses it has these, and
// without it takes what comes for any.
func newNetstack(mtu int, addresses []netip.Addr, out *queue) (*netstack, error) {
	n := &netstack{
		Endpoint: channel.New(0, uint32(mtu), ""),
		out:      out,
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol},
		}),
	}
	// Who sends has been authenticated packet by packet.
	n.LinkEPCapabilities = stack.CapabilityRXChecksumOffload
	if err := n.set(mtu, addresses); err != nil {
		n.stack.Close()
		return nil, err
	}
	return n, nil
}

func (n *netstack) set(mtu int, addresses []netip.Addr) error {
	// A connection of this stack can come to stand still for good after a loss (issues 6113
	// and 10243 of google/gvisor). What has been seen to bring that about is not used: RACK
	// (RFC 8985), buffers that grow, and segments larger than a packet.
	sack, recovery := tcpip.TCPSACKEnabled(true), tcpip.TCPRecovery(0)
	moderate := tcpip.TCPModerateReceiveBufferOption(false)
	cubic := tcpip.CongestionControlOption("cubic")
	send := tcpip.TCPSendBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: sendSize, Max: tcp.MaxBufferSize}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: tcp.MinBufferSize, Default: receiveSize, Max: tcp.MaxBufferSize}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &recovery, &moderate, &cubic, &send, &receive} {
		if err := n.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("network stack: %s", err)
		}
	}
	if err := n.stack.CreateNIC(nic, n); err != nil {
		return fmt.Errorf("network stack: %s", err)
	}
	if len(addresses) == 0 {
		n.stack.SetPromiscuousMode(nic, true)
		n.stack.SetSpoofing(nic, true)
	}
	for _, a := range addresses {
		protocol := tcpip.NetworkProtocolNumber(ipv4.ProtocolNumber)
		if a.Is6() {
			protocol = ipv6.ProtocolNumber
		}
		if err := n.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol: protocol, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{}); err != nil {
			return fmt.Errorf("network stack: address %s: %s", a, err)
		}
	}
	n.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return nil
}

// WritePackets is called by the stack with what leaves.
func (n *netstack) WritePackets(packets stack.PacketBufferList) (int, tcpip.Error) {
	for _, p := range packets.AsSlice() {
		b := n.out.buffer()
		for _, s := range p.AsSlices() {
			*b = append(*b, s...)
		}
		n.out.put(b)
	}
	return packets.Len(), nil
}

// write takes packets that come in.
func (n *netstack) write(bufs [][]byte, offset int) {
	for _, b := range bufs {
		packet := b[offset:]
		p := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(packet)})
		protocol := tcpip.NetworkProtocolNumber(header.IPv4ProtocolNumber)
		if packet[0]>>4 == 6 {
			protocol = header.IPv6ProtocolNumber
		}
		n.InjectInbound(protocol, p)
		p.DecRef()
	}
}

// listen has accept called, in a goroutine of its own, for each TCP connection that is
// asked for. It must answer the request.
func (n *netstack) listen(accept func(*tcp.ForwarderRequest)) {
	f := tcp.NewForwarder(n.stack, 0, 4096, accept)
	n.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, f.HandlePacket)
}

// close ends it and all that it started.
func (n *netstack) close() {
	n.out.close()
	n.stack.RemoveNIC(nic)
	n.stack.Close()
	n.stack.Wait()
	n.Endpoint.Close()
}

// dial opens a TCP connection.
func (n *netstack) dial(ctx context.Context, to netip.AddrPort) (*stackConn, error) {
	full, protocol := full(to)
	failed := func(err error) (*stackConn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	queue := new(waiter.Queue)
	ep, terr := n.stack.NewEndpoint(tcp.ProtocolNumber, protocol, queue)
	if terr != nil {
		return failed(errorOf(terr))
	}
	entry, notified := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	terr = ep.Connect(full)
	if _, ok := terr.(*tcpip.ErrConnectStarted); ok {
		select {
		case <-notified:
			terr = ep.LastError()
		case <-ctx.Done():
			ep.Abort()
			ep.Close()
			return failed(ctx.Err())
		}
	}
	if terr != nil {
		ep.Close()
		return failed(errorOf(terr))
	}
	return newStackConn(ep, queue), nil
}

// dialUDP opens a UDP socket.
func (n *netstack) dialUDP(to netip.AddrPort) (net.Conn, error) {
	full, protocol := full(to)
	return gonet.DialUDP(n.stack, nil, &full, protocol)
}

func full(a netip.AddrPort) (tcpip.FullAddress, tcpip.NetworkProtocolNumber) {
	protocol := tcpip.NetworkProtocolNumber(ipv4.ProtocolNumber)
	if a.Addr().Is6() {
		protocol = ipv6.ProtocolNumber
	}
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}, protocol
}

// addrPort is an address of the stack as others write it.
func addrPort(a tcpip.Address, port uint16) netip.AddrPort {
	addr, _ := netip.AddrFromSlice(a.AsSlice())
	return netip.AddrPortFrom(addr, port)
}

// errorOf returns an error of the stack as the kernel would have named it.
func errorOf(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrConnectionReset, *tcpip.ErrAborted, *tcpip.ErrConnectionAborted, *tcpip.ErrNotConnected:
		return syscall.ECONNRESET
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrClosedForSend:
		return syscall.EPIPE
	case *tcpip.ErrNoPortAvailable:
		return syscall.EADDRNOTAVAIL
	}
	return fmt.Errorf("network stack: %s", err)
}
