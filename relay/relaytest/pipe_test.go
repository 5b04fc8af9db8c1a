package relaytest_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"cardea/relay"
	"cardea/relay/relaytest"
)

func TestPipe(t *testing.T) {
	tests := []struct {
		name string
		test func(t *testing.T, a, b *relaytest.PipeEnd)
	}{
		{"half-close", func(t *testing.T, a, b *relaytest.PipeEnd) {
			io.WriteString(a, "question")
			a.CloseWrite()
			if got, err := io.ReadAll(b); string(got) != "question" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
			if _, err := io.WriteString(a, "more"); !errors.Is(err, syscall.EPIPE) {
				t.Errorf("write after CloseWrite: %v, want EPIPE", err)
			}
			io.WriteString(b, "answer")
			b.Close()
			if got, err := io.ReadAll(a); string(got) != "answer" || err != nil {
				t.Errorf("read %q, %v", got, err)
			}
		}},
		{"reset discards and tells the reason", func(t *testing.T, a, b *relaytest.PipeEnd) {
			io.WriteString(a, "lost")
			a.Reset("REVOKED")
			_, err := b.Read(make([]byte, 8))
			var reset *relay.ResetError
			if !errors.As(err, &reset) || reset.Reason != "REVOKED" {
				t.Errorf("read: %v, want a reset with its reason", err)
			}
			if _, err := b.Write([]byte("x")); !relay.IsReset(err) {
				t.Errorf("write: %v, want a reset", err)
			}
			if _, err := a.Read(make([]byte, 8)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read after own reset: %v, want net.ErrClosed", err)
			}
		}},
		{"reset after both finished is none", func(t *testing.T, a, b *relaytest.PipeEnd) {
			a.CloseWrite()
			b.CloseWrite()
			a.Reset("REVOKED")
			if _, err := b.Read(make([]byte, 8)); err != io.EOF {
				t.Errorf("read: %v, want io.EOF", err)
			}
		}},
		{"a reset after half-close is told", func(t *testing.T, a, b *relaytest.PipeEnd) {
			a.CloseWrite()
			if _, err := b.Read(make([]byte, 8)); err != io.EOF {
				t.Errorf("read: %v, want io.EOF", err)
			}
			time.AfterFunc(time.Hour, func() { a.Reset("REVOKED") })
			var reset *relay.ResetError
			if err := b.WaitReset(); !errors.As(err, &reset) || reset.Reason != "REVOKED" {
				t.Errorf("wait: %v, want a reset with its reason", err)
			}
		}},
		{"close ends the wait for a reset", func(t *testing.T, a, b *relaytest.PipeEnd) {
			a.CloseWrite()
			time.AfterFunc(time.Hour, func() { b.Close() })
			if err := b.WaitReset(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("wait: %v, want net.ErrClosed", err)
			}
		}},
		{"close with bytes unread resets, after what was sent", func(t *testing.T, a, b *relaytest.PipeEnd) {
			io.WriteString(a, "not wanted")
			io.WriteString(b, "sorry")
			b.Close()
			if got, err := io.ReadAll(a); string(got) != "sorry" || !relay.IsReset(err) {
				t.Errorf("read %q, %v, want the last words and a reset", got, err)
			}
		}},
		{"write to a closed end resets", func(t *testing.T, a, b *relaytest.PipeEnd) {
			b.Close()
			if _, err := a.Write([]byte("x")); !relay.IsReset(err) {
				t.Errorf("write: %v, want a reset", err)
			}
		}},
		{"writer waits for the reader", func(t *testing.T, a, b *relaytest.PipeEnd) {
			content := bytes.Repeat([]byte("0123456789"), relaytest.PipeBuffer/5)
			done := false
			go func() {
				a.Write(content)
				done = true
				a.Close()
			}()
			synctest.Wait()
			if done {
				t.Error("a write of twice the buffer returned before anything was read")
			}
			if got, err := io.ReadAll(b); !bytes.Equal(got, content) || err != nil {
				t.Errorf("read %d bytes, %v, want %d", len(got), err, len(content))
			}
		}},
		{"deadlines", func(t *testing.T, a, b *relaytest.PipeEnd) {
			begin := time.Now()
			a.SetDeadline(begin.Add(time.Second))
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(begin) != time.Second {
				t.Errorf("read: %v after %v", err, time.Since(begin))
			}
			if _, err := a.Write(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("write: %v", err)
			}
			a.SetDeadline(time.Time{})
			if _, err := a.Write(make([]byte, 1)); err != nil {
				t.Errorf("write without deadline: %v", err)
			}
		}},
		{"close wakes", func(t *testing.T, a, b *relaytest.PipeEnd) {
			time.AfterFunc(time.Second, func() { a.Close() })
			if _, err := a.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
				t.Errorf("read: %v, want net.ErrClosed", err)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, b := relaytest.Pipe()
				tt.test(t, a, b)
			})
		})
	}
}
