// Package proxyproto reads and writes the header of the PROXY protocol, versions 1
// and 2, with which a proxy tells, before any other byte, from where the connection
// came that it passes on. It knows bytes and no sockets, and does not ask whom to
// believe: a header is to be read from proxies that are trusted, where it is
// mandatory, and from nobody else.
//
// Source: "The PROXY protocol, Versions 1 & 2", Willy Tarreau, HAProxy, revision of
// 2025 (doc/proxy-protocol.txt).
package proxyproto

import "net/netip"

// Limits of a header, in bytes.
const (
	MaxV1    = 107     // of a line of version 1, with its end
	MaxV2    = 4 << 10 // of a header of version 2
	MaxID    = 128     // of a UniqueID
	maxUnix  = 108     // of a Unix address
	maxShort = 255     // of a text that is a name
)

// A Header is what a proxy says of a connection.
type Header struct {
	Version int // 1 or 2
	// Local is set if the proxy speaks for itself, say to see whether we are alive
	// (version 2, command LOCAL). Nothing else is set then.
	Local bool
	// Source and Destination are the ends of the connection to the proxy, if it was
	// one of IPv4 or IPv6; not valid otherwise. An IPv4 address in the form of an IPv6
	// one (::ffff:a.b.c.d) is told as what it is.
	Source, Destination netip.AddrPort
	// Unix is set if the connection was one of Unix sockets; SourcePath and
	// DestinationPath are their addresses, which may be empty, or abstract (beginning
	// with a zero byte).
	Unix                        bool
	SourcePath, DestinationPath string
	Datagram                    bool // of UDP, or of Unix sockets of that kind

	// The rest is in version 2 only.

	ALPN      string // the protocol that was negotiated
	Authority string // the server name that the client asked for: UTF-8, at most 255 bytes
	UniqueID  string // any bytes, at most MaxID
	Namespace string // network namespace of the connection at the proxy: ASCII
	SSL       *SSL   // nil if nothing is said about TLS
	Checksum  bool   // there is a CRC32c; it was verified, or is to be written
	TLVs      []TLV  // of other types, in order; without padding
}

// A TLV is a field: a type and its value.
type TLV struct {
	Type  byte
	Value string
}

// SSL is what a proxy says of the client's TLS.
type SSL struct {
	TLS bool // the client spoke TLS with the proxy
	// CertificateNow is set if the client showed a certificate on this connection, and
	// CertificateSession if it did when the TLS session began.
	CertificateNow, CertificateSession bool
	// Verified is set if the client showed a certificate and it was verified.
	Verified bool
	// Version is that of TLS, as "TLSv1.3".
	Version    string
	CommonName string // of the client's certificate: UTF-8
	Cipher     string
	SigAlg     string // of the certificate
	KeyAlg     string // of the certificate
	Group      string // of the key exchange
	SigScheme  string // of the handshake
	ClientCert string // the certificate, DER
	TLVs       []TLV  // of other types, in order
}

// signature begins a header of version 2.
const signature = "\r\n\r\n\x00\r\nQUIT\n"

// Numbers of version 2.
const (
	headerV2 = 16 // bytes before the addresses

	version2     = 0x20
	commandLocal = 0
	commandProxy = 1

	familyUnspec = 0x00
	familyINET   = 0x10
	familyINET6  = 0x20
	familyUnix   = 0x30
	stream       = 0x01
	datagram     = 0x02

	lenINET  = 12
	lenINET6 = 36
	lenUnix  = 2 * maxUnix
)

// Types of TLVs.
const (
	tlvALPN      = 0x01
	tlvAuthority = 0x02
	tlvCRC32C    = 0x03
	tlvNoop      = 0x04
	tlvUniqueID  = 0x05
	tlvSSL       = 0x20
	tlvNetNS     = 0x30

	sslVersion    = 0x21
	sslCN         = 0x22
	sslCipher     = 0x23
	sslSigAlg     = 0x24
	sslKeyAlg     = 0x25
	sslGroup      = 0x26
	sslSigScheme  = 0x27
	sslClientCert = 0x28

	clientTLS     = 1
	clientNow     = 2
	clientSession = 4
)
