package ingress

import (
	"net"
	"runtime"
	"testing"
)

// TestWhoHasSpokenIsNotSilent shows that a connection whose hello has come, and
// which this process had no time to read, keeps its place.
func TestWhoHasSpokenIsNotSilent(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a := &Admission{Limits: AdmissionLimits{Handshakes: 4}} // two for strangers
	var places []func(bool) error
	for _, say := range []string{"hello", "", ""} {
		client, err := net.Dial("tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close()
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		client.Write([]byte(say))
		for say != "" && !unread(c) {
			runtime.Gosched()
		}
		_, leave, err := a.Enter(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		places = append(places, leave)
	}
	for i, leave := range places {
		if err := leave(false); (err != nil) != (i == 1) {
			t.Errorf("connection %d leaves with %v", i, err)
		}
	}
}
