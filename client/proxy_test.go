package client

import (
	"testing"

	"cardea/api"
)

func TestMatchNames(t *testing.T) {
	list := &api.Reachable{Domain: "cardea.test", Items: []api.ReachableService{
		{Name: "web.default", Port: 80, Addresses: api.Addresses{IPv4: "100.64.0.16", IPv6: "fd00::10"}}, {Name: "pg.prod", Port: 5432},
	}}
	for host, want := range map[string]string{
		"web": "web.default", "WEB.": "web.default", "web.default": "web.default", "pg.prod": "pg.prod",
		"web.svc.cardea.test": "web.default", "pg.prod.svc.cardea.test.": "pg.prod", "pg.prod.local.cardea.test": "pg.prod",
		"100.64.0.16": "web.default", "::ffff:100.64.0.16": "web.default", "fd00::10": "web.default",
		"secret":      "secret.default", // whether it is there is for the house to say
		"100.64.0.17": "", "www.example.com": "", "": "", "127.0.0.1": "", "pg.prod.svc.other.test": "",
	} {
		if got, _ := match(list, host); got != want {
			t.Errorf("%q is %q, want %q", host, got, want)
		}
	}
}

func TestFindPort(t *testing.T) {
	n := &Names{}
	if s, err := n.find(t.Context(), "web", 81); s != "web.default" || err != nil { // nothing is known of it
		t.Errorf("got %q, %v", s, err)
	}
	if _, err := n.find(t.Context(), "www.example.com", 80); !api.HasCode(err, api.CodeNotFound) {
		t.Errorf("got %v", err)
	}
}

// FuzzJudge looks for a page that gets through because of how its request is cut.
func FuzzJudge(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.test\r\n\r\n"), 20)
	f.Add([]byte("GET key\r\n"), 3)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		whole, _ := judge(b, "127.0.0.1")
		if cut < 0 || cut > len(b) {
			return
		}
		part, _ := judge(b[:cut], "127.0.0.1")
		if part == looksOK && whole == isPage || part == isPage && whole == looksOK {
			t.Errorf("%q is %d, and %q is %d", b[:cut], part, b, whole)
		}
	})
}
