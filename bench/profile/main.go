// Command profile is cmd/cardea with a profiler at its side, for measurements. If
// CARDEA_PROFILER is HOST:PORT, it answers there to everyone: GET /start?file=F
// begins a CPU profile, /stop ends it, /heap?file=F writes what is held in memory,
// and /debug/pprof/ is that of net/http/pprof.
package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	httppprof "net/http/pprof"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"

	"cardea/cli"
)

func main() {
	if at := os.Getenv("CARDEA_PROFILER"); at != "" && len(os.Args) > 1 && (os.Args[1] == "up" || os.Args[1] == "connect") {
		if err := profile(at); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	p := cli.Program{Version: "profiled", In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Getenv: os.Getenv}
	os.Exit(p.Run(ctx, os.Args[1:]))
}

// profile serves the profiler until the process ends.
func profile(at string) error {
	l, err := net.Listen("tcp", at)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", httppprof.Index)
	mux.HandleFunc("/debug/pprof/profile", httppprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", httppprof.Trace)
	var cpu *os.File
	for path, do := range map[string]func(file string) error{
		"/start": func(file string) (err error) {
			if cpu, err = os.Create(file); err != nil {
				return err
			}
			return pprof.StartCPUProfile(cpu)
		},
		"/stop": func(string) error {
			pprof.StopCPUProfile()
			return cpu.Close()
		},
		"/heap": func(file string) error {
			f, err := os.Create(file)
			if err != nil {
				return err
			}
			defer f.Close()
			runtime.GC()
			return pprof.WriteHeapProfile(f)
		},
	} {
		mux.HandleFunc(path, func(w http.ResponseWriter, r *http.Request) {
			if err := do(r.FormValue("file")); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	go http.Serve(l, mux)
	return nil
}
