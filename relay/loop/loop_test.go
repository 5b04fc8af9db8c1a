//go:build linux

package loop_test

import (
	"testing"

	"go.uber.org/goleak"

	"cardea/relay"
	"cardea/relay/loop"
	"cardea/relay/relaytest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(*testing.T) relay.Engine { return loop.New(loop.Options{}) }

func openGate(*testing.T) relaytest.Gate { return loop.New(loop.Options{}) }

func TestEngine(t *testing.T) { relaytest.Run(t, open) }

func TestUrgent(t *testing.T) { relaytest.RunUrgent(t, open) }

// TestLimits holds the engine to limits where time is fake: between streams that are
// not TCP.
func TestLimits(t *testing.T) { relaytest.RunLimits(t, open) }

func TestRealLimits(t *testing.T) { relaytest.RunRealLimits(t, open) }

func TestAccept(t *testing.T) { relaytest.RunAccept(t, openGate) }

func TestConnect(t *testing.T) { relaytest.RunConnect(t, openGate) }

// TestOneLoop runs the suites where everything is in one loop.
func TestOneLoop(t *testing.T) {
	if testing.Short() {
		t.Skip("the suites have been run with a loop for each processor")
	}
	one := func() *loop.Engine { return loop.New(loop.Options{Loops: 1}) }
	relaytest.RunAccept(t, func(*testing.T) relaytest.Gate { return one() })
	relaytest.RunConnect(t, func(*testing.T) relaytest.Gate { return one() })
	relaytest.RunUrgent(t, func(*testing.T) relay.Engine { return one() })
}
