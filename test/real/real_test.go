// Package real_test reaches real servers with their own, unmodified clients
// through `cardea connect`: PostgreSQL with psql, OpenSSH with ssh and scp, Redis
// with redis-cli, and clients that half-close and wait for their answer; it enters
// by TLS with openssl, and stands before an nginx that wants to know who comes.
package real_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardea/test/cluster"
)

// up starts a cluster of a Group group-1, a User alice in it, who is logged in and
// has her certificate in the directory cert of the cluster's, and documents. flags
// are further flags of `cardea up`; "PORT" in them is the cluster's port.
func up(t *testing.T, documents string, flags ...string) *cluster.Cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	bin, err := cluster.Build(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	for i := range flags {
		flags[i] = strings.ReplaceAll(flags[i], "PORT", port)
	}
	c := &cluster.Cluster{Bin: bin, Dir: dir, Listen: "127.0.0.1:" + port, Args: flags}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// t.Context is over by now.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
		defer cancel()
		c.Run(ctx, "alice", nil, "disconnect") // if anything is published
		if err := c.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	if err := c.Apply(ctx, cluster.GroupYAML("group-1")+cluster.UserYAML("alice", "group-1")+documents); err != nil {
		t.Fatal(err)
	}
	if err := c.Login(ctx, "alice", "--cert-out", certificates(c)); err != nil {
		t.Fatal(err)
	}
	return c
}

// certificates is where alice's certificate is, for other programs.
func certificates(c *cluster.Cluster) string { return filepath.Join(c.Dir, "cert") }

// publish has alice publish a Service, and returns its local port.
func publish(t *testing.T, c *cluster.Cluster, service string) (port string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	local, err := c.Publish(ctx, "alice", service)
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(local)
}

// reach starts a cluster whose User alice has published a Service before the
// upstream, and returns the local port.
func reach(t *testing.T, upstream string) (host, port string) {
	t.Helper()
	c := up(t, cluster.ServiceYAML("real", upstream))
	return "127.0.0.1", publish(t, c, "real")
}

// need returns the path of a program, or skips.
func need(t *testing.T, names ...string) string {
	t.Helper()
	for _, n := range names {
		if found, _ := filepath.Glob(n); len(found) > 0 {
			return found[len(found)-1]
		}
		if p, err := exec.LookPath(n); err == nil {
			return p
		}
	}
	t.Skipf("skipped: %s is not installed; test/setup installs it on Debian as root", names[0])
	return ""
}

// run runs a program to its end.
func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return string(out)
}

// start runs a server until the test is over, and waits until it accepts.
func start(t *testing.T, address string, cmd *exec.Cmd) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		kill := time.AfterFunc(5*time.Second, func() { cmd.Process.Kill() }) // MariaDB does not mind interrupts
		defer kill.Stop()
		cmd.Wait()
		log.Close()
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			return
		}
		if time.Now().After(deadline) {
			b, _ := os.ReadFile(log.Name())
			t.Fatalf("%v does not accept at %s:\n%s", cmd.Args, address, b)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	p, err := cluster.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return strconv.Itoa(p)
}

// startPostgres starts a PostgreSQL that trusts the user app, and returns its port.
// prepare may put files into a directory of the server's, and returns further options.
func startPostgres(t *testing.T, prepare func(dir string) []string) (port string) {
	t.Helper()
	postgres := need(t, "/usr/lib/postgresql/*/bin/postgres")
	dir, err := os.MkdirTemp("", "pg") // not in t.TempDir, which others may not enter
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	options := prepare(dir)
	var as *syscall.SysProcAttr
	if os.Getuid() == 0 { // as which PostgreSQL refuses to run
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Fatal(err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		files, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range append(files, dir) {
			if err := os.Chown(f, uid, gid); err != nil {
				t.Fatal(err)
			}
		}
		as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
	}
	own := func(name string, args ...string) *exec.Cmd {
		cmd := exec.Command(name, args...)
		cmd.SysProcAttr, cmd.Dir = as, dir
		return cmd
	}
	data := filepath.Join(dir, "data")
	run(t, own(filepath.Join(filepath.Dir(postgres), "initdb"), "-D", data, "-A", "trust", "-U", "app"))
	port = freePort(t)
	start(t, "127.0.0.1:"+port, own(postgres, append([]string{"-D", data, "-p", port, "-h", "127.0.0.1", "-k", dir}, options...)...))
	return port
}

func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	psql := need(t, "psql")
	port := startPostgres(t, func(string) []string { return nil })
	host, local := reach(t, "127.0.0.1:"+port)
	got := run(t, exec.Command(psql, "-h", host, "-p", local, "-U", "app", "-At", "postgres",
		"-c", "create table t as select generate_series(1, 100000) as n",
		"-c", "select count(*), sum(n) from t",
		"-c", "copy (select repeat('x', 1000) from t limit 20000) to stdout"))
	if !strings.Contains(got, "100000|5000050000\n") || strings.Count(got, strings.Repeat("x", 1000)) != 20000 {
		t.Errorf("psql printed %d bytes: %.200s", len(got), got)
	}
}

// startSSHD starts an OpenSSH server whose users are those of this machine, and
// returns its port, a directory with a key that it takes, and the options by which
// ssh and scp use that.
func startSSHD(t *testing.T) (port, dir string, options []string) {
	t.Helper()
	sshd, keygen := need(t, "/usr/sbin/sshd"), need(t, "ssh-keygen")
	if os.Getuid() == 0 {
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir = t.TempDir()
	run(t, exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "host")))
	run(t, exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, "user")))
	pub, err := os.ReadFile(filepath.Join(dir, "user.pub"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "authorized"), pub, 0o600); err != nil {
		t.Fatal(err)
	}
	port = freePort(t)
	start(t, "127.0.0.1:"+port, exec.Command(sshd, "-D", "-e", "-f", "/dev/null", "-p", port,
		"-o", "ListenAddress=127.0.0.1", "-h", filepath.Join(dir, "host"), "-o", "AuthorizedKeysFile="+filepath.Join(dir, "authorized"),
		"-o", "StrictModes=no", "-o", "UsePAM=no", "-o", "PidFile=none", "-o", "Subsystem=sftp internal-sftp"))
	return port, dir, []string{"-i", filepath.Join(dir, "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes"}
}

// login is USER@HOST of who runs this.
func login(t *testing.T, host string) string {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	return me.Username + "@" + host
}

func TestOpenSSH(t *testing.T) {
	t.Parallel()
	ssh, scp := need(t, "ssh"), need(t, "scp")
	port, dir, options := startSSHD(t)
	host, local := reach(t, "127.0.0.1:"+port)
	there := login(t, host)
	if got := run(t, exec.Command(ssh, append(options, "-p", local, there, "echo", "over", "ssh")...)); got != "over ssh\n" {
		t.Errorf("ssh printed %q", got)
	}

	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	big := filepath.Join(dir, "big")
	want := randomFile(t, big, size)
	run(t, exec.Command(scp, append(options, "-P", local, big, there+":"+filepath.Join(dir, "there"))...))
	run(t, exec.Command(scp, append(options, "-P", local, there+":"+filepath.Join(dir, "there"), filepath.Join(dir, "back"))...))
	if got := sum(t, filepath.Join(dir, "there")); got != want {
		t.Error("scp up changed the file")
	}
	if got := sum(t, filepath.Join(dir, "back")); got != want {
		t.Error("scp down changed the file")
	}
}

func randomFile(t *testing.T, name string, size int64) string {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, h), rand.Reader, size); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

func sum(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return string(h.Sum(nil))
}

// late is an upstream that answers two seconds after its client has said all that
// it has to say and closed its half.
func late(t *testing.T) (address string) {
	return serve(t, func(c net.Conn) {
		question, _ := io.ReadAll(c)
		<-time.After(2 * time.Second) // the point of the test, and no synchronisation
		fmt.Fprintf(c, "the answer to %s", question)
	})
}

// serve is an upstream on loopback that treats each connection so, and closes it.
func serve(t *testing.T, treat func(net.Conn)) (address string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.SetDeadline(time.Now().Add(time.Minute))
			serving.Go(func() {
				defer c.Close()
				treat(c)
			})
		}
	})
	return l.Addr().String()
}

// ask sends a line to a port of loopback, and returns all that is answered.
func ask(t *testing.T, port, line string) (string, error) {
	t.Helper()
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := io.WriteString(c, line+"\n"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return string(b), err
}

func TestHalfClose(t *testing.T) {
	t.Parallel()
	host, local := reach(t, late(t))
	c, err := net.Dial("tcp", net.JoinHostPort(host, local))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "the question")
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(30 * time.Second))
	if got, err := io.ReadAll(c); err != nil || string(got) != "the answer to the question" {
		t.Errorf("read %q, %v", got, err)
	}
}

func TestNetcat(t *testing.T) {
	t.Parallel()
	nc := need(t, "nc")
	host, local := reach(t, late(t))
	cmd := exec.Command(nc, "-N", host, local)
	cmd.Stdin = strings.NewReader("the question")
	if got := run(t, cmd); got != "the answer to the question" {
		t.Errorf("nc printed %q", got)
	}
}

func TestRedis(t *testing.T) {
	t.Parallel()
	server, cli := need(t, "redis-server"), need(t, "redis-cli")
	port := freePort(t)
	start(t, "127.0.0.1:"+port, exec.Command(server, "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", t.TempDir()))
	host, local := reach(t, "127.0.0.1:"+port)
	redis := func(stdin string, args ...string) string {
		cmd := exec.Command(cli, append([]string{"-h", host, "-p", local}, args...)...)
		cmd.Stdin = strings.NewReader(stdin)
		return strings.TrimSuffix(run(t, cmd), "\n")
	}
	if got := redis("", "PING"); got != "PONG" {
		t.Errorf("PING: %q", got)
	}
	if got := redis("", "SET", "name", "value"); got != "OK" {
		t.Errorf("SET: %q", got)
	}
	if got := redis("", "GET", "name"); got != "value" {
		t.Errorf("GET: %q", got)
	}
	big := make([]byte, 5<<20)
	rand.Read(big)
	want := fmt.Sprintf("%x", big) // 10 MiB
	if got := redis(want, "-x", "SET", "big"); got != "OK" {
		t.Errorf("SET of 10 MiB: %q", got)
	}
	if got := redis("", "GET", "big"); got != want {
		t.Errorf("GET of 10 MiB: %d bytes, which are others", len(got))
	}
}
