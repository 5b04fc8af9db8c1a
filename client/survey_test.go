package client

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"cardea/api"
)

// TestSurvey compares what is asked for with what the cluster tells: what cannot be is an
// error, what may come to be a warning.
func TestSurvey(t *testing.T) {
	list := &api.Reachable{
		Items:  []api.ReachableService{{Name: "web.default", Mode: api.ModeTCP}, {Name: "dns.prod", Mode: api.ModeUDP}},
		Denied: []api.DeniedService{{Name: "pg.default", Mode: api.ModeTCP, Reason: api.ReasonNoPolicyMatch}, {Name: "syslog.default", Mode: api.ModeUDP, Reason: api.ReasonNoPolicyMatch, Message: "ask the team"}},
	}
	for in, want := range map[string]struct{ network, warning, err string }{
		"web:8080":          {network: "tcp"},
		"web:/run/web":      {network: "unix"},
		"dns.prod:5353":     {network: "udp"},
		"dns.prod:5353/udp": {network: "udp"},
		"web:8080/udp":      {err: "Service web.default is of mode TCP, and 127.0.0.1:8080 is a port of UDP"},
		"dns.prod:/run/dns": {err: "Service dns.prod is of datagrams (UDP)"},
		"pg:5432":           {network: "tcp", warning: "may not connect to pg.default now: no policy allows it (NO_POLICY_MATCH);"},
		"pg:5432/udp":       {err: "Service pg.default is of mode TCP"},
		"syslog:5140":       {network: "udp", warning: "now: ask the team (NO_POLICY_MATCH)"},
		"wbe:8080":          {network: "tcp", warning: "no Service wbe.default; connections are refused until it may reach one; did you mean web?"},
		"dns.prd:5353/udp":  {network: "udp", warning: "did you mean dns.prod?"},
		"elsewhere:1":       {network: "tcp", warning: "no Service elsewhere.default; connections are refused until it may reach one"},
	} {
		p, err := ParsePort(in)
		if err != nil {
			t.Fatal(err)
		}
		warning, err := p.compare(list)
		switch {
		case want.err != "":
			if !api.HasCode(err, api.CodeInvalid) || !strings.Contains(err.Error(), want.err) {
				t.Errorf("%s: %v, want %q", in, err, want.err)
			}
		case err != nil || p.Network != want.network || !strings.Contains(warning, want.warning) || (want.warning == "") != (warning == ""):
			t.Errorf("%s: %s, %q, %v, want %+v", in, p.Network, warning, err, want)
		}
	}
}

// TestForeground shows those that run, and none that has ended or was killed.
func TestForeground(t *testing.T) {
	home := t.TempDir()
	if all := Foregrounds(home); len(all) != 0 {
		t.Errorf("before: %+v", all)
	}
	ports := []Port{{Service: "web.default", Network: "tcp", Address: "127.0.0.1:8080"}}
	start := time.Now().UTC()
	first, err := Announce(home, Foreground{PID: 1, StartedAt: start, Ports: ports})
	if err != nil {
		t.Fatal(err)
	}
	second, err := Announce(home, Foreground{PID: 2, StartedAt: start.Add(-time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	killed := exec.Command(os.Args[0], "-test.run=^TestAnnounceAndDie$")
	killed.Env = append(os.Environ(), "ANNOUNCE_IN="+home)
	if out, err := killed.CombinedOutput(); err == nil || !strings.Contains(string(out), "announced") {
		t.Fatalf("%v: %s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(home, "*")); len(left) != 3 {
		t.Errorf("in the home are %q", left)
	}
	all := Foregrounds(home)
	if len(all) != 2 || all[0].PID != 2 || all[1].PID != 1 || len(all[1].Ports) != 1 || all[1].Ports[0] != ports[0] || !all[1].StartedAt.Equal(start) {
		t.Errorf("got %+v", all)
	}
	first()
	second()
	if all := Foregrounds(home); len(all) != 0 {
		t.Errorf("afterwards: %+v", all)
	}
	if left, _ := os.ReadDir(home); len(left) != 0 {
		t.Errorf("in the home is left %v", left)
	}
}

// TestAnnounceAndDie is what TestForeground kills.
func TestAnnounceAndDie(t *testing.T) {
	home := os.Getenv("ANNOUNCE_IN")
	if home == "" {
		t.Skip("TestForeground runs it")
	}
	if _, err := Announce(home, Foreground{PID: os.Getpid(), StartedAt: time.Now()}); err != nil {
		t.Fatal(err)
	}
	os.Stdout.WriteString("announced")
	p, err := os.FindProcess(os.Getpid())
	if err == nil {
		err = p.Kill()
	}
	t.Fatal(err)
}
