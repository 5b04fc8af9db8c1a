package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"

	"cardea/bench/rig"
	"cardea/wire/frame"
)

// framed is the client's end of one stream of cardea/1 on a connection of its own,
// without a pool: as little of the protocol as a measurement needs.
type framed struct {
	*tls.Conn
	frames *frame.Reader
}

// framedTo opens a stream to a Service on each connection that dial opens, which is
// one of TLS.
func framedTo(dial rig.Dial, service string) rig.Dial {
	return func(ctx context.Context) (net.Conn, error) {
		c, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		f, err := openFramed(c.(*tls.Conn), service)
		if err != nil {
			c.Close()
			return nil, err
		}
		return f, nil
	}
}

// openFramed asks for a stream on a connection that has made its handshake.
func openFramed(c *tls.Conn, service string) (*framed, error) {
	ask, err := frame.AppendOpen(frame.AppendHello(nil, frame.Hello{Version: frame.Version}), frame.Open{Service: service})
	if err != nil {
		return nil, err
	}
	if _, err := c.Write(ask); err != nil {
		return nil, err
	}
	f := &framed{c, frame.NewReader(c)}
	for {
		x, err := f.frames.Next()
		switch {
		case err != nil:
			return nil, err
		case x.Type == frame.TypeVerdict && x.Verdict.Code == frame.CodeOK:
			return f, nil
		case x.Type == frame.TypeVerdict:
			return nil, fmt.Errorf("refused: %s", x.Verdict.Words)
		}
	}
}

// Read implements net.Conn.
func (f *framed) Read(p []byte) (int, error) {
	for f.frames.Left() == 0 {
		if x, err := f.frames.Next(); err != nil {
			return 0, err
		} else if x.Type != frame.TypeData {
			return 0, fmt.Errorf("got %s", x.Type)
		}
	}
	return f.frames.Data(p)
}

// Write implements net.Conn.
func (f *framed) Write(p []byte) (int, error) {
	_, err := f.Conn.Write(frame.AppendData(nil, p))
	return len(p), err
}
