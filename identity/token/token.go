// Package token makes and reads the tokens by which a User logs in.
//
// A token is cardea1_UID_RANDOM: the uid of its Credential, by which it is
// found, and 256 random bits, by which it is believed. The cluster keeps the
// SHA-256 of the whole token only; a plain hash is enough, because nobody
// guesses 256 bits.
package token

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"errors"
	"strings"

	"cardea/api"
)

const (
	prefix = "cardea1_" // also what scanners for leaked tokens look for
	// maxUID is the size of the longest uid; a UUID has 36 bytes.
	maxUID = 64
	// randomSize is the size of the random part: 256 bits, five in a character.
	randomSize = 52

	letters   = "abcdefghijklmnopqrstuvwxyz"
	uidSet    = letters + "0123456789-"
	randomSet = letters + "234567"
)

var errMalformed = errors.New("token: not a token of a Credential: want cardea1_UID_SECRET, whole and without spaces")

// New returns a new token of the Credential of that uid, and its SHA-256 in hex,
// which goes into the Credential's status. The token itself is shown once and
// kept nowhere. A uid is 1 to 64 characters of a-z, 0-9 and '-', as the server
// makes them; New panics for any other.
func New(credentialUID string) (token, sha256Hex string) {
	if !validUID(credentialUID) {
		panic("token: a uid that cannot be part of a token")
	}
	random := make([]byte, 32)
	rand.Read(random) // never fails
	// Base32 (RFC 4648) in lower case, without its padding: no character that a
	// shell, a URL or a mail program would take for the token's end.
	token = prefix + credentialUID + "_" + strings.ToLower(base32.StdEncoding.EncodeToString(random))[:randomSize]
	return token, hash(token)
}

// Parse returns the uid of the Credential that a token says it belongs to, and
// the hash by which [Matches] believes it. The error tells nothing of the token.
func Parse(token string) (credentialUID, sha256Hex string, err error) {
	if len(token) > len(prefix)+maxUID+1+randomSize {
		return "", "", errMalformed
	}
	rest, ok := strings.CutPrefix(token, prefix)
	uid, random, ok2 := strings.Cut(rest, "_")
	if !ok || !ok2 || !validUID(uid) || len(random) != randomSize || strings.Trim(random, randomSet) != "" {
		return "", "", errMalformed
	}
	return uid, hash(token), nil
}

// Matches reports whether the token of that hash, from [Parse], is that of c, in
// a time that does not depend on how much of it is right. A Credential that has
// no token, and no Credential, match nothing. Whether the Credential may be used
// is another question.
func Matches(c *api.Credential, sha256Hex string) bool {
	if c == nil || len(c.Status.TokenSHA256) != 2*sha256.Size {
		return false
	}
	return subtle.ConstantTimeCompare([]byte(c.Status.TokenSHA256), []byte(sha256Hex)) == 1
}

func hash(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:])
}

// validUID tells whether s is a uid: nothing is left once its characters are
// trimmed off.
func validUID(s string) bool {
	return s != "" && len(s) <= maxUID && strings.Trim(s, uidSet) == ""
}
