// Command cardea is a zero trust access platform in one program: a person's
// verbs, a whole cluster, and the client that reaches its Services.
package main

import (
	"cmp"
	"context"
	"os"
	"os/signal"
	"syscall"

	"cardea/cli"
)

// version is set by the linker: -X main.version=…
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal does not wait for the first
	// quic-go would tell of small socket buffers on standard error, in words of its own.
	os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "true")
	p := cli.Program{Version: cmp.Or(version, "unknown"), In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
	status := p.Run(ctx, os.Args[1:])
	stop()
	os.Exit(status)
}
