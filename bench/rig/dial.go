package rig

import (
	"context"
	"crypto/tls"
	"net"
)

// Plain returns how a TCP connection to an address is opened.
func Plain(address string) Dial {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", address)
	}
}

// TLS returns how a TLS connection to an address is opened.
func TLS(address string, config *tls.Config) Dial {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		s := tls.Client(c, config)
		if err := s.HandshakeContext(ctx); err != nil {
			c.Close()
			return nil, err
		}
		return s, nil
	}
}
