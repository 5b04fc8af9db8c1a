package certificate_test

import (
	"net/url"
	"strings"
	"testing"

	"cardea/identity/certificate"
)

func TestSessionURI(t *testing.T) {
	if got, want := certificate.SessionURI(uid).String(), "cardea://session/"+uid; got != want {
		t.Fatalf("SessionURI is %q, want %q", got, want)
	}
	cases := []struct {
		uri  string
		want string // "" if it names no Session
	}{
		{"cardea://session/" + uid, uid},
		{"cardea://session/a", "a"},
		{"cardea://session/", ""},
		{"cardea://session", ""},
		{"cardea:session/a", ""},
		{"cardea://session/a/b", ""},
		{"cardea://session//a", ""},
		{"cardea://session/A", ""},
		{"cardea://session/a?x=1", ""},
		{"cardea://session/a?", ""},
		{"cardea://session/a#x", ""},
		{"cardea://session/%61", ""},
		{"cardea://root@session/a", ""},
		{"cardea://session:1/a", ""},
		{"cardea://user/a", ""},
		{"spiffe://session/a", ""},
		{"cardea://session/" + strings.Repeat("a", 64), strings.Repeat("a", 64)},
		{"cardea://session/" + strings.Repeat("a", 65), ""},
	}
	for _, c := range cases {
		u, err := url.Parse(c.uri)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := certificate.SessionOf(u); got != c.want || ok != (c.want != "") {
			t.Errorf("%s names the Session %q, %v; want %q", c.uri, got, ok, c.want)
		}
	}
}
