package api

import (
	"slices"
	"testing"
)

// Of equally near versions the newest was meant, in whatever order they are listed.
func TestNearestVersion(t *testing.T) {
	versions := TLSVersion("").Values()
	for range 2 {
		for text, want := range map[string]string{"v1.4": "v1.3", "v1_2": "v1.2", "V1.2": "v1.2", "1.0": "v1.0", "tls": ""} {
			if got := Nearest(text, versions); got != want {
				t.Errorf("%s: %q, want %q", text, got, want)
			}
		}
		slices.Reverse(versions)
	}
}
