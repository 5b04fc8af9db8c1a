package wireguard

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"cardea/tunnel"
)

// bind carries the packets of a device: by UDP, and by pipes. It also sorts out probes.
type bind struct {
	conn.Bind // UDP
	// begun is closed when it may read; nil if it may at once.
	begun <-chan struct{}

	// probe is given what claims to be a probe, and returns the answer, if any.
	probe func(packet []byte) []byte

	mu        sync.Mutex
	ids       uint64
	pipes     map[uint64]*pipe
	closed    chan struct{} // closed when the bind is; nil if it is not open
	listening int           // UDP port

	packets chan arrived
}

// arrived is a packet that came by a pipe.
type arrived struct {
	buffer *[]byte
	size   int
	from   *pipe
}

// waiting is how many packets of all pipes may wait for the device.
const waiting = 512

// buffers are for packets of pipes.
type buffers struct {
	pool sync.Pool
	size int
}

func (b *buffers) get() *[]byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return p
	}
	p := make([]byte, b.size)
	return &p
}

// put gives a buffer back. One that has grown is left to the collector.
func (b *buffers) put(p *[]byte) {
	if cap(*p) == b.size {
		*p = (*p)[:b.size]
		b.pool.Put(p)
	}
}

// newBind returns a bind over one of UDP.
func newBind(udp conn.Bind, probe func([]byte) []byte) *bind {
	return &bind{
		Bind: udp, probe: probe,
		pipes: map[uint64]*pipe{}, packets: make(chan arrived, waiting),
	}
}

// Open implements conn.Bind.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	b.mu.Lock()
	b.closed, b.listening = make(chan struct{}), int(port)
	closed := b.closed
	b.mu.Unlock()
	for i, fn := range fns {
		fns[i] = func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			if b.begun != nil {
				select {
				case <-b.begun:
				case <-closed:
					return 0, net.ErrClosed
				}
			}
			n, err := fn(packets, sizes, eps)
			b.sort(packets, sizes[:n], eps)
			return n, err
		}
	}
	return append(fns, func(packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		return b.receive(closed, packets, sizes, eps)
	}), port, nil
}

// port is the UDP port that it is open at.
func (b *bind) port() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.listening
}

// Close implements conn.Bind.
func (b *bind) Close() error {
	b.mu.Lock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	b.mu.Unlock()
	return b.Bind.Close()
}

// sort takes probes out of what has come.
func (b *bind) sort(packets [][]byte, sizes []int, eps []conn.Endpoint) {
	for i, size := range sizes {
		if size == 0 {
			continue
		}
		if size == probeSize && isProbe(packets[i]) {
			sizes[i] = 0
			if answer := b.probe(packets[i][:size]); answer != nil {
				b.Bind.Send([][]byte{answer}, eps[i])
			}
		}
	}
}

// receive is what came by pipes.
func (b *bind) receive(closed <-chan struct{}, packets [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	n := 0
	var a arrived
	select {
	case a = <-b.packets:
	case <-closed:
		return 0, net.ErrClosed
	}
	for {
		sizes[n], eps[n] = copy(packets[n], (*a.buffer)[:a.size]), a.from
		if a.from.gone.Load() {
			sizes[n] = 0 // the peer must not be looked for where it has just left
		}
		a.from.buffers.put(a.buffer)
		if n++; n == len(packets) {
			return n, nil
		}
		select {
		case a = <-b.packets:
		default:
			return n, nil
		}
	}
}

// Send implements conn.Bind.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	p, ok := to.(*pipe)
	if !ok {
		return b.sendUDP(bufs, to)
	}
	if p.pipe == nil {
		return nil
	}
	for _, packet := range bufs {
		if err := p.send(packet); err != nil {
			return nil // it is over, and whoever carries it knows
		}
	}
	return nil
}

// sendUDP sends packets by UDP. Several go to the kernel as one, which it cuts up but does
// not fragment: over a link that is too small for them, they have to go one by one. What
// has gone already is sent twice then; WireGuard takes nothing twice.
func (b *bind) sendUDP(bufs [][]byte, to conn.Endpoint) error {
	err := b.Bind.Send(bufs, to)
	if len(bufs) < 2 || !errors.Is(err, syscall.EMSGSIZE) && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	var failed error
	for i := range bufs {
		failed = cmp.Or(failed, b.Bind.Send(bufs[i:i+1], to))
	}
	return failed
}

// ParseEndpoint implements conn.Bind.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	id, ok := strings.CutPrefix(s, pipePrefix)
	if !ok {
		return b.Bind.ParseEndpoint(s)
	}
	n, err := strconv.ParseUint(id, 10, 64)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return &pipe{}, nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p := b.pipes[n]; p != nil {
		return p, nil
	}
	return nil, errors.New("the pipe is gone")
}

// pipePrefix begins the name of an endpoint that is a pipe.
const pipePrefix = "pipe/"

// nowhere is the endpoint of a peer that cannot be reached.
const nowhere = pipePrefix + "0"

// pipe is the endpoint of a peer that is reached by a tunnel.Pipe. Without one it is
// nowhere.
type pipe struct {
	id      uint64
	pipe    tunnel.Pipe
	address net.Addr
	ip      netip.Addr
	buffers *buffers
	// proven is that something was sent to it that the device sends only to a peer that
	// has authenticated itself: the answer to a handshake, or data.
	proven         atomic.Bool
	gone           atomic.Bool // nothing can be sent to it any more
	received, sent atomic.Uint64
}

var _ conn.Endpoint = (*pipe)(nil)

func (p *pipe) ClearSrc()           {}
func (p *pipe) SrcToString() string { return "" }
func (p *pipe) SrcIP() netip.Addr   { return netip.Addr{} }
func (p *pipe) DstIP() netip.Addr   { return p.ip }
func (p *pipe) DstToString() string { return pipePrefix + strconv.FormatUint(p.id, 10) }

// DstToBytes is what a cookie is made for: the pipe and no other.
func (p *pipe) DstToBytes() []byte { return []byte(p.DstToString()) }

// send sends a packet of the device.
func (p *pipe) send(packet []byte) error {
	if err := p.pipe.Send(packet); err != nil {
		return err
	}
	if kind := packet[0]; kind == 2 || kind == 4 {
		p.proven.Store(true)
	}
	p.sent.Add(uint64(len(packet)))
	return nil
}

// expect closes the pipe if nobody has authenticated himself over it in that time, unless
// it is 0. The caller ends that.
func (p *pipe) expect(within time.Duration) (stop func() bool) {
	if within == 0 {
		return func() bool { return false }
	}
	return time.AfterFunc(within, func() {
		if !p.proven.Load() {
			p.pipe.Close()
		}
	}).Stop
}

// over says why a pipe is.
func (p *pipe) over(err error, within time.Duration) error {
	if within > 0 && !p.proven.Load() {
		return fmt.Errorf("nobody has authenticated himself over the pipe from %s: %w", p.address, err)
	}
	return err
}

// carrier is what the pipe is made of.
func (p *pipe) carrier() string {
	switch {
	case p.address == nil:
		return ""
	case strings.HasPrefix(p.address.Network(), "udp"):
		return CarrierQUIC
	case strings.HasPrefix(p.address.Network(), "tcp"):
		return CarrierTLS
	}
	return p.address.Network()
}

// endpoint is the address of its far end.
func (p *pipe) endpoint() netip.AddrPort {
	if p.address == nil {
		return netip.AddrPort{}
	}
	a, _ := netip.ParseAddrPort(p.address.String())
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func newPipe(p tunnel.Pipe, free *buffers) *pipe {
	e := &pipe{pipe: p, address: p.RemoteAddr(), buffers: free}
	if e.ip = e.endpoint().Addr(); !e.ip.IsValid() {
		e.ip = netip.IPv6Unspecified()
	}
	return e
}

// add makes an endpoint of a pipe, with packets of the given size at most.
func (b *bind) add(p tunnel.Pipe, free *buffers) *pipe {
	e := newPipe(p, free)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ids++
	e.id = b.ids
	b.pipes[e.id] = e
	return e
}

// drop forgets a pipe and closes it.
func (b *bind) drop(e *pipe) {
	e.gone.Store(true)
	b.mu.Lock()
	delete(b.pipes, e.id)
	b.mu.Unlock()
	e.pipe.Close()
}

// find returns the pipe of an endpoint, or nil.
func (b *bind) find(endpoint string) *pipe {
	id, ok := strings.CutPrefix(endpoint, pipePrefix)
	if !ok {
		return nil
	}
	n, _ := strconv.ParseUint(id, 10, 64)
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.pipes[n]
}

// where says of an endpoint, as the device writes it, what it is.
func (b *bind) where(endpoint string) (at netip.AddrPort, carrier string) {
	if p := b.find(endpoint); p != nil {
		return p.endpoint(), p.carrier()
	}
	a, err := netip.ParseAddrPort(endpoint)
	if err != nil {
		return netip.AddrPort{}, ""
	}
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()), CarrierUDP
}

// read gives what comes by a pipe to the device, until the pipe is over. With within, one
// over which nobody has authenticated himself in that time is over.
func (b *bind) read(e *pipe, within time.Duration) error {
	defer e.expect(within)()
	for {
		buffer := e.buffers.get()
		n, err := e.pipe.Receive(*buffer)
		if err != nil {
			e.gone.Store(true)
			e.buffers.put(buffer)
			return e.over(err, within)
		}
		e.received.Add(uint64(n))
		select {
		case b.packets <- arrived{buffer, n, e}:
		default: // the device is slow: lost, as by UDP
			e.buffers.put(buffer)
		}
	}
}

// Names of carriers.
const (
	CarrierUDP  = "udp"
	CarrierQUIC = "quic"
	CarrierTLS  = "tls"
)
