package l4_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// endpointVariable tells a process of this test to be an endpoint: KIND NUMBER
// ADDRESS.
const endpointVariable = "CARDEA_TEST_ENDPOINT"

// The kinds of endpoints. The first two answer a question with an answer, and any
// other byte with their number.
const (
	steady    = "steady"
	slow      = "slow"       // takes one connection after the other, each a while after it came
	resets    = "resets"     // takes connections and resets them
	silent    = "silent"     // takes connections and says nothing
	blackHole = "black-hole" // lets the kernel drop what comes
)

// What health checks ask, and are answered.
const question, answer = '?', '!'

// endpointMain is the main function of a process that is an endpoint.
func endpointMain(what string) error {
	f := strings.Fields(what)
	kind, address := f[0], f[2]
	number, err := strconv.Atoi(f[1])
	if err != nil {
		return err
	}
	listen := func(address string) (net.Listener, error) { return net.Listen("tcp", address) }
	if kind == slow || kind == blackHole {
		listen = listenShort
	}
	l, err := listen(address)
	if err != nil {
		return err
	}
	go func() { // the parent's end is this one's
		io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	if kind == blackHole {
		select {} // the first connection fills the queue
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		switch kind {
		case slow:
			<-time.After(100 * time.Millisecond) // what makes it slow
			go converse(c, byte(number))
		case resets:
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		case silent:
			go io.Copy(io.Discard, c)
		default:
			go converse(c, byte(number))
		}
	}
}

// converse answers each byte.
func converse(c net.Conn, number byte) {
	defer c.Close()
	b := make([]byte, 1)
	for {
		if _, err := io.ReadFull(c, b); err != nil {
			return
		}
		if b[0] == question {
			b[0] = answer
		} else {
			b[0] = number
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// listenShort listens with the shortest queue there is: what does not fit in gets no
// answer from the kernel, as from a host that drops packets.
func listenShort(address string) (net.Listener, error) {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close()
	if err := errors.Join(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.Bind(fd, &unix.SockaddrInet4{Port: a.Port, Addr: [4]byte(a.IP.To4())}), unix.Listen(fd, 0)); err != nil {
		return nil, err
	}
	return net.FileListener(f)
}

// An endpoint is a process that is one.
type endpoint struct {
	kind    string
	number  int
	address string
	more    string // fields of it as a Service has it

	cmd   *exec.Cmd
	stdin io.Closer
	mu    sync.Mutex
	dead  []span // when it was killed, and had gone
}

// A span is a time.
type span struct{ from, to time.Time }

// meets reports whether two spans have a moment in common.
func (s span) meets(o span) bool { return !s.from.After(o.to) && !o.from.After(s.to) }

// start starts the process, and returns when it listens.
func (e *endpoint) start() error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	e.cmd = exec.Command(self)
	e.cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %d %s", endpointVariable, e.kind, e.number, e.address))
	e.cmd.Stderr = os.Stderr
	if e.stdin, err = e.cmd.StdinPipe(); err != nil {
		return err
	}
	if err := e.cmd.Start(); err != nil {
		return err
	}
	for deadline := time.Now().Add(time.Minute); ; {
		c, err := net.DialTimeout("tcp", e.address, time.Second)
		if err == nil {
			return c.Close()
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the endpoint %s at %s does not listen: %w", e.kind, e.address, err)
		}
		<-time.After(5 * time.Millisecond)
	}
}

// kill kills the process, as a power cut does.
func (e *endpoint) kill() {
	from := time.Now()
	e.cmd.Process.Kill()
	e.cmd.Wait() // it was killed
	e.stdin.Close()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dead = append(e.dead, span{from, time.Now()})
}

// diedIn reports whether it was killed within a span.
func (e *endpoint) diedIn(s span) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, d := range e.dead {
		if d.meets(s) {
			return true
		}
	}
	return false
}
