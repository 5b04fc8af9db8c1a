// Package quic is the road over QUIC (RFC 9000): a [Server] and a [Dialer]. It bears
// loss and a change of the client's address, and streams do not wait for one another,
// unless very many of a connection are not read.
//
// The client comes to the server name gateway.DOMAIN with the certificate of its
// Session, which is verified as over TLS. The ALPN protocol says what the connection is
// for:
//
//   - cardea/1: streams to Services, each a bidirectional stream of QUIC that the client
//     opens.
//   - cardea-packets/1: a [tunnel.Pipe].
//
// # Streams
//
// The client begins with an OPEN of package cardea/wire/frame, and the server with a
// VERDICT; both are followed by the bytes of the stream, as they are. FIN is the end of
// file. A reset is RESET_STREAM and STOP_SENDING with the code 1, and before that a
// record on the control stream that tells the reason.
//
// Each side has one control stream, which is unidirectional and carries records: the id
// of a stream in 8 bytes, big endian, and a frame. RESET tells the reason of a reset,
// which is one of the whole stream, whatever of it has already come to its end. DONE
// says that all up to FIN was read, so that the other side knows when nothing is left
// to be delivered. DONE of the stream 2^63-1 is the server's, and says that no further
// stream is served on this connection.
//
// # Packets
//
// Each packet is a datagram (RFC 9221). What is too large for one goes, behind its
// length in 2 bytes, big endian, on a unidirectional stream, of which each side has one.
// That of the server begins with a packet of no bytes, when it has taken the client.
package quic
