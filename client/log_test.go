package client

import (
	"bytes"
	"os"
	"strings"
	"testing"
)

// TestLog: it never grows without bound, and no line is lost until it is two
// files old.
func TestLog(t *testing.T) {
	home := t.TempDir()
	if err := os.WriteFile(LogFile(home), []byte("from before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLog(home)
	if err != nil {
		t.Fatal(err)
	}
	line := []byte(strings.Repeat("x", 1023) + "\n")
	const lines = 1500 // more than one file holds, fewer than two
	for range lines {
		if n, err := l.Write(line); n != len(line) || err != nil {
			t.Fatal(n, err)
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var all []byte
	for _, name := range []string{LogFile(home) + ".1", LogFile(home)} {
		b, err := os.ReadFile(name)
		if err != nil || len(b) > maxLog {
			t.Errorf("%s has %d bytes, %v", name, len(b), err)
		}
		all = append(all, b...)
	}
	if !bytes.HasPrefix(all, []byte("from before\n")) || bytes.Count(all, line) != lines {
		t.Errorf("%d of %d lines are there", bytes.Count(all, line), lines)
	}
}
