package memory

import (
	"context"

	"cardea/api"
	"cardea/audit"
)

// Begin implements [audit.Ledger].
func (j *Log) Begin(rec *api.AccessLog) (audit.Mark, error) {
	return 0, j.Append(context.TODO(), rec)
}

// Keep implements [audit.Ledger].
func (j *Log) Keep(audit.Mark) error { return nil }

// Note implements [audit.Ledger].
func (j *Log) Note(rec *api.AccessLog) error { return j.Append(context.TODO(), rec) }

// Owes implements [audit.Ledger].
func (j *Log) Owes() int { return 0 }

// Slow implements [audit.Ledger].
func (j *Log) Slow() bool { return false }
