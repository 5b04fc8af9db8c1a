package upstream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"time"
)

// The reasons of an Error: as the access log has them, and package relay.
const (
	DialFailed  = "DIAL_FAILED"  // the upstream could not be reached
	DialTimeout = "DIAL_TIMEOUT" // the upstream did not answer in time
	UpstreamTLS = "UPSTREAM_TLS" // it answered, and TLS with it failed
	Unhealthy   = "UNHEALTHY"    // no endpoint serves
	Limit       = "LIMIT"        // the endpoints have as many connections as they may
)

// maxWords is the number of endpoints of which an Error says what went wrong.
const maxWords = 16

// An Error says why an upstream could not be had.
type Error struct {
	Reason string // one of these
	Words  string // for the log: which endpoints, what happened, the way out
	Err    error  // the cause
}

// Error returns the words. They name addresses, so they are not for callers.
func (e *Error) Error() string { return "upstream: " + e.Words }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CloseReason returns the reason: what the log calls the end of the connection.
func (e *Error) CloseReason() string { return e.Reason }

// together makes one Error of those of the endpoints that were tried, of all that
// there are; why says why the rest was not. Reason and cause are those of the endpoint
// that told most: a failure of TLS before a failed connection, and that before a
// time-out.
func together(failed []*Error, all int, why string) *Error {
	if all == 1 && len(failed) == 1 {
		return failed[0]
	}
	all = max(all, len(failed))
	most := slices.MaxFunc(failed, func(a, b *Error) int {
		return telling(a) - telling(b)
	})
	var words []string
	for _, e := range failed[:min(len(failed), maxWords)] {
		words = append(words, e.Words)
	}
	out := fmt.Sprintf("none of %d endpoints can be had: %s", all, strings.Join(words, "; "))
	if more := len(failed) - len(words); more > 0 {
		out += fmt.Sprintf("; and %d more", more)
	}
	if rest := all - len(failed); rest > 0 {
		out += fmt.Sprintf("; for %d more %s", rest, why)
	}
	return &Error{Reason: most.Reason, Words: out, Err: most.Err}
}

// telling says how much an Error tells.
func telling(e *Error) int {
	return slices.Index([]string{DialTimeout, DialFailed, UpstreamTLS}, e.Reason)
}

// attempts are the failures of all addresses of one name.
type attempts []error

func (a attempts) Error() string {
	words := make([]string, len(a))
	for i, err := range a {
		words[i] = err.Error()
	}
	return strings.Join(words, "; ")
}

func (a attempts) Unwrap() []error { return a }

// givenUp is the Error of a dial whose caller has gone.
func givenUp(gone error, name string) *Error {
	return &Error{Reason: DialFailed, Words: name + ": given up, because the connection that asked for it has ended", Err: gone}
}

// fields are what words name as the way out.
type fields struct {
	url      string // what says where the upstream is
	families string // what says which addresses of a name are wanted: %v is their list
}

// fieldsOf returns those of a foreign Object, or of a Service.
func fieldsOf(foreign bool) fields {
	if foreign {
		return fields{"service", "the families in use are %v: set enable_ipv4 and enable_ipv6 of the mapping, or of the Module, to true"}
	}
	return fields{"the upstream's url", "spec.config.upstream.families is %v: list the other family there, too"}
}

// explain makes an Error of what went wrong with a dial. gone is why whoever asked has
// gone, nil if it has not; name is HOST:PORT.
func explain(gone error, name string, f fields, timeout time.Duration, err error) *Error {
	fail := func(reason, wayOut string) *Error {
		return &Error{Reason: reason, Words: fmt.Sprintf("%s: %v: %s", name, err, wayOut), Err: err}
	}
	dns, isDNS := errors.AsType[*net.DNSError](err)
	family, isFamily := errors.AsType[*familyError](err)
	refused, isRefused := errors.AsType[*refusal](err)
	switch {
	case errors.Is(gone, context.Canceled):
		return givenUp(gone, name)
	case isDNS && (dns.IsTimeout || errors.Is(err, context.DeadlineExceeded)):
		return fail(DialTimeout, "the resolver does not answer; see that it can be reached, or list the name in spec.dns.hosts of the ClusterConfig")
	case isDNS:
		return fail(DialFailed, "correct "+f.url+", or list the name in spec.dns.hosts of the ClusterConfig")
	case isFamily:
		return fail(DialFailed, fmt.Sprintf(f.families, family.families))
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return fail(DialTimeout, fmt.Sprintf("no answer within %v; see that the host is up and that no firewall drops the connection", timeout))
	case isRefused:
		return fail(DialFailed, refused.wayOut)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fail(DialFailed, "nothing listens there; start the upstream, or correct "+f.url)
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return fail(DialFailed, "this machine has no route to it")
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return fail(DialFailed, "no file descriptors are left; raise the limit (ulimit -n)")
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return fail(DialFailed, "no local port is left towards this address, or this machine has no address of its family")
	}
	return &Error{Reason: DialFailed, Words: fmt.Sprintf("%s: %v", name, err), Err: err}
}
