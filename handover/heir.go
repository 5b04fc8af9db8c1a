package handover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A Program is what is started in the place of a process.
type Program struct {
	Path string   // absolute
	Args []string // the first is its name
	// Stdin and Stdout are what it gets; nil is nothing.
	Stdin, Stdout *os.File
	// Stderr is what its standard error becomes once it serves; before that it is
	// written there, and kept. nil is nothing.
	Stderr *os.File
}

// An Heir is the process that is to replace this one, as this one sees it.
type Heir struct {
	cmd     *exec.Cmd
	pair    *pair
	stderr  *os.File
	said    lastLines
	copying sync.WaitGroup // of stderr
	ended   chan struct{}  // closed when it is over
	how     error          // good then
	version string
	took    []string
}

// waitForEnd is how long a process that has closed its end of the pair, or was
// killed, is waited for.
const waitForEnd = 2 * time.Second

// Start starts a process, in the environment and the working directory of this one,
// and returns when it has said hello. It must be ended by [Heir.Kill], or let go by
// [Heir.Release].
func Start(ctx context.Context, p Program) (*Heir, error) {
	ours, theirs, err := newPairs()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	stderr, write, err := os.Pipe()
	if err != nil {
		ours.close()
		return nil, err
	}
	defer write.Close()
	h := &Heir{pair: ours, stderr: stderr, ended: make(chan struct{})}
	h.cmd = &exec.Cmd{Path: p.Path, Args: p.Args, Stderr: write, ExtraFiles: []*os.File{theirs}}
	if p.Stdin != nil {
		h.cmd.Stdin = p.Stdin
	}
	if p.Stdout != nil {
		h.cmd.Stdout = p.Stdout
	}
	h.cmd.Env = append(slices.DeleteFunc(h.cmd.Environ(), func(v string) bool { return len(v) > len(Variable) && v[:len(Variable)+1] == Variable+"=" }), Variable+"=3")
	// In a group of its own all that it starts can be killed with it.
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := h.cmd.Start(); err != nil {
		ours.close()
		stderr.Close()
		return nil, err
	}
	theirs.Close() // so that its end can be seen
	to := io.Writer(&h.said)
	if p.Stderr != nil {
		to = io.MultiWriter(&h.said, p.Stderr)
	}
	h.copying.Go(func() { io.Copy(to, stderr) })
	go func() {
		h.how = h.cmd.Wait()
		close(h.ended)
		ours.conn.CloseRead() // also if others whom it has started have its end
	}()
	defer ours.bind(ctx)()
	m, err := ours.hear(wordHello)
	if err != nil {
		err = h.failed(err)
		h.Kill()
		return nil, err
	}
	h.version = m.Text
	return h, nil
}

// newPairs returns both ends of a pair.
func newPairs() (ours *pair, theirs *os.File, err error) {
	syscall.ForkLock.RLock() // no other child gets them
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		syscall.CloseOnExec(fds[0])
		syscall.CloseOnExec(fds[1])
	}
	syscall.ForkLock.RUnlock()
	if err != nil {
		return nil, nil, err
	}
	theirs = os.NewFile(uintptr(fds[1]), "handover")
	if ours, err = newPair(os.NewFile(uintptr(fds[0]), "handover")); err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// A FailedError says that the process that was to replace this one did not come to
// serve.
type FailedError struct {
	Err  error
	Said string // the last of what it wrote to standard error
}

// Error implements error.
func (e *FailedError) Error() string { return e.Err.Error() }

// Unwrap returns what happened.
func (e *FailedError) Unwrap() error { return e.Err }

// failed explains an error of the pair by what became of the process.
func (h *Heir) failed(err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, errGone) {
		select {
		case <-h.ended:
			err = errors.New("the new process ended with status 0")
			if h.how != nil {
				err = fmt.Errorf("the new process ended: %w", h.how)
			}
			h.drainStderr()
		case <-time.After(waitForEnd):
			err = errors.New("the new process gave up")
		}
	} else if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("the new process was not ready in time")
	}
	return &FailedError{Err: err, Said: h.said.String()}
}

// drainStderr waits for what a process that has ended wrote; not for what others go
// on writing that it has started.
func (h *Heir) drainStderr() {
	h.stderr.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	h.copying.Wait()
}

// PID returns the process's id.
func (h *Heir) PID() int { return h.cmd.Process.Pid }

// Ended is closed when the process has ended.
func (h *Heir) Ended() <-chan struct{} { return h.ended }

// Version is what it said of itself.
func (h *Heir) Version() string { return h.version }

// Give hands over descriptors and texts for who takes them, by names; one text may have
// none. The files stay the caller's.
func (h *Heir) Give(ctx context.Context, files map[string]*os.File, texts map[string]string) error {
	defer h.pair.bind(ctx)()
	m := message{Word: wordFiles, Text: texts[""], Texts: maps.Clone(texts), Group: unix.Getpgrp()}
	delete(m.Texts, "") // it has a field of its own, which every version knows
	var all []*os.File
	for name, f := range files {
		m.Names = append(m.Names, name)
		all = append(all, f)
	}
	return h.failed(h.pair.say(m, all...))
}

// Asks returns when the process asks for what may be open.
func (h *Heir) Asks(ctx context.Context) error {
	_, err := h.await(ctx, wordPorts)
	return err
}

// Ready returns when the process has come up.
func (h *Heir) Ready(ctx context.Context) error {
	m, err := h.await(ctx, wordReady)
	h.took = m.Names
	return err
}

// Took reports whether the process has taken the file of a name, before it was ready: one
// that it does not know it has not.
func (h *Heir) Took(name string) bool { return slices.Contains(h.took, name) }

// Go tells the process to open its doors, and returns when it has: it is the one from
// then on.
func (h *Heir) Go(ctx context.Context) error {
	release := h.pair.bind(ctx)
	err := h.pair.say(message{Word: wordGo})
	release()
	if err != nil {
		return h.failed(err)
	}
	_, err = h.await(ctx, wordServing)
	return err
}

// Left tells the process that the doors of this one are closed.
func (h *Heir) Left(ctx context.Context) error {
	defer h.pair.bind(ctx)()
	return h.failed(h.pair.say(message{Word: wordLeft}))
}

func (h *Heir) await(ctx context.Context, w word) (message, error) {
	defer h.pair.bind(ctx)()
	m, err := h.pair.hear(w)
	return m, h.failed(err)
}

// Kill ends the process, all that it has started, and the talk.
func (h *Heir) Kill() {
	unix.Kill(-h.PID(), unix.SIGKILL)
	h.cmd.Process.Kill()
	select {
	case <-h.ended:
	case <-time.After(waitForEnd):
	}
	h.Release()
}

// Release ends the talk, and lets the process live. When it ends, nothing is left of
// it as long as this one lives.
func (h *Heir) Release() {
	h.pair.close()
	h.drainStderr()
	h.stderr.Close()
}
