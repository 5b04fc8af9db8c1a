package udp_test

import (
	"testing"

	"cardea/api"
	"cardea/mode/udp"
	"cardea/proxy/proxytest"
)

func TestMode(t *testing.T) {
	svc := &api.Service{Head: api.Head{Metadata: api.Metadata{Name: "svc.default"}}, Spec: api.ServiceSpec{Mode: api.ModeUDP}}
	proxytest.Run(t, proxytest.Subject{Mode: udp.Mode(), Service: svc, Say: proxytest.Messages})
}
