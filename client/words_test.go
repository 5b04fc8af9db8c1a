package client

import "testing"

// TestWords shows that codes are told in words, with the code for who looks it up, and that
// what else is said stays.
func TestWords(t *testing.T) {
	for in, want := range map[string]string{
		"DRAINED":                       "what carried it is stopping (DRAINED)",
		"REVOKED (decision 7): ask bob": "the right to it was withdrawn (REVOKED) (decision 7): ask bob",
		"a right was withdrawn":         "a right was withdrawn",
		"LATER_CODE":                    "LATER_CODE",
		"":                              "",
	} {
		if got := reasonWords(in); got != want {
			t.Errorf("%q: got %q, want %q", in, got, want)
		}
	}
	const in, want = "the connection to Service web.default was cut: IDLE_TIMEOUT", "the connection to Service web.default was cut: nothing had passed for too long (IDLE_TIMEOUT)"
	if got := refusalWords(in); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
