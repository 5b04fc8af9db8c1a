package wireguard

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"sync"
	"time"
)

// A probe asks the port of a gateway whether UDP gets there and back, in 32 bytes:
//
//	type (4) nonce (8) epoch (4) mac (16)
//
// The answer has the same size and nonce, another type, and the epoch of the gateway: a
// random number that is another one after each start, at which the gateway has forgotten
// the keys of its peers. The mac is the beginning of HMAC-SHA-256 (RFC 2104) under the
// gateway's public key, as mac1 of WireGuard is: who does not know the key gets no
// answer, and learns nothing from the port. WireGuard has no messages of these types.
const (
	probeSize   = 32
	probeType   = 0xca7dea50
	answerType  = 0xca7dea51
	probeSigned = probeSize - 16
)

// isProbe reports whether a packet is a probe or an answer to one, and none of
// WireGuard's.
func isProbe(b []byte) bool {
	t := binary.LittleEndian.Uint32(b)
	return t == probeType || t == answerType
}

// epoch names a run of a gateway.
type epoch uint32

func newEpoch() epoch {
	var b [4]byte
	rand.Read(b[:])
	return epoch(binary.LittleEndian.Uint32(b[:]) | 1) // never 0
}

// nonce tells probes apart.
type nonce [8]byte

// makeProbe returns a probe, or the answer to one.
func makeProbe(kind uint32, n nonce, e epoch, gateway Key) []byte {
	b := make([]byte, 0, probeSize)
	b = binary.LittleEndian.AppendUint32(b, kind)
	b = append(b, n[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(e))
	return append(b, macOf(b, gateway)...)
}

func macOf(b []byte, gateway Key) []byte {
	m := hmac.New(sha256.New, gateway[:])
	m.Write(b)
	return m.Sum(nil)[:16]
}

// readProbe returns what a probe or an answer says, if it is signed under the key.
func readProbe(kind uint32, b []byte, gateway Key) (nonce, epoch, bool) {
	if len(b) != probeSize || binary.LittleEndian.Uint32(b) != kind ||
		!hmac.Equal(macOf(b[:probeSigned], gateway), b[probeSigned:]) {
		return nonce{}, 0, false
	}
	return nonce(b[4:12]), epoch(binary.LittleEndian.Uint32(b[12:])), true
}

// pace is a bucket of so many events a second.
type pace struct {
	rate float64

	mu   sync.Mutex
	left float64
	at   time.Time
}

func (p *pace) allow(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.left = min(p.rate, p.left+now.Sub(p.at).Seconds()*p.rate)
	p.at = now
	if p.left < 1 {
		return false
	}
	p.left--
	return true
}
