package copy_test

import (
	"sync"
	"testing"
	"time"

	"cardea/relay"
	"cardea/relay/copy"
	"cardea/relay/relaytest"
)

// Limits are changed while relays end: the engine comes to rest all the same.
func TestLimitsChangeWhileRelaysEnd(t *testing.T) {
	e := copy.New()
	var changing sync.WaitGroup
	for i := range 200 {
		client, clientGiven := relaytest.Pipe()
		upstream, upstreamGiven := relaytest.Pipe()
		live := e.Start(relay.Pair{Client: clientGiven, Upstream: upstreamGiven, Limits: relay.Limits{Idle: time.Hour}}, func(relay.Result) {})
		changing.Go(func() {
			for j := range 20 {
				live.Limit(relay.Limits{Idle: time.Duration((i+j)%3) * time.Hour})
			}
		})
		changing.Go(func() { live.Cut(relay.Drained); client.Close(); upstream.Close() })
	}
	changing.Wait()
	e.Wait()
}
