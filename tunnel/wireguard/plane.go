package wireguard

import (
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cardea/wire/packet"
)

// Why packets of clients are dropped: the names of Gateway.Dropped.
const (
	dropSource      = iota // not an address of the Session, or of none that is connected
	dropDestination        // neither a Service's address nor a name server's
	dropService            // no Service, or not on this port
	dropProtocol           // neither TCP nor UDP
	dropFragment           // of TCP, or parts that overlap, or never all came
	dropOptions            // IP options or extension headers
	dropMalformed          // lengths or fields that cannot be
	dropFlows              // a flow or a question too many
	dropQueue              // nobody took it in time
	dropRefused            // of a flow that was refused or cut a moment ago
	dropHandshake          // a handshake of WireGuard that is garbage, of no Session's key, or a replay
	drops
)

func dropNames() [drops]string {
	return [drops]string{"source", "destination", "service", "protocol", "fragment", "options", "malformed", "flows", "queue", "refused", "handshake"}
}

// plane is what the device of a Gateway writes its peers' packets to, and reads those for
// them from. It lets pass what may, and hands TCP on to below.
type plane struct {
	nothing
	g       *Gateway
	out     *queue
	below   below
	over    chan struct{} // closed by Close
	once    sync.Once
	dropped [drops]atomic.Int64
	parts   atomic.Uint32 // names the datagrams that leave in parts
}

// below is where TCP goes: the kernel, or a netstack.
type below interface {
	// admit reports whether a TCP packet may go there. It may change the packet.
	admit(p []byte, i *packet.Info) bool
	// write takes packets that were admitted.
	write(bufs [][]byte, offset int)
	// read waits for packets that leave, also those of the plane's queue.
	read(bufs [][]byte, sizes []int, offset int) (int, error)
	close()
}

// listener is a below that has sockets.
type listener interface {
	refresh() // opens those that are wanted now, and closes the others
	stop()    // closes all
}

// Read implements tun.Device.
func (pl *plane) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-pl.g.begun:
	case <-pl.over:
		return 0, os.ErrClosed
	}
	return pl.below.read(bufs, sizes, offset)
}

// Write implements tun.Device. Several goroutines call it at once, one for each peer.
func (pl *plane) Write(bufs [][]byte, offset int) (int, error) {
	all := len(bufs)
	if !pl.g.running.Load() {
		pl.dropped[dropQueue].Add(int64(all))
		return all, nil
	}
	keep := bufs[:0] // what passes moves up; the device looks at none of it again
	var i packet.Info
	for _, b := range bufs {
		if pl.admit(b[offset:], &i) {
			keep = append(keep, b)
		}
	}
	if len(keep) > 0 {
		pl.below.write(keep, offset)
	}
	return all, nil
}

// Close implements tun.Device.
func (pl *plane) Close() error {
	pl.once.Do(func() { close(pl.over) })
	pl.out.close()
	pl.below.close()
	return nil
}

func (pl *plane) drop(why int) bool {
	pl.dropped[why].Add(1)
	return false
}

// admit reports whether a packet goes below. All but TCP it takes or drops itself.
func (pl *plane) admit(p []byte, i *packet.Info) bool {
	switch packet.Parse(p, i) {
	case packet.OK:
	case packet.Fragment:
		pl.fragment(p, i)
		return false
	case packet.Options:
		return pl.drop(dropOptions)
	case packet.Protocol:
		return pl.drop(dropProtocol)
	default:
		return pl.drop(dropMalformed)
	}
	if i.Protocol == packet.UDP {
		pl.datagram(p, i)
		return false
	}
	to := i.Destination
	if slices.Contains(pl.g.DNS, to.Addr()) {
		if to.Port() != dnsPort {
			return pl.nobody(p, i)
		}
	} else if !within(pl.g.Services, to.Addr()) {
		return pl.drop(dropDestination)
	} else if i.Flags&(packet.SYN|packet.ACK) == packet.SYN {
		if _, ok := pl.g.Find(to, "tcp"); !ok {
			return pl.nobody(p, i)
		}
	}
	if !pl.below.admit(p, i) {
		return pl.nobody(p, i)
	}
	return true
}

// nobody drops a TCP packet and says that nobody is there.
func (pl *plane) nobody(p []byte, i *packet.Info) bool {
	b := pl.out.buffer()
	if *b = packet.AppendReset(*b, p, i); len(*b) > 0 {
		pl.out.offer(b)
	}
	return pl.drop(dropService)
}

// datagram takes a UDP datagram.
func (pl *plane) datagram(p []byte, i *packet.Info) {
	to := i.Destination
	isDNS := slices.Contains(pl.g.DNS, to.Addr())
	if !isDNS && !within(pl.g.Services, to.Addr()) {
		pl.drop(dropDestination)
		return
	}
	if !packet.HasChecksum(p, i) {
		pl.drop(dropMalformed)
		return
	}
	s := pl.g.session(i.Source.Addr())
	switch {
	case s == nil:
		pl.drop(dropSource)
	case !isDNS:
		s.datagram(pl, p, i)
	case to.Port() != dnsPort:
		pl.unreachable(p, i)
		pl.drop(dropService)
	case !s.ask(pl, p[i.Data:], i.Source, to):
		pl.drop(dropFlows)
	}
}

// unreachable says of a UDP datagram that nobody takes it.
func (pl *plane) unreachable(p []byte, i *packet.Info) {
	b := pl.out.buffer()
	*b = packet.AppendUnreachable(*b, p, i)
	pl.out.offer(b)
}

// fragment takes a part of a datagram.
func (pl *plane) fragment(p []byte, i *packet.Info) {
	to := i.Destination.Addr()
	if i.Protocol != packet.UDP {
		pl.drop(dropFragment)
		return
	}
	if !within(pl.g.Services, to) {
		pl.drop(dropDestination)
		return
	}
	s := pl.g.session(i.Source.Addr())
	if s == nil {
		pl.drop(dropSource)
		return
	}
	s.mu.Lock()
	if s.parts == nil {
		s.parts = &packet.Reassembler{Most: partsMost, Within: partsWithin}
	}
	whole := s.parts.Add(p, i, time.Now())
	pl.dropped[dropFragment].Add(int64(s.parts.Dropped()))
	s.mu.Unlock()
	if whole == nil {
		return
	}
	if packet.Parse(whole, i) != packet.OK {
		pl.drop(dropMalformed)
		return
	}
	pl.datagram(whole, i)
}

// send sends a UDP datagram to a client.
func (pl *plane) send(from, to netip.AddrPort, data []byte) {
	b := pl.out.buffer()
	*b = packet.AppendUDP(*b, from, to, data)
	if len(*b) <= pl.mtu {
		pl.out.put(b)
		return
	}
	packet.Fragments(*b, pl.mtu, pl.parts.Add(1), func(part []byte) {
		piece := pl.out.buffer()
		*piece = append(*piece, part...)
		pl.out.put(piece)
	})
	pl.out.buffers.put(b)
}

func within(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}
