package api

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Balance is the way in which an endpoint is chosen for a connection.
type Balance string

// The values of Balance.
const (
	// BalanceRoundRobin gives the endpoints turns, each as many as its weight.
	BalanceRoundRobin Balance = "ROUND_ROBIN"
	// BalanceLeastConnections takes, of two that are drawn by weight, the one that has
	// fewer connections for its weight ("power of two choices").
	BalanceLeastConnections Balance = "LEAST_CONNECTIONS"
	// BalanceSourceHash gives a client address the same endpoint each time; when one
	// comes or goes, only the clients change that were, or will be, on that one.
	BalanceSourceHash Balance = "SOURCE_HASH"
)

// Values implements Enum.
func (Balance) Values() []string {
	return []string{string(BalanceRoundRobin), string(BalanceLeastConnections), string(BalanceSourceHash)}
}

// UpstreamHealth says how it is found out whether the endpoints of an upstream serve.
// An endpoint that does not gets no connections while there is one that does.
type UpstreamHealth struct {
	// Check asks each endpoint, again and again.
	Check *HealthProbe `json:"check,omitempty"`
	// Ejection takes out an endpoint to which connections fail. If it is left out, only a
	// Session that serves (user) is taken out: after one failure, for 5 seconds, or longer
	// if it goes on.
	Ejection *Ejection `json:"ejection,omitempty"`
	// CloseOnUnhealthy ends the connections to an endpoint when Check says that it does
	// not serve any more: UNHEALTHY.
	CloseOnUnhealthy bool `json:"closeOnUnhealthy,omitempty"`
}

// A HealthProbe is how an endpoint is asked whether it serves.
type HealthProbe struct {
	Type ProbeType `json:"type,omitempty"` // TCP if it is left out
	// Port is asked instead of that of the connections.
	Port int `json:"port,omitempty"`
	// Interval is the time from one question to the next, 5 seconds, and Timeout that
	// for an answer, 2 seconds.
	Interval *Duration `json:"interval,omitempty"`
	Timeout  *Duration `json:"timeout,omitempty"`
	// UnhealthyAfter is how many questions in a row fail until the endpoint is
	// unhealthy, 3, and HealthyAfter how many succeed until it is healthy again, 2.
	UnhealthyAfter int `json:"unhealthyAfter,omitempty"`
	HealthyAfter   int `json:"healthyAfter,omitempty"`
	// Send is what is sent, of TCP and TLS, and Expect what must be part of the answer.
	// Both are text in which \r, \n, \t, \\ and \xHH stand for bytes.
	Send   string `json:"send,omitempty"`
	Expect string `json:"expect,omitempty"`
	// HTTP says what is asked for, of HTTP and HTTPS.
	HTTP *HTTPProbe `json:"http,omitempty"`
}

// ProbeType is a protocol in which an endpoint is asked.
type ProbeType string

// The values of ProbeType.
const (
	ProbeTCP   ProbeType = "TCP"   // a connection can be made
	ProbeTLS   ProbeType = "TLS"   // … and a handshake, with the TLS of the config
	ProbeHTTP  ProbeType = "HTTP"  // … and GET is answered as it should be
	ProbeHTTPS ProbeType = "HTTPS" // the same over TLS
)

// Values implements Enum.
func (ProbeType) Values() []string {
	return []string{string(ProbeTCP), string(ProbeTLS), string(ProbeHTTP), string(ProbeHTTPS)}
}

// An HTTPProbe is a request, and the statuses of its answer that are good.
type HTTPProbe struct {
	Path     string `json:"path,omitempty"`     // "/" if it is left out
	Host     string `json:"host,omitempty"`     // of the header; that of the endpoint if it is left out
	Statuses []int  `json:"statuses,omitempty"` // 200 to 399 if it is left out
}

// An Ejection takes an endpoint out for a while to which connections fail: they
// cannot be made, or are reset before it has sent a byte.
type Ejection struct {
	// Failures is how many connections in a row must fail, 5.
	Failures int `json:"failures,omitempty"`
	// Time is for how long it is out, 10 seconds; the second time in a row twice that,
	// and so on, at most ten times.
	Time *Duration `json:"time,omitempty"`
	// MaxPercent is how many of the endpoints may be out at once, 50: all, and it does
	// not matter any more, and none is out.
	MaxPercent int `json:"maxPercent,omitempty"`
}

// HealthState is how it stands with an endpoint.
type HealthState string

// The values of HealthState.
const (
	HealthUnknown   HealthState = "UNKNOWN"   // nobody has asked it yet; it gets connections
	HealthHealthy   HealthState = "HEALTHY"   // or nobody asks it
	HealthUnhealthy HealthState = "UNHEALTHY" // it does not answer as it should
	HealthEjected   HealthState = "EJECTED"   // connections to it failed
)

// An EndpointStatus is how it stands with one address of an endpoint, or one Session that
// serves it, in this process.
type EndpointStatus struct {
	Config   string      `json:"config,omitempty"` // name of the config; "" is spec.config, or of a TCPMapping
	Endpoint string      `json:"endpoint"`         // HOST:PORT as it is configured; "HOST:PORT (user NAME)" if Sessions serve it
	Address  string      `json:"address"`          // IP:PORT that it stands for, or "session NAME"
	State    HealthState `json:"state"`
	Since    time.Time   `json:"since,omitzero"`
	Words    string      `json:"words,omitempty"` // why, for a person
	Weight   int         `json:"weight,omitempty"`
	Backup   bool        `json:"backup,omitempty"`
	// Connections is how many live connections it has.
	Connections int `json:"connections,omitempty"`
}

// HealthInfo is the log of a change in the health of an endpoint.
type HealthInfo struct {
	Config   string      `json:"config,omitempty"`
	Endpoint string      `json:"endpoint"`
	Address  string      `json:"address"`
	From     HealthState `json:"from"`
	To       HealthState `json:"to"`
	Words    string      `json:"words,omitempty"`
}

// Serves reports whether an endpoint in this state gets connections before others.
func (s HealthState) Serves() bool { return s == HealthHealthy || s == HealthUnknown || s == "" }

// Limits of a HealthProbe.
const (
	maxProbeText = 1024
	maxStatuses  = 32
)

// Validate checks what is written; at is a pointer such as
// /spec/config/upstream/health. h may be nil.
func (h *UpstreamHealth) Validate(p *Problems, at string) {
	if h == nil {
		return
	}
	if h.Check == nil && h.Ejection == nil {
		p.Add(at, "must have check, ejection or both", "")
	}
	if h.CloseOnUnhealthy && h.Check == nil {
		p.Add(at+"/closeOnUnhealthy", "needs check: nothing else says that an endpoint does not serve", "true")
	}
	h.Check.validate(p, at+"/check")
	if e := h.Ejection; e != nil {
		within(p, at+"/ejection/failures", e.Failures, 1, 1000, "5")
		within(p, at+"/ejection/maxPercent", e.MaxPercent, 1, 100, "50")
		e.Time.validate(p, at+"/ejection/time", 100*time.Millisecond, time.Hour)
	}
}

// within checks a number that may be left out, as what then is.
func within(p *Problems, at string, n, least, most int, otherwise string) {
	if n != 0 && (n < least || n > most) {
		p.Add(at, fmt.Sprintf("must be from %d to %d, or left out: %s", least, most, otherwise), strconv.Itoa(n))
	}
}

func (c *HealthProbe) validate(p *Problems, at string) {
	if c == nil {
		return
	}
	isHTTP := c.Type == ProbeHTTP || c.Type == ProbeHTTPS
	within(p, at+"/port", c.Port, 1, 65535, "that of the connections")
	within(p, at+"/unhealthyAfter", c.UnhealthyAfter, 1, 100, "3")
	within(p, at+"/healthyAfter", c.HealthyAfter, 1, 100, "2")
	c.Interval.validate(p, at+"/interval", 100*time.Millisecond, time.Hour)
	c.Timeout.validate(p, at+"/timeout", 10*time.Millisecond, time.Minute)
	for _, x := range []struct{ name, text string }{{"send", c.Send}, {"expect", c.Expect}} {
		switch b, err := ProbeBytes(x.text); {
		case x.text != "" && isHTTP:
			p.Add(at+"/"+x.name, "is for TCP and TLS; http says what to ask for", x.text)
		case err != nil:
			p.Add(at+"/"+x.name, err.Error(), x.text)
		case len(b) > maxProbeText:
			p.Add(at+"/"+x.name, fmt.Sprintf("must be at most %d bytes", maxProbeText), strconv.Itoa(len(b)))
		}
	}
	if c.HTTP == nil {
		return
	}
	if !isHTTP {
		p.Add(at+"/http", "needs type HTTP or HTTPS", string(c.Type))
	}
	if x := c.HTTP.Path; x != "" && !strings.HasPrefix(x, "/") || strings.ContainsAny(x, " \r\n") || len(x) > maxProbeText {
		p.Add(at+"/http/path", "must begin with / and have neither space nor line end", x)
	}
	if x := c.HTTP.Host; x != "" && !validHost(x) {
		p.Add(at+"/http/host", "must be a DNS name or an IP address", x)
	}
	if len(c.HTTP.Statuses) > maxStatuses {
		p.Add(at+"/http/statuses", fmt.Sprintf("must be at most %d", maxStatuses), strconv.Itoa(len(c.HTTP.Statuses)))
	}
	for i, n := range c.HTTP.Statuses {
		if n < 100 || n > 599 || slices.Contains(c.HTTP.Statuses[:i], n) {
			p.Add(fmt.Sprintf("%s/http/statuses/%d", at, i), "must be from 100 to 599, each once", strconv.Itoa(n))
		}
	}
}

// ProbeBytes returns the bytes that HealthProbe.Send or Expect stands for.
func ProbeBytes(text string) ([]byte, error) {
	var out []byte
	for i := 0; i < len(text); i++ {
		if text[i] != '\\' {
			out = append(out, text[i])
			continue
		}
		if i++; i == len(text) {
			return nil, fmt.Errorf(`must not end with \: write \\`)
		}
		switch text[i] {
		case 'r':
			out = append(out, '\r')
		case 'n':
			out = append(out, '\n')
		case 't':
			out = append(out, '\t')
		case '\\':
			out = append(out, '\\')
		case 'x':
			if len(text) < i+3 {
				return nil, fmt.Errorf(`\x must have two hexadecimal digits after it`)
			}
			b, err := strconv.ParseUint(text[i+1:i+3], 16, 8)
			if err != nil {
				return nil, fmt.Errorf(`\x must have two hexadecimal digits after it`)
			}
			out, i = append(out, byte(b)), i+2
		default:
			return nil, fmt.Errorf(`\%c stands for nothing: it may be \r, \n, \t, \\ or \xHH`, text[i])
		}
	}
	return out, nil
}
