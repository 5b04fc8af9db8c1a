package local

import (
	"os"
	"strings"
	"testing"

	"cardea/api"
	"cardea/policy/policytest"
)

// Whatever is written as a condition: Check and compile do not panic, agree on
// whether it is right, and what is right has a value.
func FuzzCheck(f *testing.F) {
	seeds, err := os.ReadFile("testdata/check.txt")
	if err != nil {
		f.Fatal(err)
	}
	for l := range strings.Lines(string(seeds)) {
		if !strings.HasPrefix(l, " ") {
			f.Add(strings.TrimSpace(l))
		}
	}
	w := policytest.NewWorld()
	env, check := newEnvironment(), NewChecker()
	f.Fuzz(func(t *testing.T, text string) {
		if text == "" || len(text) > 10_000 {
			return
		}
		var p api.Problems
		check(&p, policytest.Policy("x", policytest.Allow(text)))
		program, _, faults := env.compile(text)
		if (p.Err() == nil) != (len(faults) == 0) {
			t.Fatalf("Check says %v and compile says %v", p.Err(), faults)
		}
		if program == nil {
			return
		}
		e := &evaluation{now: policytest.Now()}
		e.ctx = api.Context{User: w.User, Session: w.Session, Service: w.Service, Request: w.Request.Facts}
		if v := program.eval(e); v == unknown && e.cause == nil {
			t.Fatal("unknown for no reason")
		}
	})
}
