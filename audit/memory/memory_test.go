package memory_test

import (
	"errors"
	"testing"

	"go.uber.org/goleak"

	"cardea/audit"
	"cardea/audit/audittest"
	"cardea/audit/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestLog(t *testing.T) {
	audittest.Run(t, func(*testing.T) audittest.Subject {
		l := new(memory.Log)
		return audittest.Subject{Log: l, Reader: l, Source: l,
			Break: func() { l.Fail(errors.New("told to fail")) },
			Mend:  func() { l.Fail(nil) },
			Close: func() { l.Owes(); l.Fail(audit.ErrClosed) },
		}
	})
}
