//go:build !linux

package rig

import "time"

// eachDue calls f n times, each when it is due: every so often since begin.
func eachDue(n int, every time.Duration, begin time.Time, f func(k int, due time.Duration) error) error {
	for k := range n {
		due := time.Duration(k) * every
		time.Sleep(due - time.Since(begin))
		if err := f(k, due); err != nil {
			return err
		}
	}
	return nil
}
