package relay_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"cardea/relay"
)

// reads reads a datagram, or the error.
func reads(t *testing.T, b *relay.Inbox, want string, failure error) {
	t.Helper()
	p := make([]byte, 100)
	n, err := b.Read(p)
	if string(p[:n]) != want || !errors.Is(err, failure) || (err == nil) != (failure == nil) {
		t.Errorf("read %q, %v; want %q, %v", p[:n], err, want, failure)
	}
}

func TestInboxKeepsDatagrams(t *testing.T) {
	room := &relay.Room{Most: 1 << 20}
	b := relay.NewInbox(1<<10, room)
	sent := []byte("one")
	for _, data := range [][]byte{sent, {}, bytes.Repeat([]byte("x"), 200)} {
		if !b.Put(data) {
			t.Errorf("%q is lost", data)
		}
	}
	sent[0] = '!' // it is the caller's again
	reads(t, b, "one", nil)
	reads(t, b, "", nil)
	reads(t, b, string(bytes.Repeat([]byte("x"), 100)), nil) // what does not fit is lost
	if n := room.Taken(); n != 0 {
		t.Errorf("%d bytes are taken by nothing", n)
	}
}

// What nobody reads takes no more than it may, alone and with others.
func TestInboxIsBounded(t *testing.T) {
	const own, all = 10_000, 25_000
	room := &relay.Room{Most: all}
	boxes := make([]*relay.Inbox, 4)
	for i := range boxes {
		boxes[i] = relay.NewInbox(own, room)
		for range 100 {
			boxes[i].Put(make([]byte, 900))
		}
		if n := room.Taken(); n > min(int64(i+1)*own, all) {
			t.Errorf("%d bytes wait in %d", n, i+1)
		}
	}
	if n := room.Taken(); n < all-1000 {
		t.Errorf("only %d bytes wait", n)
	}
	for range 1000 {
		boxes[0].Put(nil) // even nothing takes memory
	}
	if n := room.Taken(); n > all {
		t.Errorf("%d bytes wait", n)
	}
	for _, b := range boxes {
		b.Drop(net.ErrClosed)
		if b.Put([]byte("late")) {
			t.Error("it takes what comes after its end")
		}
	}
	if n := room.Taken(); n != 0 {
		t.Errorf("%d bytes are taken by nothing", n)
	}
}

func TestInboxEnds(t *testing.T) {
	gone := errors.New("gone")
	for name, tt := range map[string]struct {
		end  func(b *relay.Inbox) bool
		want string // what can still be read
		err  error
	}{
		"after what waits":   {func(b *relay.Inbox) bool { return b.End(gone) && !b.End(io.EOF) }, "waits", gone},
		"at once":            {func(b *relay.Inbox) bool { return b.Drop(gone) && !b.End(io.EOF) && !b.Drop(net.ErrClosed) }, "", gone},
		"at once, after EOF": {func(b *relay.Inbox) bool { return b.End(io.EOF) && b.Drop(gone) }, "", gone},
		"dropped after it":   {func(b *relay.Inbox) bool { return b.End(gone) && !b.Drop(net.ErrClosed) }, "", gone},
	} {
		t.Run(name, func(t *testing.T) {
			b := relay.NewInbox(1000, &relay.Room{Most: 1000})
			b.Put([]byte("waits"))
			if !tt.end(b) {
				t.Error("another end counted")
			}
			if tt.want != "" {
				reads(t, b, tt.want, nil)
			}
			reads(t, b, "", tt.err)
			if err := b.Await(); err != tt.err {
				t.Errorf("awaited %v", err)
			}
			if err := b.Err(); err != tt.err {
				t.Errorf("it is over by %v", err)
			}
		})
	}
}

func TestInboxWakesReaders(t *testing.T) {
	for name, tt := range map[string]struct {
		wake func(b *relay.Inbox)
		want error
	}{
		"a datagram":         {func(b *relay.Inbox) { b.Put(nil) }, nil},
		"its end":            {func(b *relay.Inbox) { b.End(io.EOF) }, io.EOF},
		"its end at once":    {func(b *relay.Inbox) { b.Drop(net.ErrClosed) }, net.ErrClosed},
		"a deadline":         {func(b *relay.Inbox) { b.SetReadDeadline(time.Now().Add(time.Hour)) }, os.ErrDeadlineExceeded},
		"a deadline of then": {func(b *relay.Inbox) { b.SetReadDeadline(time.Unix(1, 0)) }, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := relay.NewInbox(1000, &relay.Room{Most: 1000})
				done := make(chan error, 1)
				go func() { done <- b.Await() }()
				synctest.Wait()
				select {
				case err := <-done:
					t.Fatalf("it waits for nothing: %v", err)
				default:
				}
				tt.wake(b)
				if err := <-done; !errors.Is(err, tt.want) {
					t.Errorf("awaited %v, want %v", err, tt.want)
				}
			})
		})
	}
}

// A deadline that is lifted does not end a Read.
func TestInboxDeadlineIsLifted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := relay.NewInbox(1000, &relay.Room{Most: 1000})
		b.SetReadDeadline(time.Now().Add(time.Second))
		b.SetReadDeadline(time.Time{})
		go func() {
			time.Sleep(time.Hour)
			b.Put([]byte("late"))
		}()
		reads(t, b, "late", nil)
	})
}

// Who awaits a datagram does not keep it from who reads.
func TestInboxWakesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := relay.NewInbox(1000, &relay.Room{Most: 1000})
		awaited := make(chan error, 1)
		read := make(chan struct{})
		go func() { awaited <- b.Await() }()
		synctest.Wait() // it waits first, and is woken first
		go func() {
			defer close(read)
			reads(t, b, "one", nil)
		}()
		synctest.Wait()
		b.Put([]byte("one"))
		<-read
		b.End(io.EOF)
		if err := <-awaited; err != nil && err != io.EOF {
			t.Error(err)
		}
	})
}
