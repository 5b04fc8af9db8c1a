package server

import (
	"context"
	"sync"
	"time"

	"cardea/audit/journal"
	"cardea/audit/otlp"
)

const (
	// tendLook is how often it is looked which journals nobody writes any more.
	tendLook = time.Second
	// tendEvery is how often such a journal is tended again: what is old goes.
	tendEvery = time.Hour
	// tendSoon is when one is that the collector does not have whole, or that could not
	// be tended.
	tendSoon = time.Minute
	// tendFor is how long the collector may take for the rest of one, and tendPoll how
	// often it is looked whether it has it.
	tendFor  = 30 * time.Second
	tendPoll = 50 * time.Millisecond
)

// tend looks after the journals that no process writes any more, until ctx is done:
// what a crash has left is mended, the collector gets the rest, and what is older than
// is kept goes.
func (h *house) tend(ctx context.Context) error {
	next := map[string]time.Time{} // when a journal is due; at once if it is not there
	tick := time.NewTicker(tendLook)
	defer tick.Stop()
	all := &logs{house: h}
	for {
		others, err := all.others()
		if err != nil {
			h.cfg.Log.Error("the other journals cannot be listed", "error", err)
		}
		for _, name := range others {
			if busy(h.cfg.DataDir, name) {
				delete(next, name) // its process lives; when that has ended it is due
				continue
			}
			if ctx.Err() != nil || time.Now().Before(next[name]) {
				continue
			}
			whole, err := h.tendOne(ctx, name)
			next[name] = time.Now().Add(tendEvery)
			if !whole {
				next[name] = time.Now().Add(tendSoon)
			}
			if err != nil && ctx.Err() == nil {
				h.cfg.Log.Error("a journal that no process writes any more could not be tended", "journal", name, "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// tendOne opens a journal, which mends it, sends what the collector does not have, and
// closes it. It reports whether nothing is left to do.
func (h *house) tendOne(ctx context.Context, name string) (whole bool, err error) {
	c, err := journalConfig(ctx, h.cfg, name, h.authority, h.store)
	if err != nil {
		return false, err
	}
	j, err := journal.Open(ctx, c)
	if err != nil {
		return false, err
	}
	writing, stop := context.WithCancel(context.WithoutCancel(ctx))
	var sending sync.WaitGroup
	sending.Go(func() {
		defer stop()
		whole = h.sendRest(ctx, j, c.Instance)
	})
	err = j.Run(writing)
	sending.Wait()
	return whole, err
}

// sendRest sends what the collector does not have of a journal, and reports whether it
// has it all.
func (h *house) sendRest(ctx context.Context, j *journal.Journal, instance string) bool {
	if h.settings.collector() == nil {
		return true
	}
	sink := &otlp.Sink{
		Source: j, Marks: h.store, Instance: instance, Version: h.cfg.Version, Collector: h.settings.collector,
		Dial: h.sink.Dial, Secret: h.sink.Secret, Log: h.cfg.Log,
	}
	ctx, stop := context.WithTimeout(ctx, tendFor)
	defer stop()
	var looking sync.WaitGroup
	defer looking.Wait()
	looking.Go(func() {
		for sink.Stats().Lag > 0 && ctx.Err() == nil {
			select {
			case <-time.After(tendPoll):
			case <-ctx.Done():
			}
		}
		stop()
	})
	if err := sink.Run(ctx); err != nil {
		h.cfg.Log.Warn("the rest of a journal could not be sent", "instance", instance, "error", err)
	}
	return sink.Stats().Lag == 0
}
