package handover

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// StderrName is what standard error is called among what is handed over.
const StderrName = "stderr"

// An Estate is what a process is given by the one that it replaces.
type Estate struct {
	pair  *pair
	group int
	texts map[string]string

	mu    sync.Mutex
	files map[string]*os.File
	taken []string
}

// Text returns the text of a name that came with the last files, "" if there is none.
func (e *Estate) Text(name string) string { return e.texts[name] }

// Inherit returns what the process that started this one has for it; descriptor is
// what [Variable] says. It says hello, and returns when it was given the first
// files.
func Inherit(ctx context.Context, descriptor, version string) (*Estate, error) {
	fd, err := strconv.Atoi(descriptor)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s: %.20q is no descriptor that a process can have been given", Variable, descriptor)
	}
	syscall.CloseOnExec(fd)
	p, err := newPair(os.NewFile(uintptr(fd), "handover"))
	if err != nil {
		return nil, fmt.Errorf("%s: %w; it is set by cardea upgrade alone", Variable, err)
	}
	e := &Estate{pair: p, files: map[string]*os.File{}}
	defer p.bind(ctx)()
	if err := p.say(message{Word: wordHello, Text: version}); err != nil {
		p.close()
		return nil, err
	}
	if err := e.receive(); err != nil {
		p.close()
		return nil, err
	}
	return e, nil
}

// receive takes files.
func (e *Estate) receive() error {
	m, err := e.pair.hear(wordFiles)
	if err != nil {
		return err
	}
	got, err := e.pair.take(m)
	if err != nil {
		return err
	}
	if e.group, e.texts = m.Group, m.Texts; e.texts == nil {
		e.texts = map[string]string{}
	}
	e.texts[""] = m.Text
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, f := range got {
		e.files[name] = f
	}
	return nil
}

// Take returns the file of a name, which is the caller's then, and nil if there is
// none. It may be called at any time, by anyone.
func (e *Estate) Take(name string) *os.File {
	e.mu.Lock()
	defer e.mu.Unlock()
	f := e.files[name]
	if f != nil {
		delete(e.files, name)
		e.taken = append(e.taken, name)
	}
	return f
}

// Has reports whether there is a file of that name to take.
func (e *Estate) Has(name string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.files[name] != nil
}

// Ask asks for what may be open, and takes it.
func (e *Estate) Ask(ctx context.Context) error {
	defer e.pair.bind(ctx)()
	if err := e.pair.say(message{Word: wordPorts}); err != nil {
		return err
	}
	return e.receive()
}

// Ready says that this process has come up, and what it has taken, and returns when it is
// to open its doors. The error says that it must not: the other one has gone, or has changed its mind.
func (e *Estate) Ready(ctx context.Context) error {
	defer e.pair.bind(ctx)()
	e.mu.Lock()
	ready := message{Word: wordReady, Names: slices.Clone(e.taken)}
	e.mu.Unlock()
	if err := e.pair.say(ready); err != nil {
		return err
	}
	if _, err := e.pair.hear(wordGo); err != nil {
		return fmt.Errorf("the process that started this one did not let it serve: %w", err)
	}
	return nil
}

// Serving says that the doors of this process are open. Standard error is from here
// on what it is to the other one. An error is nothing to end by: that the other one has
// gone is none.
func (e *Estate) Serving(ctx context.Context) error {
	var failed error
	unix.Setpgid(0, e.group) // it may be gone, and then this one stays in its own
	if f := e.Take(StderrName); f != nil {
		var inner error
		raw, err := f.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { inner = replace(int(fd), 2) })
		}
		f.Close()
		failed = errors.Join(err, inner)
	}
	defer e.pair.bind(ctx)()
	if err := e.pair.say(message{Word: wordServing}); err != errGone {
		failed = errors.Join(failed, err)
	}
	return failed
}

// Left returns when the other process has closed its doors, or is gone.
func (e *Estate) Left(ctx context.Context) error {
	defer e.pair.bind(ctx)()
	_, err := e.pair.hear(wordLeft)
	if err == errGone {
		return nil
	}
	return err
}

// Close ends the talk, and closes what nobody took.
func (e *Estate) Close() {
	e.pair.close()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.files {
		f.Close()
	}
	clear(e.files)
}
