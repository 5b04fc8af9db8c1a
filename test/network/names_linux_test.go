package network_test

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/miekg/dns"

	"cardea/test/network/lab"
)

// unpacked is where test/setup has the packages that would change how this machine itself
// asks for names, if they were installed.
const unpacked = "/var/lib/cardea-test/"

// machines are ways in which a machine is told where to ask for names: what is done on one,
// with /run and /etc of its own, before anything connects. The name server that it knows
// is 192.168.N.1, given as $2.
var machines = map[string]string{
	"systemd-resolved": `
		echo systemd-resolve:x:997:997::/:/usr/sbin/nologin >>/etc/passwd
		echo systemd-resolve:x:997: >>/etc/group
		mkdir -p /run/dbus /run/systemd/resolve
		chown systemd-resolve:systemd-resolve /run/systemd/resolve
		dbus-daemon --system --fork --nopidfile
		ln -sf /run/systemd/resolve/stub-resolv.conf /etc/resolv.conf
		/usr/lib/systemd/systemd-resolved &
		until resolvectl dns eth0 "$2"; do sleep 0.05; done
		resolvectl domain eth0 '~.'`,
	"resolvconf": `
		ln -sf /run/resolvconf/resolv.conf /etc/resolv.conf
		rm -f /etc/resolvconf/update.d/unbound # which is not there
		mkdir -p /run/resolvconf/interface
		resolvconf --enable-updates
		echo "nameserver $2" | resolvconf -a eth0.inet`,
	"openresolv": `
		echo "nameserver $2" | resolvconf -a eth0`,
}

// ownMachine gives a machine its programs, and a /run and an /etc that nobody else sees.
const ownMachine = `
	set -e
	mount -t tmpfs own /run
	mkdir /run/upper /run/work
	if [ -d "$1/usr" ]; then mount -t overlay own -o "lowerdir=$1/usr:/usr" /usr; fi
	for d in lib sbin; do
		if [ -d "$1/$d" ]; then mount -t overlay own -o "lowerdir=$1/$d:/usr/$d" "/usr/$d"; fi
	done
	mount -t overlay own -o "lowerdir=$1/etc:/etc,upperdir=/run/upper,workdir=/run/work" /etc
	rm -f /etc/resolv.conf
`

// TestNames connects machines whose names are the business of systemd-resolved, of Debian's
// resolvconf and of openresolv, as they are: all of a machine's programs find Services by
// name and what they found before, and when connect has ended, or was killed, all is as it
// was.
func TestNames(t *testing.T) {
	t.Parallel()
	var forms []string
	for form := range machines {
		if _, err := os.Stat(unpacked + form); err != nil {
			t.Skipf("needs %s: see test/setup", form)
		}
		forms = append(forms, form)
	}
	w := newWorld(t, lab.Config{Clients: len(forms)}, serviceYAML("web", 80, "tcp://10.3.0.2:8000"))
	web(t, w.Upstream, 8000, "the web")
	for i, form := range forms {
		t.Run(form, func(t *testing.T) {
			its := *w
			its.T = t
			namesOf(&its, form, w.Clients[i], netip.AddrFrom4([4]byte{192, 168, byte(i + 1), 1}))
		})
	}
}

func namesOf(w *world, form string, h *lab.Host, server netip.Addr) {
	t := w.T
	asked := outside(t, w.NAT, server)
	own := start(t, h.Command("sh", "-c", ownMachine+machines[form]+"\necho ready\nexec sleep 1000", "sh", unpacked+form, server.String()))
	soon(t, patience, "the machine is there", func() error {
		if !strings.Contains(own.out.String(), "ready") {
			return fmt.Errorf("it says %s", own.out)
		}
		return nil
	})
	alice := w.login(h, "alice")
	alice.as = func(name string, args ...string) *exec.Cmd {
		return exec.CommandContext(t.Context(), "nsenter", append([]string{"-t", strconv.Itoa(own.Process.Pid), "-m", "-n", name}, args...)...)
	}
	settings := func() string {
		text := run(t, alice.as("cat", "/etc/resolv.conf"))
		if form == "systemd-resolved" {
			text += run(t, alice.as("resolvectl", "dns")) + run(t, alice.as("resolvectl", "domain"))
		}
		return text
	}
	finds := func(name, want string) {
		t.Helper()
		if got := strings.Fields(run(t, alice.as("getent", "ahostsv4", name))); len(got) == 0 || got[0] != want {
			t.Errorf("%s is found at %q, want %s", name, got, want)
		}
	}
	before := settings()
	finds("www.example.net", "192.0.2.7")
	v4, _ := w.at("web")
	c := alice.connect()
	if says := "Names       " + strings.Replace(form, "openresolv", "resolvconf", 1); !strings.Contains(c.out.String(), says) {
		t.Errorf("connect does not say %q:\n%s", says, c.out)
	}
	for _, name := range []string{"web", "web.default.svc.cardea.internal"} {
		finds(name, v4.Addr().String())
		if got := run(t, alice.as(need(t, "curl"), "-sS", "-m", "20", "http://"+name)); got != "the web" {
			t.Errorf("curl http://%s: %q", name, got)
		}
	}
	finds("www.example.net", "192.0.2.7")
	if form == "systemd-resolved" {
		for _, name := range asked() {
			if strings.Contains(name, "web") || strings.Contains(name, "cardea") {
				t.Errorf("the name server outside was asked for %s", name)
			}
		}
	}
	c.Process.Signal(syscall.SIGINT)
	c.wait(t)
	if after := settings(); after != before {
		t.Errorf("the settings were\n%s\nand are\n%s", before, after)
	}
	c = alice.connect()
	c.Process.Kill()
	c.wait(t)
	alice.command("disconnect").Run()
	if after := settings(); after != before {
		t.Errorf("after SIGKILL and disconnect, the settings were\n%s\nand are\n%s", before, after)
	}
	finds("www.example.net", "192.0.2.7")
}

// outside serves www.example.net at a name server of a host, and returns which names it was
// asked for.
func outside(t *testing.T, h *lab.Host, at netip.Addr) (asked func() []string) {
	t.Helper()
	socket, err := h.ListenPacket("udp", netip.AddrPortFrom(at, 53))
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var names []string
	s := &dns.Server{PacketConn: socket, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		mu.Lock()
		names = append(names, q.Question[0].Name)
		mu.Unlock()
		m := new(dns.Msg).SetReply(q)
		if x := q.Question[0]; x.Name != "www.example.net." {
			m.Rcode = dns.RcodeNameError
		} else if x.Qtype == dns.TypeA {
			m.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: x.Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{192, 0, 2, 7}}}
		}
		w.WriteMsg(m)
	})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.ActivateAndServe()
	}()
	t.Cleanup(func() {
		socket.Close()
		<-done
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return names
	}
}
