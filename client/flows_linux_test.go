package client_test

import (
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

// sendAs has a process of another user send a datagram, from a socket that stays open
// until the end of the test.
func sendAs(t *testing.T, uid uint32, address string) {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip(err)
	}
	host, port, _ := net.SplitHostPort(address)
	cmd := exec.Command(bash, "-c", "exec 3<>/dev/udp/"+host+"/"+port+"; echo x >&3; read line")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close(); cmd.Wait() })
}

// TestPublishedUDPOfOthers shows that a datagram of another user is dropped.
func TestPublishedUDPOfOthers(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	said := newWords()
	p := publish(t, messageEcho{}, said, "echo:0/udp")
	sendAs(t, 65534, p.Address)
	said.await(t, "it comes from uid 65534")
}
