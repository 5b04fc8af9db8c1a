package server

import (
	"net"
	"testing"

	"cardea/api"
	"cardea/ingress"
	"cardea/proxy"
)

// A heard conn keeps what it is told.
type heard struct {
	net.Conn
	verdict api.Verdict
	reset   string
}

func (c *heard) Verdict(v api.Verdict) error { c.verdict = v; return nil }
func (c *heard) Reset(reason string) error   { c.reset = reason; return nil }

// One Session that opens as many connections as it can leaves descriptors to who logs in,
// and to who ends it.
func TestSessionsLeaveDescriptors(t *testing.T) {
	var told []api.Refusal
	used := 0
	gate := proxy.New(proxy.Rooms{Refuse: func(api.Refusal) {}})
	a := arrivals{gate, &doors{record: func(r api.Refusal) { told = append(told, r) }, counts: map[api.ReasonType]int64{}},
		&ingress.Admission{Descriptors: func() (int, int) { return used, 100 }, Limits: ingress.AdmissionLimits{Share: sessionShare}}}
	used = sessionShare - 3 // for one connection, and not for two
	for n := range 2 {
		c := new(heard)
		a.Arrive(api.Arrival{Conn: c, Service: "web.default"})
		full := c.verdict.Code == api.VerdictUnavailable && c.reset == "LIMIT"
		if wanted := n == 1; full != wanted {
			t.Errorf("connection %d: %+v, reset %q", n+1, c.verdict, c.reset)
		}
	}
	if len(told) != 1 || told[0].Reason != api.ReasonOverload {
		t.Errorf("told: %+v", told)
	}
}

// One Session has a part of what all may have.
func TestShareOfOneSession(t *testing.T) {
	for limit, want := range map[int]int{1: 1, 1024: 120, 1 << 20: 123_207} {
		if got := perSession(limit); got != want {
			t.Errorf("of %d descriptors one Session has %d connections, want %d", limit, got, want)
		}
	}
}
