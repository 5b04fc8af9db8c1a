// Package resolver sets where this machine asks for names: those of the private
// network at the cluster's DNS servers, all others, where the machine can tell them
// apart, where it asked before.
//
// There are three forms, and the first that the machine uses is taken:
// systemd-resolved, which splits by domain; resolvconf, which puts the cluster's
// servers before the others; and /etc/resolv.conf itself, edited in place, to the same
// effect. What is changed is written down first, so that [Recover] can put back what
// was there also after the process was killed.
package resolver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"runtime"
	"strings"
	"time"
)

// Config is what is to be set.
type Config struct {
	Interface string       // through which the servers are reached
	Servers   []netip.Addr // of the cluster, the preferred first
	Domains   []string     // names under these are asked at Servers alone, where the machine can split
	Search    []string     // domains to complete a short name with
	Dir       string       // where is written down what is to be put back; it must exist
}

// The forms.
const (
	Resolved   = "systemd-resolved"
	Resolvconf = "resolvconf"
	File       = "/etc/resolv.conf"
)

// Settings are those that Set has made.
type Settings struct {
	config Config
	conf   string // the path of resolv.conf
	form   string
}

// commandTime bounds a command that sets something.
const commandTime = 5 * time.Second

// Set makes the settings, after it has put back what an earlier process that used the
// same Dir left. It fails on systems that are not Linux with [errors.ErrUnsupported].
func Set(ctx context.Context, c Config) (*Settings, error) { return set(ctx, c, File) }

func set(ctx context.Context, c Config, conf string) (*Settings, error) {
	if runtime.GOOS != "linux" {
		return nil, errors.ErrUnsupported
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	if _, err := Recover(c.Dir); err != nil {
		return nil, err
	}
	s := &Settings{config: c, conf: conf}
	s.form = form(conf)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s, s.apply()
}

// Find returns the form in which Set would make settings on this machine.
func Find() string { return form(File) }

// apply makes the settings of the form.
func (s *Settings) apply() error {
	switch s.form {
	case Resolved:
		return s.config.setResolved()
	case Resolvconf:
		return s.config.setResolvconf()
	}
	return s.config.setFile(s.conf)
}

// Form tells how the settings were made, in a word for a person: [Resolved],
// [Resolvconf] or [File].
func (s *Settings) Form() string { return s.form }

// Renew makes the settings again if somebody has overwritten /etc/resolv.conf since, a
// DHCP client as a rule; what that one wrote is then what will be put back. It reports
// whether it did. The other forms keep what they were told.
func (s *Settings) Renew() (bool, error) {
	if s.form != File {
		return false, nil
	}
	if mine, err := isMine(s.config.Dir); mine || err != nil {
		return false, err
	}
	return true, s.apply()
}

// Restore puts back what was there before, unless somebody has overwritten it since.
func (s *Settings) Restore() error {
	if s.form == Resolved {
		// The settings go with the interface anyway, which may be gone already.
		if run("", "resolvectl", "status", s.config.Interface) != nil {
			return nil
		}
		return run("", "resolvectl", "revert", s.config.Interface)
	}
	_, err := Recover(s.config.Dir)
	return err
}

// check refuses what would say something else in a file or on a command line.
func (c *Config) check() error {
	name := regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?$`)
	if !name.MatchString(c.Interface) || len(c.Interface) > 15 {
		return fmt.Errorf("%.40q is not the name of an interface", c.Interface)
	}
	if len(c.Servers) == 0 {
		return errors.New("there is no DNS server to ask")
	}
	for _, a := range c.Servers {
		if !a.IsValid() || a.Zone() != "" {
			return fmt.Errorf("%v is not the address of a DNS server", a)
		}
	}
	for _, d := range append(c.Domains[:len(c.Domains):len(c.Domains)], c.Search...) {
		if len(d) > 253 || !name.MatchString(d) || strings.Contains(d, "..") {
			return fmt.Errorf("%.80q is not a domain", d)
		}
	}
	return nil
}

// servers returns the servers as text.
func (c *Config) servers() []string {
	var list []string
	for _, a := range c.Servers {
		list = append(list, a.Unmap().String())
	}
	return list
}

// run runs a command, whose first words on stderr are those of the error.
func run(stdin, name string, args ...string) error {
	cmd := exec.Command(name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var said bytes.Buffer
	cmd.Stderr = &said
	cmd.WaitDelay = time.Second // for a child of its own that holds stderr
	if err := cmd.Start(); err != nil {
		return err
	}
	timer := time.AfterFunc(commandTime, func() { cmd.Process.Kill() })
	defer timer.Stop()
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s %s: %w %.200s", name, strings.Join(args, " "), err, strings.TrimSpace(said.String()))
	}
	return nil
}
