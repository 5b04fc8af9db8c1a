package relay_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/relay"
	"cardea/relay/relaytest"
)

func TestMessages(t *testing.T) {
	sizes := []int{0, 1, 2, 1472, 65507, relay.MaxDatagram, 0, 3}
	synctest.Test(t, func(t *testing.T) {
		near, far := relaytest.Pipe()
		a, b := relay.Messages(near), relay.Messages(far)
		if !relay.IsDatagram(a) || relay.IsDatagram(near) {
			t.Error("it is not told which keeps boundaries")
		}
		go func() {
			for i, n := range sizes {
				if k, err := a.Write(bytes.Repeat([]byte{byte(i)}, n)); err != nil || k != n {
					t.Errorf("writing %d bytes: %d, %v", n, k, err)
				}
			}
			near.CloseWrite()
		}()
		got := make([]byte, relay.MaxDatagram)
		for i, n := range sizes {
			if err := b.(relay.Awaiter).Await(); err != nil {
				t.Fatal(err)
			}
			k, err := b.Read(got)
			if err != nil || k != n || !bytes.Equal(got[:k], bytes.Repeat([]byte{byte(i)}, n)) {
				t.Fatalf("datagram %d of %d bytes: %d, %v", i, n, k, err)
			}
		}
		if n, err := b.Read(got); n != 0 || err != io.EOF {
			t.Errorf("after the last: %d, %v", n, err)
		}
	})
}

func TestMessagesThatDoNotFit(t *testing.T) {
	near, far := relaytest.Pipe()
	a, b := relay.Messages(near), relay.Messages(far)
	if _, err := a.Write(make([]byte, relay.MaxDatagram+1)); !errors.Is(err, syscall.EMSGSIZE) {
		t.Errorf("writing too much: %v", err)
	}
	a.Write([]byte("too long for the reader"))
	a.Write([]byte("next"))
	short := make([]byte, 4)
	for _, want := range []string{"too ", "next"} {
		if n, err := b.Read(short); err != nil || string(short[:n]) != want {
			t.Errorf("read %q, %v, want %q", short[:n], err, want)
		}
	}
}

// What is cut off within a message is not an end, and is no datagram.
func TestMessagesCutOff(t *testing.T) {
	for _, cut := range []string{"\x00", "\x00\x05", "\x00\x05four"} {
		near, far := relaytest.Pipe()
		io.WriteString(near, cut)
		near.CloseWrite()
		if n, err := relay.Messages(far).Read(make([]byte, 100)); n != 0 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%q: read %d, %v", cut, n, err)
		}
	}
}

// A write that was broken off within a message is followed by none.
func TestMessagesBrokenOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		near, _ := relaytest.Pipe()
		a := relay.Messages(near)
		a.SetWriteDeadline(time.Now().Add(time.Second))
		var err error
		for err == nil {
			_, err = a.Write(make([]byte, 40000))
		}
		a.SetWriteDeadline(time.Time{})
		if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after a part of a message: %v", err)
		}
	})
}

func TestResetOfMessages(t *testing.T) {
	near, far := relaytest.Pipe()
	if err := relay.Reset(relay.Messages(near), relay.Revoked); err != nil {
		t.Fatal(err)
	}
	if _, err := far.Read(make([]byte, 1)); !relay.IsReset(err) {
		t.Errorf("the peer reads %v", err)
	}
}

// Whatever a peer sends, messages are what its lengths say, and nothing is read beyond.
func FuzzMessages(f *testing.F) {
	f.Add([]byte("\x00\x03abc\x00\x00\xff\xffx"), 2)
	f.Fuzz(func(t *testing.T, sent []byte, size int) {
		if len(sent) > relaytest.PipeBuffer || size < 0 || size > 1<<16 {
			t.Skip()
		}
		near, far := relaytest.Pipe()
		near.Write(sent)
		near.CloseWrite()
		m := relay.Messages(far)
		buf := make([]byte, size)
		for left := sent; ; {
			n, err := m.Read(buf)
			if len(left) < 2 || len(left)-2 < int(binary.BigEndian.Uint16(left)) {
				if want := io.ErrUnexpectedEOF; len(left) == 0 && err != io.EOF || len(left) > 0 && err != want || n != 0 {
					t.Fatalf("at %q: read %d, %v", left, n, err)
				}
				return
			}
			message := left[2:][:binary.BigEndian.Uint16(left)]
			left = left[2+len(message):]
			if want := message[:min(size, len(message))]; err != nil || !slices.Equal(buf[:n], want) {
				t.Fatalf("read %q, %v, want %q", buf[:n], err, want)
			}
		}
	})
}
