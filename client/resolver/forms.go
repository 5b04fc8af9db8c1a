package resolver

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// form tells how this machine is told where to ask. A program counts only if
// resolv.conf, which all others read, is its own.
func form(conf string) string {
	target, err := filepath.EvalSymlinks(conf)
	if err != nil {
		return File
	}
	text, err := os.ReadFile(conf)
	if err != nil {
		return File
	}
	servers := words(string(text), "nameserver")
	stub := slices.Contains(servers, "127.0.0.53") || slices.Contains(servers, "127.0.0.54")
	if (stub || strings.Contains(target, "/systemd/resolve/")) && has("resolvectl") && run("", "resolvectl", "status") == nil {
		return Resolved
	}
	owned := strings.Contains(target, "/resolvconf/") || strings.Contains(strings.ToLower(comments(string(text))), "resolvconf")
	if owned && has("resolvconf") {
		return Resolvconf
	}
	return File
}

func has(program string) bool {
	_, err := exec.LookPath(program)
	return err == nil
}

// setResolved tells systemd-resolved about the interface: see resolvectl(1).
func (c *Config) setResolved() error {
	domains := slices.Clone(c.Search)
	for _, d := range c.Domains {
		if !slices.Contains(c.Search, d) { // of one that is named twice, only the latter counts
			domains = append(domains, "~"+d) // for routing alone, not for completing
		}
	}
	for _, args := range [][]string{
		append([]string{"dns", c.Interface}, c.servers()...),
		append([]string{"domain", c.Interface}, domains...),
		{"default-route", c.Interface, "false"},
		{"llmnr", c.Interface, "no"},
		{"mdns", c.Interface, "no"},
		{"dnssec", c.Interface, "no"}, // nobody above has signed a private domain
		{"dnsovertls", c.Interface, "no"},
	} {
		if err := run("", "resolvectl", args...); err != nil {
			run("", "resolvectl", "revert", c.Interface)
			return err
		}
	}
	return nil
}

// setResolvconf tells resolvconf, Debian's or openresolv, about the interface: see
// resolvconf(8). Both put first what has the name of a tun with a number.
func (c *Config) setResolvconf() error {
	record := "tun0." + c.Interface
	if err := (&kept{Form: Resolvconf, Record: record}).save(c.Dir); err != nil {
		return err
	}
	if err := run(lines(c.servers(), c.Search), "resolvconf", "-a", record); err != nil {
		Recover(c.Dir)
		return err
	}
	return nil
}

// lines returns servers and search domains as resolv.conf has them.
func lines(servers, search []string) string {
	var b strings.Builder
	for _, s := range servers {
		b.WriteString("nameserver " + s + "\n")
	}
	if len(search) > 0 {
		b.WriteString("search " + strings.Join(search, " ") + "\n")
	}
	return b.String()
}
