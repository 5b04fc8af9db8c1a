// Package frame is the codec of the protocol cardea/1, in which a client asks a
// gateway for streams to Services. It knows bytes and neither sockets nor TLS.
//
// # The protocol
//
// cardea/1 runs over TLS 1.3 with a client certificate. The client offers the
// ALPN protocol "cardea/1" (RFC 7301) and the server name gateway.DOMAIN. After
// the handshake both peers send frames:
//
//	+------+---------------+------------------+
//	| type | length        | payload          |
//	| 1    | 2, big endian | length bytes     |
//	+------+---------------+------------------+
//
//	type     name     payload                                            at most
//	0x01     HELLO    version: 2 bytes, big endian                       2 bytes
//	0x02     OPEN     service, trace id: each 1 byte of length and text  512 bytes
//	0x03     VERDICT  code, decision id: each 1 byte of length and text; 4096 bytes
//	                  words: the rest, text
//	0x04     DATA     1 or more bytes of the stream                      16381 bytes
//	0x05     EOF      nothing                                            0
//	0x06     RESET    reason: text                                       4096 bytes
//	0x07     DONE     nothing                                            0
//
// Text is UTF-8. A frame with another type, a longer payload, malformed text, an
// empty DATA, or bytes left over is a protocol error; whoever finds one closes
// the TLS connection, after a RESET if it likes. A full DATA frame is one full
// TLS record.
//
// # Version
//
// The first frame of each peer is HELLO. The client's says the highest version
// that it speaks, the server's the one to be spoken, which is not higher; this
// package speaks version 1. The client need not wait for the answer: it may send
// OPEN, in the form of version 1, right behind its HELLO.
//
// # Streams
//
// A connection carries one stream at a time, any number one after the other.
//
//	client                          server
//	OPEN                     →
//	DATA… EOF                →      (may follow OPEN at once)
//	                         ←      VERDICT  OK
//	                         ←      DATA… EOF
//	DONE                     →
//	                         ←      DONE
//	OPEN                     →      (the next stream)
//
// OPEN names a Service as SERVICE or SERVICE.NAMESPACE. The server answers with
// one VERDICT. Its code is "OK", and the stream is open, or it is another, and
// the stream is refused: "DENIED" (may not, or there is no such Service, which
// the client cannot tell apart) or "UNAVAILABLE" (try again). A client takes a
// code that it does not know for a refusal. The decision id, and words for a
// person, may be empty. The server sends no DATA and no EOF before VERDICT; it
// discards what a refused client has sent.
//
// EOF says that no more DATA comes from that side; the other side may go on.
// RESET says that the stream is cut, and why: the receiver must not let what it
// got so far look finished. It may be sent at any time, in place of whatever
// else would come, also before VERDICT and after EOF; so whoever has received EOF
// reads on, and does not let the stream outlive a peer that is gone.
//
// # The end of a stream
//
// Each direction of a stream ends with exactly one of
//
//   - DONE, which a peer sends after it has sent and received EOF, or received
//     RESET or a refusal;
//   - RESET;
//   - a VERDICT that refuses.
//
// Nothing of that stream follows in that direction. So RESET and a refusal are
// acknowledged by DONE, except that two that cross acknowledge one another.
// Whoever has sent its end discards what still arrives until the other's. When
// both directions have ended, the client may send the next OPEN. A peer that
// will not wait for the other's end closes the TCP connection instead.
//
// Between streams either peer may close the connection with close_notify. At any
// other time a connection that ends is a RESET.
//
// # Reverse links
//
// The ALPN protocol "cardea-serve/1" is the same with the parts swapped after the
// handshake: the gateway, the TLS server, takes the client's part. Its OPEN names a
// target of the device, SERVICE.NAMESPACE/CONFIG.
package frame
