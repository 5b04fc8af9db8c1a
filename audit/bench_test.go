package audit_test

import (
	"encoding/json"
	"testing"
	"time"

	"cardea/audit"
	"cardea/audit/audittest"
)

func BenchmarkAppendRecord(b *testing.B) {
	_, end := audittest.Connection(time.Now())
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = audit.AppendRecord(buf[:0], end); err != nil {
			b.Fatal(err)
		}
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkMarshal(b *testing.B) {
	_, end := audittest.Connection(time.Now())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := json.Marshal(end); err != nil {
			b.Fatal(err)
		}
	}
}
