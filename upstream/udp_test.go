package upstream

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"cardea/api"
)

// echoUDP returns the address of an upstream that answers datagrams with its own address.
func echoUDP(t *testing.T) string {
	t.Helper()
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := c.LocalAddr().String()
	var serving sync.WaitGroup
	serving.Go(func() {
		b := make([]byte, 100)
		for {
			_, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort([]byte(at), from)
		}
	})
	t.Cleanup(func() { c.Close(); serving.Wait() })
	return at
}

// ask sends a datagram, and returns the answer.
func ask(c net.Conn) (string, error) {
	if _, err := c.Write([]byte("?")); err != nil {
		return "", err
	}
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestUDP(t *testing.T) {
	d := newDialer()
	one, two := echoUDP(t), echoUDP(t)
	c, err := dialTo(d, t.Context(), "svc", config("udp://"+one))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, ok := c.(*net.UDPConn); !ok {
		t.Errorf("the conn is a %T", c)
	}
	if got, err := ask(c); got != one || err != nil {
		t.Errorf("the answer is %q, %v", got, err)
	}
	if d.Plan(destination("svc", config("udp://"+one))) != nil {
		t.Error("an engine that connects by TCP has a Plan")
	}
	cfg := &api.ServiceConfig{Upstream: api.Upstream{Loadbalance: &api.Loadbalance{Endpoints: []api.UpstreamEndpoint{{URL: "udp://" + one}, {URL: "udp://" + two}}}}}
	counts := map[string]int{}
	for range 10 {
		c, report, err := d.Dial(t.Context(), destination("both", cfg))
		if err != nil {
			t.Fatal(err)
		}
		got, _ := ask(c)
		counts[got]++
		c.Close()
		report.Hold.Release(1, false)
	}
	if counts[one] != 5 || counts[two] != 5 {
		t.Errorf("the endpoints got %v", counts)
	}
}

// What may not be dialled may not be sent to either.
func TestUDPAddresses(t *testing.T) {
	d := newDialer()
	d.Own = own("127.0.0.1:5353")
	for url, want := range map[string]string{
		"udp://127.0.0.1:5353":     "this cluster itself listens there",
		"dns://169.254.169.254":    "link-local",
		"udp://224.0.0.251:5353":   "many hosts",
		"udp://255.255.255.255:67": "many hosts",
		"udp://0.0.0.0:53":         "not the address of a host",
	} {
		c, err := dialTo(d, t.Context(), url, config(url))
		if err == nil {
			c.Close()
		}
		if e, ok := errors.AsType[*Error](err); !ok || !strings.Contains(e.Words, want) {
			t.Errorf("%s: %v, want %q", url, err, want)
		}
	}
	d.Allow = func() []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")} }
	c, err := dialTo(d, t.Context(), "svc", config("udp://127.0.0.1:5353"))
	if err != nil {
		t.Fatalf("what is allowed: %v", err)
	}
	c.Close()
}

// An endpoint at which nobody listens shows only when it is sent to: then it is ejected as
// any other.
func TestUDPEjection(t *testing.T) {
	d := newDialer()
	gone, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	gone.Close()
	there := echoUDP(t)
	cfg := &api.ServiceConfig{Upstream: api.Upstream{
		Loadbalance: &api.Loadbalance{Endpoints: []api.UpstreamEndpoint{{URL: "udp://" + gone.LocalAddr().String()}, {URL: "udp://" + there}}},
		Health:      &api.UpstreamHealth{Ejection: &api.Ejection{Failures: 2}},
	}}
	answers := 0
	for range 20 {
		c, report, err := d.Dial(t.Context(), destination("svc", cfg))
		if err != nil {
			t.Fatal(err)
		}
		got, err := ask(c)
		c.Close()
		report.Hold.Release(int64(len(got)), err != nil)
		if got == there {
			answers++
		}
	}
	if answers != 18 {
		t.Errorf("%d flows of 20 were answered, want all but the two that showed it", answers)
	}
}
