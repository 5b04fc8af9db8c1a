// Command init is the first process of a guest (see package guest): it makes the host's
// files the guest's, so that nothing of the host changes, runs one command, tells how that
// ended, and switches the guest off.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"golang.org/x/sys/unix"
)

// An order is what is to be run. Package guest writes it.
type order struct {
	Modules []string // in the order in which they are loaded; their files are in /modules
	Dir     string
	Env     []string
	Args    []string
}

func main() {
	code, err := run()
	if err != nil {
		fmt.Println("guest:", err)
		code = 255
	}
	fmt.Printf("\nguest: exit %d\n", code)
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
}

func run() (int, error) {
	text, err := os.ReadFile("/order.json")
	if err != nil {
		return 0, err
	}
	var o order
	if err := json.Unmarshal(text, &o); err != nil {
		return 0, err
	}
	for _, m := range o.Modules {
		if err := load("/modules/" + m); err != nil {
			return 0, fmt.Errorf("module %s: %w", m, err)
		}
	}
	if err := root(); err != nil {
		return 0, err
	}
	// As most distributions have it, and the kernel by itself has not: packets are dropped
	// that come from where no answer would go.
	for _, which := range []string{"all", "default"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+which+"/rp_filter", []byte("1"), 0); err != nil {
			return 0, err
		}
	}
	if err := lo(); err != nil {
		return 0, err
	}
	c := exec.Command(o.Args[0], o.Args[1:]...)
	c.Dir, c.Env, c.Stdout, c.Stderr = o.Dir, o.Env, os.Stdout, os.Stderr
	err = c.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func load(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	flags := 0
	if !strings.HasSuffix(path, ".ko") {
		flags = unix.MODULE_INIT_COMPRESSED_FILE
	}
	if err := unix.FinitModule(int(f.Fd()), "", flags); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// root makes the host's files the root, with what is written to them in memory.
func root() error {
	type mount struct{ source, target, kind, data string }
	do := func(mounts ...mount) error {
		for _, m := range mounts {
			if err := errors.Join(os.MkdirAll(m.target, 0o755), unix.Mount(m.source, m.target, m.kind, 0, m.data)); err != nil {
				return fmt.Errorf("mount %s: %w", m.target, err)
			}
		}
		return nil
	}
	if err := do(mount{"host", "/host", "virtiofs", ""}, mount{"memory", "/memory", "tmpfs", ""}); err != nil {
		return err
	}
	if err := errors.Join(os.Mkdir("/memory/upper", 0o755), os.Mkdir("/memory/work", 0o755)); err != nil {
		return err
	}
	if err := do(mount{"root", "/root", "overlay", "lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work"}); err != nil {
		return err
	}
	if err := errors.Join(os.Chdir("/root"), unix.Mount(".", "/", "", unix.MS_MOVE, ""), unix.Chroot("."), os.Chdir("/")); err != nil {
		return fmt.Errorf("the host's files: %w", err)
	}
	if err := do(mount{"proc", "/proc", "proc", ""}, mount{"sys", "/sys", "sysfs", ""}, mount{"dev", "/dev", "devtmpfs", ""},
		mount{"pts", "/dev/pts", "devpts", ""}, mount{"shm", "/dev/shm", "tmpfs", ""}, mount{"run", "/run", "tmpfs", ""}); err != nil {
		return err
	}
	return os.Symlink("/proc/self/fd", "/dev/fd")
}

// lo sets the loopback interface up.
func lo() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, r)
}
