package resolver

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// machine is a resolv.conf and a Config that has a Dir.
func machine(t *testing.T, content string) (conf string, c Config) {
	t.Helper()
	t.Setenv("PATH", t.TempDir()) // neither resolvectl nor resolvconf
	conf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	return conf, Config{
		Interface: "cardea0",
		Servers:   []netip.Addr{netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:1:2::1")},
		Domains:   []string{"cardea.internal"},
		Search:    []string{"local.cardea.internal"},
		Dir:       t.TempDir(),
	}
}

func content(t *testing.T, conf string) string {
	t.Helper()
	text, err := os.ReadFile(conf)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func mustSet(t *testing.T, c Config, conf string) *Settings {
	t.Helper()
	s, err := set(t.Context(), c, conf)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestFile(t *testing.T) {
	for _, tt := range []struct{ name, before, want string }{
		{"as a DHCP client writes it", "# by dhcp\nnameserver 192.0.2.53\nsearch corp.example\noptions edns0\n",
			"nameserver 100.64.0.1\nnameserver fd00:1:2::1\nnameserver 192.0.2.53\nsearch local.cardea.internal corp.example\n# by dhcp\noptions edns0\n"},
		{"without a line end", "nameserver 192.0.2.53",
			"nameserver 100.64.0.1\nnameserver fd00:1:2::1\nnameserver 192.0.2.53\nsearch local.cardea.internal\n"},
		{"domain is a search list of one", "domain corp.example\n",
			"nameserver 100.64.0.1\nnameserver fd00:1:2::1\nsearch local.cardea.internal corp.example\n"},
		{"the last list counts", "search a.example\nsearch local.cardea.internal b.example\n",
			"nameserver 100.64.0.1\nnameserver fd00:1:2::1\nsearch local.cardea.internal b.example\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conf, c := machine(t, tt.before)
			s := mustSet(t, c, conf)
			if s.Form() != File {
				t.Errorf("the form is %s", s.Form())
			}
			mark, got, _ := strings.Cut(content(t, conf), "\n")
			if got != tt.want || !strings.HasPrefix(mark, "# cardea0:") {
				t.Errorf("got\n%s\n%swant\n%s", mark, got, tt.want)
			}
			must(t, s.Restore())
			if got := content(t, conf); got != tt.before {
				t.Errorf("put back:\n%swant\n%s", got, tt.before)
			}
			if left, _ := os.ReadDir(c.Dir); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			must(t, s.Restore())
		})
	}
}

func TestThereIsNoFile(t *testing.T) {
	conf, c := machine(t, "")
	must(t, os.Remove(conf))
	s := mustSet(t, c, conf)
	if !strings.Contains(content(t, conf), "nameserver 100.64.0.1\n") {
		t.Errorf("got\n%s", content(t, conf))
	}
	must(t, s.Restore())
	if _, err := os.Stat(conf); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
}

func TestALinkIsFollowed(t *testing.T) {
	conf, c := machine(t, "nameserver 192.0.2.53\n")
	link := filepath.Join(t.TempDir(), "resolv.conf")
	must(t, os.Symlink(conf, link))
	s := mustSet(t, c, link)
	if !strings.Contains(content(t, conf), "100.64.0.1") {
		t.Error("the file behind the link is as it was")
	}
	must(t, s.Restore())
	if i, err := os.Lstat(link); err != nil || i.Mode()&os.ModeSymlink == 0 || content(t, link) != "nameserver 192.0.2.53\n" {
		t.Errorf("the link is %v (%v)", i, err)
	}
}

// TestALinkToNothing: what a link leads to comes and goes, as with a service that writes it;
// the link is another's.
func TestALinkToNothing(t *testing.T) {
	conf, c := machine(t, "")
	must(t, os.Remove(conf))
	dir := t.TempDir()
	link, between := filepath.Join(dir, "resolv.conf"), filepath.Join(dir, "between")
	must(t, errors.Join(os.Symlink("between", link), os.Symlink(conf, between)))
	s := mustSet(t, c, link)
	if !strings.Contains(content(t, conf), "nameserver 100.64.0.1\n") {
		t.Errorf("got\n%s", content(t, conf))
	}
	must(t, s.Restore())
	if i, err := os.Lstat(link); err != nil || i.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is %v (%v)", i, err)
	}
	if _, err := os.Stat(conf); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
}

func TestRecoverAfterAKill(t *testing.T) {
	const before = "nameserver 192.0.2.53\nsearch corp.example\n"
	for _, tt := range []struct {
		name   string
		change func(now string) string
		want   string
	}{
		{"nothing happened since", func(now string) string { return now }, before},
		{"killed before it wrote", func(string) string { return before }, before},
		{"killed while it wrote", func(now string) string { return now[:len(now)/2] }, before},
		{"emptied", func(string) string { return "" }, before},
		{"somebody wrote another", func(string) string { return "nameserver 198.51.100.1\n" }, "nameserver 198.51.100.1\n"},
		{"somebody added to it", func(now string) string { return now + "options timeout:1\n" },
			"nameserver 192.0.2.53\nsearch corp.example\noptions timeout:1\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conf, c := machine(t, before)
			mustSet(t, c, conf)
			now := tt.change(content(t, conf))
			must(t, os.WriteFile(conf, []byte(now), 0o644))
			left := Left(c.Dir)
			if back, err := Recover(c.Dir); err != nil || back != (now != tt.want) || left != back {
				t.Errorf("Recover: %v, %v; before it, Left: %v", back, err, left)
			}
			if Left(c.Dir) {
				t.Error("Left after Recover")
			}
			if got := content(t, conf); got != tt.want {
				t.Errorf("got\n%swant\n%s", got, tt.want)
			}
		})
	}
	t.Run("by the next Set", func(t *testing.T) {
		conf, c := machine(t, before)
		mustSet(t, c, conf)
		s := mustSet(t, c, conf)
		if n := strings.Count(content(t, conf), "100.64.0.1"); n != 1 {
			t.Errorf("the server is there %d times", n)
		}
		must(t, s.Restore())
		if got := content(t, conf); got != before {
			t.Errorf("got\n%s", got)
		}
	})
	t.Run("a record that cannot be read", func(t *testing.T) {
		conf, c := machine(t, before)
		must(t, os.WriteFile(filepath.Join(c.Dir, keptFile), []byte("{"), 0o600))
		if _, err := set(t.Context(), c, conf); err == nil || !strings.Contains(err.Error(), keptFile) {
			t.Errorf("%v", err)
		}
	})
}

// TestTwoClusters has two settings at once, which end in either order.
func TestTwoClusters(t *testing.T) {
	const before = "nameserver 192.0.2.53\nsearch corp.example\n"
	for _, order := range [][]int{{0, 1}, {1, 0}} {
		conf, a := machine(t, before)
		b := a
		b.Interface, b.Dir = "cardea1", t.TempDir()
		b.Servers, b.Search = []netip.Addr{netip.MustParseAddr("10.9.0.1")}, []string{"local.other.internal"}
		s := []*Settings{mustSet(t, a, conf), mustSet(t, b, conf)}
		if got := words(content(t, conf), "nameserver"); !slices.Equal(got, []string{"10.9.0.1", "100.64.0.1", "fd00:1:2::1", "192.0.2.53"}) {
			t.Errorf("the servers are %v", got)
		}
		for _, n := range order {
			must(t, s[n].Restore())
		}
		if got := content(t, conf); got != before {
			t.Errorf("ended in the order %v:\n%s", order, got)
		}
	}
}

func TestRenew(t *testing.T) {
	conf, c := machine(t, "nameserver 192.0.2.53\n")
	s := mustSet(t, c, conf)
	if done, err := s.Renew(); done || err != nil {
		t.Errorf("nothing has changed: %v %v", done, err)
	}
	const dhcp = "nameserver 198.51.100.1\n"
	must(t, os.WriteFile(conf, []byte(dhcp), 0o644))
	if done, err := s.Renew(); !done || err != nil {
		t.Errorf("somebody has overwritten it: %v %v", done, err)
	}
	if got := words(content(t, conf), "nameserver"); !slices.Equal(got, []string{"100.64.0.1", "fd00:1:2::1", "198.51.100.1"}) {
		t.Errorf("the servers are %v", got)
	}
	must(t, s.Restore())
	if got := content(t, conf); got != dhcp {
		t.Errorf("got\n%s", got)
	}
}

// program puts a command into the PATH of the test, which writes down how it was called.
func program(t *testing.T, name, script string) (calls func() string) {
	t.Helper()
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	text := "#!/bin/sh\necho \"$@\" >>" + log + "\n" + script + "\n"
	must(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755))
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	return func() string {
		b, _ := os.ReadFile(log)
		must(t, os.WriteFile(log, nil, 0o644))
		return string(b)
	}
}

func TestResolved(t *testing.T) {
	conf, c := machine(t, "nameserver 127.0.0.53\nsearch corp.example\n")
	c.Domains = append(c.Domains, c.Search...) // as ~DOMAIN it would complete nothing any more
	calls := program(t, "resolvectl", "")
	s := mustSet(t, c, conf)
	const want = `status
dns cardea0 100.64.0.1 fd00:1:2::1
domain cardea0 local.cardea.internal ~cardea.internal
default-route cardea0 false
llmnr cardea0 no
mdns cardea0 no
dnssec cardea0 no
dnsovertls cardea0 no
`
	if got := calls(); got != want || s.Form() != Resolved {
		t.Errorf("%s: called with\n%swant\n%s", s.Form(), got, want)
	}
	must(t, s.Restore())
	if got := calls(); got != "status cardea0\nrevert cardea0\n" {
		t.Errorf("Restore called with\n%s", got)
	}
	if got := content(t, conf); got != "nameserver 127.0.0.53\nsearch corp.example\n" {
		t.Errorf("the file was touched:\n%s", got)
	}
}

func TestResolvedThatDoesNotAnswer(t *testing.T) {
	conf, c := machine(t, "nameserver 127.0.0.53\n")
	program(t, "resolvectl", "exit 1")
	if s := mustSet(t, c, conf); s.Form() != File {
		t.Errorf("the form is %s", s.Form())
	}
}

func TestResolvedThatNobodyAsks(t *testing.T) {
	conf, c := machine(t, "nameserver 192.0.2.53\n")
	program(t, "resolvectl", "")
	if s := mustSet(t, c, conf); s.Form() != File {
		t.Errorf("the form is %s", s.Form())
	}
}

func TestResolvedThatFails(t *testing.T) {
	conf, c := machine(t, "nameserver 127.0.0.53\n")
	calls := program(t, "resolvectl", `if [ "$1" = domain ]; then echo it will not >&2; exit 1; fi`)
	if _, err := set(t.Context(), c, conf); err == nil || !strings.Contains(err.Error(), "it will not") {
		t.Errorf("%v", err)
	}
	if got := calls(); !strings.HasSuffix(got, "revert cardea0\n") {
		t.Errorf("called with\n%s", got)
	}
}

func TestResolvconf(t *testing.T) {
	conf, c := machine(t, "# Generated by resolvconf\nnameserver 192.0.2.53\n")
	calls := program(t, "resolvconf", `[ "$1" = -a ] && cat >>${0%/*}/log; true`)
	s := mustSet(t, c, conf)
	const want = `-a tun0.cardea0
nameserver 100.64.0.1
nameserver fd00:1:2::1
search local.cardea.internal
`
	if got := calls(); got != want || s.Form() != Resolvconf {
		t.Errorf("%s: called with\n%swant\n%s", s.Form(), got, want)
	}
	if back, err := Recover(c.Dir); !back || err != nil { // as after a SIGKILL
		t.Errorf("Recover: %v, %v", back, err)
	}
	if got := calls(); got != "-d tun0.cardea0 -f\n" {
		t.Errorf("Recover called with\n%s", got)
	}
	must(t, s.Restore())
	if got := calls(); got != "" {
		t.Errorf("a second time, with\n%s", got)
	}
}

func TestConfigsThatCannotBe(t *testing.T) {
	for name, change := range map[string]func(c *Config){
		"no server":             func(c *Config) { c.Servers = nil },
		"no address":            func(c *Config) { c.Servers = []netip.Addr{{}} },
		"a line in a domain":    func(c *Config) { c.Search = []string{"a\nnameserver 192.0.2.1"} },
		"an option as a domain": func(c *Config) { c.Domains = []string{"-x"} },
		"all names":             func(c *Config) { c.Domains = []string{"."} },
		"a path as a name":      func(c *Config) { c.Interface = "../x" },
		"an option as a name":   func(c *Config) { c.Interface = "--help" },
	} {
		t.Run(name, func(t *testing.T) {
			conf, c := machine(t, "nameserver 192.0.2.53\n")
			change(&c)
			if _, err := set(t.Context(), c, conf); err == nil {
				t.Error("it was set")
			}
			if got := content(t, conf); got != "nameserver 192.0.2.53\n" {
				t.Errorf("the file is\n%s", got)
			}
		})
	}
}

// TestTheMachinesOwnFile uses /etc/resolv.conf itself, which is mounted as containers
// mount it, in a mount namespace that ends with the thread of the test.
func TestTheMachinesOwnFile(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to make a mount namespace")
	}
	conf, c := machine(t, "nameserver 192.0.2.53\n")
	runtime.LockOSThread()
	if err := errors.Join(
		unix.Unshare(unix.CLONE_NEWNS),
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount(conf, File, "", unix.MS_BIND, ""),
	); err != nil {
		t.Skipf("needs to mount: %v", err)
	}
	s, err := Set(t.Context(), c)
	must(t, err)
	if got := words(content(t, File), "nameserver"); !slices.Equal(got, []string{"100.64.0.1", "fd00:1:2::1", "192.0.2.53"}) {
		t.Errorf("the servers are %v", got)
	}
	if cat, err := exec.LookPath("/bin/cat"); err == nil { // another process of the namespace
		if out, err := exec.Command(cat, File).Output(); err != nil || !strings.Contains(string(out), "100.64.0.1") {
			t.Errorf("cat reads %s (%v)", out, err)
		}
	}
	must(t, s.Restore())
	if got := content(t, File); got != "nameserver 192.0.2.53\n" {
		t.Errorf("got\n%s", got)
	}
	must(t, unix.Mount("", File, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
	if _, err := Set(t.Context(), c); !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "--no-dns") {
		t.Errorf("a file that cannot be written: %v", err)
	}
}

// FuzzFile: what is put into a resolv.conf can be taken out, and all other servers, of
// which a DHCP server may be the author, are as they were.
func FuzzFile(f *testing.F) {
	f.Add("nameserver 192.0.2.53\nsearch corp.example\n")
	f.Add("domain a b\n\nnameserver\n nameserver 1.2.3.4 # why\n;x")
	f.Fuzz(func(t *testing.T, before string) {
		k := &kept{Mark: "# mark", Servers: []string{"100.64.0.1"}, Search: []string{"local.cardea.internal"}}
		if strings.Contains(before, k.Servers[0]) || strings.Contains(before, k.Mark) {
			return
		}
		k.After = k.Mark + "\n" + k.with(before)
		var theirs []string
		for line := range strings.Lines(before) {
			if w := words(line, "nameserver"); len(w) > 0 {
				theirs = append(theirs, w[0])
			}
		}
		if got := words(k.After, "nameserver"); !slices.Equal(got, append(slices.Clone(k.Servers), theirs...)) {
			t.Errorf("%q: the servers are %q", before, got)
		}
		if got := words(k.without(k.After), "nameserver"); !slices.Equal(got, theirs) {
			t.Errorf("%q: taken out, the servers are %q", before, got)
		}
	})
}
