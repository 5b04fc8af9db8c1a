package ingress

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
)

func TestMain(m *testing.M) {
	if how := os.Getenv("INGRESS_TEST_CHILD"); how != "" {
		if err := outOfDescriptors(how); err != nil {
			os.Stderr.WriteString(err.Error() + "\n")
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// fake is a listener whose Accept returns what it is told.
type fake struct {
	results chan any // error or net.Conn
	closed  chan struct{}
	once    sync.Once
}

func newFake() *fake { return &fake{results: make(chan any, 100), closed: make(chan struct{})} }

func (f *fake) Accept() (net.Conn, error) {
	select {
	case r := <-f.results:
		if err, ok := r.(error); ok {
			return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
		}
		return r.(net.Conn), nil
	case <-f.closed:
		return nil, net.ErrClosed
	}
}

func (f *fake) Close() error   { f.once.Do(func() { close(f.closed) }); return nil }
func (f *fake) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8443} }

var quiet = slog.New(slog.DiscardHandler)

func TestPassingErrorsDoNotEndServe(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOBUFS, syscall.ENOMEM} {
		t.Run(errno.Error(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFake()
				var handled atomic.Int64
				var log bytes.Buffer
				l := &Listener{
					Listener: f,
					Log:      slog.New(slog.NewTextHandler(&log, nil)),
					Handle:   func(_ context.Context, c net.Conn) { handled.Add(1); c.Close() },
				}
				ctx, cancel := context.WithCancel(t.Context())
				done := make(chan error)
				go func() { done <- l.Serve(ctx) }()
				start := time.Now()
				for range 10 {
					f.results <- errno
				}
				server, client := net.Pipe()
				f.results <- server
				if _, err := client.Read(make([]byte, 1)); err != io.EOF {
					t.Errorf("the client reads %v", err)
				}
				if took := time.Since(start); took == 0 || took > 10*mostWait {
					t.Errorf("waited for %v", took)
				}
				synctest.Wait()
				if handled.Load() != 1 || l.Failures() != 10 {
					t.Errorf("handled %d, failures %d", handled.Load(), l.Failures())
				}
				if n := strings.Count(log.String(), "\n"); n < 1 || n > 1+int(time.Since(start)/logEvery) {
					t.Errorf("%d lines of log in %v", n, time.Since(start))
				}
				cancel()
				if err := <-done; err != nil {
					t.Errorf("Serve: %v", err)
				}
			})
		})
	}
}

func TestOtherErrorsEndServe(t *testing.T) {
	f := newFake()
	f.results <- syscall.EINVAL
	l := &Listener{Listener: f, Log: quiet, Handle: func(context.Context, net.Conn) {}}
	if err := l.Serve(t.Context()); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("Serve: %v", err)
	}
	select {
	case <-f.closed:
	default:
		t.Error("the listener is still open")
	}
}

func TestServeJoinsHandlers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		server, client := net.Pipe()
		defer client.Close()
		f.results <- server
		l := &Listener{Listener: f, Log: quiet, Handle: func(ctx context.Context, c net.Conn) {
			<-ctx.Done()
			time.Sleep(time.Minute)
			c.Close()
		}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- l.Serve(ctx) }()
		synctest.Wait()
		start := time.Now()
		cancel()
		if err := <-done; err != nil || time.Since(start) != time.Minute {
			t.Errorf("Serve returned %v after %v", err, time.Since(start))
		}
	})
}

// TestOutOfDescriptors runs outOfDescriptors in a process of its own.
func TestOutOfDescriptors(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, how := range slices.Sorted(maps.Keys(roads())) {
		child := exec.Command(self)
		child.Env = append(os.Environ(), "INGRESS_TEST_CHILD="+how)
		if out, err := child.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", how, err, out)
		}
	}
}

// outOfDescriptors shows with real descriptors that a client is refused while
// there are none, and served when there are some again.
func outOfDescriptors(how string) error {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	if road := roads()[how]; road != nil {
		x, err := road(ln.(*net.TCPListener))
		if err != nil {
			return err
		}
		ln = raw{x}
	}
	refused := make(chan api.Refusal, 10)
	l := &Listener{
		Listener: ln,
		Log:      quiet,
		Refused:  func(r api.Refusal) { refused <- r },
		Handle: func(_ context.Context, c net.Conn) {
			c.Write([]byte("served"))
			c.Close()
		},
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx) }()

	ask := func(c net.Conn) string {
		b, _ := io.ReadAll(c)
		c.Close()
		return string(b)
	}
	first, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	if got := ask(first); got != "served" {
		return errors.New("first client: " + got)
	}

	limit := syscall.Rlimit{Cur: 40, Max: 40}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return err
	}
	var hogs []*os.File
	for {
		f, err := os.Open(os.DevNull)
		if err != nil {
			break
		}
		hogs = append(hogs, f)
	}
	hogs[len(hogs)-1].Close() // one for the client's own end
	hogs = hogs[:len(hogs)-1]
	second, err := net.Dial("tcp", ln.Addr().String())
	if err == nil { // the reset can come before that has returned
		_, err = second.Read(make([]byte, 1))
		second.Close()
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		return fmt.Errorf("while there are no descriptors: %v", err)
	}
	if r := <-refused; r.Reason != api.ReasonOverload || r.Facts.IP != "127.0.0.1" || r.Facts.Port == 0 {
		return errors.New("refused as " + string(r.Reason) + " " + r.Facts.IP)
	}
	if l.Failures() == 0 {
		return errors.New("no failure was counted")
	}

	for _, f := range hogs {
		f.Close()
	}
	third, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		return err
	}
	if got := ask(third); got != "served" {
		return errors.New("when there are descriptors again: " + got)
	}
	cancel()
	return <-done
}
