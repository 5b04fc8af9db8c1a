package otlp

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"cardea/api"
	"cardea/audit"
)

// An exporter makes calls to one collector.
type exporter interface {
	// export makes one call. An error that is no *failure is one of the connection.
	export(ctx context.Context, req *collector.ExportLogsServiceRequest, headers []header) (*collector.ExportLogsServiceResponse, error)
	close()
}

// A header is sent with a call.
type header struct{ name, value string }

// A failure is why a call failed.
type failure struct {
	words   string
	refused bool          // the collector does not want what was sent, and will not
	after   time.Duration // that the collector asks us to wait
	broken  bool          // the connection is of no use any more
}

// Error implements error.
func (f *failure) Error() string { return f.words }

// export sends items to c, and returns how many of them it did not take.
func (s *Sink) export(ctx context.Context, c *api.Collector, items []item) (refused int64, _ *failure) {
	ctx, cancel := context.WithTimeout(ctx, callLimit)
	defer cancel()
	resp, err := s.call(ctx, c, items)
	if err != nil {
		f, ok := errors.AsType[*failure](err)
		if !ok {
			f = &failure{words: err.Error(), broken: true}
		}
		if f.broken {
			s.hangUp() // a dead connection is best found out by a new one
		}
		return 0, f
	}
	p := resp.GetPartialSuccess()
	if refused = min(max(p.GetRejectedLogRecords(), 0), int64(len(items))); refused > 0 {
		s.Log.Error("the collector did not take all records: they are left out", "url", c.URL, "records", refused, "why", audit.Cut(p.GetErrorMessage()))
	}
	return refused, nil
}

func (s *Sink) call(ctx context.Context, c *api.Collector, items []item) (*collector.ExportLogsServiceResponse, error) {
	if s.exporter == nil || !reflect.DeepEqual(s.dialled, c) {
		s.hangUp()
		e, err := s.newExporter(c)
		if err != nil {
			return nil, err
		}
		s.exporter, s.dialled = e, c
	}
	host := ""
	if u, err := url.Parse(c.URL); err == nil {
		host = u.Hostname()
	}
	var headers []header
	for _, h := range c.Headers {
		v := h.Value
		if h.FromSecret != "" {
			var err error
			if v, err = s.Secret(ctx, h.FromSecret, host); err != nil {
				return nil, &failure{words: fmt.Sprintf("header %s: %s", h.Name, err)}
			}
		}
		headers = append(headers, header{h.Name, v})
	}
	return s.exporter.export(ctx, &collector.ExportLogsServiceRequest{ResourceLogs: s.request(items)}, headers)
}

// hangUp closes the connection to the collector.
func (s *Sink) hangUp() {
	if s.exporter != nil {
		s.exporter.close()
		s.exporter, s.dialled = nil, nil
	}
}

// newExporter makes an exporter; it connects with the first call.
func (s *Sink) newExporter(c *api.Collector) (exporter, error) {
	u, err := url.Parse(c.URL)
	if err != nil {
		return nil, &failure{words: "the URL of the collector is none"}
	}
	trust := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: u.Hostname()}
	if len(c.TrustedCAs) > 0 {
		trust.RootCAs = x509.NewCertPool()
		for i, pem := range c.TrustedCAs {
			if !trust.RootCAs.AppendCertsFromPEM([]byte(pem)) {
				return nil, &failure{words: fmt.Sprintf("trustedCAs/%d of the collector holds no certificate", i)}
			}
		}
	}
	switch u.Scheme {
	case "http", "https":
		if u.Path == "" || u.Path == "/" {
			u.Path = "/v1/logs"
		}
		return newOverHTTP(u.String(), trust, s.Dial), nil
	case "grpc":
		return newOverGRPC(u.Host, insecure.NewCredentials(), s.Dial)
	case "grpcs":
		return newOverGRPC(u.Host, credentials.NewTLS(trust), s.Dial)
	}
	return nil, &failure{words: fmt.Sprintf("the URL of the collector has the scheme %q; use grpc, grpcs, http or https", u.Scheme)}
}

// dial is Sink.Dial.
type dial func(ctx context.Context, network, addr string) (net.Conn, error)

// overGRPC is OTLP/gRPC.
type overGRPC struct {
	conn *grpc.ClientConn
	logs collector.LogsServiceClient
}

func newOverGRPC(addr string, creds credentials.TransportCredentials, d dial) (exporter, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) { return d(ctx, "tcp", addr) }),
		grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(), // retries are ours
		grpc.WithUserAgent("cardea"),
	)
	if err != nil {
		return nil, err
	}
	return &overGRPC{conn, collector.NewLogsServiceClient(conn)}, nil
}

func (e *overGRPC) close() { e.conn.Close() }

func (e *overGRPC) export(ctx context.Context, req *collector.ExportLogsServiceRequest, headers []header) (*collector.ExportLogsServiceResponse, error) {
	for _, h := range headers {
		ctx = metadata.AppendToOutgoingContext(ctx, strings.ToLower(h.name), h.value)
	}
	resp, err := e.logs.Export(ctx, req)
	if err == nil {
		return resp, nil
	}
	st := status.Convert(err)
	f := &failure{words: fmt.Sprintf("the collector answers %s: %s", st.Code(), audit.Cut(st.Message()))}
	known := false
	for _, d := range st.Details() {
		if r, ok := d.(*errdetails.RetryInfo); ok {
			f.after, known = r.GetRetryDelay().AsDuration(), true
		}
	}
	switch st.Code() {
	case codes.InvalidArgument:
		f.refused = true
	case codes.ResourceExhausted: // too much at once, unless it says when there is room
		f.refused = !known
	case codes.Unavailable, codes.DeadlineExceeded:
		f.broken = true
	}
	return nil, f
}

// overHTTP is OTLP/HTTP with protobuf.
type overHTTP struct {
	url    string
	client http.Client
}

func newOverHTTP(url string, trust *tls.Config, d dial) exporter {
	return &overHTTP{url: url, client: http.Client{
		Transport: &http.Transport{
			DialContext: d, TLSClientConfig: trust, ForceAttemptHTTP2: true,
			MaxIdleConns: 1, TLSHandshakeTimeout: 10 * time.Second, MaxResponseHeaderBytes: 64 << 10,
		},
		// Records, and the Secrets in headers, go where the configuration says.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

func (e *overHTTP) close() { e.client.CloseIdleConnections() }

func (e *overHTTP) export(ctx context.Context, req *collector.ExportLogsServiceRequest, headers []header) (*collector.ExportLogsServiceResponse, error) {
	body, err := proto.Marshal(req)
	if err != nil {
		return nil, &failure{words: err.Error(), refused: true}
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	for _, h := range headers {
		r.Header.Set(h.name, h.value)
	}
	r.Header.Set("Content-Type", "application/x-protobuf")
	r.Header.Set("User-Agent", cmp.Or(r.Header.Get("User-Agent"), "cardea"))
	resp, err := e.client.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	const maxAnswer = 64 << 10
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	protobuf := strings.HasPrefix(resp.Header.Get("Content-Type"), "application/x-protobuf")
	if resp.StatusCode/100 == 2 {
		var m collector.ExportLogsServiceResponse
		if protobuf && proto.Unmarshal(answer, &m) != nil {
			m.Reset() // it has the records, and cannot say so
		}
		return &m, nil
	}
	f := &failure{words: "the collector answers " + strconv.Itoa(resp.StatusCode), after: retryAfter(resp)}
	var st rpcstatus.Status
	if protobuf && proto.Unmarshal(answer, &st) == nil && st.GetMessage() != "" {
		f.words += ": " + audit.Cut(st.GetMessage())
	}
	switch resp.StatusCode {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		f.refused = true
	}
	if resp.StatusCode/100 == 3 {
		f.words += ": it points elsewhere, and is not followed there"
	}
	return nil, f
}

// retryAfter returns how long an answer asks us to wait (RFC 9110, section 10.2.3).
func retryAfter(resp *http.Response) time.Duration {
	h := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(h, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if t, err := http.ParseTime(h); err == nil {
		sent, err := http.ParseTime(resp.Header.Get("Date")) // by its own clock, not ours
		if err == nil {
			return max(t.Sub(sent), 0)
		}
	}
	return 0
}
