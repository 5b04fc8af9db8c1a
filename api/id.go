package api

import "math/rand/v2"

// NewID returns a new identifier of a decision, a connection or a record: 40 characters of
// [a-z0-9], none more likely than another, in groups of 4, 4, 24, 4 and 4. They
// are drawn from the runtime's ChaCha8 generator, which the operating system
// seeds: two never meet, and they are no secrets.
func NewID() string { return DrawID().String() }

// An ID is what NewID returns, in less memory: ten characters to a number.
type ID [4]uint64

const (
	idDigits = "0123456789abcdefghijklmnopqrstuvwxyz"
	idForm   = "xxxx-xxxx-xxxxxxxxxxxxxxxxxxxxxxxx-xxxx-xxxx"
	idValues = 36 * 36 * 36 * 36 * 36 * 36 * 36 * 36 * 36 * 36 // of ten characters
)

// DrawID returns a new ID.
func DrawID() ID {
	return ID{rand.Uint64N(idValues), rand.Uint64N(idValues), rand.Uint64N(idValues), rand.Uint64N(idValues)}
}

// String returns the identifier.
func (id ID) String() string {
	b := [len(idForm)]byte([]byte(idForm)) // a copy
	i := 0
	for _, n := range id {
		for range 5 { // no group has an odd number of characters
			if b[i] == '-' {
				i++
			}
			pair := uint32(n % (36 * 36))
			n /= 36 * 36
			b[i], b[i+1] = idDigits[pair%36], idDigits[pair/36]
			i += 2
		}
	}
	return string(b[:])
}

// ParseID returns the ID of an identifier; false if NewID does not return such.
func ParseID(s string) (id ID, ok bool) {
	if len(s) != len(idForm) {
		return ID{}, false
	}
	n, place, value := 0, 0, uint64(1)
	for i := range len(s) {
		c := s[i]
		switch {
		case idForm[i] == '-' && c == '-':
			continue
		case idForm[i] == '-':
			return ID{}, false
		case c >= '0' && c <= '9':
			c -= '0'
		case c >= 'a' && c <= 'z':
			c -= 'a' - 10
		default:
			return ID{}, false
		}
		id[n] += uint64(c) * value
		value *= 36
		if place++; place == 10 {
			n, place, value = n+1, 0, 1
		}
	}
	return id, true
}
