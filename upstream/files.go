package upstream

import (
	"bufio"
	"io"
	"net/netip"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/miekg/dns"
)

const (
	// fileEvery is how often it is looked whether a file has changed.
	fileEvery = 5 * time.Second
	// maxFile is the size in bytes of what is read of a file.
	maxFile = 4 << 20
	// maxServers is the number of name servers that are asked.
	maxServers = 8
)

// A file is what a file of the system says, read again when it changes. The zero
// value is ready for use.
type file[T any] struct {
	path string // instead of the usual one, for tests

	mu      sync.Mutex
	checked time.Time // when it was last looked at
	stamp   stamp
	value   T // the zero value if it cannot be read
}

// A stamp tells one content of a file from another.
type stamp struct {
	modified time.Time
	size     int64
}

// get returns what the file says, as parse has it.
func (f *file[T]) get(path string, parse func(io.Reader) T, now time.Time) T {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.checked.IsZero() && now.Sub(f.checked) < fileEvery {
		return f.value
	}
	f.checked = now
	if f.path != "" {
		path = f.path
	}
	info, err := os.Stat(path)
	if err != nil || !info.Mode().IsRegular() {
		f.stamp, f.value = stamp{}, *new(T)
		return f.value
	}
	s := stamp{info.ModTime(), info.Size()}
	if s == f.stamp {
		return f.value
	}
	r, err := os.Open(path)
	if err != nil {
		f.stamp, f.value = stamp{}, *new(T)
		return f.value
	}
	defer r.Close()
	f.stamp, f.value = s, parse(io.LimitReader(r, maxFile))
	return f.value
}

// parseHosts reads a file of hosts(5): addresses by name, in lower case and without
// final dot. Lines that make no sense are left out.
func parseHosts(r io.Reader) map[string][]netip.Addr {
	out := map[string][]netip.Addr{}
	for lines := bufio.NewScanner(r); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		a, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue
		}
		for _, name := range fields[1:] {
			name = strings.ToLower(strings.TrimSuffix(name, "."))
			out[name] = append(out[name], a.Unmap())
		}
	}
	return out
}

// parseConfig reads a resolv.conf(5). It is nil if that names no server.
func parseConfig(r io.Reader) *dns.ClientConfig {
	c, err := dns.ClientConfigFromReader(r)
	if err != nil || len(c.Servers) == 0 {
		return nil
	}
	c.Servers = c.Servers[:min(len(c.Servers), maxServers)]
	c.Attempts = min(max(c.Attempts, 1), 5)
	c.Timeout = min(max(c.Timeout, 1), 30)
	return c
}
