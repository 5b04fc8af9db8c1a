package client

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"cardea/relay"
)

// pair returns both ends of a connection over a listener.
func pair(t *testing.T, network, address string) (accepted, dialled net.Conn) {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Skip(err) // no IPv6, say
	}
	defer l.Close()
	if dialled, err = net.Dial(network, l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if accepted, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { accepted.Close(); dialled.Close() })
	return accepted, dialled
}

func TestPeerUID(t *testing.T) {
	own := uint32(os.Getuid())
	for _, a := range [][2]string{{"tcp", "127.0.0.1:0"}, {"tcp", "[::1]:0"}, {"unix", filepath.Join(t.TempDir(), "s")}} {
		c, d := pair(t, a[0], a[1])
		if uid, err := peerUID(c); err != nil || uid != own {
			t.Errorf("%v: got %d, %v", a, uid, err)
		}
		if a[0] == "unix" {
			continue
		}
		ours, theirs := netip.MustParseAddrPort(c.LocalAddr().String()), netip.MustParseAddrPort(c.RemoteAddr().String())
		if uid, err := search(unix.IPPROTO_TCP, theirs, ours); err != nil || uid != own {
			t.Errorf("%v: /proc says %d, %v", a, uid, err)
		}
		d.Close()
		if _, err := peerUID(c); !errors.Is(err, errNoPeer) {
			t.Errorf("%v: of one who has closed it says %v", a, err)
		}
	}
}

// TestOtherUser shows that another user of the machine is refused, and let in
// with --share.
func TestOtherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	// Its own uid is root's: only the own uid and root are let in.
	const nobody = 65534
	cmd := exec.Command(bash, "-c", "exec 3<>/dev/tcp/127.0.0.1/"+port+"; cat <&3")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p := new(Ports)
	if err := p.admit(false, c); !errors.Is(err, strangerError{nobody}) {
		t.Errorf("got %v", err)
	}
	if err := p.admit(true, c); err != nil {
		t.Errorf("with --share: %v", err)
	}
	relay.Reset(c, relay.Limit)
	cmd.Wait()
}
