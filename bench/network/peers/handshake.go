package main

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/binary"
	"errors"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"
)

// An initiator is the part of WireGuard that begins: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s,
// as the paper on WireGuard (Donenfeld, 2017) has it in section 5.4, with cookies, and
// without anything that a device holds besides.
type initiator struct {
	own     *ecdh.PrivateKey
	gateway *ecdh.PublicKey
	cookies device.CookieGenerator

	ephemeral   *ecdh.PrivateKey
	chain, hash [blake2s.Size]byte
}

func newInitiator(gateway []byte) (*initiator, error) {
	own, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	g, err := ecdh.X25519().NewPublicKey(gateway)
	if err != nil {
		return nil, err
	}
	i := &initiator{own: own, gateway: g}
	i.cookies.Init(device.NoisePublicKey(gateway))
	return i, nil
}

func (i *initiator) mix(data []byte) {
	i.hash = blake2s.Sum256(append(i.hash[:], data...))
}

// shared returns a key of what two keys have in common, which goes into the chain.
func (i *initiator) shared(private *ecdh.PrivateKey, public *ecdh.PublicKey) (key [blake2s.Size]byte, err error) {
	s, err := private.ECDH(public)
	if err == nil {
		device.KDF2(&i.chain, &key, i.chain[:], s)
	}
	return key, err
}

var zeroNonce [chacha20poly1305.NonceSize]byte

func seal(key [blake2s.Size]byte, plain, additional []byte) []byte {
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		panic(err) // of a key of another length only
	}
	return aead.Seal(nil, zeroNonce[:], plain, additional)
}

// initiation returns a first message.
func (i *initiator) initiation() ([]byte, error) {
	var err error
	if i.ephemeral, err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	i.chain, i.hash = device.InitialChainKey, device.InitialHash
	i.mix(i.gateway.Bytes())
	public := i.ephemeral.PublicKey().Bytes()
	device.KDF1(&i.chain, i.chain[:], public)
	i.mix(public)
	key, err := i.shared(i.ephemeral, i.gateway)
	if err != nil {
		return nil, err
	}
	static := seal(key, i.own.PublicKey().Bytes(), i.hash[:])
	i.mix(static)
	if key, err = i.shared(i.own, i.gateway); err != nil {
		return nil, err
	}
	now := tai64n.Now()
	stamp := seal(key, now[:], i.hash[:])
	i.mix(stamp)
	m := binary.LittleEndian.AppendUint32(nil, device.MessageInitiationType)
	m = binary.LittleEndian.AppendUint32(m, 1) // our index: each has a socket of its own
	m = append(append(append(m, public...), static...), stamp...)
	m = append(m, make([]byte, device.MessageInitiationSize-len(m))...)
	i.cookies.AddMacs(m)
	return m, nil
}

// A kind is what an answer was.
type kind int

const (
	strange  kind = iota
	cookie        // the next initiation has to prove the address
	response      // the keys are there
)

// answered takes an answer. After a response it returns the first message under the new
// keys, an empty one, which proves them to the gateway.
func (i *initiator) answered(m []byte) (kind, []byte) {
	switch {
	case len(m) == device.MessageCookieReplySize && binary.LittleEndian.Uint32(m) == device.MessageCookieReplyType:
		var reply device.MessageCookieReply
		if err := binary.Read(bytes.NewReader(m), binary.LittleEndian, &reply); err == nil && i.cookies.ConsumeReply(&reply) {
			return cookie, nil
		}
	case len(m) == device.MessageResponseSize && binary.LittleEndian.Uint32(m) == device.MessageResponseType:
		if first, err := i.keyed(m); err == nil {
			return response, first
		}
	}
	return strange, nil
}

func (i *initiator) keyed(m []byte) ([]byte, error) {
	const index, public, empty = 4, 12, 44
	e, err := ecdh.X25519().NewPublicKey(m[public:empty])
	if err != nil {
		return nil, err
	}
	i.mix(e.Bytes())
	device.KDF1(&i.chain, i.chain[:], e.Bytes())
	for _, private := range []*ecdh.PrivateKey{i.ephemeral, i.own} {
		s, err := private.ECDH(e)
		if err != nil {
			return nil, err
		}
		device.KDF1(&i.chain, i.chain[:], s)
	}
	var tau, key, none [blake2s.Size]byte
	device.KDF3(&i.chain, &tau, &key, i.chain[:], none[:]) // no preshared key
	i.mix(tau[:])
	if !bytes.Equal(seal(key, nil, i.hash[:]), m[empty:empty+chacha20poly1305.Overhead]) {
		return nil, errors.New("not under our keys")
	}
	var send, receive [blake2s.Size]byte
	device.KDF2(&send, &receive, i.chain[:], nil)
	first := binary.LittleEndian.AppendUint32(nil, device.MessageTransportType)
	first = append(first, m[index:index+4]...)
	first = binary.LittleEndian.AppendUint64(first, 0)
	return append(first, seal(send, nil, nil)...), nil
}
