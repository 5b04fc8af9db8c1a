package rig

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ProfilerAddress names the variable that tells bench/profile where to listen.
const ProfilerAddress = "CARDEA_PROFILER"

// buildProfiled builds the program that can be profiled, with its symbols.
func (r *Rig) buildProfiled(ctx context.Context) (string, error) {
	if err := os.MkdirAll(r.Profile, 0o700); err != nil {
		return "", err
	}
	bin := filepath.Join(r.Profile, "cardea") // pprof and perf want to see it later
	cmd := exec.CommandContext(ctx, "go", "build", "-o", bin, "cardea/bench/profile")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build: %w\n%s", err, out)
	}
	return bin, nil
}

// profiled measures a Target while the CPU of its processes that can be is profiled.
// What they did, and what they held in memory at the end, is in two files each whose
// names begin with those of the row and of the Target.
func (r *Rig) profiled(ctx context.Context, row string, t *Target, measure Measure) ([]float64, error) {
	if r.Profile == "" || len(t.Profilers) == 0 {
		return measure(ctx, t)
	}
	dir, err := filepath.Abs(r.Profile)
	if err != nil {
		return nil, err
	}
	all := func(path, suffix string) error {
		for process, dial := range t.Profilers {
			name := strings.NewReplacer(" ", "-", "(", "", ")", "", ",", "", "/", "-").Replace(row + "-" + t.Name + process)
			if err := Call(dial, path+"?file="+url.QueryEscape(filepath.Join(dir, name+suffix))); err != nil {
				return err
			}
		}
		return nil
	}
	if err := all("/start", ".cpu"); err != nil {
		return nil, err
	}
	t.Held = func() error { return all("/heap", ".heap") }
	v, err := measure(ctx, t)
	t.Held = nil
	if err != nil {
		return nil, err
	}
	return v, all("/stop", ".cpu")
}

// Call asks a profiler for something.
func Call(dial Dial, path string) error {
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }}
	defer transport.CloseIdleConnections()
	res, err := (&http.Client{Transport: transport}).Get("http://profiler" + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the profiler answers %s", res.Status)
	}
	return nil
}
