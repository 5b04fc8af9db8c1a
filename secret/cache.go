package secret

import "sync"

// A cache keeps what was made of things, until they change, of a number of them. It
// may be used from any number of goroutines.
type cache[T any] struct {
	mu   sync.Mutex
	rows map[string]cached[T] // by thing
}

// maxCached is the number of things of which a cache keeps something.
const maxCached = 4096

type cached[T any] struct {
	version string
	value   T
}

// get returns what was made of a version of a thing, or makes and keeps it: in place
// of what was made of another version, and of any other thing if there are too many.
func (c *cache[T]) get(thing, version string, make func() (T, error)) (T, error) {
	if v, ok := c.kept(thing, version); ok {
		return v, nil
	}
	v, err := make()
	if err == nil {
		c.keep(thing, version, v)
	}
	return v, err
}

func (c *cache[T]) kept(thing, version string) (v T, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	row, ok := c.rows[thing]
	return row.value, ok && row.version == version
}

func (c *cache[T]) keep(thing, version string, v T) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rows == nil {
		c.rows = map[string]cached[T]{}
	}
	delete(c.rows, thing)
	for other := range c.rows {
		if len(c.rows) < maxCached {
			break
		}
		delete(c.rows, other)
	}
	c.rows[thing] = cached[T]{version, v}
}
