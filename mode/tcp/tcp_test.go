package tcp_test

import (
	"testing"

	"cardea/api"
	"cardea/mode/tcp"
	"cardea/proxy/proxytest"
)

func TestMode(t *testing.T) {
	svc := &api.Service{Head: api.Head{Metadata: api.Metadata{Name: "svc.default"}}, Spec: api.ServiceSpec{Mode: api.ModeTCP}}
	proxytest.Run(t, proxytest.Subject{Mode: tcp.Mode(), Service: svc, Say: proxytest.Lines})
}
