package relay_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"cardea/relay"
)

func TestIsReset(t *testing.T) {
	tests := []struct {
		err  error
		want bool
	}{
		{nil, false},
		{io.EOF, false},
		{os.ErrDeadlineExceeded, false},
		{net.ErrClosed, false},
		{syscall.ECONNRESET, true},
		{syscall.EPIPE, true},
		{&net.OpError{Op: "read", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, true},
		{fmt.Errorf("stream 3: %w", &relay.ResetError{Reason: "REVOKED"}), true},
	}
	for _, tt := range tests {
		if got := relay.IsReset(tt.err); got != tt.want {
			t.Errorf("IsReset(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
}

// stream records how it was ended. Only what Reset may call is implemented.
type stream struct {
	net.Conn
	calls *[]string
	name  string
}

func (s stream) Close() error {
	*s.calls = append(*s.calls, s.name+" close")
	return nil
}

type resetter struct{ stream }

func (r resetter) Reset(reason string) error {
	*r.calls = append(*r.calls, r.name+" reset "+reason)
	return nil
}

type layered struct {
	stream
	beneath net.Conn
}

func (l layered) NetConn() net.Conn { return l.beneath }

func TestResetReachesTheRightLayer(t *testing.T) {
	var calls []string
	plain := stream{calls: &calls, name: "plain"}
	able := resetter{stream{calls: &calls, name: "able"}}
	tests := []struct {
		name string
		conn net.Conn
		want []string
	}{
		{"plain", plain, []string{"plain close"}},
		{"resetter", able, []string{"able reset REVOKED"}},
		{"beneath before above", layered{stream{calls: &calls, name: "upper"}, able}, []string{"able reset REVOKED", "upper close"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			calls = nil
			if err := relay.Reset(tt.conn, relay.Revoked); err != nil {
				t.Fatal(err)
			}
			if fmt.Sprint(calls) != fmt.Sprint(tt.want) {
				t.Errorf("calls %q, want %q", calls, tt.want)
			}
		})
	}
}

func TestResetOfTCPIsSeenAsReset(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	peer, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if err := relay.Reset(conn, relay.Revoked); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("peer reads %v, want ECONNRESET", err)
	}
	if err := relay.Reset(conn, relay.Revoked); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second Reset: %v, want net.ErrClosed", err)
	}
}
