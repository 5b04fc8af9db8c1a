package upstream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"cardea/api"
	"cardea/wire/pgstart"
	"cardea/wire/proxyproto"
)

// A dissent is an answer to a request for TLS that is not yes.
type dissent struct{ words string }

func (e *dissent) Error() string { return e.words }

// preface says on a new connection what comes before TLS and before the bytes of the
// client: the PROXY header, and the request for TLS of a protocol that has one. Of
// the upstream it reads one byte, the answer to the request, and no more.
func preface(ctx context.Context, conn net.Conn, t api.Destination) error {
	var out []byte
	if v := t.Config.Upstream.ProxyProtocol; v != "" {
		var err error
		if out, err = proxyHeader(v, t.Facts, t.ConnectionID).Append(out); err != nil {
			return err
		}
	}
	asks := t.Config.Upstream.StartTLS == api.StartTLSPostgres
	if asks {
		out = pgstart.AppendSSLRequest(out)
	}
	if len(out) == 0 {
		return nil
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	_, err := conn.Write(out)
	if err == nil && asks {
		err = consent(conn)
	}
	if !stop() {
		return ctx.Err()
	}
	return err
}

// consent reads whether a PostgreSQL server will speak TLS.
func consent(conn net.Conn) error {
	var answer [1]byte
	if _, err := io.ReadFull(conn, answer[:]); err != nil {
		return err
	}
	switch answer[0] {
	case pgstart.Yes:
		return nil
	case pgstart.No:
		return &dissent{"the PostgreSQL server speaks no TLS (it answered SSLRequest with N): set ssl = on there"}
	case 'E':
		return &dissent{"the PostgreSQL server answered SSLRequest with an error: see its own log"}
	}
	return &dissent{fmt.Sprintf("the upstream answered SSLRequest with %q, which no PostgreSQL server does: correct its address, or leave STARTTLS out", answer[:])}
}

// explainPreface makes an Error of what went wrong before TLS began. name is
// HOST:PORT.
func explainPreface(gone error, name string, timeout time.Duration, err error) *Error {
	refused, isRefused := errors.AsType[*dissent](err)
	switch {
	case errors.Is(gone, context.Canceled):
		return givenUp(gone, name)
	case isRefused:
		return errorAt(name, UpstreamTLS, refused.words, err)
	case outOfTime(err):
		return errorAt(name, DialTimeout, fmt.Sprintf("connected, and no answer to the request for TLS (SSLRequest) within %v; see whether a PostgreSQL server listens there", timeout), err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return errorAt(name, DialFailed, "the upstream ended the connection as soon as it was made; see its own log, and whether it wants a PROXY header", err)
	}
	return errorAt(name, DialFailed, err.Error(), err)
}

// proxyHeader returns what an upstream is told of a client: what was seen here, and
// not what another proxy said, but for the two addresses of the client's connection.
func proxyHeader(v api.ProxyVersion, f *api.Facts, id string) *proxyproto.Header {
	h := &proxyproto.Header{Version: 1}
	if v == api.ProxyV2 {
		h.Version = 2
	}
	var client netip.Addr
	if f != nil {
		client, _ = netip.ParseAddr(f.IP)
	}
	if !client.IsValid() { // a Unix socket, or nobody
		h.Local = true
		return h
	}
	h.Source = netip.AddrPortFrom(client, uint16(f.Port))
	to := f.Listener
	if f.Proxy != nil && f.Proxy.Destination != "" {
		to = f.Proxy.Destination
	}
	var err error
	if h.Destination, err = netip.ParseAddrPort(to); err != nil {
		h.Destination = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
	}
	if h.Version == 1 {
		return h
	}
	h.UniqueID = id[:min(len(id), proxyproto.MaxID)]
	if t := f.TLS; t != nil {
		h.Authority = t.SNI
		if t.Version != "" { // it was ended here
			h.ALPN = t.ALPN
			h.SSL = &proxyproto.SSL{TLS: true, Version: "TLSv" + t.Version}
			if c := t.ClientCertificate; c != nil {
				h.SSL.CertificateNow, h.SSL.CertificateSession, h.SSL.Verified = true, true, true
				h.SSL.CommonName = commonName(c.Subject)
			}
		}
	}
	return h
}

// commonName returns the CN of a distinguished name (RFC 2253), "" if it has none.
func commonName(subject string) string {
	for part := range attributes(subject) {
		if name, value, _ := strings.Cut(part, "="); name == "CN" {
			return value
		}
	}
	return ""
}

// attributes yields the attributes of a distinguished name as TYPE=VALUE, without
// escapes.
func attributes(name string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		var part strings.Builder
		for i := 0; i < len(name); i++ {
			switch c := name[i]; {
			case c == '\\' && i+1 < len(name):
				i++
				part.WriteByte(name[i])
			case c == ',' || c == '+':
				if !yield(part.String()) {
					return
				}
				part.Reset()
			default:
				part.WriteByte(c)
			}
		}
		yield(part.String())
	}
}
