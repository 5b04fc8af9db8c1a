package rig

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A PID is a process and its children: nginx works in those. 0 is none.
type PID int

func (p PID) family() []string {
	if p == 0 {
		return nil
	}
	list := []string{strconv.Itoa(int(p))}
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", p))
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err == nil {
			list = append(list, strings.Fields(string(b))...)
		}
	}
	return list
}

// tick is the unit of /proc/PID/stat (USER_HZ, proc(5)).
const tick = 10 * time.Millisecond

// CPU returns the CPU time that it has used.
func (p PID) CPU() (sum time.Duration) {
	for _, pid := range p.family() {
		b, err := os.ReadFile("/proc/" + pid + "/stat")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(b), ") ")
		f := strings.Fields(rest) // from field 3 of proc(5)
		for _, i := range []int{11, 12} {
			n, err := strconv.ParseInt(f[i], 10, 64)
			if err == nil {
				sum += time.Duration(n) * tick
			}
		}
	}
	return sum
}

// busy returns the CPU time that the whole machine has used.
func busy() (sum time.Duration) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(b), "\n")
	// user nice system idle iowait irq softirq steal (proc(5)); guests are of the first two.
	for i, f := range strings.Fields(line)[1:] {
		if i == 3 || i == 4 || i > 6 {
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err == nil {
			sum += time.Duration(n) * tick
		}
	}
	return sum
}

// A Cost is CPU time: of the processes of a Target, and of the whole machine meanwhile.
type Cost struct {
	of       *Target
	own, all time.Duration
}

// From begins to count.
func From(t *Target) Cost { return Cost{t, t.cpu(), busy()} }

// Per returns what was used since for each of n things.
func (c Cost) Per(n float64) (own, all time.Duration) {
	return time.Duration(float64(c.of.cpu()-c.own) / n), time.Duration(float64(busy()-c.all) / n)
}

// cpu returns the CPU time that all of its processes have used.
func (t *Target) cpu() time.Duration {
	sum := t.PID.CPU()
	for _, p := range t.With {
		sum += p.CPU()
	}
	return sum
}

// A Usage is what a process has used.
type Usage struct {
	CPU      time.Duration // exact, and not by ticks
	Switches int           // how often its threads have waited
}

// Plus returns both together.
func (u Usage) Plus(v Usage) Usage { return Usage{u.CPU + v.CPU, u.Switches + v.Switches} }

// Minus returns what was used since v.
func (u Usage) Minus(v Usage) Usage { return Usage{u.CPU - v.CPU, u.Switches - v.Switches} }

// Usage returns what its threads have used that are there.
func (p PID) Usage() (u Usage) {
	for _, pid := range p.family() {
		tasks, _ := filepath.Glob("/proc/" + pid + "/task/*")
		for _, task := range tasks {
			b, _ := os.ReadFile(task + "/schedstat") // gone is nothing
			first, _, _ := strings.Cut(string(b), " ")
			ns, _ := strconv.ParseInt(first, 10, 64)
			u.CPU += time.Duration(ns)
			b, _ = os.ReadFile(task + "/status")
			for line := range strings.Lines(string(b)) {
				if n, ok := strings.CutPrefix(line, "voluntary_ctxt_switches:"); ok {
					switches, _ := strconv.Atoi(strings.TrimSpace(n))
					u.Switches += switches
				}
			}
		}
	}
	return u
}

// Resident returns its resident bytes.
func (p PID) Resident() (sum int64) {
	for _, pid := range p.family() {
		b, err := os.ReadFile("/proc/" + pid + "/statm")
		if err != nil {
			continue
		}
		n, err := strconv.ParseInt(strings.Fields(string(b))[1], 10, 64)
		if err == nil {
			sum += n * int64(os.Getpagesize())
		}
	}
	return sum
}

// Descriptors returns how many it has open.
func (p PID) Descriptors() (n int) {
	for _, pid := range p.family() {
		files, _ := os.ReadDir("/proc/" + pid + "/fd")
		n += len(files)
	}
	return n
}
