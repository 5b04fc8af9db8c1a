package l4_test

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"cardea/api"
	"cardea/test/cluster"
)

// The endpoints of the Service: so many that are killed in turn, and the others.
const mortal = 3

// startEndpoints starts the endpoints of the Service.
func (w *world) startEndpoints() {
	for i, kind := range []string{steady, steady, steady, slow, resets, silent, ""} {
		port, err := cluster.FreePort()
		if err != nil {
			w.t.Fatal(err)
		}
		e := &endpoint{kind: kind, number: i, address: fmt.Sprintf("127.0.0.1:%d", port)}
		w.endpoints = append(w.endpoints, e)
		if kind == "" { // nobody listens there
			continue
		}
		if err := e.start(); err != nil {
			w.t.Fatal(err)
		}
		w.t.Cleanup(e.kill)
	}
}

// balanced is the Service, with other weights each time.
func (w *world) balanced(round int) string {
	var list []string
	for _, e := range w.endpoints {
		list = append(list, fmt.Sprintf("{url: \"tcp://%s\", weight: %d}", e.address, 1+rand.IntN(10)))
	}
	algorithms := []api.Balance{api.BalanceRoundRobin, api.BalanceLeastConnections, api.BalanceSourceHash}
	return fmt.Sprintf(`---
kind: Service
metadata: {name: balanced}
spec:
  mode: TCP
  port: %d
  isPublic: true
  isAnonymous: true
  limits: {connectionsPerSecond: 1000000}
  config:
    upstream:
      connectTimeout: {seconds: 10}
      loadbalance:
        algorithm: %s
        endpoints: [%s]
      health:
        check: {interval: {milliseconds: 200}, timeout: {milliseconds: 500}, unhealthyAfter: 1, healthyAfter: 1, send: "%c", expect: "%c"}
        ejection: {failures: 3, time: {seconds: 1}}
`, w.service, algorithms[round%len(algorithms)], strings.Join(list, ", "), question, answer)
}

// checked returns when every endpoint of the Service was asked how it does.
func (w *world) checked(ctx context.Context) {
	w.t.Helper()
	w.wait(ctx, "health checks", func() bool {
		out, err := w.cluster.Run(ctx, "root", nil, "get", "service", "balanced", "-o", "json")
		if err != nil {
			w.t.Fatal(err)
		}
		var s api.Service
		if err := json.Unmarshal([]byte(out), &s); err != nil {
			w.t.Fatal(err)
		}
		for _, e := range s.Status.Endpoints {
			if e.State == api.HealthUnknown {
				return false
			}
		}
		return len(s.Status.Endpoints) == len(w.endpoints)
	})
}

// disturb kills one endpoint of the Service after the other, and starts it again, until
// ctx is done. Each that came back must get connections again.
func (w *world) disturb(ctx context.Context) {
	every := time.NewTicker(time.Second)
	defer every.Stop()
	for i := 0; ctx.Err() == nil; i++ {
		e := w.endpoints[i%mortal]
		e.kill()
		select {
		case <-every.C: // it stays away for a while
		case <-ctx.Done():
		}
		if err := e.start(); err != nil {
			w.t.Error(err)
			return
		}
		before := w.heard[e.number].Load()
		w.wait(ctx, "endpoint "+e.address+", which is there again,", func() bool { return w.heard[e.number].Load() > before })
	}
}

// upgrade replaces the process, which must be the one that answers from then on.
func (w *world) upgrade(ctx context.Context) {
	w.t.Helper()
	before := w.cluster.PID()
	if err := w.cluster.Upgrade(context.WithoutCancel(ctx), ""); err != nil {
		w.t.Fatal(err)
	}
	if w.cluster.PID() == before {
		w.t.Fatal("an upgrade did not change the process")
	}
	w.learn(w.secure)
	w.learn(w.plain)
}
