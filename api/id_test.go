package api_test

import (
	"regexp"
	"testing"

	"cardea/api"
)

func TestNewID(t *testing.T) {
	form := regexp.MustCompile(`^[a-z0-9]{4}-[a-z0-9]{4}-[a-z0-9]{24}-[a-z0-9]{4}-[a-z0-9]{4}$`)
	seen := map[string]bool{}
	var digits [256]int
	const n = 20_000
	for range n {
		id := api.NewID()
		if !form.MatchString(id) {
			t.Fatalf("%q has not the form 4-4-24-4-4 of a to z and 0 to 9", id)
		}
		if seen[id] {
			t.Fatalf("%q came twice", id)
		}
		seen[id] = true
		for i := range len(id) {
			digits[id[i]]++
		}
	}
	// 800,000 digits: each comes 22,222 times; 5 % is seven standard deviations.
	for _, d := range "abcdefghijklmnopqrstuvwxyz0123456789" {
		if got, want := digits[d], n*40/36; got < want*95/100 || got > want*105/100 {
			t.Errorf("digit %c came %d times, want about %d", d, got, want)
		}
	}
}

func TestParseID(t *testing.T) {
	for range 1000 {
		s := api.NewID()
		if id, ok := api.ParseID(s); !ok || id.String() != s {
			t.Fatalf("%q was read as %q, %v", s, id, ok)
		}
	}
	good := api.NewID()
	for _, bad := range []string{"", "d", good[1:], good + "a", "A" + good[1:], good[:4] + "a" + good[5:], "-" + good[1:], "\xff" + good[1:]} {
		if id, ok := api.ParseID(bad); ok {
			t.Errorf("%q was read as %q", bad, id)
		}
	}
}

func BenchmarkNewID(b *testing.B) {
	for b.Loop() {
		api.NewID()
	}
}
