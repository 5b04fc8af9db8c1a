// Package handover lets a program replace itself without closing a door: a process
// starts the one that is to come after it, gives it the descriptors of its sockets
// and locks, and goes on as before until the new one says that it serves.
//
// # The hand-over
//
// The two talk over a pair of sockets, the new process's end of which is the
// descriptor that [Variable] names. What is said, and by whom:
//
//	new → old   hello VERSION     it knows this protocol
//	old → new   files             what is open, whatever is asked of it
//	new → old   ports             it is about to open what may be open here
//	old → new   files, and what else it is to know
//	new → old   ready             all has come up, but for the doors; what was taken
//	old → new   go                from here on it is the one
//	new → old   serving           its doors are open
//	old → new   left              the old one's doors are closed
//
// Until it has been told to go, the new process ends when the old one does. From then on
// it does not, whatever becomes of the old one. Until
// the new one has said that it serves, the old one has given up nothing: if the new
// one ends, or does not come that far in time, it is killed, and what it said on
// standard error is kept. A program that knows nothing of this never says hello, and
// is given nothing.
//
// A listening socket that two processes have is one socket with one queue: what waits
// in it when one of them closes it is there for the other.
//
// The two may be of different versions: each says by names what there is, and what it has
// taken of it ([Heir.Took]). What the other does not know stays with whoever had it.
//
// # Afterwards
//
// What processes that belong together say to each other later goes over a [Link], on
// a socket whose path both know ([Listen], [Dial]).
package handover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Variable is the environment variable that tells a new process the descriptor of
// its end of the pair.
const Variable = "CARDEA_HANDOVER"

// A word is what is said over the pair.
type word string

const (
	wordHello   word = "hello"
	wordFiles   word = "files"
	wordPorts   word = "ports"
	wordReady   word = "ready"
	wordGo      word = "go"
	wordServing word = "serving"
	wordLeft    word = "left"
)

// A message is one word, with what belongs to it.
type message struct {
	Word  word     `json:"word"`
	Text  string   `json:"text,omitempty"`
	Group int      `json:"group,omitempty"` // of processes, that the new one is to be in
	Names []string `json:"names,omitempty"` // of files; their descriptors follow in this order, or they were taken
	// Texts are further ones, by names.
	Texts map[string]string `json:"texts,omitempty"`
}

// Limits of what is read of the other end.
const (
	maxMessage = 64 << 20
	// filesAtOnce is how many descriptors go with one write: Linux takes 253
	// (SCM_MAX_FD of unix(7)).
	filesAtOnce = 64
)

// errGone says that the process at the other end has ended.
var errGone = errors.New("the process at the other end has ended")

// A pair is one end of the pair of sockets.
type pair struct {
	conn    *net.UnixConn
	unread  []byte     // of the next message
	scanned int        // bytes of unread that have no end of a message
	files   []*os.File // that came, and were not taken yet
}

// newPair takes over the descriptor of one end.
func newPair(f *os.File) (*pair, error) {
	c, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return nil, err
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("it is no Unix socket")
	}
	return &pair{conn: u}, nil
}

// bind makes all that is said and heard end when ctx does; release ends that.
func (p *pair) bind(ctx context.Context) (release func()) {
	stop := context.AfterFunc(ctx, func() { p.conn.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if !stop() {
			return
		}
		p.conn.SetDeadline(time.Time{})
	}
}

// say sends a message.
func (p *pair) say(m message, files ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if _, err := p.conn.Write(append(b, '\n')); err != nil {
		return said(err)
	}
	for len(files) > 0 {
		some := files[:min(len(files), filesAtOnce)]
		files = files[len(some):]
		if err := p.send(some); err != nil {
			return said(err)
		}
	}
	return nil
}

// send sends descriptors, beside one byte.
func (p *pair) send(files []*os.File) error {
	var fds []int
	return held(files, &fds, func() error {
		_, _, err := p.conn.WriteMsgUnix([]byte{0}, syscall.UnixRights(fds...), nil)
		return err
	})
}

// held calls do while the descriptors of files are good: Fd would make them block,
// and with them the descriptors of whoever shares them.
func held(files []*os.File, fds *[]int, do func() error) error {
	if len(files) == 0 {
		return do()
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	err = raw.Control(func(fd uintptr) {
		*fds = append(*fds, int(fd))
		inner = held(files[1:], fds, do)
	})
	return errors.Join(err, inner)
}

// hear returns the next message, which must be one of that word.
func (p *pair) hear(want word) (message, error) {
	var m message
	for {
		if i := bytes.IndexByte(p.unread[p.scanned:], '\n'); i >= 0 {
			line := p.unread[:p.scanned+i]
			p.unread, p.scanned = p.unread[len(line)+1:], 0
			if err := json.Unmarshal(line, &m); err != nil {
				return m, fmt.Errorf("what the other end said is not understood: %w", err)
			}
			break
		}
		p.scanned = len(p.unread)
		if len(p.unread) > maxMessage {
			return m, errors.New("the other end says too much")
		}
		if err := p.read(); err != nil {
			return m, said(err)
		}
	}
	if m.Word != want {
		return m, fmt.Errorf("the other end said %q where %q was due", m.Word, want)
	}
	return m, nil
}

// take returns the files that a message names.
func (p *pair) take(m message) (map[string]*os.File, error) {
	for len(p.files) < len(m.Names) {
		if err := p.read(); err != nil {
			return nil, said(err)
		}
	}
	got := map[string]*os.File{}
	for i, name := range m.Names {
		got[name] = p.files[i]
	}
	p.files = p.files[len(m.Names):]
	return got, nil
}

// read reads what comes next: bytes of a message, and descriptors, each of which has
// come with a byte 0 that no message has.
func (p *pair) read() error {
	buf, oob := make([]byte, 64<<10), make([]byte, syscall.CmsgSpace(4*2*filesAtOnce))
	n, oobn, flags, _, err := p.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return err
	}
	if n == 0 && oobn == 0 {
		return io.EOF
	}
	if flags&syscall.MSG_CTRUNC != 0 {
		return errors.New("this process may not have the descriptors that it was given: raise the limit (ulimit -n)")
	}
	for chunk := range bytes.SplitSeq(buf[:n], []byte{0}) {
		p.unread = append(p.unread, chunk...)
	}
	all, err := syscall.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return err
	}
	for _, c := range all {
		fds, err := syscall.ParseUnixRights(&c)
		if err != nil {
			return err
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			p.files = append(p.files, os.NewFile(uintptr(fd), "inherited"))
		}
	}
	return nil
}

// close ends the talk, and closes what nobody took.
func (p *pair) close() {
	p.conn.Close()
	for _, f := range p.files {
		f.Close()
	}
	p.files = nil
}

// said explains an error of the pair.
func said(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.EPIPE), errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed):
		return errGone
	case errors.Is(err, os.ErrDeadlineExceeded):
		return context.DeadlineExceeded
	}
	return err
}

// lastLines keeps the end of what is written to it.
type lastLines struct {
	mu   sync.Mutex
	text []byte
}

// keepText is how much is kept of what a process says, in bytes.
const keepText = 4 << 10

// Write implements io.Writer.
func (l *lastLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, p...)
	if over := len(l.text) - keepText; over > 0 {
		l.text = append(l.text[:0], l.text[over:]...)
	}
	return len(p), nil
}

// String returns what is kept.
func (l *lastLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.text)
}
