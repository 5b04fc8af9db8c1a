package proxy

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A bounded context is to its users what context.WithDeadline makes.
func TestBounded(t *testing.T) {
	type key struct{}
	within := func(t *testing.T, f func(b *bounded, cancel context.CancelFunc)) {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(context.WithValue(t.Context(), key{}, "value"))
			defer cancel()
			b := &bounded{Context: ctx, until: time.Now().Add(time.Second)}
			defer b.end()
			f(b, cancel)
		})
	}
	t.Run("its time passes, and nobody waits", func(t *testing.T) {
		within(t, func(b *bounded, _ context.CancelFunc) {
			if err := b.Err(); err != nil {
				t.Errorf("before: %v", err)
			}
			time.Sleep(time.Second)
			if err := b.Err(); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("after: %v", err)
			}
		})
	})
	t.Run("its time passes", func(t *testing.T) {
		within(t, func(b *bounded, _ context.CancelFunc) {
			begin := time.Now()
			<-b.Done()
			if err := b.Err(); !errors.Is(err, context.DeadlineExceeded) || time.Since(begin) != time.Second {
				t.Errorf("after %v: %v", time.Since(begin), err)
			}
		})
	})
	t.Run("its parent ends", func(t *testing.T) {
		within(t, func(b *bounded, cancel context.CancelFunc) {
			cancel()
			if err := b.Err(); !errors.Is(err, context.Canceled) {
				t.Errorf("nobody waits: %v", err)
			}
			<-b.Done()
			if err := b.Err(); !errors.Is(err, context.Canceled) {
				t.Errorf("somebody waits: %v", err)
			}
		})
	})
	t.Run("contexts are made from it, and outlive it", func(t *testing.T) {
		within(t, func(b *bounded, _ context.CancelFunc) {
			child, cancel := context.WithTimeout(b, time.Hour)
			defer cancel()
			if child.Value(key{}) != "value" {
				t.Error("the value of the parent is lost")
			}
			b.end()
			<-child.Done()
			if child.Err() == nil || b.Err() == nil {
				t.Errorf("after the end: %v, %v", child.Err(), b.Err())
			}
		})
	})
}
