package cluster

import (
	"io"
	"net"
	"sync"
)

// EchoBack answers with what it is sent, until its client ends. It does not
// splice: that takes two more descriptors for each connection.
func EchoBack(c net.Conn) { io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{c}) }

// Echo starts an upstream on loopback that answers with what it is sent and ends
// when its client does. stop ends it, with its connections, and waits for it.
func Echo() (address string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	var (
		serving sync.WaitGroup
		mu      sync.Mutex
		open    = map[net.Conn]bool{} // nil once it is stopped
	)
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			if open == nil {
				mu.Unlock()
				c.Close()
				return
			}
			open[c] = true
			mu.Unlock()
			serving.Go(func() {
				EchoBack(c)
				mu.Lock()
				delete(open, c)
				mu.Unlock()
				c.Close()
			})
		}
	})
	return l.Addr().String(), func() {
		l.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		open = nil
		mu.Unlock()
		serving.Wait()
	}, nil
}
