// Package pgtest starts real PostgreSQL servers for tests.
package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// ErrMissing says that PostgreSQL is not installed.
var ErrMissing = errors.New("PostgreSQL is not installed; test/setup installs it on Debian as root")

// patience bounds how long a server may take to start or stop.
const patience = time.Minute

// role is that of the superuser.
const role = "app"

// Start starts a server that lives as long as the test, and returns the URL of an
// empty database. It skips the test if PostgreSQL is not installed. The server
// listens on a Unix socket only, which every local user may enter.
func Start(t testing.TB) (url string) {
	t.Helper()
	s := New(t, false)
	return s.URL("postgres")
}

// New is Start for tests that need more than one database, or trouble. If durable,
// commits wait for the disk: that is for measurements, as no test can tell.
func New(t testing.TB, durable bool) *Server {
	t.Helper()
	s, err := Launch(durable)
	if errors.Is(err, ErrMissing) {
		t.Skip("skipped: " + err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Remove(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// A Server is one that runs, or did.
type Server struct {
	// Dir is the directory of its data and of its socket.
	Dir string

	bin     string // the directory of its programs
	as      *syscall.Credential
	options []string
	process *os.Process
	ended   chan struct{} // closed when process is no more
}

// Launch starts a server, for a TestMain; see New. Remove ends it.
func Launch(durable bool) (*Server, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres") // where Debian has it
	if err != nil {
		return nil, err
	}
	if p, err := exec.LookPath("postgres"); err == nil && len(found) == 0 {
		found = append(found, p)
	}
	if len(found) == 0 {
		return nil, ErrMissing
	}
	s := &Server{bin: filepath.Dir(slices.Max(found))}
	if !durable {
		s.options = []string{"-c", "fsync=off"}
	}
	// Not in a directory of the test, which another user may not enter, and whose
	// name may be too long for that of a socket.
	if s.Dir, err = os.MkdirTemp("", "pg"); err != nil {
		return nil, err
	}
	if err := s.initialise(); err != nil {
		return nil, errors.Join(err, os.RemoveAll(s.Dir))
	}
	return s, nil
}

// initialise makes the data and starts the server.
func (s *Server) initialise() error {
	if os.Getuid() == 0 { // as which PostgreSQL refuses to run
		u, err := user.Lookup("postgres")
		if err != nil {
			return err
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2, os.Chown(s.Dir, int(uid), int(gid))); err != nil {
			return err
		}
		s.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	if err := os.Chmod(s.Dir, 0o755); err != nil {
		return err
	}
	if err := s.run("initdb", "-D", s.data(), "-A", "trust", "-U", role, "-E", "UTF8", "--locale", "C", "--no-sync"); err != nil {
		return err
	}
	return s.Start()
}

func (s *Server) data() string { return filepath.Join(s.Dir, "data") }

// run runs one of the server's programs to its end.
func (s *Server) run(name string, args ...string) error {
	cmd := exec.Command(filepath.Join(s.bin, name), args...)
	cmd.Dir, cmd.SysProcAttr = s.Dir, &syscall.SysProcAttr{Credential: s.as}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd.Args, err, out)
	}
	return nil
}

// URL returns that of a database.
func (s *Server) URL(database string) string {
	return "postgres:///" + url.PathEscape(database) + "?" + url.Values{"host": {s.Dir}, "user": {role}, "sslmode": {"disable"}}.Encode()
}

// Exec runs SQL in a database.
func (s *Server) Exec(ctx context.Context, database, sql string) error {
	c, err := pgx.Connect(ctx, s.URL(database))
	if err != nil {
		return err
	}
	_, err = c.Exec(ctx, sql)
	return errors.Join(err, c.Close(ctx))
}

// Create makes an empty database and returns its URL.
func (s *Server) Create(t testing.TB, database string) (url string) {
	t.Helper()
	if err := s.Exec(t.Context(), "postgres", "CREATE DATABASE "+pgx.Identifier{database}.Sanitize()); err != nil {
		t.Fatal(err)
	}
	return s.URL(database)
}

// Start starts the server again, and returns when it accepts.
func (s *Server) Start() error {
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(s.bin, "postgres"), append([]string{
		"-D", s.data(), "-k", s.Dir, "-c", "listen_addresses=", "-c", "max_connections=300"}, s.options...)...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.Dir, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: s.as, Pdeathsig: syscall.SIGQUIT}
	started, ended := make(chan error), make(chan struct{})
	go func() {
		// The signal comes when the thread that started it ends, so it has to stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(ended)
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // it is stopped by signals
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	s.process, s.ended = cmd.Process, ended
	return s.await()
}

// await returns when the server accepts.
func (s *Server) await() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		c, err := pgx.Connect(ctx, s.URL("postgres"))
		if err == nil {
			return c.Close(ctx)
		}
		wait := time.NewTimer(20 * time.Millisecond)
		select {
		case <-wait.C:
		case <-s.ended:
			return fmt.Errorf("PostgreSQL has ended:\n%s", s.log())
		case <-ctx.Done():
			return fmt.Errorf("PostgreSQL does not accept: %w\n%s", err, s.log())
		}
	}
}

// log returns the end of what the server said.
func (s *Server) log() []byte {
	b, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
	return b[bytes.LastIndexByte(b[:max(0, len(b)-2000)], '\n')+1:]
}

// Stop stops the server: in order, cutting those who are connected, or at once, as
// if it had crashed.
func (s *Server) Stop(atOnce bool) error {
	sig := syscall.SIGINT // "fast shutdown"
	if atOnce {
		sig = syscall.SIGQUIT // "immediate shutdown"
	}
	if err := s.process.Signal(sig); err != nil {
		return err
	}
	timeout := time.NewTimer(patience)
	defer timeout.Stop()
	select {
	case <-s.ended:
		return nil
	case <-timeout.C:
		return fmt.Errorf("PostgreSQL does not stop:\n%s", s.log())
	}
}

// Standby makes a copy that follows the server, and starts it.
func (s *Server) Standby() (*Server, error) {
	dir, err := os.MkdirTemp("", "pg")
	if err != nil {
		return nil, err
	}
	c := &Server{Dir: dir, bin: s.bin, as: s.as, options: s.options}
	if s.as != nil {
		err = os.Chown(dir, int(s.as.Uid), int(s.as.Gid))
	}
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		err = c.run("pg_basebackup", "-h", s.Dir, "-U", role, "-D", c.data(), "-R", "--no-sync", "-c", "fast")
	}
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return c, nil
}

// Promote makes a standby a server in its own right.
func (s *Server) Promote() error { return s.run("pg_ctl", "promote", "-D", s.data(), "-w") }

// Remove stops the server, if it runs, and deletes all that is its.
func (s *Server) Remove() error {
	select {
	case <-s.ended:
	default:
		if err := s.Stop(true); err != nil {
			return err
		}
	}
	return os.RemoveAll(s.Dir)
}
