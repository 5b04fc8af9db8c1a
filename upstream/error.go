package upstream

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
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

	bare string // Words without the endpoint, for who names that already; "" if it is not one
}

// errorAt makes an Error of what happened to an endpoint: HOST:PORT.
func errorAt(name, reason, words string, err error) *Error {
	return &Error{Reason: reason, Words: name + ": " + words, Err: err, bare: words}
}

// short returns the words for who shows them beside the endpoint.
func (e *Error) short() string { return cmp.Or(e.bare, e.Words) }

// Error returns the words. They name addresses, so they are not for callers.
func (e *Error) Error() string { return "upstream: " + e.Words }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// CloseReason returns the reason: what the log calls the end of the connection.
func (e *Error) CloseReason() string { return e.Reason }

// together makes one Error of those of the endpoints that were tried; why says why the
// rest, so many more, was not. Reason and cause are those of the endpoint that told
// most: that there is no place, as it may be had later; a failure of TLS before a
// failed connection, and that before a time-out.
func together(failed []*Error, rest int, why string) *Error {
	if rest <= 0 && len(failed) == 1 {
		return failed[0]
	}
	all := len(failed) + max(rest, 0)
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
	if rest > 0 {
		out += fmt.Sprintf("; for %d more %s", rest, why)
	}
	return &Error{Reason: most.Reason, Words: out, Err: most.Err}
}

// telling says how much an Error tells.
func telling(e *Error) int {
	return slices.Index([]string{DialTimeout, DialFailed, UpstreamTLS, Limit}, e.Reason)
}

// attempts are the failures of all addresses of one name.
type attempts []error

func (a attempts) Error() string {
	return wordsOf(a, "")
}

func (a attempts) Unwrap() []error { return a }

// wordsOf returns the words of an error of connecting to an endpoint, whose name need not
// be said again, nor which calls of the system failed.
func wordsOf(err error, name string) string {
	if all, ok := err.(attempts); ok {
		words := make([]string, len(all))
		for i, err := range all {
			words[i] = wordsOf(err, name)
		}
		return strings.Join(words, "; ")
	}
	at, why := dialled(err)
	if at == "" || at == name {
		return why
	}
	return at + ": " + why
}

// dialled returns the address at which connect(2) failed, and why. The address is "" if
// it was something else that failed.
func dialled(err error) (at, why string) {
	op, ok := err.(*net.OpError)
	if !ok || op.Op != "dial" || op.Addr == nil {
		return "", err.Error()
	}
	why = op.Err.Error()
	if call, ok := op.Err.(*os.SyscallError); ok {
		why = call.Err.Error()
	}
	return op.Addr.String(), why
}

// givenUp is the Error of a dial whose caller has gone.
func givenUp(gone error, name string) *Error {
	return &Error{Reason: DialFailed, Words: name + ": given up, because the connection that asked for it has ended", Err: gone}
}

// outOfTime reports whether the time for something is over. The deadline of a socket may
// tell before the context does, from which package net has it.
func outOfTime(err error) bool {
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, os.ErrDeadlineExceeded)
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
		if wayOut != "" {
			wayOut = ": " + wayOut
		}
		_, why := dialled(err)
		return &Error{Reason: reason, Words: name + ": " + wordsOf(err, name) + wayOut, Err: err, bare: why + wayOut}
	}
	dns, isDNS := errors.AsType[*net.DNSError](err)
	family, isFamily := errors.AsType[*familyError](err)
	refused, isRefused := errors.AsType[*refusal](err)
	_, isSession := errors.AsType[*sessionError](err)
	switch {
	case errors.Is(gone, context.Canceled):
		return givenUp(gone, name)
	case isSession && outOfTime(err):
		return fail(DialTimeout, fmt.Sprintf("it had %v; see `cardea status` there", timeout))
	case isSession:
		return fail(DialFailed, "")
	case isDNS && (dns.IsTimeout || outOfTime(err)):
		return fail(DialTimeout, "the resolver does not answer; see that it can be reached, or list the name in spec.dns.hosts of the ClusterConfig")
	case isDNS:
		return fail(DialFailed, "correct "+f.url+", or list the name in spec.dns.hosts of the ClusterConfig")
	case isFamily:
		return fail(DialFailed, fmt.Sprintf(f.families, family.families))
	case outOfTime(err), errors.Is(err, syscall.ETIMEDOUT):
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
	return fail(DialFailed, "")
}
