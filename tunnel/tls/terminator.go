package tls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"slices"
	"strings"
	"time"

	"cardea/api"
	"cardea/tunnel"
	wirehello "cardea/wire/hello"
)

// A Terminator ends the TLS of clients on public ports, where the caller has let them
// in and says what is spoken. Endings are those of the raw form, see the package
// comment.
type Terminator struct {
	// Limit is the time for a handshake; zero is 10 s.
	Limit time.Duration
}

// A reader is a connection of which the hello was read ahead.
type reader interface {
	// Hello returns what was read, nil if it was not.
	Hello() *wirehello.Hello
}

var errTwoHellos = errors.New("the ClientHello can be read in two ways")

// Accept makes the handshake of a connection that was accepted, as config says. The
// conn is a [cardea/tunnel.Conn]. If there is an error, c is closed; the error is
// words for the log, and has a method Reason() api.ReasonType.
//
// c may hold bytes that were read ahead; NetConn must then lead to the connection
// beneath. If it has a method Hello() *hello.Hello that returns one, by which the
// config was chosen, whoever makes crypto/tls read another server name, or other
// protocols, is refused.
//
// The config is not changed, and may be used for any number of connections. Sessions
// are resumed among those to which it is given, unless it disables tickets: make
// another one, and no clone, which has the same keys of tickets, when what it was made
// of has changed. VerifyConnection is called each time. Without NextProtos the first
// protocol that the client offers is spoken. GetConfigForClient is not called.
//
// The facts say what the hello said, once it was read, also with an error; without
// one, what was agreed on. The certificate is that of the client, if it showed one
// and crypto/tls verified it against config.ClientCAs.
func (t *Terminator) Accept(ctx context.Context, c net.Conn, config *tls.Config) (net.Conn, *api.TLSFacts, *x509.Certificate, error) {
	sock := &socket{Conn: c, mute: true}
	var facts *api.TLSFacts
	sorting := &tls.Config{
		SessionTicketsDisabled: true, // it would make keys for nothing
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			facts = helloFacts(info)
			if len(info.SupportedVersions) == 0 { // SSLv3 or older
				return nil, errors.New("no version of TLS is offered")
			}
			if r, ok := c.(reader); ok && !same(r.Hello(), info) {
				return nil, errTwoHellos
			}
			sock.mute, sock.strict = false, true
			own := sock.config(config)
			own.DynamicRecordSizingDisabled = true // one write, one record: latency is the application's choice
			if own.NextProtos == nil && len(info.SupportedProtos) > 0 {
				own.NextProtos = info.SupportedProtos[:1]
			}
			return own, nil
		},
	}
	limit := t.Limit
	if limit <= 0 {
		limit = handshakeTime
	}
	conn, err := handshake{limit: limit}.shake(ctx, sock, sorting)
	if err != nil {
		c.Close()
		return nil, facts, nil, refused(err)
	}
	state := conn.ConnectionState()
	var leaf *x509.Certificate
	if len(state.VerifiedChains) > 0 {
		leaf = state.PeerCertificates[0]
	}
	return &raw{Conn: conn, socket: sock}, tunnel.TLSFacts(&state, leaf), leaf, nil
}

// same tells whether a hello was read as crypto/tls reads it; nil was not read.
func same(h *wirehello.Hello, info *tls.ClientHelloInfo) bool {
	return h == nil || h.SNI == strings.ToLower(info.ServerName) && slices.Equal(h.ALPN, info.SupportedProtos)
}

// helloFacts returns what is to be said of a hello.
func helloFacts(info *tls.ClientHelloInfo) *api.TLSFacts {
	f := &api.TLSFacts{SNI: tunnel.ServerName(info.ServerName)}
	if len(info.SupportedProtos) > 0 {
		f.ALPN = info.SupportedProtos[0]
	}
	return f
}
