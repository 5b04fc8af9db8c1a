package tls

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"

	"cardea/api"
)

// A Terminator ends the TLS of clients that show no certificate, as on the public
// port of a Service. Endings are those of the raw form, see the package comment.
type Terminator struct {
	// Admit is that of [Server].
	Admit func(context.Context, net.Conn) (heard func() error, leave func(proved bool) error, err error)
	// Certificate returns the certificate of a server name.
	Certificate func(name string) (*tls.Certificate, error)
	// Limit is the time for a handshake; zero is 10 s.
	Limit time.Duration
}

// Accept makes the handshake of a connection that was accepted, with the
// certificate of that name whatever name the client asks for: it may know the
// Service by another one, and has to be content with this one. It speaks TLS 1.2
// and 1.3 and the first ALPN protocol that the client offers. The conn is a
// [cardea/tunnel.Conn]. If there is an error, c is closed. The error is words for
// the log, and has a method Reason() api.ReasonType.
func (t *Terminator) Accept(ctx context.Context, c net.Conn, name string) (net.Conn, *api.TLSFacts, error) {
	sock := &socket{Conn: c, mute: true}
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			if err := sock.heard(); err != nil {
				return nil, err
			}
			if len(info.SupportedVersions) == 0 { // SSLv3 or older
				return nil, errors.New("no version of TLS is offered")
			}
			cert, err := t.Certificate(name)
			if err != nil {
				return nil, err
			}
			sock.mute, sock.strict = false, true
			own := &tls.Config{
				MinVersion:                  tls.VersionTLS12,
				Certificates:                []tls.Certificate{*cert},
				SessionTicketsDisabled:      true, // see the package comment
				DynamicRecordSizingDisabled: true,
			}
			if len(info.SupportedProtos) > 0 {
				own.NextProtos = info.SupportedProtos[:1]
			}
			return own, nil
		},
	}
	limit := t.Limit
	if limit <= 0 {
		limit = handshakeTime
	}
	h := handshake{admit: t.Admit, limit: limit, proves: func(*tls.Conn) bool { return false }}
	conn, err := h.do(ctx, sock, config)
	if err != nil {
		c.Close()
		return nil, nil, refused(err)
	}
	state := conn.ConnectionState()
	facts := &api.TLSFacts{
		SNI:     strings.ToLower(state.ServerName),
		ALPN:    state.NegotiatedProtocol,
		Version: strings.TrimPrefix(tls.VersionName(state.Version), "TLS "),
	}
	facts.SNI = facts.SNI[:min(len(facts.SNI), 255)]
	return &raw{Conn: conn, socket: sock}, facts, nil
}
