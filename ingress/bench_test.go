package ingress

import (
	"crypto/tls"
	"net/netip"
	"testing"
	"time"

	"cardea/api"
	"cardea/relay"
)

// A stillSocket is a Socket that has addresses, and a client that has said something.
type stillSocket struct {
	relay.Socket
	local, remote netip.AddrPort
	said          []byte
	got           func([]byte, error) bool
}

func (s *stillSocket) AddrPorts() (local, remote netip.AddrPort) { return s.local, s.remote }

func (s *stillSocket) Await(_ time.Duration, _ int, got func([]byte, error) bool) { s.got = got }

// What it costs from the accept to Handle: where nothing has to be read, and where a
// server name is looked for.
func BenchmarkTake(b *testing.B) {
	anyRate := func(s *api.ServiceSpec) { s.Limits = &api.ServiceLimits{ConnectionsPerSecond: 1_000_000_000} }
	for _, x := range []struct {
		name, bind string
		what       func(*api.ServiceSpec)
		say        string
	}{
		{"one address", "127.0.0.1", func(*api.ServiceSpec) {}, ""},
		{"every address", "", func(*api.ServiceSpec) {}, ""},
		{"a server name", "", through("a.b"), "a.b"},
	} {
		b.Run(x.name, func(b *testing.B) {
			n := 0
			r := &Router{
				Handle: func(api.Arrival) { n++ }, Refused: func(x api.Refusal) { b.Fatal(x) },
				Admission: &Admission{Limits: AdmissionLimits{Rate: -1}}, Settings: func() *api.ClusterRouting { return &api.ClusterRouting{} },
			}
			svc := public("a.ns", 5432, address(x.bind), anyRate, x.what)
			r.table.Store(Compile(Input{Services: []*api.Service{svc}, Domain: "cardea.internal"}, nil, time.Now()))
			d := &door{bind: api.Bind{Address: x.bind, Port: 5432}}
			c := &stillSocket{local: netip.MustParseAddrPort("127.0.0.1:5432"), remote: netip.MustParseAddrPort("192.0.2.1:40000")}
			if x.say != "" {
				c.said = helloOf(b, &tls.Config{ServerName: x.say})
			}
			b.ReportAllocs()
			for b.Loop() {
				r.take(b.Context(), d, c)
				if c.said != nil {
					c.got(c.said, nil)
				}
			}
			if n != b.N {
				b.Errorf("%d of %d came", n, b.N)
			}
		})
	}
}
