package rpc

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"syscall"

	"cardea/api"
)

// A Client calls one server.
type Client struct {
	// HTTP carries the calls: whom it trusts and what certificate it shows is
	// settled there.
	HTTP *http.Client
	// Base is where the server is: https://HOST:PORT, without a slash at the end.
	Base string
}

// Do sends in as JSON, unless it is nil, and decodes the answer into out, unless
// it is nil. What the server refuses, or would because it is larger than
// MaxRequest, is an *api.Error; what kept the call from
// being answered is an error in plain words that wraps its cause.
func (c *Client) Do(ctx context.Context, method, path string, in, out any) error {
	res, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	b, err := readAll(res.Body, MaxAnswer)
	if err != nil {
		return c.lost(err)
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%s answered what is not understood here (is it of another version?): %w", c.host(), err)
	}
	return nil
}

// Stream sends in as Do does and calls each with every JSON line of the answer,
// until the answer ends, ctx is done (then it returns ctx's error) or each
// returns an error, which it returns. The line is valid during the call only.
func (c *Client) Stream(ctx context.Context, method, path string, in any, each func(json.RawMessage) error) error {
	res, err := c.send(ctx, method, path, in)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, MaxLine)
	for lines.Scan() {
		if len(lines.Bytes()) == 0 {
			continue
		}
		if !json.Valid(lines.Bytes()) {
			return fmt.Errorf("%s sent a line that is not JSON", c.host())
		}
		if err := each(lines.Bytes()); err != nil {
			return err
		}
	}
	if err := lines.Err(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return c.lost(err)
	}
	return nil
}

// send makes a call and returns its answer, if that is a success.
func (c *Client) send(ctx context.Context, method, path string, in any) (*http.Response, error) {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return nil, fmt.Errorf("encode the request: %w", err)
		}
		if len(b) > MaxRequest {
			return nil, tooLarge(MaxRequest) // the server would not read it either
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.Base+path, body)
	if err != nil {
		return nil, fmt.Errorf("make a request to %s: %w", c.Base, err)
	}
	if in != nil {
		req.Header.Set("Content-Type", contentJSON)
	}
	res, err := c.HTTP.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.unreachable(err)
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()
	failed := new(api.Error)
	b, err := readAll(res.Body, maxError)
	if err != nil || json.Unmarshal(b, failed) != nil || failed.Code == "" {
		return nil, fmt.Errorf("%s answered %q: it does not seem to be a Cardea API", c.host(), res.Status)
	}
	return nil, failed
}

// unreachable says in plain words why a call was not answered.
func (c *Client) unreachable(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // its words repeat the method and the URL
	}
	host := c.host()
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return fmt.Errorf("%s does not show a certificate of the expected cluster: %w", host, err)
	}
	if o, ok := errors.AsType[*net.OpError](err); ok && o.Op == "remote error" { // a TLS alert
		return fmt.Errorf("%s refused the connection: %w", host, err)
	}
	if d, ok := errors.AsType[*net.DNSError](err); ok && d.IsNotFound {
		return fmt.Errorf("cannot reach %s: there is no such host: %w", host, err)
	}
	if n, ok := errors.AsType[net.Error](err); ok && n.Timeout() {
		return fmt.Errorf("%s did not answer in time: %w", host, err)
	}
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("cannot reach %s: nothing listens there: %w", host, err)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return c.lost(err)
	}
	return fmt.Errorf("cannot reach %s: %w", host, err)
}

// lost says that an answer broke off.
func (c *Client) lost(err error) error {
	if errors.Is(err, errTooLarge) || errors.Is(err, bufio.ErrTooLong) {
		return fmt.Errorf("%s answered more than is read here: %w", c.host(), err)
	}
	return fmt.Errorf("%s broke the connection off: %w", c.host(), err)
}

func (c *Client) host() string {
	if u, err := url.Parse(c.Base); err == nil && u.Host != "" {
		return u.Host
	}
	return c.Base
}

var errTooLarge = errors.New("the answer is too large")

func readAll(r io.Reader, limit int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = errTooLarge
	}
	return b, err
}
