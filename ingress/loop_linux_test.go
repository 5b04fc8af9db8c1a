package ingress

import (
	"net"

	"cardea/relay/loop"
)

// listenLoop returns a Router.Raw: the engine's.
func listenLoop() func(*net.TCPListener) (RawListener, error) {
	e := loop.New(loop.Options{Loops: 2, Log: quiet})
	return func(l *net.TCPListener) (RawListener, error) { return e.Listen(l) }
}
