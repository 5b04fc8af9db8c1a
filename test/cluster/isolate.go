package cluster

import (
	"os"
	"os/exec"
	"syscall"
)

// isolated is set in the environment of a program that Isolate has started anew.
const isolated = "CARDEA_TEST_ISOLATED"

// Isolate runs this program in a network namespace of its own, which has nothing
// but loopback, so that documents with fixed ports meet nobody else's. It is
// called first in TestMain. Where that is not possible (it takes root, unshare and
// ip) it returns, and so it does in the program that it has started.
func Isolate() {
	const up = "ip link set lo up"
	if os.Getenv(isolated) != "" || exec.Command("unshare", "-n", "sh", "-c", up).Run() != nil {
		return
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return
	}
	args := append([]string{unshare, "-n", "sh", "-c", up + ` && exec "$0" "$@"`}, os.Args...)
	syscall.Exec(unshare, args, append(os.Environ(), isolated+"=1"))
}
