package client_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// greeter is a Dialer of a Service that speaks first, and then echoes.
type greeter struct{}

func (greeter) Dial(ctx context.Context, _ string) (net.Conn, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return nil, err
	}
	theirs, err := l.Accept()
	if err != nil {
		return nil, err
	}
	go func() {
		defer theirs.Close()
		io.WriteString(theirs, "220 hello\r\n")
		io.Copy(theirs, theirs)
	}()
	return ours, nil
}

// TestPublishedPortAndPages asks a published port as programs and web pages do.
func TestPublishedPortAndPages(t *testing.T) {
	said := newWords()
	p := publish(t, greeter{}, said, "echo:0")
	_, port, _ := net.SplitHostPort(p.Address)
	passes := []string{
		"GET / HTTP/1.1\r\nHost: 127.0.0.1:" + port + "\r\n\r\n",
		"GET / HTTP/1.1\r\nHost: localhost:" + port + "\r\nSec-Fetch-Site: none\r\n\r\n",
		"POST /x HTTP/1.1\r\nHost: [::1]:" + port + "\r\nOrigin: http://[::1]:" + port + "\r\nSec-Fetch-Site: same-origin\r\n\r\nbody",
		"GET / HTTP/1.1\nHost: echo\n\n",
		"GET / HTTP/1.0\r\n\r\n",
		"GET key\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"P\x00\x00",
		"\x16\x03\x01",
		"EHLO evil.test\r\n",
	}
	for _, request := range passes {
		t.Run("passes "+request, func(t *testing.T) {
			c := dial(t, p)
			b := bufio.NewReader(c)
			if line, err := b.ReadString('\n'); line != "220 hello\r\n" { // before the client has said anything
				t.Fatalf("the server's first words: %q, %v", line, err)
			}
			io.WriteString(c, request)
			got := make([]byte, len(request))
			if _, err := io.ReadFull(b, got); err != nil || string(got) != request {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	pages := map[string]string{
		"GET / HTTP/1.1\r\nHost: 127.0.0.1:" + port + "\r\nOrigin: https://evil.test\r\n\r\n":                            "evil.test",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1:" + port + "\r\nOrigin: null\r\n\r\n":                                         "null",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1:" + port + "\r\nsec-fetch-site: cross-site\r\n\r\n":                           "cross-site",
		"GET / HTTP/1.1\r\nHost: 127.0.0.1:" + port + "\r\nSec-Fetch-Site: same-site\r\n\r\n":                            "same-site",
		"GET / HTTP/1.1\r\nHost: evil.test:" + port + "\r\n\r\n":                                                         "evil.test",
		"POST / HTTP/1.1\r\nContent-Length: 3\r\nHost: rebound.evil.test\r\nOrigin: http://rebound.evil.test\r\n\r\nabc": "rebound.evil.test",
		"OPTIONS / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost.evil.test\r\n\r\n":                            "localhost.evil.test",
		"GET /" + strings.Repeat("a", 70<<10) + " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n":                                   "longer than",
	}
	for request, because := range pages {
		t.Run("refuses "+request[:min(len(request), 200)], func(t *testing.T) {
			c := dial(t, p)
			b := bufio.NewReader(c)
			if line, err := b.ReadString('\n'); err != nil {
				t.Fatal(line, err)
			}
			go io.WriteString(c, request)
			res, err := http.ReadResponse(b, nil)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(res.Body)
			if res.StatusCode != http.StatusForbidden || err != nil || !strings.Contains(string(body), because) {
				t.Errorf("got %s, %q, %v", res.Status, body, err)
			}
			if _, err := b.ReadByte(); err != io.EOF {
				t.Errorf("after the answer: %v", err)
			}
			said.await(t, "refused a web page")
		})
	}
}

// TestPageInPieces has a request come byte by byte, as a slow one would.
func TestPageInPieces(t *testing.T) {
	p := publish(t, greeter{}, newWords(), "echo:0")
	c := dial(t, p)
	b := bufio.NewReader(c)
	b.ReadString('\n')
	for _, x := range []byte("GET / HTTP/1.1\r\nHost: x\r\nOrigin: http://evil.test\r\n\r\n") {
		if _, err := c.Write([]byte{x}); err != nil {
			t.Fatal(err)
		}
	}
	if res, err := http.ReadResponse(b, nil); err != nil || res.StatusCode != http.StatusForbidden {
		t.Errorf("got %v, %v", res, err)
	}
}

// TestHalfARequestIsNotHeld shows that few letters that could begin a request get
// through, and a request without an end does not.
func TestHalfARequestIsNotHeld(t *testing.T) {
	p := publish(t, greeter{}, newWords(), "echo:0")
	for half, want := range map[string]string{"G": "G", "POST": "POST", "GET /path": "HTTP/1.1 403 Forbidden\r\n"} {
		c := dial(t, p)
		b := bufio.NewReader(c)
		b.ReadString('\n')
		io.WriteString(c, half)
		got := make([]byte, len(want))
		if _, err := io.ReadFull(b, got); err != nil || string(got) != want {
			t.Errorf("%q: got %q, %v", half, got, err)
		}
	}
}

// TestUnixSocketIsForPrograms shows that what no page can reach is not looked at.
func TestUnixSocketIsForPrograms(t *testing.T) {
	p := publish(t, greeter{}, newWords(), "echo:unix:"+t.TempDir()+"/s")
	c := dial(t, p)
	b := bufio.NewReader(c)
	b.ReadString('\n')
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
	if line, err := b.ReadString('\n'); line != "GET / HTTP/1.1\r\n" {
		t.Errorf("got %q, %v", line, err)
	}
}
