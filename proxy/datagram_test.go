package proxy_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"cardea/api"
	"cardea/audit"
	auditmemory "cardea/audit/memory"
	"cardea/mode/tcp"
	"cardea/mode/udp"
	"cardea/proxy"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/relay/datagram"
	"cardea/relay/relaytest"
	"cardea/upstream"
)

// flows is a Gate before a real upstream of UDP, which echoes.
type flows struct {
	gate    *proxy.Gate
	decider *slow
	at      string      // of the upstream
	mode    api.Mode    // of the Service
	may     atomic.Bool // the answer
	log     auditmemory.Log
	refused chan api.Refusal
}

func startFlows(t *testing.T, mode api.Mode) *flows {
	echo, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		b := make([]byte, relay.MaxDatagram)
		for {
			n, from, err := echo.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			echo.WriteToUDPAddrPort(b[:n], from)
		}
	})
	f := &flows{at: echo.LocalAddr().String(), mode: mode, refused: make(chan api.Refusal, 1), decider: &slow{changes: make(chan api.Change)}}
	f.may.Store(true)
	f.decider.decide = func(_ context.Context, r api.Request) (api.Decision, error) {
		effect, n := api.Allow, uint64(1)
		if !f.may.Load() {
			effect, n = api.Deny, 2
		}
		d := answer(effect, n, "user")
		d.Subject.Mode, d.Message = mode, "ask the owner"
		d.Config.Upstream.URL = "udp://" + f.at
		return d, nil
	}
	dialer := &upstream.Dialer{
		Hosts: func() map[string][]string { return nil }, Allow: func() []netip.Prefix { return nil }, Own: func() []netip.AddrPort { return nil },
		Loopback: true, Log: slog.New(slog.DiscardHandler),
	}
	f.gate = proxy.New(proxy.Rooms{
		Decider: f.decider, Audit: &f.log, Refuse: func(r api.Refusal) { f.refused <- r }, Engine: relaycopy.New(), Datagrams: datagram.New(),
		Dial: dialer.Dial, Modes: []proxy.Mode{tcp.Mode(), udp.Mode()}, Log: slog.New(slog.DiscardHandler),
	})
	ctx, cancel := context.WithCancel(t.Context())
	running.Go(func() { f.gate.Run(ctx) })
	t.Cleanup(func() { cancel(); echo.Close(); running.Wait() })
	f.decider.changes <- change(1) // it runs
	return f
}

// arrive lets a connection arrive.
func (f *flows) arrive(c net.Conn) {
	f.gate.Arrive(api.Arrival{Conn: c, Service: "svc.default", Evidence: api.Evidence{Kind: api.EvidenceMemory, Data: []byte("s")}, Facts: api.Facts{IP: "100.64.0.9", Port: 4711}})
}

// end waits for the END of the connection.
func (f *flows) end(t *testing.T) (start, end *api.AccessLog) {
	t.Helper()
	for rec, err := range f.log.Records(t.Context(), audit.Query{Follow: true}) {
		if err != nil {
			t.Fatal(err)
		}
		switch rec.Entry.Info.UDP.Type {
		case api.LogStart:
			start = &rec
		case api.LogEnd:
			return start, &rec
		}
	}
	t.Fatal("there is no END")
	return nil, nil
}

// A flow that comes as datagrams, and one that comes as messages of a stream, reach an
// upstream of UDP, whatever the size of their datagrams, and are logged as what they are.
func TestFlows(t *testing.T) {
	for name, open := range map[string]func() (near, far net.Conn){
		"datagrams": func() (net.Conn, net.Conn) { a, b := relaytest.Datagrams(); return a, b },
		"messages":  func() (net.Conn, net.Conn) { a, b := relaytest.Pipe(); return a, relay.Messages(b) },
	} {
		t.Run(name, func(t *testing.T) {
			f := startFlows(t, api.ModeUDP)
			near, c := open()
			f.arrive(near)
			b := make([]byte, relay.MaxDatagram)
			for i, size := range []int{5, 0, 65507} {
				sent := bytes.Repeat([]byte{byte(i)}, size)
				c.Write(sent)
				if n, err := c.Read(b); err != nil || !bytes.Equal(b[:n], sent) {
					t.Fatalf("of %d bytes: %d, %v", size, n, err)
				}
			}
			if live := f.gate.List(); len(live) != 1 || live[0].Upstream != f.at {
				t.Errorf("live: %+v", live)
			}
			c.Close()
			start, end := f.end(t)
			if i := start.Entry.Info.UDP; i.ReceivedBytes != nil || i.ReceivedPackets != nil {
				t.Errorf("START = %+v", i)
			}
			c1, i := end.Entry.Common, end.Entry.Info.UDP
			if c1.Mode != api.ModeUDP || c1.Upstream != f.at || i.CloseReason != string(relay.ClientClosed) ||
				*i.ReceivedBytes != 65512 || *i.SentBytes != 65512 || *i.ReceivedPackets != 3 || *i.SentPackets != 3 || end.Entry.Info.TCP != nil {
				t.Errorf("END = %+v %+v", c1, i)
			}
		})
	}
}

// A flow whose right is taken away is cut, and its client is told why.
func TestFlowIsRevoked(t *testing.T) {
	f := startFlows(t, api.ModeUDP)
	near, c := relaytest.Datagrams()
	f.arrive(near)
	c.Write([]byte("x"))
	c.Read(make([]byte, 1))
	f.may.Store(false)
	f.decider.changes <- change(2, "user")
	if _, err := c.Read(make([]byte, 1)); !relay.IsReset(err) {
		t.Errorf("the client reads %v", err)
	}
	if r := c.Reason(); !strings.HasPrefix(r, string(relay.Revoked)) || !strings.HasSuffix(r, "ask the owner") {
		t.Errorf("the client was told %q", r)
	}
	if _, end := f.end(t); end.Entry.Info.UDP.CloseReason != string(relay.Revoked) {
		t.Errorf("END = %+v", end.Entry.Info.UDP)
	}
}

// An upstream at which nobody listens ends the flow.
func TestFlowToNobody(t *testing.T) {
	f := startFlows(t, api.ModeUDP)
	gone, _ := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	f.at = gone.LocalAddr().String()
	gone.Close()
	near, c := relaytest.Datagrams()
	f.arrive(near)
	c.Write([]byte("x"))
	_, end := f.end(t)
	if i := end.Entry.Info.UDP; i.CloseReason != string(relay.UpstreamReset) || !strings.Contains(i.Error, "refused") || *i.ReceivedPackets != 1 || *i.SentPackets != 0 {
		t.Errorf("END = %+v", i)
	}
}

// Datagrams are never carried as bytes.
func TestDatagramsToAService(t *testing.T) {
	f := startFlows(t, api.ModeTCP)
	near, c := relaytest.Datagrams()
	f.arrive(near)
	r := <-f.refused
	if r.Reason != api.ReasonNoRoute || r.Record.Entry.Info.UDP == nil || r.Record.Entry.Common.Status != api.StatusDenied {
		t.Errorf("refused: %+v %+v", r, r.Record)
	}
	if _, err := c.Read(make([]byte, 1)); !relay.IsReset(err) {
		t.Errorf("the client reads %v", err)
	}
	if n := f.gate.Stats().Live; n != 0 {
		t.Errorf("%d are live", n)
	}
}

// Where no engine carries datagrams, they are refused.
func TestNoEngineForDatagrams(t *testing.T) {
	g := proxy.New(proxy.Rooms{Modes: []proxy.Mode{udp.Mode()}})
	svc := &api.Service{Spec: api.ServiceSpec{Mode: api.ModeUDP}}
	if err := g.Set(svc); err == nil {
		t.Error("a Service of mode UDP is served")
	}
}
