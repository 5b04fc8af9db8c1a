package api

import "math/rand/v2"

// NewID returns a new identifier of a decision, a connection or a record: 40 characters of
// [a-z0-9], none more likely than another, in groups of 4, 4, 24, 4 and 4. They
// are drawn from the runtime's ChaCha8 generator, which the operating system
// seeds: two never meet, and they are no secrets.
func NewID() string {
	const (
		digits = "0123456789abcdefghijklmnopqrstuvwxyz"
		form   = "xxxx-xxxx-xxxxxxxxxxxxxxxxxxxxxxxx-xxxx-xxxx"
		draw   = 12                          // digits of one random number …
		many   = 36 * 36 * 36 * 36 * 36 * 36 // … since
		values = uint64(many) * uint64(many) // 36^12 fits into 64 bits
	)
	id := []byte(form)
	var n uint64
	left := 0
	for i := range id {
		if id[i] == '-' {
			continue
		}
		if left == 0 {
			n, left = rand.Uint64N(values), draw
		}
		id[i] = digits[n%36]
		n /= 36
		left--
	}
	return string(id)
}
