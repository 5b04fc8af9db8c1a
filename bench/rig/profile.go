package rig

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// profilerAddress names the variable that tells bench/profile where to listen.
const profilerAddress = "CARDEA_PROFILER"

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

// profiled measures a Target while its CPU is profiled, if it is one of a Cardea
// that can be. What it did, and what it held in memory at the end, is in two files
// whose names begin with those of the row and of the Target.
func (r *Rig) profiled(ctx context.Context, row string, t *Target, measure Measure) ([]float64, error) {
	if t.cardea == nil || t.cardea.profiler == "" {
		return measure(ctx, t)
	}
	dir, err := filepath.Abs(r.Profile)
	if err != nil {
		return nil, err
	}
	name := strings.NewReplacer(" ", "-", "(", "", ")", "", ",", "", "/", "-").Replace(row + "-" + t.Name)
	call := func(path, suffix string) error {
		res, err := http.Get("http://" + t.cardea.profiler + path + "?file=" + url.QueryEscape(filepath.Join(dir, name+suffix)))
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("the profiler answers %s", res.Status)
		}
		return nil
	}
	if err := call("/start", ".cpu"); err != nil {
		return nil, err
	}
	t.Held = func() error { return call("/heap", ".heap") }
	v, err := measure(ctx, t)
	t.Held = nil
	if err != nil {
		return nil, err
	}
	return v, call("/stop", ".cpu")
}
