package network_test

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/test/network/lab"
)

// pinger is a flow to a public port of UDP: each datagram is to come back.
type pinger struct {
	sent    atomic.Int64
	back    atomic.Int64
	refused atomic.Int64
	stop    chan struct{}
	ended   chan struct{}
	lost    []uint64 // which; once it has ended
}

// ping sends a datagram each 5 ms, and waits for none.
func ping(t *testing.T, h *lab.Host, to netip.AddrPort) *pinger {
	t.Helper()
	c, err := h.Dial(t.Context(), "udp", to)
	if err != nil {
		t.Fatal(err)
	}
	p := &pinger{stop: make(chan struct{}), ended: make(chan struct{})}
	answers := make(chan struct{})
	seen := map[uint64]bool{}
	go func() {
		defer close(answers)
		b := make([]byte, 100)
		for {
			n, err := c.Read(b)
			switch {
			case errors.Is(err, syscall.ECONNREFUSED):
				p.refused.Add(1)
			case err != nil:
				return
			case n == 8:
				seen[binary.BigEndian.Uint64(b)] = true
				p.back.Add(1)
			}
		}
	}()
	go func() {
		defer close(p.ended)
		n := uint64(0)
		for every := time.NewTicker(5 * time.Millisecond); ; n++ {
			select {
			case <-every.C:
				c.Write(binary.BigEndian.AppendUint64(nil, n))
				p.sent.Add(1)
				continue
			case <-p.stop:
			}
			every.Stop()
			break
		}
		c.SetReadDeadline(time.Now().Add(time.Second))
		<-answers
		c.Close()
		for i := range n {
			if !seen[i] {
				p.lost = append(p.lost, i)
			}
		}
	}()
	return p
}

// end stops it, and returns which datagrams have not come back.
func (p *pinger) end() []uint64 {
	close(p.stop)
	<-p.ended
	return p.lost
}

// conns returns the connections of a Service, by the process that carries them.
func (w *world) conns(service string) (by map[int]int) {
	w.Helper()
	var list api.Connections
	if err := json.Unmarshal([]byte(w.root("conns", "-o", "json")), &list); err != nil {
		w.Fatal(err)
	}
	by = map[int]int{}
	for _, c := range list.Items {
		if c.Service == service {
			by[c.Process]++
		}
	}
	return by
}

// openYAML is a Service of UDP at a public port, for everybody.
func openYAML(name string, port int, url string) string {
	return fmt.Sprintf("---\nkind: Service\nmetadata: {name: %s}\nspec:\n  mode: UDP\n  port: %d\n  isPublic: true\n  isAnonymous: true\n  config: {upstream: {url: %q}}\n", name, port, url)
}

// TestUpgrade replaces the cluster twice: TCP connections through the tunnel live on where
// they were accepted, and a public port of UDP answers all the while. What is revoked then
// is cut in the process that carries it.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	w, alice, live := newEcho(t, lab.Config{Clients: 2})
	packets(t, w.Upstream, 7008)
	w.apply(openYAML("open", 5008, "udp://10.3.0.2:7008"))
	moved, transferred := w.transfer(live)
	idle := w.hold(alice, "echo")
	public := ping(t, w.Clients[1], netip.AddrPortFrom(w.Gateway.IPv6, 5008))
	w.until("datagrams come back", func() error { return more(&public.back, 10) })
	// One that fails changes nothing.
	ready := filepath.Join(w.cluster.Dir, "ready.json")
	if err := errors.Join(os.Rename(ready, ready+".old"), os.Mkdir(ready, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := w.cluster.Upgrade(t.Context(), ""); err == nil {
		t.Error("a process that cannot write its ready file serves")
	}
	if err := errors.Join(os.Remove(ready), os.Rename(ready+".old", ready)); err != nil {
		t.Fatal(err)
	}
	at := moved.Load()
	w.until("the transfer goes on", func() error { return more(moved, at+1<<20) })
	gateway, place := w.gateway().Status.WireGuard, alice.place()
	var asked, over []int64 // in datagrams
	for n := range 2 {
		asked = append(asked, public.sent.Load())
		if err := w.cluster.Upgrade(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
		over = append(over, public.sent.Load())
		at = moved.Load()
		took := soon(t, patience, "the transfer goes on", func() error { return more(moved, at+1<<20) })
		t.Logf("upgrade %d: the transfer went on after %v", n+1, took)
		w.hold(alice, "echo")
		back := public.back.Load()
		w.until("datagrams come back", func() error { return more(&public.back, back+10) })
		_, v6 := w.at("udp")
		if err := bounce(t, alice.host, v6, 1000); err != nil {
			t.Errorf("a datagram through the tunnel: %v", err)
		}
	}
	if err := say(idle, "still here", patience); err != nil {
		t.Errorf("a connection that was idle: %v", err)
	}
	if lost, refused := public.end(), public.refused.Load(); len(lost) != 0 || refused != 0 {
		t.Errorf("of datagrams to the public port those of %v were lost and %d refused; an upgrade was asked for at %v, and over at %v", lost, refused, asked, over)
		t.Log(w.root("logs"))
	}
	if now := w.gateway().Status.WireGuard; *now != *gateway {
		t.Errorf("the gateway was %+v, and is %+v", gateway, now)
	}
	if now := alice.place(); now.Addresses != place.Addresses || now.Interface != place.Interface {
		t.Errorf("alice was at %+v, and is at %+v", place, now)
	}
	if by := w.conns("echo.default"); len(by) != 3 {
		t.Errorf("connections of three processes are %v", by)
	}
	select {
	case err := <-transferred:
		t.Fatalf("the transfer ended: %v", err)
	default:
	}
	w.root("delete", "session", w.session("alice").Metadata.Name)
	for name, c := range map[string]<-chan error{"the transfer": transferred, "the one that was idle": ends(idle)} {
		select {
		case <-c:
		case <-time.After(patience):
			t.Fatalf("%s goes on without its Session", name)
		}
	}
	w.until("the older processes have nothing left", func() error {
		if n := w.cluster.Running(); n != 1 {
			return fmt.Errorf("%d processes", n)
		}
		return nil
	})
	if got, want := w.ended("echo.default"), map[string]int{"": 0, "REVOKED": 4}; !maps.Equal(got, want) {
		t.Errorf("connections ended so: %v, want %v", got, want)
	}
	// The flow goes on in the process that came last.
	if got, want := w.ended("open.default"), map[string]int{"": 1, "DRAINED": 2}; !maps.Equal(got, want) {
		t.Errorf("flows ended so: %v, want %v", got, want)
	}
}

// ends tells how a connection ends on which nothing comes.
func ends(c net.Conn) <-chan error {
	over := make(chan error, 1)
	go func() {
		c.SetDeadline(time.Now().Add(patience))
		_, err := c.Read(make([]byte, 1))
		over <- err
	}()
	return over
}

// ended has the logs verified, and returns how often connections of a Service ended for each
// reason, and how many have not ended ("").
func (w *world) ended(service string) (reasons map[string]int) {
	w.Helper()
	w.root("logs", "verify")
	reasons = map[string]int{}
	for line := range strings.Lines(w.root("logs", "-o", "json")) {
		var r api.AccessLog
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			w.Fatalf("%v: %s", err, line)
		}
		t := r.Entry.Info.Flow()
		if t == nil {
			continue
		}
		if ref := r.Entry.Common.ServiceRef; ref == nil || ref.Name != service { // nil: it did not get so far
			continue
		}
		switch t.Type {
		case api.LogStart:
			reasons[""]++
		case api.LogEnd:
			reasons[""]--
			reasons[t.CloseReason]++
		}
	}
	return reasons
}

// TestUpgradeOfCarriers has clients whose packets come by TLS and QUIC: they are back soon,
// and their connections have not noticed, nor have streams of QUIC. The connections of a
// gateway without an interface end, and its clients are back soon.
func TestUpgradeOfCarriers(t *testing.T) {
	t.Parallel()
	for _, form := range []string{"tun", "userspace"} {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			w, alice, wireguard := newEcho(t, lab.Config{Clients: 4}, "--network", form)
			live := map[string]net.Conn{"WireGuard": wireguard}
			people := map[string]*person{"WireGuard": alice}
			for i, by := range []string{"quic", "tls"} {
				bob := w.login(w.Clients[i+1], "bob")
				bob.connect("--tunnel", by)
				people[by], live[by] = bob, w.hold(bob, "echo")
			}
			mallory := w.login(w.Clients[3], "mallory")
			mallory.run("connect", "-p", "echo:17007", "--tunnel", "quic", "--detach")
			stream, err := talk(t, mallory.host, netip.MustParseAddrPort("127.0.0.1:17007"))
			if err == nil {
				err = say(stream, "hello", patience)
			}
			if err != nil {
				t.Fatal(err)
			}
			v4, _ := w.at("echo")
			for n := range 2 {
				if err := w.cluster.Upgrade(t.Context(), ""); err != nil {
					t.Fatal(err)
				}
				for by, p := range people {
					took := soon(t, patience, "the Service is reached", func() error {
						brief, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond) // TCP asks again after a second
						defer cancel()
						c, err := p.host.Dial(brief, "tcp", v4)
						if err != nil {
							return err
						}
						defer c.Close()
						return say(c, "again", time.Second)
					})
					t.Logf("upgrade %d: by %s a Service is reached again after %v", n+1, by, took)
				}
				if err := say(stream, "still here", patience); err != nil {
					t.Errorf("a stream of QUIC after upgrade %d: %v", n+1, err)
				}
				for by, c := range live {
					err := say(c, "still here", patience)
					if (err == nil) != (form == "tun") && n == 0 {
						t.Errorf("a connection by %s after upgrade %d: %v", by, n+1, err)
					}
				}
			}
		})
	}
}
