package server

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net"
	"testing"
	"time"
)

// Whoever shakes hands at public ports again and again takes nothing from those
// who log in, and is met by the rate of the Service, not by that of strangers.
func TestPublicPortsHaveTheirOwnAdmission(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	l.Close()
	cfg := at(t.TempDir())
	cfg.Documents = []json.RawMessage{fmt.Appendf(nil, `{"kind": "Service", "metadata": {"name": "open"}, "spec": {"mode": "TCP", "port": %d,
		"isPublic": true, "isAnonymous": true, "isTLS": true, "config": {"upstream": {"url": "tcp://127.0.0.1:1"}}}}`, port)}
	while(t, cfg, func(h *house) {
		const many = 100 // at once; a stranger has 20 at the cluster's own port
		d := tls.Dialer{NetDialer: &net.Dialer{Timeout: 30 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
		for i := range many {
			c, err := d.DialContext(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
			if err != nil {
				t.Fatalf("handshake %d: %v", i+1, err)
			}
			c.Close()
		}
		if own, crowd := h.admission.Stats(), h.crowd.Stats(); own.Handshakes != 0 || crowd.Handshakes != many {
			t.Errorf("at the cluster's own port %+v, at public ports %+v", own, crowd)
		}
	})
}
