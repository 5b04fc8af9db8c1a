package client_test

import (
	"net"
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
