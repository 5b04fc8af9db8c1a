package journal

import (
	"context"
	"fmt"

	"cardea/api"
	"cardea/audit"
)

// records are encoded, and wait to be written.
type records struct {
	text  []byte // one after the other
	items []item
}

// An item is one of them.
type item struct {
	end       int // of it in text
	move      move
	noted     bool // it is held if it cannot be written
	withdrawn bool // who wanted it to be written does not wait any more
}

// encode adds a record.
func (r *records) encode(rec *api.AccessLog) error {
	if err := audit.Check(rec); err != nil {
		return err
	}
	start := len(r.text)
	text, err := audit.AppendRecord(r.text, rec)
	if err != nil {
		return err
	}
	if n := len(text) - start; n > maxRecord {
		return fmt.Errorf("%w: is %d bytes long, and at most %d can be kept", audit.ErrMalformed, n, maxRecord)
	}
	r.text, r.items = text, append(r.items, item{end: len(text), move: moveOf(rec)})
	return nil
}

// join adds the records of o that keep says.
func (r *records) join(o *records, keep func(item) bool) {
	start := 0
	for _, i := range o.items {
		text := o.text[start:i.end]
		start = i.end
		if keep == nil || keep(i) {
			r.text = append(r.text, text...)
			i.end = len(r.text)
			r.items = append(r.items, i)
		}
	}
}

// reset makes it empty, to be used again.
func (r *records) reset(most int) {
	clear(r.items)          // holds strings
	if cap(r.text) > most { // a great load must not be paid for ever after
		r.text, r.items = nil, nil
	}
	r.text, r.items = r.text[:0], r.items[:0]
}

// A batch is what is written at once.
type batch struct {
	records
	number  int64
	noted   int // of the records
	waiters int // who wait for it, and could write it
	// done is closed when the batch is written, or has failed. Who gets a value from
	// it before that is to write it. It is made by the first who waits.
	done chan struct{}
}

// A failure is why a batch was not written.
type failure struct {
	err     error
	unasked int // records whose callers have not asked yet
}

// Append implements [audit.Log].
func (j *Journal) Append(ctx context.Context, recs ...*api.AccessLog) error {
	if len(recs) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	r := j.scratch.Get().(*records)
	defer j.recycle(r)
	for _, rec := range recs {
		if err := r.encode(rec); err != nil {
			return err
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return audit.ErrClosed
	}
	first := len(j.batch.items)
	n := j.add(r, false)
	if !j.await(n, true, ctx.Done()) {
		j.withdraw(first, len(recs))
		return ctx.Err()
	}
	return j.outcome(n, len(recs))
}

// Begin implements [audit.Ledger].
func (j *Journal) Begin(rec *api.AccessLog) (audit.Mark, error) {
	r := j.scratch.Get().(*records)
	defer j.recycle(r)
	if err := r.encode(rec); err != nil {
		return 0, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return 0, audit.ErrClosed
	}
	if j.trouble != nil {
		j.refused++
		return 0, j.trouble
	}
	n := j.add(r, false)
	j.rouse(&j.soon)
	return audit.Mark(n), nil
}

// Keep implements [audit.Ledger]. While the journal cannot be written it fails at
// once: Append, and each second Run, find out whether it can again.
func (j *Journal) Keep(m audit.Mark) error {
	n := int64(m)
	if n <= j.settled.Load() && !j.lost.Load() {
		return nil
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.await(n, false, nil)
	return j.outcome(n, 1)
}

// Note implements [audit.Ledger].
func (j *Journal) Note(rec *api.AccessLog) error {
	r := j.scratch.Get().(*records)
	defer j.recycle(r)
	if err := r.encode(rec); err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed {
		return audit.ErrClosed
	}
	j.add(r, true)
	j.rouse(&j.soon)
	return nil
}

// Owes implements [audit.Ledger].
func (j *Journal) Owes() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.trouble == nil {
		return j.held
	}
	return j.held + j.batch.noted + j.writing.noted
}

// Slow implements [audit.Ledger]. While the journal cannot be written it is slow
// too: to find out whether it can again takes the disk.
func (j *Journal) Slow() bool { return j.disk.Load() || j.troubled.Load() }

func (j *Journal) recycle(r *records) {
	r.reset(64 << 10)
	j.scratch.Put(r)
}

// add adds records to the batch that is next. j.mu must be held, as by all that
// follow.
func (j *Journal) add(r *records, noted bool) (number int64) {
	b := j.batch
	start := len(b.text)
	b.text = append(b.text, r.text...)
	for _, i := range r.items {
		i.end += start
		i.noted = noted
		b.items = append(b.items, i)
	}
	if noted {
		b.noted += len(r.items)
	}
	return b.number
}

// rouse tells Run, by one of its flags, that there is something to do, unless it
// knows.
func (j *Journal) rouse(flag *bool) {
	if *flag {
		return
	}
	*flag = true
	select {
	case j.wake <- struct{}{}:
	default: // it will look at all flags
	}
}

// await returns once the batch with that number is written, or has failed. Who finds
// that nobody writes does so himself. It returns false if cancelled was closed before
// the batch was being written. mend is as of write.
func (j *Journal) await(number int64, mend bool, cancelled <-chan struct{}) bool {
	for j.settled.Load() < number {
		if !j.taken {
			j.taken = true
			j.write(mend)
			j.pass()
			continue
		}
		b := j.batch
		if b.number != number {
			b, cancelled = j.writing, nil
		}
		if b.done == nil {
			b.done = make(chan struct{}, 1)
		}
		b.waiters++
		done := b.done
		j.mu.Unlock()
		select {
		case _, ours := <-done:
			j.mu.Lock()
			if ours {
				b.waiters--
				j.write(mend)
				j.pass()
			}
		case <-cancelled:
			j.mu.Lock()
			if j.batch.number == number {
				return false
			}
		}
	}
	return true
}

// withdraw takes records out of the batch that is next; who did wait for them does
// not any more.
func (j *Journal) withdraw(first, count int) {
	b := j.batch
	for i := range count {
		b.items[first+i].withdrawn = true
	}
	b.waiters--
	select {
	case <-b.done: // it was to be us who writes
		j.pass()
	default:
	}
}

// pass lets the next one write, if somebody waits to.
func (j *Journal) pass() {
	switch {
	case j.turnWanted:
		j.turnWanted = false
		j.turn <- struct{}{}
	case j.batch.waiters > 0:
		j.batch.done <- struct{}{}
	default:
		j.taken = false
	}
}

// hold waits until nobody else writes. j.mu must not be held. It is for Run alone,
// which passes it on.
func (j *Journal) hold() {
	j.mu.Lock()
	if !j.taken {
		j.taken = true
		j.mu.Unlock()
		return
	}
	j.turnWanted = true
	j.mu.Unlock()
	<-j.turn
}

// write writes what waits. It is called by the one whose turn it is, and lets go of
// j.mu meanwhile. mend says whether it may take the disk to find out if the journal
// can be written again.
func (j *Journal) write(mend bool) {
	b := j.batch
	j.batch, j.writing = j.writing, b
	j.batch.number = b.number + 1
	j.tail.refused += j.refused
	j.refused = 0
	j.mu.Unlock()
	err := j.tail.write(mend, &j.owed, &b.records)
	if err == nil {
		j.owed.reset(4 << 20)
	} else {
		j.owed.join(&b.records, func(i item) bool { return i.noted })
	}
	j.mu.Lock()
	j.held = len(j.owed.items)
	j.see()
	if err != nil {
		j.fail(b, err)
	}
	if err != nil || len(b.items) > 0 {
		j.rouse(&j.busy)
	}
	j.settled.Store(b.number)
	if b.done != nil {
		close(b.done)
	}
	b.reset(4 << 20)
	b.noted, b.waiters, b.done = 0, 0, nil
}

// see takes note of how it stands with the tail.
func (j *Journal) see() {
	j.trouble = j.tail.trouble
	j.troubled.Store(j.trouble != nil)
}

// fail remembers why a batch was not written, for those who have yet to ask.
func (j *Journal) fail(b *batch, err error) {
	n := 0
	for _, i := range b.items {
		if !i.noted && !i.withdrawn {
			n++
		}
	}
	if n > 0 {
		j.refused += int64(n)
		j.failures[b.number] = failure{err: err, unasked: n}
		j.lost.Store(true)
	}
}

// outcome says what came of so many records of a batch.
func (j *Journal) outcome(number int64, count int) error {
	f, failed := j.failures[number]
	if !failed {
		return nil
	}
	if f.unasked -= count; f.unasked > 0 {
		j.failures[number] = f
	} else {
		delete(j.failures, number)
		j.lost.Store(len(j.failures) > 0)
	}
	return f.err
}
