package upstream

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"cardea/api"
	"cardea/upstream/balance"
)

const (
	// maxExpected is the number of bytes of an answer in which is looked for what is
	// expected.
	maxExpected = 64 << 10
	// maxHeader is the size of what is read of an answer of HTTP, and maxLine that of one
	// of its lines.
	maxHeader = 64 << 10
	maxLine   = 4 << 10
	// maxInterim is the number of interim answers (RFC 9110, section 15.2) before the
	// one that counts.
	maxInterim = 8
)

// An unexpected answer says that something answered, and not as it should.
type unexpected struct{ words string }

func (e *unexpected) Error() string { return e.words }

// probe asks a target whether it serves, as the config of to says: nil is yes. It
// connects to what connections may be made to, and in the way that they are made, but
// that a PROXY header tells of nobody.
func (d *Dialer) probe(ctx context.Context, p *place, t *balance.Target, to api.Destination) *Error {
	check := to.Config.Upstream.Health.Check
	within := check.Timeout.Or(defaultProbeTimeout)
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	from, _ := p.source(t.Host)
	if from == nil {
		return nil // it is no target any more
	}
	name, at := t.Host, t.Addr
	isForeign := to.Object.Group == api.GroupAmbassador
	way := fieldsOf(isForeign)
	config := *to.Config
	to.Config, to.Facts, to.ConnectionID = &config, nil, ""
	secure := check.Type == api.ProbeTLS || check.Type == api.ProbeHTTPS
	if !secure {
		config.Upstream.StartTLS = ""
	}
	if check.Port != 0 {
		name, at = net.JoinHostPort(from.host, strconv.Itoa(check.Port)), netip.AddrPortFrom(at.Addr(), uint16(check.Port))
		config.Upstream.StartTLS, config.Upstream.ProxyProtocol = "", "" // they are of the other port
		way.url = checkField(isForeign, "port")
	}
	connect := d.connect
	if connect == nil {
		connect = d.connectTCP
	}
	var conn net.Conn
	var err error
	if t.Session != "" {
		conn, err = d.connectSession(ctx, to, t, false)
	} else {
		conn, err = connect(ctx, at)
	}
	if err != nil {
		return explain(nil, name, way, within, err)
	}
	defer func() { conn.Close() }()
	if err := preface(ctx, conn, to); err != nil {
		return explainPreface(nil, name, within, err)
	}
	if secure {
		s, err := d.session(ctx, to, p, from)
		if err != nil {
			return errorAt(name, UpstreamTLS, err.Error(), err)
		}
		s.address, s.check = name, true
		if check.Type == api.ProbeHTTPS {
			s.config.NextProtos = []string{"http/1.1"}
		}
		inner := conn
		over, err := s.handshake(ctx, inner)
		if err != nil {
			return s.explain(nil, within, err)
		}
		conn = over
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := converse(conn, check, from); err != nil {
		return explainAnswer(ctx, name, within, err)
	}
	return nil
}

// checkField returns a field of a check, as words name it: of a foreign Object, or of a
// Service.
func checkField(foreign bool, name string) string {
	if foreign {
		return "check." + name + " of the annotation " + api.AnnotationPrefix + api.AnnotationHealth
	}
	return "health.check." + name
}

// explainAnswer makes an Error of what became of a question.
func explainAnswer(ctx context.Context, name string, within time.Duration, err error) *Error {
	_, isUnexpected := errors.AsType[*unexpected](err)
	switch {
	case isUnexpected && ctx.Err() != nil:
		return errorAt(name, DialTimeout, fmt.Sprintf("%v, within %v", err, within), err)
	case isUnexpected:
		return errorAt(name, DialFailed, err.Error(), err)
	case ctx.Err() != nil:
		return errorAt(name, DialTimeout, fmt.Sprintf("connected, and no answer as it is expected within %v", within), err)
	case errors.Is(err, io.EOF):
		return errorAt(name, DialFailed, "connected, and it ended the connection before an answer as it is expected", err)
	}
	return errorAt(name, DialFailed, fmt.Sprintf("connected, and then %v", err), err)
}

// converse asks what is to be asked on a connection.
func converse(conn io.ReadWriter, check *api.HealthProbe, from *source) error {
	if check.Type == api.ProbeHTTP || check.Type == api.ProbeHTTPS {
		return get(conn, cmp.Or(check.HTTP, new(api.HTTPProbe)), hostHeader(check, from))
	}
	// Both were validated when they were written.
	send, _ := api.ProbeBytes(check.Send)
	expected, _ := api.ProbeBytes(check.Expect)
	if len(send) > 0 {
		if _, err := conn.Write(send); err != nil {
			return err
		}
	}
	if len(expected) == 0 {
		return nil
	}
	return expect(conn, expected)
}

// expect reads until an answer has those bytes.
func expect(r io.Reader, want []byte) error {
	var got []byte
	chunk := make([]byte, maxLine)
	for len(got) < maxExpected {
		n, err := r.Read(chunk[:min(len(chunk), maxExpected-len(got))])
		from := max(len(got)-len(want), 0)
		got = append(got, chunk[:n]...)
		if bytes.Contains(got[from:], want) {
			return nil
		}
		if err != nil && len(got) == 0 {
			return err
		}
		if err != nil {
			break
		}
	}
	return &unexpected{fmt.Sprintf("it answered %.80q, which does not have %.80q in it", got, want)}
}

// hostHeader returns the Host of a request.
func hostHeader(check *api.HealthProbe, from *source) string {
	if check.HTTP != nil && check.HTTP.Host != "" {
		return check.HTTP.Host
	}
	port := cmp.Or(check.Port, from.port)
	if check.Type == api.ProbeHTTP && port == 80 || check.Type == api.ProbeHTTPS && port == 443 {
		if strings.Contains(from.host, ":") {
			return "[" + from.host + "]"
		}
		return from.host
	}
	return net.JoinHostPort(from.host, strconv.Itoa(port))
}

// get makes one request of HTTP/1.1 (RFC 9112) and looks at the status of the answer.
func get(conn io.ReadWriter, check *api.HTTPProbe, host string) error {
	if _, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: %s\r\nUser-Agent: cardea-health\r\nAccept: */*\r\nConnection: close\r\n\r\n", cmp.Or(check.Path, "/"), host); err != nil {
		return err
	}
	status, err := readStatus(conn)
	if err != nil {
		return err
	}
	if len(check.Statuses) == 0 && status >= 200 && status < 400 || slices.Contains(check.Statuses, status) {
		return nil
	}
	return &unexpected{fmt.Sprintf("it answered GET %s with status %d", cmp.Or(check.Path, "/"), status)}
}

// readStatus reads the status of an answer, after the interim ones.
func readStatus(r io.Reader) (int, error) {
	lines := bufio.NewReaderSize(io.LimitReader(r, maxHeader), maxLine)
	for range maxInterim {
		line, err := lines.ReadSlice('\n')
		if err != nil && (len(line) == 0 || !errors.Is(err, bufio.ErrBufferFull) && err != io.EOF) {
			return 0, err
		}
		status, ok := parseStatus(line)
		if !ok {
			return 0, &unexpected{fmt.Sprintf("it answered %.80q, which is no HTTP", line)}
		}
		if status >= 200 || status == 101 {
			return status, nil
		}
		for len(bytes.TrimRight(line, "\r\n")) > 0 { // to the end of its header
			if line, err = lines.ReadSlice('\n'); err != nil {
				return 0, err
			}
		}
	}
	return 0, &unexpected{"it sent ever more interim answers, and no other one"}
}

// parseStatus reads a status line.
func parseStatus(line []byte) (int, bool) {
	version, rest, _ := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(" "))
	if len(version) != 8 || !bytes.HasPrefix(version, []byte("HTTP/1.")) || len(rest) < 3 || len(rest) > 3 && rest[3] != ' ' {
		return 0, false
	}
	status := 0
	for _, c := range rest[:3] {
		if c < '0' || c > '9' {
			return 0, false
		}
		status = 10*status + int(c-'0')
	}
	return status, status >= 100 && status < 600
}
