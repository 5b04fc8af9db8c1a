package script_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// untilInterrupted returns when somebody ends the program.
func untilInterrupted() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, os.Interrupt, syscall.SIGTERM)
	<-stop
}

// echo-udp ADDRESS NAME READYFILE: answers each datagram with "NAME: datagram", until it
// is interrupted.
func echoUDP() {
	c, err := net.ListenPacket("udp", os.Args[1])
	check(err)
	check(os.WriteFile(os.Args[3], []byte("ready"), 0o600))
	go func() {
		for b := make([]byte, 1<<16); ; {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			c.WriteTo(fmt.Appendf(nil, "%s: %s", os.Args[2], b[:n]), from)
		}
	}()
	untilInterrupted()
}

// talk-udp ADDRESS WORD…: sends each word as a datagram until it is answered, and prints
// the answer.
func talkUDP() {
	c, err := net.Dial("udp", os.Args[1])
	check(err)
	defer c.Close()
	b := make([]byte, 1<<16)
	for _, word := range os.Args[2:] {
		for deadline := time.Now().Add(30 * time.Second); ; {
			_, err := c.Write([]byte(word))
			check(err)
			check(c.SetReadDeadline(time.Now().Add(time.Second)))
			n, err := c.Read(b)
			if err == nil && strings.HasSuffix(string(b[:n]), word) {
				fmt.Printf("%s\n", b[:n])
				break
			}
			if time.Now().After(deadline) {
				check(fmt.Errorf("%q is not answered: %w", word, err))
			}
		}
	}
}

// web-upstream ADDRESS TEXT READYFILE: answers each request of HTTP with a text, until it
// is interrupted.
func webUpstream() {
	l, err := net.Listen("tcp", os.Args[1])
	check(err)
	check(os.WriteFile(os.Args[3], []byte("ready"), 0o600))
	go http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, os.Args[2]) }))
	untilInterrupted()
}
