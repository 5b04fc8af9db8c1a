package packet

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// A Reassembler puts the fragments of UDP datagrams together. It takes no part that
// overlaps another one (RFC 5722): then the whole datagram is given up. What it holds is
// bounded, and so is how long: the oldest give way to new ones. It is for one goroutine
// at a time.
type Reassembler struct {
	// Most is how many bytes may wait for their rest, and Within how long.
	Most   int
	Within time.Duration

	held    map[whole]*parts
	bytes   int
	oldest  *parts // a list in the order of age
	newest  *parts
	dropped int
}

// whole names a datagram that comes in parts.
type whole struct {
	from, to netip.Addr
	protocol uint8
	id       uint32
}

// parts is a datagram that is not whole yet.
type parts struct {
	key        whole
	since      time.Time
	data       []byte // as far as the last byte that has come
	have       []span // in order, none of them touching another
	size       int    // 0 as long as it is not known
	dead       bool   // it was given up, and what still comes of it is dropped
	next, prev *parts
}

// span is the bytes from, up to and without to.
type span struct{ from, to int }

// Dropped returns how many datagrams were given up, and forgets it.
func (r *Reassembler) Dropped() int {
	n := r.dropped
	r.dropped = 0
	return n
}

// Add takes a fragment: a packet of which Parse has said Fragment, and i. When it was the
// last that was missing, Add returns the whole as one packet without fragments, and
// otherwise nil. The packet may be larger than what an IP header can say, and is not if
// Parse takes it.
func (r *Reassembler) Add(b []byte, i *Info, now time.Time) []byte {
	r.Expire(now)
	piece := b[i.Transport:]
	at := span{i.part.offset, i.part.offset + len(piece)}
	if i.part.offset == 0 && !i.part.more { // all of it in one
		return join(i, piece)
	}
	key := whole{i.Source.Addr(), i.Destination.Addr(), i.Protocol, i.part.id}
	p := r.held[key]
	if p == nil {
		if r.held == nil {
			r.held = map[whole]*parts{}
		}
		p = &parts{key: key, since: now, prev: r.newest}
		if r.newest != nil {
			r.newest.next = p
		} else {
			r.oldest = p
		}
		r.newest, r.held[key] = p, p
		r.bytes += overhead
	}
	if p.dead {
		return nil
	}
	if !p.take(at, i.part.more) {
		p.dead = true
		r.bytes -= cap(p.data)
		p.data, p.have = nil, nil
		r.dropped++
		return nil
	}
	if at.to > len(p.data) {
		was := cap(p.data)
		p.data = append(p.data, make([]byte, at.to-len(p.data))...)
		r.bytes += cap(p.data) - was
	}
	copy(p.data[at.from:], piece)
	if p.size > 0 && len(p.have) == 1 && p.have[0] == (span{0, p.size}) {
		r.remove(p)
		return join(i, p.data)
	}
	for r.bytes > r.Most && r.oldest != nil {
		if !r.oldest.dead {
			r.dropped++
		}
		r.remove(r.oldest)
	}
	return nil
}

// overhead is what a datagram costs in bytes beside its data, about.
const overhead = 256

// most is in how many pieces that do not touch a datagram may be held: more is an attack.
const most = 64

// take notes that a span has come, unless it overlaps or contradicts what came before.
func (p *parts) take(s span, more bool) bool {
	if !more {
		if p.size != 0 || len(p.have) > 0 && p.have[len(p.have)-1].to > s.to {
			return false
		}
		p.size = s.to
	} else if p.size != 0 && s.to >= p.size {
		return false
	}
	n := 0
	for n < len(p.have) && p.have[n].to <= s.from {
		n++
	}
	if n < len(p.have) && p.have[n].from < s.to {
		return false
	}
	before := n > 0 && p.have[n-1].to == s.from
	after := n < len(p.have) && p.have[n].from == s.to
	switch {
	case before && after:
		p.have[n-1].to = p.have[n].to
		p.have = append(p.have[:n], p.have[n+1:]...)
	case before:
		p.have[n-1].to = s.to
	case after:
		p.have[n].from = s.from
	case len(p.have) == most:
		return false
	default:
		p.have = append(p.have, span{})
		copy(p.have[n+1:], p.have[n:])
		p.have[n] = s
	}
	return true
}

// Expire gives up what has waited too long. Add does so too: it is for who gets no more
// fragments.
func (r *Reassembler) Expire(now time.Time) {
	for r.oldest != nil && now.Sub(r.oldest.since) >= r.Within {
		if !r.oldest.dead {
			r.dropped++
		}
		r.remove(r.oldest)
	}
}

func (r *Reassembler) remove(p *parts) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		r.oldest = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		r.newest = p.prev
	}
	delete(r.held, p.key)
	r.bytes -= cap(p.data) + overhead
}

// join returns a packet with the addresses of i.
func join(i *Info, data []byte) []byte {
	from, to := i.Source.Addr(), i.Destination.Addr()
	b := appendIP(make([]byte, 0, IPv6Header+len(data)), from, to, i.Protocol, len(data))
	if from.Is4() && IPv4Header+len(data) > 65535 {
		binary.BigEndian.PutUint16(b[2:], 0) // it would wrap round: Parse refuses it
	}
	return append(b, data...)
}
