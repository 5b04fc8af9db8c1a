package rig

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A report is what was measured, as a section of RESULTS.md, and on what.
type report struct {
	text  strings.Builder
	begin time.Time
	load  string // averages at the beginning
}

// newReport begins one of a program, on a machine that had such a load before.
func newReport(ctx context.Context, load, bin string) *report {
	p := &report{begin: time.Now(), load: load}
	p.say(p.begin.UTC().Format("2006-01-02 15:04") + " UTC, " + machine() + "; " + versions(ctx, bin) + ".")
	if !quiet(p.load) {
		p.say("**The machine was not quiet**: its load was " + p.load + " before anything was measured. Read the ratios, and not closely.")
	}
	return p
}

// say adds a paragraph, and prints it.
func (p *report) say(words string) {
	fmt.Println(words)
	p.text.WriteString(words + "\n\n")
}

// Say adds a paragraph to the results, and prints it.
func (r *Rig) Say(words string) { r.report.say(words) }

// Show prints a table, and adds it to the results.
func (r *Rig) Show(name, title, note string, head []string, lines [][]string) {
	wide := make([]int, len(head))
	for _, line := range append([][]string{head}, lines...) {
		for i, cell := range line {
			wide[i] = max(wide[i], utf8.RuneCountInString(cell))
		}
	}
	fmt.Printf("\n== %s: %s ==\n", name, title)
	for _, line := range append([][]string{head}, lines...) {
		for i, cell := range line {
			fmt.Print(cell, strings.Repeat(" ", wide[i]-utf8.RuneCountInString(cell)+2))
		}
		fmt.Println()
	}
	t := &r.report.text
	fmt.Fprintf(t, "| %s: %s |%s\n|---|%s\n", name, title, cells(head[1:]), strings.Repeat("---|", len(head)-1))
	for _, line := range lines {
		fmt.Fprintf(t, "|%s\n", cells(line))
	}
	t.WriteString("\n")
	if note != "" {
		r.Say(note)
	}
}

func cells(list []string) string { return " " + strings.Join(list, " | ") + " |" }

// write puts the report in the place of the section of its part in the file that Options
// name, or at the end of it.
func (p *report) write(o *Options) error {
	p.say("Load averages (1, 5 and 15 minutes): before " + p.load + ", after " + load() + "; it took " + time.Since(p.begin).Round(time.Second).String() + ".")
	if o.Results == "" || o.Part == "" {
		return nil
	}
	old, err := os.ReadFile(o.Results)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(o.Results, []byte(replace(string(old), o.Part, p.text.String())), 0o644)
}

// replace puts a text in the place of the section that bench/run writes of a part.
func replace(file, part, text string) string {
	begin, end := "<!-- bench/run "+part+" writes what follows -->\n", "<!-- bench/run "+part+" has written this -->\n"
	before, rest, found := strings.Cut(file, begin)
	_, after, whole := strings.Cut(rest, end)
	if !found || !whole {
		before, after = strings.TrimRight(file, "\n")+"\n\n", ""
	}
	return before + begin + "\n" + text + end + after
}

// load returns the load averages of the machine.
func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(b))
	if err != nil || len(f) < 3 {
		return "unknown"
	}
	return strings.Join(f[:3], ", ")
}

// quiet reports whether nothing much else runs.
func quiet(load string) bool {
	first, _, _ := strings.Cut(load, ",")
	n, err := strconv.ParseFloat(first, 64)
	return err == nil && n <= 1
}

// machine says what this one is.
func machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	model := runtime.GOARCH
	info, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(info)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("Linux %s, %d cores (%s)", strings.TrimSpace(string(kernel)), runtime.NumCPU(), model)
}

// versions says what was measured.
func versions(ctx context.Context, bin string) string {
	said := func(name string, args ...string) string {
		out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
		first, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		if err != nil || first == "" {
			return name + ": none"
		}
		return first
	}
	list := []string{said(bin, "version"), "tree " + said("git", "describe", "--tags", "--always", "--dirty"), runtime.Version()}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "golang.zx2c4.com/wireguard", "gvisor.dev/gvisor", "github.com/quic-go/quic-go":
				list = append(list, m.Path+" "+m.Version)
			}
		}
	}
	return strings.Join(append(list, said("haproxy", "-v"), said("nginx", "-v"), said("iperf3", "--version"), said("wireguard-go", "--version")), ", ")
}
