package server

import (
	"log/slog"

	"cardea/relay"
	"cardea/relay/loop"
)

// loopEngine returns the event loop.
func loopEngine(log *slog.Logger) relay.Engine { return loop.New(loop.Options{Log: log}) }
