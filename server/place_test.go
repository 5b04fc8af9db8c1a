package server

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A data directory from which a part was lost is refused: nothing is founded anew
// in the place of what was there.
func TestALostPartIsNotMadeAnew(t *testing.T) {
	for _, tt := range []struct {
		there []string
		words string // of the error; "" is none
	}{
		{nil, ""},
		{[]string{keyFile}, ""}, // a first start that was cut short
		{[]string{keyFile, storeFile}, ""},
		{[]string{keyFile, storeFile, logDir}, ""},
		{[]string{storeFile, logDir}, keyFile + " is missing"},
		{[]string{keyFile, logDir}, storeFile + " is missing"},
	} {
		dir := t.TempDir()
		for _, name := range tt.there {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o700); err != nil {
				t.Fatal(err)
			}
		}
		err := checkWhole(Config{DataDir: dir})
		if (err == nil) != (tt.words == "") || err != nil && !strings.HasPrefix(err.Error(), tt.words) {
			t.Errorf("with %v: %v, want %q", tt.there, err, tt.words)
		}
	}
}
