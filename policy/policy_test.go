package policy_test

import (
	"regexp"
	"testing"

	"cardea/policy"
)

func TestNewID(t *testing.T) {
	form := regexp.MustCompile(`^[a-z0-9]{4}-[a-z0-9]{4}-[a-z0-9]{24}-[a-z0-9]{4}-[a-z0-9]{4}$`)
	seen := map[string]bool{}
	for range 1000 {
		id := policy.NewID()
		if !form.MatchString(id) || seen[id] {
			t.Fatalf("%q is malformed, or there twice", id)
		}
		seen[id] = true
	}
}
