package tls

import (
	"testing"

	"pgregory.net/rapid"
)

// However records come in pieces, it is known whether the last one is whole.
func TestRecord(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var all []byte
		ends := map[int]bool{0: true}
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 700), 0, 5).Draw(t, "records") {
			all = append(append(all, 23, 3, 3, byte(n>>8), byte(n)), make([]byte, n)...)
			ends[len(all)] = true
		}
		var r record
		for at := 0; ; {
			if r.whole() != ends[at] {
				t.Fatalf("after %d of %d bytes it is whole: %t", at, len(all), r.whole())
			}
			if at == len(all) {
				return
			}
			n := rapid.IntRange(1, min(len(all)-at, 300)).Draw(t, "piece")
			r.take(all[at : at+n])
			at += n
		}
	})
}
