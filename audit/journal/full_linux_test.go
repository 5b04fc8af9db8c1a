package journal

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cardea/audit"
	"cardea/audit/audittest"
)

// A file system that is really full.
func TestDiskFull(t *testing.T) {
	r := newRig(t)
	must(t, os.Mkdir(r.Dir, 0o700))
	if err := unix.Mount("none", r.Dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("no file system can be mounted here: %v", err)
	}
	defer unix.Unmount(r.Dir, unix.MNT_DETACH)
	j, stop := r.start(t)
	var err error
	kept := 0
	for range 2000 {
		if err = j.Append(t.Context(), audittest.Denied(strings.Repeat("x", 300))); err != nil {
			break
		}
		kept++
	}
	if !errors.Is(err, syscall.ENOSPC) || !errors.Is(j.Healthy(), syscall.ENOSPC) {
		t.Fatalf("after %d records Append returned %v and Healthy %v, want that the disk is full", kept, err, j.Healthy())
	}
	must(t, unix.Mount("none", r.Dir, "tmpfs", unix.MS_REMOUNT, "size=1m"))
	must(t, j.Append(t.Context(), audittest.Denied("after")))
	must(t, j.Healthy())
	if got := audittest.Collect(t, j, audit.Query{}); len(got) != kept+1 {
		t.Errorf("%d records are kept, want %d", len(got), kept+1)
	}
	must(t, stop())
	rep := r.verify(t)
	whole(t, rep)
	if !says(rep.Notes, "no space left on device (1 records were refused)") {
		t.Errorf("notes: %q", rep.Notes)
	}
	if _, err := os.Stat(filepath.Join(r.Dir, segmentName(1))); err != nil {
		t.Error(err)
	}
}
