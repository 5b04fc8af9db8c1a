package rig

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// eachDue calls f n times, each when it is due: every so often since begin. It
// sleeps in the kernel, whose timers are exact, and not by Go's, which are so to a
// millisecond when there is nothing else to do.
func eachDue(n int, every time.Duration, begin time.Time, f func(k int, due time.Duration) error) error {
	runtime.LockOSThread() // and never unlocked: the thread ends with its timer slack
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return err
	}
	for k := range n {
		due := time.Duration(k) * every
		if early := due - time.Since(begin); early > 0 {
			ts := unix.NsecToTimespec(int64(early))
			unix.Nanosleep(&ts, nil) // a signal that ends it sooner costs nothing
		}
		if err := f(k, due); err != nil {
			return err
		}
	}
	return nil
}
