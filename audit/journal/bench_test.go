package journal

import (
	"context"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
)

// cpu returns the processor time that this process has used.
func cpu(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkConnection writes the START and the END of connections, from several
// goroutines, and says what processor time a record takes.
func BenchmarkConnection(b *testing.B) {
	keep := func(j *Journal, start, end *api.AccessLog) error {
		if err := j.Append(context.Background(), start); err != nil {
			return err
		}
		return j.Append(context.Background(), end)
	}
	ledger := func(j *Journal, start, end *api.AccessLog) error {
		m, err := j.Begin(start)
		if err == nil {
			err = j.Keep(m)
		}
		if err != nil {
			return err
		}
		return j.Note(end)
	}
	for _, kind := range []struct {
		name string
		make func(time.Time) (start, end *api.AccessLog)
	}{
		{"session", audittest.Connection},
		{"anonymous", anonymous},
	} {
		for _, way := range []struct {
			name string
			do   func(*Journal, *api.AccessLog, *api.AccessLog) error
		}{{"append", keep}, {"ledger", ledger}} {
			for _, n := range []int{1, 4, 64} {
				b.Run(kind.name+"/"+way.name+"/"+strconv.Itoa(n), func(b *testing.B) {
					r := newRig(b)
					j, _ := r.start(b)
					start, end := kind.make(time.Now())
					b.ReportAllocs()
					b.ResetTimer()
					before := cpu(b)
					var all sync.WaitGroup
					for w := range n {
						all.Go(func() {
							s, e := *start, *end
							for i := w; i < b.N; i += n {
								id := api.NewID()
								s.Entry.Common.ConnectionID, e.Entry.Common.ConnectionID = id, id
								if err := way.do(j, &s, &e); err != nil {
									b.Error(err)
									return
								}
							}
						})
					}
					all.Wait()
					b.ReportMetric(float64(cpu(b)-before)/float64(2*b.N), "cpu-ns/record")
				})
			}
		}
	}
}

// anonymous returns the START and the END of a connection through a mapping, of a
// client that nobody asked who it is.
func anonymous(now time.Time) (start, end *api.AccessLog) {
	start = audit.New(now)
	start.Entry.Common = api.AccessLogCommon{
		ConnectionID: api.NewID(), StartedAt: now, IsAuthorized: true, IsPublic: true, IsAnonymous: true,
		Status: api.StatusAllowed, Mode: "TCP",
		Reason:     &api.LogReason{Type: api.ReasonPolicyMatch, Words: "mappings let everybody in"},
		DecisionID: api.NewID(), Revision: api.Revision{Epoch: 1, Number: 12},
		Facts:    &api.Facts{IP: "192.0.2.7", Port: 50123, Listener: "0.0.0.0:5432", Tunnel: "public"},
		Upstream: "10.0.0.5:5432", Route: &api.LogRoute{Listener: "*:5432"},
		ServiceRef: &api.Ref{APIVersion: "getambassador.io/v2", Kind: api.KindTCPMapping, Namespace: "team", Name: "db", UID: api.NewID(), ResourceVersion: "12"},
	}
	start.Metadata.TargetRef = start.Entry.Common.ServiceRef
	start.Entry.Info.TCP = &api.TCPInfo{Type: api.LogStart}
	received, sent := int64(30253), int64(2876)
	e := *start
	e.Metadata.ID, e.Metadata.CreatedAt = api.NewID(), now.Add(45*time.Second).UTC()
	e.Entry.Common.EndedAt = now.Add(45 * time.Second)
	e.Entry.Info.TCP = &api.TCPInfo{Type: api.LogEnd, ReceivedBytes: &received, SentBytes: &sent, CloseReason: "CLIENT_CLOSED"}
	return start, &e
}
