package wireguard

import (
	"os"
	"sync"
)

// queue is the packets that leave for peers and do not come from the kernel.
type queue struct {
	c       chan *[]byte
	closed  chan struct{}
	once    sync.Once
	buffers buffers
	// wake is called after a packet was put, if it is not nil.
	wake func()
}

func newQueue(mtu int) *queue {
	return &queue{c: make(chan *[]byte, 1024), closed: make(chan struct{}), buffers: buffers{size: max(2048, mtu+128)}}
}

// buffer returns a buffer to append a packet to.
func (q *queue) buffer() *[]byte {
	b := q.buffers.get()
	*b = (*b)[:0]
	return b
}

// put waits for room. The packet is the queue's.
func (q *queue) put(p *[]byte) {
	select {
	case q.c <- p:
		if q.wake != nil {
			q.wake()
		}
	case <-q.closed:
	}
}

// offer loses the packet if there is no room: for who must not wait.
func (q *queue) offer(p *[]byte) {
	select {
	case q.c <- p:
		if q.wake != nil {
			q.wake()
		}
	default:
		q.buffers.put(p)
	}
}

// read waits for packets and returns as many as are there.
func (q *queue) read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case p := <-q.c:
		return q.more(p, bufs, sizes, offset), nil
	case <-q.closed:
		return 0, os.ErrClosed
	}
}

// ready returns the packets that are there, if any.
func (q *queue) ready(bufs [][]byte, sizes []int, offset int) int {
	select {
	case p := <-q.c:
		return q.more(p, bufs, sizes, offset)
	default:
		return 0
	}
}

func (q *queue) more(p *[]byte, bufs [][]byte, sizes []int, offset int) int {
	for n := 0; ; {
		sizes[n] = copy(bufs[n][offset:], *p)
		q.buffers.put(p)
		if n++; n == len(bufs) {
			return n
		}
		select {
		case p = <-q.c:
		default:
			return n
		}
	}
}

func (q *queue) close() { q.once.Do(func() { close(q.closed) }) }
