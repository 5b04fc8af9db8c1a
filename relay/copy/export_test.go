package copy

import "time"

// Impatient returns an engine that gives large buffers back as often as it can.
func Impatient() *Engine {
	e := New()
	e.patience = 50 * time.Microsecond
	return e
}
