package cli

import "testing"

func TestIsHere(t *testing.T) {
	for address, want := range map[string]bool{
		"127.0.0.1:8443": true, "[::1]:8443": true, "localhost:8443": true,
		"LOCALHOST:8443": true, // a name that is looked up
		"192.0.2.1:8443": false, "name.invalid:8443": false, "127.0.0.1": false, "": false,
	} {
		if got := isHere(t.Context(), address); got != want {
			t.Errorf("%q: %v, want %v", address, got, want)
		}
	}
}
