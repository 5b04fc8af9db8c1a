package rig

import (
	"io"
	"net"
	"sync"
	"sync/atomic"

	"cardea/test/cluster"
)

// Upstreams are what the proxies stand in front of: one that answers with what it
// is sent, one that takes all and counts it, and a sink for the logs of others.
type Upstreams struct {
	Echo, Sink, Log string // addresses

	taken     atomic.Int64
	listeners []io.Closer
	serving   sync.WaitGroup
}

func newUpstreams() (*Upstreams, error) {
	u := new(Upstreams)
	var err error
	if u.Echo, err = u.Listen(cluster.EchoBack); err != nil {
		return nil, err
	}
	if u.Sink, err = u.Listen(u.Take); err != nil {
		return nil, err
	}
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	u.Log = pc.LocalAddr().String()
	u.listeners = append(u.listeners, pc)
	u.serving.Go(func() {
		b := make([]byte, 64<<10)
		for {
			if _, _, err := pc.ReadFrom(b); err != nil {
				return
			}
		}
	})
	return u, nil
}

// Listen runs an upstream more, and returns its address.
func (u *Upstreams) Listen(serve func(net.Conn)) (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	u.listeners = append(u.listeners, l)
	u.serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with its client, which ends before this process
				defer c.Close()
				serve(c)
			}()
		}
	})
	return l.Addr().String(), nil
}

// Take takes all that comes, and counts it.
func (u *Upstreams) Take(c net.Conn) {
	b := make([]byte, 256<<10)
	for {
		n, err := c.Read(b)
		u.taken.Add(int64(n))
		if err != nil {
			return
		}
	}
}

func (u *Upstreams) close() {
	for _, l := range u.listeners {
		l.Close()
	}
	u.serving.Wait()
}
