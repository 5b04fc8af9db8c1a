package network_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardea/test/cluster"
)

// TestExample does what README says under "Private network".
func TestExample(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("needs root, to make network namespaces")
	}
	bin, err := program()
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("../../examples/network/lab")
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("cardea-%d-example", os.Getpid())
	in := func(args ...string) []string { return append([]string{"env", "LAB=" + name, script}, args...) }
	lab := func(args ...string) string {
		t.Helper()
		args = in(args...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return run(t, exec.CommandContext(ctx, args[0], args[1:]...))
	}
	for _, program := range []string{"ip", "nft", "nginx", "curl", "ssh", "psql", "/usr/sbin/sshd"} {
		need(t, program)
	}
	t.Cleanup(func() {
		down := in("down")
		if out, err := exec.Command(down[0], down[1:]...).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("lab down: %v: %s", err, out)
		}
		left, _ := filepath.Glob("/run/netns/" + name + "-*")
		if _, err := os.Stat("/tmp/" + name + "-lab"); len(left) > 0 || !os.IsNotExist(err) {
			t.Errorf("lab down has left %q, and the directory: %v", left, err)
		}
	})
	if said := lab("up"); strings.Contains(said, "not installed") {
		t.Skip(said)
	}

	c := &cluster.Cluster{Bin: bin, Dir: "/tmp/" + name + "-lab/cluster", Listen: "0.0.0.0:8443", Prefix: in("gateway"), People: in("gateway")}
	if err := os.Mkdir(c.Dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	lab("gateway", bin, "apply", "-f", "../../examples/network/services.yaml")
	lab("gateway", bin, "create", "group", "group-1")
	lab("gateway", bin, "create", "user", "alice", "--type", "HUMAN", "--group", "group-1")
	for who, credential := range map[string]string{"client": "laptop", "guest": "guest"} {
		var made struct{ Token string }
		said := lab("gateway", bin, "create", "credential", credential, "--user", "alice", "--type", "auth-token", "-o", "json")
		if err := json.Unmarshal([]byte(said), &made); err != nil {
			t.Fatal(err)
		}
		lab(who, bin, "login", "203.0.113.2:8443", "--token", made.Token, "--ca-sha256", c.CA())
	}
	lab("client", bin, "connect", "--detach")
	lab("guest", bin, "connect", "-p", "db:15432", "--socks5", "1080", "--detach")
	dir := "/tmp/" + name + "-lab"
	for want, commands := range map[string][]string{
		"the web of the upstream": {"client curl -sS -m 20 http://web", "client curl -sS -m 20 -6 http://web", "guest curl -sS -m 20 -x socks5h://127.0.0.1:1080 http://web"},
		"42":                      {"client psql -h db -U postgres -Atc SELECT(6*7)", "guest psql -h 127.0.0.1 -p 15432 -U postgres -Atc SELECT(6*7)"},
		"hello":                   {"client ssh -i " + dir + "/key -o BatchMode=yes -o UserKnownHostsFile=" + dir + "/known_hosts shell echo hello"},
	} {
		for _, command := range commands {
			if got := strings.TrimSpace(lab(strings.Fields(command)...)); got != want {
				t.Errorf("%s: %q, want %q", command, got, want)
			}
		}
	}
	lab("client", bin, "disconnect")
}
