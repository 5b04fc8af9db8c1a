// Command dial opens a connection to a Service from a Go program, with the Session
// of whoever runs it (cardea login), and joins it to standard input and output:
//
//	go run ./examples/dial nats
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"

	"cardea/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: dial SERVICE")
		os.Exit(2)
	}
	if err := dial(ctx, os.Getenv("CARDEA_HOME"), os.Args[1], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// dial carries in to the Service, and what it answers to out, until it has
// answered all.
func dial(ctx context.Context, home, service string, in io.Reader, out io.Writer) error {
	c := client.Client{Home: home} // the zero value is the home of this person
	defer c.Close()
	conn, err := c.Dial(ctx, service)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, in)
		if half, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			err = half.CloseWrite() // the Service reads to the end; we go on reading
		}
		sent <- err
	}()
	if _, err := io.Copy(out, conn); err != nil {
		return err
	}
	// The Service is done; what was not sent by now is not wanted.
	conn.Close()
	select {
	case err := <-sent:
		if err != nil && !isClosed(err) {
			return err
		}
	default: // still waiting for input that nobody wants
	}
	return nil
}

// isClosed reports whether an error says only that the connection is over.
func isClosed(err error) bool {
	_, ok := err.(*net.OpError)
	return ok || err == io.ErrClosedPipe || err == net.ErrClosed
}
