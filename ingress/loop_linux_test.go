package ingress

import (
	"net"

	"cardea/relay"
	"cardea/relay/loop"
)

// listenLoop returns a Router.Raw: the engine's.
func listenLoop() func(*net.TCPListener) (relay.Listener, error) {
	return loop.New(loop.Options{Loops: 2, Log: quiet}).Listen
}
