package relaytest

import (
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"cardea/relay"
)

// RunUrgentAmidSignals relays messages around urgent bytes from client to far, or back to
// client if far is that, while every thread of the process is interrupted all the time: a
// system call that a signal breaks off must lose no byte, and an urgent one must stop
// nothing. open returns the ends of a relay.
func RunUrgentAmidSignals(t *testing.T, open func(*testing.T) (client *net.TCPConn, far net.Conn)) {
	if runtime.GOMAXPROCS(0) < 2 {
		t.Skip("the interrupter would keep the only processor for itself")
	}
	stop := make(chan struct{})
	var interrupting sync.WaitGroup
	defer interrupting.Wait()
	defer close(stop)
	interrupting.Go(func() { interrupt(t, stop) })
	client, far := open(t)
	defer relay.Reset(client, relay.ClientReset)
	far.SetReadDeadline(time.Now().Add(time.Minute))
	got := make([]byte, len("beforeafter"))
	for i := range 1000 {
		client.Write([]byte("before"))
		if err := sendUrgent(client, '!'); err != nil {
			t.Fatal(err)
		}
		client.Write([]byte("after"))
		if n, err := io.ReadFull(far, got); err != nil || string(got) != "beforeafter" {
			t.Fatalf("round %d: read %q, %v", i, got[:n], err)
		}
	}
}

// interrupt signals this process's threads, as the Go runtime does, until stop is
// closed.
func interrupt(t *testing.T, stop chan struct{}) {
	for {
		threads, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Error(err)
			return
		}
		for _, thread := range threads {
			select {
			case <-stop:
				return
			default:
			}
			id, _ := strconv.Atoi(thread.Name())
			unix.Tgkill(os.Getpid(), id, unix.SIGURG)
		}
	}
}
