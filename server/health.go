package server

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cardea/api"
	"cardea/store"
)

// descriptorsPerConnection is how many descriptors a relayed connection takes: one
// to each side.
const descriptorsPerConnection = 2

// The per cent of descriptors that may be open before public ports take no more,
// before Sessions get no further connection, and before strangers at the cluster's own
// port are refused: who holds all that there is for public ports keeps no Session out, and
// who holds all that there is for Sessions keeps nobody from logging in, or from ending
// them.
const (
	publicShare   = 92
	sessionShare  = 94
	strangerShare = 96
)

// oneSession is the part of the connections that Sessions can have at all which one may
// have to Services that do not say how many.
const oneSession = 4

// perSession returns how many connections a Session may have of so many descriptors.
func perSession(limit int) int {
	return max(limit*sessionShare/100/descriptorsPerConnection/oneSession, 1)
}

// descriptors returns how many descriptors this process has open, and may have.
func (h *house) descriptors() (used, limit int) {
	// Since Linux 6.2 the size of the directory is the number of its entries.
	if i, err := os.Stat("/proc/self/fd"); err == nil && i.Size() > 0 {
		return int(i.Size()), h.limit
	}
	d, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0, h.limit // not to be known here
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return 0, h.limit
	}
	return len(names), h.limit
}

// connections returns how many relayed connections the limit of descriptors
// allows.
func (h *house) connections() int {
	used, limit := h.descriptors()
	return max(limit-used, 0) / descriptorsPerConnection
}

// health looks at what can be wrong with this process.
func (h *house) health(ctx context.Context) (checks []api.HealthCheck) {
	add := func(name string, err error, words, hint string) {
		c := api.HealthCheck{Name: name, OK: err == nil, Words: words}
		if err != nil {
			c.Words, c.Hint = err.Error(), hint
		}
		checks = append(checks, c)
	}
	// What warn adds keeps nobody from being served.
	warn := func(name string, err error, words, hint string) {
		add(name, err, words, hint)
		checks[len(checks)-1].Warning = err != nil
	}
	var rev api.Revision
	err := h.store.View(ctx, func(r store.Reader) error {
		rev = r.Revision()
		return nil
	})
	add("store", err, "revision "+rev.String(), "see the cluster's own log")
	soon, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	add("decisions", h.decider.Await(soon, rev), "made on revision "+rev.String(), "see the cluster's own log")
	log := h.journal.Stats()
	add("access log", h.journal.Healthy(), fmt.Sprintf("%d records, %d MiB", log.Records, log.Bytes>>20), "without it nobody new gets in: is the disk full?")
	if s := h.sink.Stats(); s.Configured {
		var late error
		if s.LagTime > time.Minute {
			late = fmt.Errorf("%d records wait since %s: %s", s.Lag, s.LagTime.Truncate(time.Second), s.LastError)
		}
		warn("collector", late, fmt.Sprintf("%d records sent", s.Sent), "nothing is lost while the log keeps it; is the collector there?")
	}
	used, limit := h.descriptors()
	var few error
	if used > limit/10*9 {
		few = fmt.Errorf("%d of %d are open", used, limit)
	}
	warn("descriptors", few, fmt.Sprintf("%d of %d are open", used, limit), "raise the limit (ulimit -n, LimitNOFILE)")
	p := h.router.Stats()
	var closed error
	if p.Closed > 0 {
		closed = fmt.Errorf("%d of %d cannot be opened", p.Closed, p.Open+p.Closed)
	}
	warn("public ports", closed, fmt.Sprintf("%d open", p.Open), "cardea check says why")
	var lacking error
	objects := h.router.Objects()
	if n := h.lacking(objects); n > 0 {
		lacking = fmt.Errorf("%d of %d objects are not in force, or refer to what is missing or expired", n, len(objects))
	}
	warn("routing", lacking, fmt.Sprintf("objects in force: %d", len(objects)), "cardea check says which")
	network, lack := h.network.standing()
	warn("private network", lack, network, "clients go by WireGuard or TLS; free that port of UDP and start anew to have QUIC, too")
	add("older processes", nil, olderWords(h.kin.older()), "")
	free, err := freeSpace(h.cfg.DataDir)
	if err == nil && free < leastFree {
		err = fmt.Errorf("%d MiB are left", free>>20)
	}
	warn("disk", err, fmt.Sprintf("%d MiB are free", free>>20), "make room, or lower ClusterConfig spec.audit.retention")
	var ending error
	if h.draining.Load() {
		ending = fmt.Errorf("the cluster is stopping")
	}
	add("serving", ending, "since it was started", "")
	return checks
}

// olderWords says what older processes there are.
func olderWords(processes, connections int) string {
	switch processes {
	case 0:
		return "none"
	case 1:
		return fmt.Sprintf("1 keeps its connections, of which it has %d", connections)
	}
	return fmt.Sprintf("%d keep their connections, of which they have %d", processes, connections)
}

// lacking returns how many Objects are not in force, or refer to what cannot be had.
func (h *house) lacking(objects []api.Key) (n int) {
	for _, key := range objects {
		if slices.ContainsFunc(h.status(key).Conditions, func(c api.StatusCondition) bool {
			return c.Status == "False" && (c.Type == api.ConditionAccepted || c.Type == api.ConditionResolved)
		}) {
			n++
		}
	}
	return n
}

// freeSpace returns how many bytes are left on the disk of a directory.
func freeSpace(dir string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return 0, fmt.Errorf("look at the disk of %s: %w", dir, err)
	}
	return s.Bavail * uint64(s.Bsize), nil
}
