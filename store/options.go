package store

import (
	"cmp"
	"log/slog"
	"time"
)

// Defaults of Options.
const (
	DefaultKeep         = 30 * 24 * time.Hour
	DefaultKeepSessions = 7 * 24 * time.Hour
)

// Options of a store that is durable; the zero value is fit for use.
type Options struct {
	// Keep is how long history is kept after it ceased to be the state, and
	// KeepSessions the same for Sessions, which are many. Zero means DefaultKeep
	// and DefaultKeepSessions. History that is gone cannot be watched: the
	// shorter of the two bounds how far back a watch can begin.
	Keep, KeepSessions time.Duration
	// Program is the version of this program, which a program that is too old for
	// the schema names to its user; it may be empty.
	Program string
	// Log hears of what goes wrong while nobody asks; nil means nobody does.
	Log *slog.Logger
}

// WithDefaults returns o, for implementations, with nothing left open.
func (o Options) WithDefaults() Options {
	o.Keep = cmp.Or(o.Keep, DefaultKeep)
	o.KeepSessions = cmp.Or(o.KeepSessions, DefaultKeepSessions)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}
