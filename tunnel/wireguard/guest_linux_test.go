package wireguard_test

import (
	"os"
	"testing"
	"time"

	"cardea/test/network/guest"
)

// TestGuest has the tests that open a gateway in form USERSPACE do so in form KERNEL, in a
// guest whose kernel has WireGuard.
func TestGuest(t *testing.T) {
	if os.Getenv(inGuest) != "" {
		t.Skip("this is the guest")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	guest.Run(t, 10*time.Minute, []string{inGuest + "=1"}, self, "-test.v", "-test.timeout=9m",
		"-test.run=^Test(Carriers|Attach|Rotation|Probe|Restart|Dropped|Removed|Put|Flows|Flow|DNS|Kernel|KernelRoad|Ports|IndependentPeer|KernelIsLeft)$",
		"-test.skip=^TestKernelRoad$/.*/^(bytes|close_.*|one_after_the_other|side_by_side|.*verdict.*|refusal)$")
}
