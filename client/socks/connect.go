package socks

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"

	"cardea/api"
)

// connect is the dialect of HTTP CONNECT.
type connect struct{}

func (connect) request(c net.Conn, first byte) (target, error) {
	limited := &io.LimitedReader{R: io.MultiReader(bytes.NewReader([]byte{first}), c), N: maxRequest}
	r := bufio.NewReader(limited)
	req, err := http.ReadRequest(r)
	if err != nil && limited.N > 0 && isBroken(err) {
		return target{}, err // nobody is there to be told
	}
	if err != nil {
		return target{}, deny(c, http.StatusBadRequest, "this is no request of HTTP that can be understood")
	}
	if from := page(req.Header); from != "" {
		return target{}, deny(c, http.StatusForbidden, "a web page may not use this proxy ("+from+")")
	}
	if req.Method != http.MethodConnect {
		return target{}, deny(c, http.StatusMethodNotAllowed, "this proxy knows CONNECT alone (curl --proxytunnel), and SOCKS5 (curl --socks5-hostname)")
	}
	host, p, err := net.SplitHostPort(req.RequestURI)
	port, err2 := strconv.ParseUint(p, 10, 16)
	if err != nil || err2 != nil || port == 0 || !isHost(host) {
		return target{}, deny(c, http.StatusBadRequest, "want CONNECT HOST:PORT")
	}
	// A program waits for the answer. Who does not may hide behind this request what it
	// could not send by itself.
	if r.Buffered() > 0 || req.ContentLength > 0 || len(req.TransferEncoding) > 0 {
		return target{}, deny(c, http.StatusBadRequest, "wait for the answer before you send anything after CONNECT")
	}
	return target{host: host, port: int(port)}, nil
}

// page returns the header, if there is one, that only browsers send, and only for
// what a web page asks (https://www.w3.org/TR/fetch-metadata/).
func page(h http.Header) string {
	for name := range h {
		switch {
		case name == "Origin", name == "Referer":
			return name
		case strings.HasPrefix(name, "Sec-Fetch-"):
			return "Sec-Fetch"
		}
	}
	return ""
}

func (connect) accept(c, _ net.Conn) error {
	_, err := io.WriteString(c, "HTTP/1.1 200 Connection established\r\n\r\n")
	return err
}

func (connect) refuse(c net.Conn, why error) {
	status := map[failure]int{
		failed: http.StatusBadGateway, notAllowed: http.StatusForbidden, networkUnreachable: http.StatusBadGateway,
		hostUnreachable: http.StatusBadGateway, refused: http.StatusBadGateway, timedOut: http.StatusGatewayTimeout,
	}
	words := "no connection"
	if e, ok := errors.AsType[*api.Error](why); ok {
		words = e.Error()
	}
	answer(c, status[classify(why)], words)
}

// deny answers a request that cannot be, and returns what to log.
func deny(c net.Conn, status int, words string) error {
	answer(c, status, words)
	return fmt.Errorf("HTTP %d: %s", status, words)
}

func answer(c net.Conn, status int, words string) {
	allow := ""
	if status == http.StatusMethodNotAllowed {
		allow = "Allow: CONNECT\r\n"
	}
	fmt.Fprintf(c, "HTTP/1.1 %d %s\r\n%sContent-Type: text/plain; charset=utf-8\r\nX-Content-Type-Options: nosniff\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n",
		status, http.StatusText(status), allow, len(words)+1, words)
}
