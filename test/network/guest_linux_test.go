package network_test

import (
	"os"
	"testing"
	"time"

	"cardea/test/network/guest"
)

// inGuest is set in the environment of the tests when they run in a guest, to the program.
const inGuest = "CARDEA_TEST_IN_GUEST"

// network is what --network says where a test does not.
func network() string {
	if os.Getenv(inGuest) != "" {
		return "kernel"
	}
	return "tun"
}

// forms are those of the gateway that are tried here, by what --network says.
func forms() map[string]string {
	if os.Getenv(inGuest) != "" {
		return map[string]string{"kernel": "KERNEL"}
	}
	return map[string]string{"tun": "TUN", "userspace": "USERSPACE"}
}

// TestGuest has a gateway in form KERNEL, in a guest whose kernel has WireGuard, and has
// programs reach Services through it.
func TestGuest(t *testing.T) {
	if os.Getenv(inGuest) != "" {
		t.Skip("this is the guest")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	guest.Run(t, 10*time.Minute, []string{inGuest + "=" + bin}, self, "-test.v", "-test.parallel=1", "-test.timeout=9m",
		"-test.run=^TestPrograms$//^(curl|udp)$")
}
