package upstream

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"time"

	"cardea/api"
)

// maxTargets is the number of places of a name of SRV records that are tried.
const maxTargets = 16

// An endpoint is one place of an upstream: of its URL, or one that SRV records of
// that stand for.
type endpoint struct {
	api.Endpoint
	name   string // the host of the URL
	target bool   // SRV records have led to it
}

// isSRV tells whether the host is a name of SRV records.
func (e endpoint) isSRV() bool { return !e.target && strings.HasPrefix(e.Host, "_") }

// withoutService returns a name without the labels before it that begin with "_":
// the domain of which SRV records tell.
func withoutService(name string) string {
	for strings.HasPrefix(name, "_") {
		_, rest, ok := strings.Cut(name, ".")
		if !ok {
			break
		}
		name = rest
	}
	return name
}

// A service is an SRV record (RFC 2782).
type service struct {
	target           string // with its final dot
	port             uint16
	priority, weight uint16
}

func servicesOf(list []*net.SRV) (out []service) {
	for _, s := range list {
		out = append(out, service{strings.ToLower(s.Target), s.Port, s.Priority, s.Weight})
	}
	return out
}

// targets returns the endpoints that an endpoint stands for whose host is a name of
// SRV records, in the order in which they are to be tried. ctx ends after timeout.
func (d *Dialer) targets(ctx context.Context, t target, timeout time.Duration) ([]endpoint, *Error) {
	list, err := d.names.services(ctx, t.end.Host)
	list = slices.DeleteFunc(slices.Clone(list), func(s service) bool { return s.target == "." || s.target == "" || s.port == 0 })
	if err == nil && len(list) == 0 {
		err = &net.DNSError{Err: "its SRV records say that there is no such service", Name: t.end.Host, IsNotFound: true}
	}
	if err != nil {
		return nil, explain(t.caller, t.end.Host, t.fields(), timeout, err)
	}
	var out []endpoint
	for _, s := range inOrder(list, rand.IntN) {
		e := api.Endpoint{Host: strings.TrimSuffix(s.target, "."), Port: int(s.port), TLS: t.end.TLS}
		if out = append(out, endpoint{e, t.end.name, true}); len(out) == maxTargets {
			break
		}
	}
	return out, nil
}

// inOrder returns SRV records in the order in which a client tries them: by
// priority, and among equals by chance, in which weights are shares (RFC 2782,
// "Usage rules"). chance returns a number from 0 to n-1.
func inOrder(list []service, chance func(n int) int) []service {
	left := slices.Clone(list)
	// Those of weight 0 come first, so that they have a small chance.
	slices.SortStableFunc(left, func(a, b service) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(min(a.weight, 1), min(b.weight, 1)))
	})
	var out []service
	for len(left) > 0 {
		equal := 0
		sum := 0
		for equal < len(left) && left[equal].priority == left[0].priority {
			sum += int(left[equal].weight)
			equal++
		}
		at, drawn := 0, chance(sum+1)
		for total := int(left[0].weight); total < drawn; total += int(left[at].weight) {
			at++
		}
		out = append(out, left[at])
		left = slices.Delete(left, at, at+1)
	}
	return out
}
