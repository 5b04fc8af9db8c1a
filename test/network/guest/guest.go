// Package guest runs a command in a guest: a machine that is emulated (QEMU), with a kernel
// of Debian, that has what the kernel of this machine may lack, WireGuard above all. The
// files are the host's; what the command writes is gone with the guest.
package guest

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// modules are what is loaded into the kernel.
func modules() []string {
	return []string{
		"virtio_pci", "virtiofs", "overlay", "wireguard", "veth", "tun", "bridge", "inet_diag", "tcp_diag",
		"nft_ct", "nft_masq", "nft_nat", "nft_reject_inet", "nft_numgen", "nft_limit",
	}
}

// Wanted is set in the environment if guests are to run: they take a minute of a processor
// each, and are slow where others take it.
const Wanted = "CARDEA_GUEST"

// A machine is what a guest is made of.
type machine struct {
	qemu, files, kernel string // programs and the image of the kernel
	modules             string // directory
}

// find returns what this host has for a guest, or says what is missing.
func find() (m machine, missing string) {
	if os.Getuid() != 0 || runtime.GOARCH != "amd64" {
		return m, "a guest needs root, and a host of amd64"
	}
	var err error
	if m.qemu, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return m, "there is no qemu-system-x86_64 (qemu-system-x86)"
	}
	for _, f := range []string{"/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd"} {
		if _, err := os.Stat(f); err == nil {
			m.files = f
		}
	}
	if m.files == "" {
		return m, "there is no virtiofsd (qemu-system-common, or a package of that name)"
	}
	kernels, _ := filepath.Glob("/boot/vmlinuz-*-cloud-amd64")
	for _, k := range kernels {
		m.kernel, m.modules = k, filepath.Join("/lib/modules", strings.TrimPrefix(filepath.Base(k), "vmlinuz-"))
	}
	if m.kernel == "" {
		return m, "there is no kernel for a guest (linux-image-cloud-amd64)"
	}
	return m, ""
}

// Run runs a command in a guest, with a clean environment but for env, and fails the test
// unless it succeeds. It skips the test where there can be no guest, or is to be none. What
// the command says is logged and returned.
func Run(t *testing.T, within time.Duration, env []string, args ...string) string {
	t.Helper()
	if os.Getenv(Wanted) == "" {
		t.Skip("takes minutes in an emulated machine: make guest")
	}
	m, missing := find()
	if missing != "" {
		t.Skip(missing)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(t.TempDir(), "initrd")
	if err := m.pack(disk, dir, env, args); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	socket := filepath.Join(filepath.Dir(disk), "files")
	files := exec.CommandContext(ctx, m.files, "--socket-path="+socket, "-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always")
	if err := files.Start(); err != nil {
		t.Fatal(err)
	}
	defer files.Wait()
	defer files.Process.Kill()
	if err := await(ctx, socket); err != nil {
		t.Fatalf("virtiofsd: %v", err)
	}
	guest := exec.CommandContext(ctx, m.qemu,
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1", "-m", "1536M", "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio",
		"-kernel", m.kernel, "-initrd", disk, "-append", "console=ttyS0 quiet panic=-1 random.trust_cpu=on",
		"-object", "memory-backend-memfd,id=memory,size=1536M,share=on", "-numa", "node,memdev=memory",
		"-chardev", "socket,id=files,path="+socket, "-device", "vhost-user-fs-pci,chardev=files,tag=host")
	var said bytes.Buffer
	guest.Stdout, guest.Stderr = &said, &said
	err = guest.Run()
	out := strings.ReplaceAll(said.String(), "\r", "")
	t.Log(out)
	switch {
	case ctx.Err() != nil:
		t.Fatalf("the guest has not ended within %v", within)
	case err != nil:
		t.Fatalf("qemu: %v", err)
	case !strings.Contains(out, "\nguest: exit 0\n"):
		t.Fatalf("in the guest %s failed", strings.Join(args, " "))
	}
	return out
}

// await waits for a file.
func await(ctx context.Context, path string) error {
	every := time.NewTicker(10 * time.Millisecond)
	defer every.Stop()
	for {
		if _, err := os.Stat(path); err == nil {
			return nil
		}
		select {
		case <-every.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// pack writes what the guest begins with: its first process, modules, and the order.
func (m machine) pack(path, dir string, env, args []string) error {
	first := path + ".init"
	build := exec.Command("go", "build", "-o", first, "cardea/test/network/init")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w\n%s", err, out)
	}
	paths, err := m.load()
	if err != nil {
		return err
	}
	var names []string
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer f.Close()
	z := gzip.NewWriter(f)
	a := archive{w: z}
	program, err := os.ReadFile(first)
	if err != nil {
		return err
	}
	a.add("init", 0o100755, program)
	a.add("modules", 0o40755, nil)
	for i, p := range paths {
		text, err := os.ReadFile(filepath.Join(m.modules, p))
		if err != nil {
			return err
		}
		names = append(names, strconv.Itoa(i)+"-"+filepath.Base(p))
		a.add("modules/"+names[i], 0o100644, text)
	}
	order, err := json.Marshal(map[string]any{"Modules": names, "Dir": dir, "Args": args,
		"Env": append([]string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/go/bin", "HOME=/root"}, env...)})
	if err != nil {
		return err
	}
	a.add("order.json", 0o100644, order)
	a.add("dev", 0o40755, nil)
	a.add("TRAILER!!!", 0, nil)
	if a.err != nil {
		return a.err
	}
	if err := z.Close(); err != nil {
		return err
	}
	return f.Close()
}

// load returns the files of the modules, each after those that it needs.
func (m machine) load() (files []string, err error) {
	text, err := os.ReadFile(filepath.Join(m.modules, "modules.dep"))
	if err != nil {
		return nil, err
	}
	needs, named := map[string][]string{}, map[string]string{}
	for s := bufio.NewScanner(bytes.NewReader(text)); s.Scan(); {
		file, rest, _ := strings.Cut(s.Text(), ":")
		needs[file] = strings.Fields(rest)
		name, _, _ := strings.Cut(filepath.Base(file), ".ko")
		named[strings.ReplaceAll(name, "-", "_")] = file
	}
	for _, name := range modules() {
		file := named[name]
		if file == "" {
			continue // a part of the kernel
		}
		// The last one needs nothing.
		wanted := append([]string{file}, needs[file]...)
		for _, f := range slices.Backward(wanted) {
			if !slices.Contains(files, f) {
				files = append(files, f)
			}
		}
	}
	return files, nil
}

// archive is cpio in its "new ASCII" format, which the kernel reads (initramfs buffer format
// of its documentation).
type archive struct {
	w   io.Writer
	n   int
	err error
}

func (a *archive) add(name string, mode int, data []byte) {
	a.n++
	a.write([]byte(fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.n, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0, name)))
	a.write(data)
}

// write writes b and as many zeros as it lacks of whole words.
func (a *archive) write(b []byte) {
	if a.err == nil {
		_, a.err = a.w.Write(append(b[:len(b):len(b)], make([]byte, -len(b)&3)...))
	}
}
