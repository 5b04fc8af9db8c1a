package wireguard_test

import (
	"testing"
	"time"

	"cardea/api"
	"cardea/tunnel"
	"cardea/tunnel/wireguard"
)

// TestTheEndOfAnIdleFlowIsNotTold: a client hears of what is refused or cut, and would not
// find that among all the flows that are over.
func TestTheEndOfAnIdleFlowIsNotTold(t *testing.T) {
	arrivals, told := make(chan api.Arrival, 1), make(chan api.NetworkRefusal, 10)
	g := gateway(t, handler{func(a api.Arrival) { arrivals <- a }}, func(g *wireguard.Gateway) {
		g.Tell = func(_ string, r api.NetworkRefusal) { told <- r }
	})
	c := client(t, g, "s-1", addresses)
	for _, reason := range []string{"IDLE_TIMEOUT", "REVOKED"} {
		u, err := c.DialContext(t.Context(), "udp", echo4)
		if err != nil {
			t.Fatal(err)
		}
		u.Write([]byte("hello"))
		a := <-arrivals
		a.Conn.(tunnel.Teller).Verdict(api.Verdict{Code: api.VerdictOK})
		a.Conn.(tunnel.Conn).Reset(reason)
		u.Close()
	}
	select {
	case r := <-told:
		if r.Words != "the connection to Service echo.default was cut: REVOKED" || len(told) > 0 {
			t.Errorf("told of %q, and %d more", r.Words, len(told))
		}
	case <-time.After(5 * time.Second):
		t.Error("told of nothing")
	}
}
