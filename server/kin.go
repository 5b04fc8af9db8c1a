package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cardea/api"
	"cardea/handover"
)

// kin are the processes that have one data directory: the newest, which serves, and
// those that it has replaced, which keep the connections that they have. The newest
// listens at a socket, and the older ones connect to it, again and again until there
// is one: so each finds the others also after one was killed.
//
// Each tells the others how far the store was written to, and waits for them before
// it acknowledges a write: what is revoked by one is cut by all.
type kin struct {
	path  string // of the socket
	entry *entrance
	self  relative // of this process
	tasks
	log *slog.Logger

	seen progress // how far this process has seen the store written to

	mu      sync.Mutex
	rank    rank
	others  map[string]*other // by their journals; for an older process, the newest is newestKey
	calling bool              // a connection to the newest is being made, or is there
	met     time.Time         // when the newest was last seen to be connected, by hasNewest
	redial  chan struct{}
}

// tasks are what this process does for the others.
type tasks struct {
	watch   func(ctx context.Context, see func(api.Revision)) // tells of each commit until ctx is done
	written func(api.Revision)                                // the store was written to, by another process
	reach   func(context.Context, api.Revision) error         // returns when this process decides on that revision
	busy    func(journal string) bool                         // another process has a journal
	live    func() int                                        // connections
	list    func() []api.Connection
	kill    func(id, by string) bool
	stop    func() // ends this process
	upgrade func(context.Context, UpgradeRequest) (done Upgraded, answered func())
}

// rank says what a process is among its kin.
type rank int

const (
	rankHeir   rank = iota // it has not begun to serve
	rankNewest             // it serves
	rankMoving             // it is about to be replaced
	rankOlder              // it was replaced
)

// A relative is what a process says of itself.
type relative struct {
	PID     int    `json:"pid"`
	Version string `json:"version"`
	Journal string `json:"journal"`
}

// other is one of the others.
type other struct {
	relative
	link    *handover.Link // nil while it is not connected
	reached progress
	mute    bool          // it did not answer in time, the last time it was waited for
	live    int           // connections
	met     chan struct{} // closed when it is first connected
}

func newOther(r relative) *other { return &other{relative: r, met: make(chan struct{})} }

// String says who it is, as far as that is known.
func (r relative) String() string {
	switch {
	case r.PID == 0:
		return "the one that writes " + r.Journal
	case r.Journal == "":
		return fmt.Sprintf("%d", r.PID)
	}
	return fmt.Sprintf("%d, which writes %s", r.PID, r.Journal)
}

// newestKey stands for the newest process, among the others of an older one.
const newestKey = ""

const (
	// kinTimeout is how long one process waits for another one.
	kinTimeout = 2 * time.Second
	// kinShort is how long one waits for third ones before it answers, less than it is
	// itself waited for.
	kinShort = kinTimeout / 2
	// kinBeat is the longest time between two questions to another one.
	kinBeat = time.Second
	// kinLook is how often an older process without the newest looks for it.
	kinLook = 100 * time.Millisecond
)

// The questions that kin ask.
const (
	askUpgrade = "upgrade" // UpgradeRequest → Upgraded; of the command line
	askJoin    = "join"    // relative → relative; of an older process to the newest
	askReach   = "reach"   // api.Revision → beat
	askConns   = "conns"   // → []api.Connection
	askKill    = "kill"    // killing → bool
	askStop    = "stop"    // → nothing; the process ends
	askMoved   = "moved"   // → nothing; another one is the newest now
)

// beat answers askReach.
type beat struct {
	Live int `json:"live"` // connections
}

// killing is what askKill says.
type killing struct{ ID, By string }

func newKin(path string, entry *entrance, self relative, t tasks, log *slog.Logger) *kin {
	return &kin{path: path, entry: entry, self: self, tasks: t, log: log, others: map[string]*other{}, redial: make(chan struct{}, 1)}
}

// entrance returns where the others come in; nil if there is no kin yet.
func (k *kin) entrance() *entrance {
	if k == nil {
		return nil
	}
	return k.entry
}

// run listens to the others until ctx is done.
func (k *kin) run(ctx context.Context) error {
	var group sync.WaitGroup
	defer group.Wait()
	stop := context.AfterFunc(ctx, func() { k.entry.Close() })
	defer stop()
	group.Go(func() { k.watch(ctx, k.see) })
	group.Go(func() { k.look(ctx, &group) })
	for {
		c, err := k.entry.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			k.log.Warn("another process cannot be listened to", "error", err)
			select {
			case <-time.After(kinLook):
			case <-ctx.Done():
			}
			continue
		}
		if err := handover.Trusted(c.(*net.UnixConn)); err != nil {
			k.log.Warn("a process was turned away", "error", err)
			c.Close()
			continue
		}
		group.Go(func() { k.converse(ctx, c, false) })
	}
}

// converse talks to another process until it goes. If this one has come to it, it
// joins it.
func (k *kin) converse(ctx context.Context, c net.Conn, join bool) {
	ctx, cancel := context.WithCancel(ctx)
	var talking sync.WaitGroup
	var from atomic.Pointer[other]
	meet := func(key string, r relative, l *handover.Link) {
		o := k.meet(key, r, l)
		from.Store(o)
		talking.Go(func() { k.follow(ctx, o, l) })
	}
	var l *handover.Link
	l = handover.NewLink(c, func(ctx context.Context, what string, in json.RawMessage) (any, error) {
		if what != askJoin {
			return k.answer(ctx, what, in, from.Load())
		}
		var r relative
		if err := json.Unmarshal(in, &r); err != nil {
			return nil, err
		}
		if r.PID == k.self.PID { // this one, before it had paused
			return nil, errors.New("this is the process itself")
		}
		if k.is(rankOlder) {
			return nil, errors.New("this process is not the newest any more")
		}
		meet(r.Journal, r, l)
		return k.self, nil
	})
	if join {
		talking.Go(func() {
			joining, cancel := context.WithTimeout(ctx, kinTimeout)
			defer cancel()
			var r relative
			if err := l.Ask(joining, askJoin, k.self, &r); err != nil {
				l.Close()
				return
			}
			meet(newestKey, r, l)
		})
	}
	l.Run(ctx)
	cancel()
	talking.Wait()
	k.part(l)
}

// meet notes that another process is connected.
func (k *kin) meet(key string, r relative, l *handover.Link) *other {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.others[key]
	if o == nil {
		o = newOther(r)
		k.others[key] = o
	}
	o.relative, o.link, o.mute = r, l, false
	select {
	case <-o.met:
	default:
		close(o.met)
	}
	return o
}

// answer answers what another process asks.
func (k *kin) answer(ctx context.Context, what string, in json.RawMessage, from *other) (any, error) {
	read := func(v any) error { return json.Unmarshal(in, v) }
	switch what {
	case askUpgrade:
		var r UpgradeRequest
		if err := read(&r); err != nil {
			return nil, err
		}
		done, answered := k.upgrade(ctx, r)
		return handover.Then{Answer: done, Do: answered}, nil
	case askReach:
		var rev api.Revision
		if err := read(&rev); err != nil {
			return nil, err
		}
		k.written(rev)
		if err := k.reach(ctx, rev); err != nil {
			return nil, err
		}
		if !k.is(rankOlder) { // an older process waits for the others by waiting for the newest
			k.see(rev)
			soon, cancel := context.WithTimeout(ctx, kinShort)
			for _, o := range k.waitedFor(from) {
				o.reached.await(soon, rev)
			}
			cancel()
		}
		return beat{Live: k.live()}, nil
	case askConns:
		return k.own(), nil
	case askKill:
		var x killing
		if err := read(&x); err != nil {
			return nil, err
		}
		return k.kill(x.ID, x.By), nil
	case askStop:
		k.stop()
		return nil, nil
	case askMoved: // the other end closes the link, and the newest is looked for
		return nil, nil
	}
	return nil, fmt.Errorf("cardea %s knows nothing of %q", k.self.Version, what)
}

// part notes that the process at the other end of a link has gone.
func (k *kin) part(l *handover.Link) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, o := range k.others {
		if o.link != l {
			continue
		}
		o.link = nil
		if key == newestKey || !k.busy(o.Journal) {
			k.forget(key)
		}
	}
	k.find()
}

// forget lets nobody wait for a process any more. mu must be held.
func (k *kin) forget(key string) {
	if o := k.others[key]; o != nil {
		o.reached.reach(api.Revision{Epoch: math.MaxUint64, Number: math.MaxUint64})
		delete(k.others, key)
	}
}

// find makes look look at once.
func (k *kin) find() {
	select {
	case k.redial <- struct{}{}:
	default:
	}
}

// follow tells another process how far the store was written to, as long as there is
// the link to it, and notes how far it has come.
func (k *kin) follow(ctx context.Context, o *other, l *handover.Link) {
	for ctx.Err() == nil {
		rev := k.seen.revision()
		asking, cancel := context.WithTimeout(ctx, kinTimeout)
		var b beat
		err := l.Ask(asking, askReach, rev, &b)
		cancel()
		switch {
		case err == nil:
			k.mu.Lock()
			o.live, o.mute = b.Live, false
			k.mu.Unlock()
			o.reached.advance(rev)
		case ctx.Err() != nil || errors.Is(err, handover.ErrLinkOver):
			return
		default:
			k.silence(o, err)
		}
		more, cancel := context.WithTimeout(ctx, kinBeat)
		k.seen.await(more, api.Revision{Epoch: rev.Epoch, Number: rev.Number + 1})
		cancel()
	}
}

// silence notes that a process does not answer: it is not waited for until it does.
func (k *kin) silence(o *other, why error) {
	k.mu.Lock()
	was, of := o.mute, o.relative
	o.mute = true
	k.mu.Unlock()
	if !was {
		k.log.Warn("another process of this data directory does not follow: writes are not held up by it", "process", of.String(), "error", why)
	}
}

// see notes how far the store was written to.
func (k *kin) see(rev api.Revision) { k.seen.advance(rev) }

// await returns when every other process decides on a revision, but for one that
// does not within kinTimeout, and for except.
func (k *kin) await(ctx context.Context, rev api.Revision, except *other) {
	k.see(rev)
	soon, cancel := context.WithTimeout(ctx, kinTimeout)
	defer cancel()
	for _, o := range k.waitedFor(except) {
		if err := o.reached.await(soon, rev); err != nil && ctx.Err() == nil {
			k.silence(o, err)
		}
	}
}

// waitedFor returns those whom a write waits for.
func (k *kin) waitedFor(except *other) (all []*other) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.rank == rankHeir {
		return nil
	}
	for _, o := range k.others {
		if o != except && !o.mute {
			all = append(all, o)
		}
	}
	return all
}

// look looks who is there: an older process for the newest, and the newest whether
// those that it waits for still are.
func (k *kin) look(ctx context.Context, group *sync.WaitGroup) {
	tick := time.NewTicker(kinLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-k.redial:
		case <-ctx.Done():
			return
		}
		k.mu.Lock()
		missing := k.rank == rankOlder && !k.calling
		k.calling = k.calling || missing
		for key, o := range k.others {
			if key != newestKey && o.link == nil && !k.busy(o.Journal) {
				k.forget(key)
			}
		}
		k.mu.Unlock()
		if missing {
			k.seek(ctx, group)
		}
	}
}

// seek connects to the newest process, if there is one.
func (k *kin) seek(ctx context.Context, group *sync.WaitGroup) {
	dialling, cancel := context.WithTimeout(ctx, kinTimeout)
	defer cancel()
	over := func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		k.calling = false
	}
	c, err := handover.Dial(dialling, k.path)
	if err != nil { // it will be looked for again
		over()
		return
	}
	group.Go(func() {
		defer over()
		k.converse(ctx, c, true)
	})
}

// expect notes the processes that have the journals, and will connect.
func (k *kin) expect(journals []string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, j := range journals {
		if k.others[j] == nil {
			k.others[j] = newOther(relative{Journal: j})
		}
	}
}

// become makes this process the newest, for the first time or again.
func (k *kin) become() {
	k.mu.Lock()
	k.rank = rankNewest
	k.forget(newestKey)
	k.mu.Unlock()
	k.entry.resume()
}

// move notes which process is about to be the newest: a write waits for it.
func (k *kin) move(heir relative) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rank = rankMoving
	k.others[newestKey] = newOther(heir)
}

// depart makes this process an older one, and returns when it is connected to the newest.
// The error says that the newest has ended, or does not answer: this one is to become
// the newest again.
func (k *kin) depart(ctx context.Context, ended <-chan struct{}) error {
	k.mu.Lock()
	k.rank, k.met = rankOlder, time.Now()
	newest := k.others[newestKey]
	k.mu.Unlock()
	k.entry.pause() // who comes in now, this one too, comes in there
	k.find()
	select {
	case <-newest.met:
		return nil
	case <-ended:
		return errors.New("the new process ended as soon as it served")
	case <-ctx.Done():
		return errors.New("the new process serves, but does not answer")
	}
}

// moved tells whoever is older still that another process is the newest now. One that
// does not hear finds out when it is next asked something, or this process ends.
func (k *kin) moved(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, kinTimeout)
	defer cancel()
	var telling sync.WaitGroup
	k.mu.Lock()
	for key, o := range k.others {
		if key == newestKey {
			continue
		}
		if l := o.link; l != nil {
			telling.Go(func() {
				l.Ask(ctx, askMoved, nil, nil)
				l.Close()
			})
		}
		k.forget(key)
	}
	k.mu.Unlock()
	telling.Wait()
}

// linked returns those who are connected, in the order of their journals.
func (k *kin) linked() (all []*other) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(k.others)) {
		if o := k.others[key]; o.link != nil {
			all = append(all, o)
		}
	}
	return all
}

func (k *kin) linkOf(o *other) *handover.Link {
	k.mu.Lock()
	defer k.mu.Unlock()
	return o.link
}

// ask asks all who are connected at once, and gives each answer to take. It returns the
// processes that did not answer.
func ask[T any](ctx context.Context, k *kin, what string, in any, take func(*other, T)) (silent []int) {
	ctx, cancel := context.WithTimeout(ctx, kinTimeout)
	defer cancel()
	var asking sync.WaitGroup
	var mu sync.Mutex
	for _, o := range k.linked() {
		l := k.linkOf(o)
		if l == nil {
			continue
		}
		asking.Go(func() {
			var out T
			err := l.Ask(ctx, what, in, &out)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				k.log.Warn("another process does not answer", "pid", o.PID, "question", what, "error", err)
				silent = append(silent, o.PID)
				return
			}
			take(o, out)
		})
	}
	asking.Wait()
	return silent
}

// own returns the connections of this process.
func (k *kin) own() []api.Connection {
	older, list := k.is(rankOlder), k.list()
	for i := range list {
		list[i].Process, list[i].Draining = os.Getpid(), older
	}
	return list
}

// older returns how many older processes there are, and how many connections they
// have.
func (k *kin) older() (processes, connections int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for key, o := range k.others {
		if key != newestKey {
			processes++
			connections += o.live
		}
	}
	return processes, connections
}

// end tells the others to end that end with this process: if it is the newest, the
// older ones, and the other way round if it is the first of its container.
func (k *kin) end(ctx context.Context) {
	if k.leads() {
		ask(ctx, k, askStop, nil, func(*other, json.RawMessage) {})
	}
}

// leads reports whether the others end with this process.
func (k *kin) leads() bool { return k.is(rankNewest) || k.self.PID == 1 }

// hasNewest reports whether this is an older process that is connected to the newest,
// or will be in a moment.
func (k *kin) hasNewest() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	o := k.others[newestKey]
	if o != nil && o.link != nil {
		k.met = time.Now()
	}
	return k.rank == rankOlder && time.Since(k.met) < kinTimeout
}

// gone returns when none of the others is connected any more that end with this
// process, or ctx is done.
func (k *kin) gone(ctx context.Context) {
	if !k.leads() {
		return
	}
	for _, o := range k.linked() {
		if l := k.linkOf(o); l != nil {
			select {
			case <-l.Over():
			case <-ctx.Done():
			}
		}
	}
}

// is reports whether this process is of a rank.
func (k *kin) is(r rank) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.rank == r
}
