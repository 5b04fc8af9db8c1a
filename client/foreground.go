package client

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// A Foreground is a connect that publishes ports and is no [Daemon]: there may be several
// in a home, each until its own Ctrl-C.
type Foreground struct {
	PID       int       `json:"pid"`
	StartedAt time.Time `json:"startedAt"`
	Ports     []Port    `json:"ports"`
}

// foregroundFiles are the files in which they are noted, whose locks they hold.
const foregroundFiles = "connect.foreground."

// Announce notes a Foreground in a home, for others to see, until end is called or the
// process ends.
func Announce(home string, f Foreground) (end func(), err error) {
	path := filepath.Join(home, fmt.Sprint(foregroundFiles, f.PID))
	held, err := tryLock(path)
	if err != nil {
		return nil, err
	}
	end = func() {
		os.Remove(path)
		held.Close()
	}
	text, err := json.Marshal(f)
	if err == nil {
		err = held.Truncate(0)
	}
	if err == nil {
		_, err = held.Write(text)
	}
	if err != nil {
		end()
		return nil, err
	}
	return end, nil
}

// Foregrounds returns those of a home that run, the oldest first.
func Foregrounds(home string) (all []Foreground) {
	names, _ := filepath.Glob(filepath.Join(home, foregroundFiles+"*")) // it fails for a bad pattern only
	for _, name := range names {
		text, err := os.ReadFile(name)
		var f Foreground
		if err != nil || json.Unmarshal(text, &f) != nil {
			continue // it has just ended, or is being written
		}
		if held, err := tryLock(name); err == nil { // it was killed
			os.Remove(name)
			held.Close()
			continue
		}
		all = append(all, f)
	}
	slices.SortFunc(all, func(a, b Foreground) int { return a.StartedAt.Compare(b.StartedAt) })
	return all
}
