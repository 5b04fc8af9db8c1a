package wireguard_test

import (
	"fmt"
	"strings"
	"testing"

	"cardea/tunnel/wireguard"
)

func TestKey(t *testing.T) {
	// The first vector of RFC 7748, 6.1.
	private, err := wireguard.ParseKey("dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=")
	if err != nil {
		t.Fatal(err)
	}
	if got := private.Public().Text(); got != "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=" {
		t.Errorf("the public key is %s", got)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		if s := fmt.Sprintf(format, struct{ K wireguard.Key }{private}); strings.Contains(s, "dwdt") || strings.Contains(s, "119") || strings.Contains(s, "7707") {
			t.Errorf("%s prints %s", format, s)
		}
	}
	for _, bad := range []string{"", "x", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LC==", private.Text() + "AAAA", private.Text() + "\n"} {
		if k, err := wireguard.ParseKey(bad); err == nil {
			t.Errorf("%q is %s", bad, k.Text())
		} else if bad != "" && strings.Contains(err.Error(), "dwdt") {
			t.Errorf("the error tells the key: %v", err)
		}
	}
	if a, b := wireguard.NewKey(), wireguard.NewKey(); a == b || a.IsZero() || a.Public() == b.Public() {
		t.Error("two keys are one")
	}
}
