package quic_test

import (
	"crypto/x509"
	"io"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"cardea/tunnel"
	"cardea/tunnel/quic"
	"cardea/tunnel/tunneltest"
)

// A Session that sends what nobody reads takes a bounded part of the gateway's memory,
// however many connections and streams it has, and however large their windows once
// became; another Session goes on.
func TestWindowsOfASession(t *testing.T) {
	const (
		first = 1 << 20 // what a connection begins with
		grown = 4 << 20 // to which those of a Session may grow together
		conns = 3
		much  = 32 << 20
	)
	h := tunneltest.NewHouse()
	g := serve(t, &quic.Server{Handler: h, Session: tunneltest.SessionOf, Limits: quic.Limits{Windows: 32 * grown}})
	var unread atomic.Int64
	var clients []tunnel.Conn
	cert := always(g.ca.Session())
	for range conns {
		d := g.dialer(t, cert)
		for range 40 {
			client, served := both(t, d, h)
			defer served.Reset("the test is over")
			defer client.Reset("the test is over")
			if clients = append(clients, client); len(clients) > 1 {
				continue
			}
			// For a while the first one is read as fast as it comes, so that its windows grow.
			go io.Copy(client, io.LimitReader(zeros{}, much))
			if _, err := io.CopyN(io.Discard, served, much); err != nil {
				t.Fatal(err)
			}
		}
	}
	var writing sync.WaitGroup
	for _, client := range clients {
		writing.Go(func() {
			client.SetWriteDeadline(time.Now().Add(time.Second))
			for err := error(nil); err == nil; {
				var n int
				n, err = client.Write(make([]byte, 16<<10))
				unread.Add(int64(n))
			}
		})
	}
	d := g.dialer(t, always(g.ca.Session(func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "cardea", Host: "session", Path: "/s-2"}} })))
	client, served := both(t, d, h)
	go func() {
		io.Copy(served, served)
		served.Close()
	}()
	exchange(t, client, 8<<20, func() {})
	client.Close()
	writing.Wait()
	if unread, most := unread.Load(), int64(grown+conns*first); unread > most || unread < first {
		t.Errorf("%d bytes wait at the gateway, want %d at most, and that this test shows something", unread, most)
	}
}

// zeros are bytes without end.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
