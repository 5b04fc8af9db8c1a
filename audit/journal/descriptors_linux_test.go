package journal

import (
	"errors"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"cardea/audit/audittest"
)

// The log is kept safe, a new segment's name included, while this process can
// open nothing.
func TestNoDescriptorsLeft(t *testing.T) {
	r := newRig(t)
	synctest.Test(t, func(t *testing.T) {
		j, stop := r.start(t)
		must(t, j.Append(t.Context(), audittest.Denied("1")))
		j.keeper.mu.Lock()
		j.keeper.newName = true
		j.keeper.mu.Unlock()

		var limit unix.Rlimit
		must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Max: limit.Max}))
		_, opens := os.Open(r.Dir)
		time.Sleep(time.Second)
		synctest.Wait()
		healthy := j.Healthy()
		s := j.Stats()
		must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))

		if !errors.Is(opens, syscall.EMFILE) {
			t.Fatalf("opening returned %v, want that no descriptors are left", opens)
		}
		if healthy != nil || s.Unsynced != 0 {
			t.Errorf("Healthy returned %v, and %d records may not be on disk", healthy, s.Unsynced)
		}
		must(t, stop())
	})
	whole(t, r.verify(t))
}
