//go:build !linux

package server

import (
	"log/slog"

	"cardea/relay"
)

// loopEngine returns nil: the event loop is for Linux.
func loopEngine(*slog.Logger) relay.Engine { return nil }
