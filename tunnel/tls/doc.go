// Package tls is the road over mutual TLS 1.3: a [Server] that sorts what comes
// in on one port, and a [Dialer].
//
// A client presents a certificate of its Session; the key was proved by the
// handshake (or, if a TLS session is resumed, by the one that it resumes), and
// the certificate is verified again each time. There are two forms for its streams:
//
//   - cardea/1: the ALPN protocol of that name at the server name
//     gateway.DOMAIN, as package cardea/wire/frame specifies it. Streams follow
//     one another on a connection, so that a new one costs no handshake, and the
//     caller is told a verdict.
//   - raw: the server name NAME.NAMESPACE.svc.DOMAIN (or NAME.svc.DOMAIN in
//     Namespace default) names the Service, and its bytes follow. Any TLS client
//     can do that, with the application's own ALPN protocol or none.
//     close_notify (RFC 8446, section 6.1) is half-close; a TCP connection that
//     ends without it is a reset.
//
// Two more ALPN protocols at gateway.DOMAIN take the same certificate:
//
//   - cardea-packets/1 is a [tunnel.Pipe]: a packet follows another, each behind its
//     length in two bytes, big endian. The gateway begins with one of no bytes, when it
//     has taken the client.
//   - cardea-serve/1 is a reverse link, from a device that serves an upstream: cardea/1
//     in which, after the handshake, the gateway is who asks. It says HELLO first, and
//     its OPEN names a target, SERVICE.NAMESPACE/CONFIG. The [Listener] on the device
//     keeps some that wait; [Server.DialBack] uses them.
//
// Under the names of public Services a client may also come without a certificate,
// as nobody in particular.
//
// What has no server name, an IP address for one, or api.DOMAIN is a connection
// to the API. Everything else is refused and learns nothing.
package tls
