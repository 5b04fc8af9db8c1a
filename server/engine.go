package server

import (
	"fmt"
	"net"

	"cardea/api"
	"cardea/proxy"
	"cardea/relay"
	relaycopy "cardea/relay/copy"
	"cardea/upstream"
)

// The engines that a Config may name.
const (
	engineLoop = "loop"
	engineCopy = "copy"
)

// engineOf returns what carries bytes.
func engineOf(cfg Config) (relay.Engine, error) {
	switch cfg.Engine {
	case "":
		if e := loopEngine(cfg.Log); e != nil {
			return e, nil
		}
		return relaycopy.New(), nil
	case engineLoop:
		if e := loopEngine(cfg.Log); e != nil {
			return e, nil
		}
		return nil, fmt.Errorf("--engine %s: there is none on this system; leave it out, or say %s", engineLoop, engineCopy)
	case engineCopy:
		return relaycopy.New(), nil
	}
	return nil, fmt.Errorf("--engine %q: must be %s or %s", cfg.Engine, engineLoop, engineCopy)
}

// engineName returns what a Config would call it.
func engineName(e relay.Engine) string {
	if _, ok := e.(relay.Acceptor); ok {
		return engineLoop
	}
	return engineCopy
}

// acceptOf returns how connections are accepted where the engine does that itself, else
// nil.
func acceptOf(e relay.Engine) func(*net.TCPListener) (relay.Listener, error) {
	if a, ok := e.(relay.Acceptor); ok {
		return a.Listen
	}
	return nil
}

// planOf returns how the engine connects to upstreams itself.
func planOf(d *upstream.Dialer) func(api.Destination) proxy.Plan {
	return func(to api.Destination) proxy.Plan {
		if p := d.Plan(to); p != nil {
			return p
		}
		return nil
	}
}
