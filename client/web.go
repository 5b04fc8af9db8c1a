package client

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"cardea/relay"
)

// Any web page that a browser shows can make that browser send requests to a port of
// this machine, where they are the own User's. So the first request that comes to a
// published TCP port is looked at: one that a page from elsewhere has made says so by
// itself (Origin, and Sec-Fetch-Site of W3C Fetch Metadata), or by the name under which
// it believes to be talking (Host), if the page's own name was made to lead here (DNS
// rebinding). What is not HTTP passes at its first bytes.

const (
	// maxRequestHead bounds what is looked at. A browser sends longer heads only if a
	// page makes it.
	maxRequestHead = 64 << 10
	// headTime bounds the time from the first byte of a request to the end of its head.
	headTime = time.Second
	// farewellTime bounds the time to tell a web page that it is refused.
	farewellTime = 2 * time.Second
)

// A guess is what is known of a client from the first bytes that it has sent.
type guess int

const (
	lookOn  guess = iota // there may be more to know
	looksOK              // it may pass
	isPage               // it is a web page from elsewhere
)

// judge looks at the first bytes of a client of a port at a host, and says why one is
// not to pass.
func judge(b []byte, host string) (guess, string) {
	method, rest, ok := bytes.Cut(b, []byte(" "))
	if !ok {
		for _, m := range pageMethods() {
			if strings.HasPrefix(m, string(method)) {
				return lookOn, ""
			}
		}
		return looksOK, ""
	}
	known := false
	for _, m := range pageMethods() {
		known = known || m == string(method)
	}
	if !known {
		return looksOK, ""
	}
	line, head, ok := bytes.Cut(rest, []byte("\n"))
	if !ok {
		return longer(b)
	}
	if _, version, ok := bytes.Cut(line, []byte(" ")); !ok || !bytes.HasPrefix(version, []byte("HTTP/1.")) {
		return looksOK, "" // inline commands, say
	}
	return judgeHead(b, head, host)
}

// pageMethods are those that a page can make a browser use.
func pageMethods() []string {
	return []string{"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"}
}

// longer is the verdict on a request that has not ended yet.
func longer(b []byte) (guess, string) {
	if len(b) >= maxRequestHead {
		return isPage, fmt.Sprintf("the head of its request is longer than %d bytes", maxRequestHead)
	}
	return lookOn, ""
}

// judgeHead looks at the fields of a request.
func judgeHead(b, head []byte, host string) (guess, string) {
	var origin, named string
	for {
		line, rest, ok := bytes.Cut(head, []byte("\n"))
		if !ok {
			return longer(b)
		}
		head = rest
		if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
			break
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		text := strings.TrimSpace(string(value))
		switch strings.ToLower(string(bytes.TrimSpace(name))) {
		case "sec-fetch-site":
			if text != "same-origin" && text != "none" {
				return isPage, fmt.Sprintf("a web page of another site made it (Sec-Fetch-Site: %.40q)", text)
			}
		case "origin":
			origin = text
		case "host":
			if !isHere(text, host) {
				return isPage, fmt.Sprintf("it is meant for %.100q, which is not the address of this port", text)
			}
			named = text
		}
	}
	if u, err := url.Parse(origin); origin != "" && (err != nil || !strings.EqualFold(u.Host, named)) {
		return isPage, fmt.Sprintf("a web page of %.100q made it (Origin)", origin)
	}
	return looksOK, ""
}

// isHere reports whether a Host can be that of a port at a host: the same, an IP address,
// localhost, or a name without dots. Nobody elsewhere can have a page under one of
// those that leads here.
func isHere(named, host string) bool {
	if h, _, err := net.SplitHostPort(named); err == nil {
		named = h
	}
	named = strings.ToLower(strings.TrimSuffix(strings.Trim(named, "[]"), "."))
	if _, err := netip.ParseAddr(named); err == nil {
		return true
	}
	return named == strings.ToLower(host) || !strings.Contains(named, ".") || strings.HasSuffix(named, ".localhost")
}

// errPage says that a client was refused as a web page.
var errPage = errors.New("the client is a web page from elsewhere")

// A guard is a client of a published TCP port, of which the first bytes are looked at
// before anybody reads them. It delays nothing that is not a request of HTTP, and never
// what is written.
type guard struct {
	*net.TCPConn
	host    string            // of the port
	refused func(why string)  // is told when the client is a page
	leave   func(work func()) // runs the farewell to a page

	held   []byte    // what was read, and not yet given out
	passed bool      // it may pass: given out is what is there
	until  time.Time // when the look ends at the latest; zero before the first byte

	mu   sync.Mutex
	read time.Time     // the deadline that the reader has set
	page bool          // the client is a page: what happens to the guard touches the connection no more
	gone chan struct{} // closed when the reader is done with a page
	once sync.Once
}

var (
	_ relay.Resetter    = (*guard)(nil)
	_ relay.CloseWriter = (*guard)(nil)
	_ relay.Layered     = (*guard)(nil)
)

// NetConn implements relay.Layered.
func (g *guard) NetConn() net.Conn { return g.TCPConn }

// Read implements net.Conn.
func (g *guard) Read(b []byte) (int, error) {
	if !g.passed {
		if err := g.look(); err != nil {
			return 0, err
		}
	}
	if len(g.held) > 0 {
		n := copy(b, g.held)
		if g.held = g.held[n:]; len(g.held) == 0 {
			g.held = nil
		}
		return n, nil
	}
	return g.TCPConn.Read(b)
}

// look reads until it is known what the client is.
func (g *guard) look() error {
	if g.isPage() {
		return errPage
	}
	b := make([]byte, 2<<10)
	for {
		n, err := g.TCPConn.Read(b)
		g.held = append(g.held, b[:n]...)
		verdict, why := judge(g.held, g.host)
		late := !g.until.IsZero() && errors.Is(err, os.ErrDeadlineExceeded) && !time.Now().Before(g.until)
		switch {
		case len(g.held) == 0:
			return err
		case verdict == lookOn && late && bytes.IndexByte(g.held, ' ') >= 0:
			verdict, why = isPage, "its request did not come whole"
		case verdict == lookOn && (late || err == io.EOF): // no request has so few letters
			verdict = looksOK
		case verdict == lookOn && err != nil:
			return err
		}
		switch verdict {
		case looksOK:
			g.passed = true
			g.restore()
			return nil // what err says, the next Read does too
		case isPage:
			g.refuse(why)
			return errPage
		}
		if g.until.IsZero() {
			g.until = time.Now().Add(headTime)
			g.TCPConn.SetReadDeadline(g.until)
		}
	}
}

// restore puts the reader's own deadline in the place of that of the look.
func (g *guard) restore() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.until.IsZero() {
		g.TCPConn.SetReadDeadline(g.read)
	}
}

// refuse takes the connection away from its reader, and says farewell once that is done
// with it.
func (g *guard) refuse(why string) {
	g.mu.Lock()
	g.page = true
	g.gone = make(chan struct{})
	g.mu.Unlock()
	g.refused(why)
	g.leave(func() {
		<-g.gone
		farewell(g.TCPConn, why)
	})
}

func (g *guard) isPage() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.page
}

// release ends the reader's hold of a connection. It reports false if it is not a page's,
// and the reader ends it itself.
func (g *guard) release() bool {
	if !g.isPage() {
		return false
	}
	g.once.Do(func() {
		g.TCPConn.SetDeadline(time.Unix(1, 0)) // whoever writes is to stop
		close(g.gone)
	})
	return true
}

// Close implements net.Conn.
func (g *guard) Close() error {
	if g.release() {
		return nil
	}
	return g.TCPConn.Close()
}

// Reset implements relay.Resetter.
func (g *guard) Reset(reason string) error {
	if g.release() {
		return nil
	}
	return relay.Reset(g.TCPConn, relay.Reason(reason))
}

// SetReadDeadline implements net.Conn.
func (g *guard) SetReadDeadline(t time.Time) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.read = t
	return g.TCPConn.SetReadDeadline(t)
}

// SetDeadline implements net.Conn.
func (g *guard) SetDeadline(t time.Time) error {
	return errors.Join(g.SetReadDeadline(t), g.SetWriteDeadline(t))
}

// farewell tells a web page, or the person who reads it, why it gets nothing, and closes
// the connection.
func farewell(c *net.TCPConn, why string) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(farewellTime))
	words := "Cardea has refused this request: " + why + ".\n" +
		"The port is for programs of this machine. If this was one, let it name the port by its address\n" +
		"(http://127.0.0.1:PORT), or publish the Service at a Unix socket (-p SERVICE:/PATH).\n"
	_, err := fmt.Fprintf(c, "HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\n"+
		"Content-Length: %d\r\nConnection: close\r\n\r\n%s", len(words), words)
	if err == nil && c.CloseWrite() == nil {
		// A reset, as closing with bytes unread makes one, would destroy the answer.
		io.Copy(io.Discard, io.LimitReader(c, 1<<20))
	}
}
