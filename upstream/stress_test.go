package upstream

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"testing"

	"cardea/api"
)

// Whatever changes while connections come and go, of all of which some fail, the counts
// are right in the end.
func TestCountsAreRightInTheEnd(t *testing.T) {
	hosts := func(n int) map[string][]string {
		return map[string][]string{"db.corp": addresses(1+n%3, n%2), "web.corp": {"192.0.2.9"}}
	}
	var mu sync.Mutex
	now := hosts(0)
	d := newDialer()
	d.Hosts = func() map[string][]string {
		mu.Lock()
		defer mu.Unlock()
		return now
	}
	d.connect = func(_ context.Context, at netip.AddrPort) (net.Conn, error) {
		if rand.IntN(4) == 0 {
			return nil, syscall.ECONNREFUSED
		}
		return pipeTo{to: at, closed: new(sync.Map)}, nil
	}
	running(t, d)
	var configs []*api.ServiceConfig
	for i := range 6 {
		cfg := several(1 + i%3)
		l := cfg.Upstream.Loadbalance
		l.Algorithm = []api.Balance{api.BalanceRoundRobin, api.BalanceLeastConnections, api.BalanceSourceHash}[i%3]
		l.Endpoints = append(l.Endpoints, api.UpstreamEndpoint{URL: "tcp://db.corp:80", MaxConnections: 8}, api.UpstreamEndpoint{URL: "tcp://web.corp:80", Backup: true})
		cfg.Upstream.Health = &api.UpstreamHealth{Ejection: &api.Ejection{Failures: 1 + i}}
		if i%2 == 0 {
			cfg.Upstream.Health.Check = &api.HealthProbe{Interval: ms(100), UnhealthyAfter: 1}
		}
		configs = append(configs, cfg)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for i := range 300 {
				to := destination(fmt.Sprintf("s%d", rand.IntN(2)), configs[rand.IntN(len(configs))])
				to.Facts = &api.Facts{IP: fmt.Sprintf("10.0.0.%d", rand.IntN(200))}
				var report api.DialReport
				var err error
				if p := d.Plan(to); p != nil && i%2 == 0 {
					_, _, report, err = follow(p, func(int) error {
						if rand.IntN(4) == 0 {
							return syscall.ECONNRESET
						}
						return nil
					})
				} else {
					if p != nil {
						p.Failure()
					}
					_, report, err = d.Dial(t.Context(), to)
				}
				if err == nil {
					report.Hold.Release(rand.Int64N(2), rand.IntN(2) == 0)
				}
				switch rand.IntN(30) {
				case 0:
					mu.Lock()
					now = hosts(rand.IntN(6))
					mu.Unlock()
				case 1:
					d.Watch([]api.Destination{to})
				case 2:
					d.Targets()
					d.Healthy(to.Object)
				}
			}
		})
	}
	all.Wait()
	for _, p := range d.all() {
		if !p.set.Idle() {
			t.Errorf("%v has connections: %+v", p.key, p.status())
		}
	}
}
