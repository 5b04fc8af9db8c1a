package otlp

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	logs "go.opentelemetry.io/proto/otlp/logs/v1"
	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"cardea/api"
	"cardea/audit"
	"cardea/audit/audittest"
	"cardea/audit/journal"
	"cardea/audit/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// marks keeps marks in memory.
type marks struct {
	mu   sync.Mutex
	m    map[string][]byte
	sets int
}

func (m *marks) SetMark(_ context.Context, name string, v []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.m == nil {
		m.m = map[string][]byte{}
	}
	if strings.HasPrefix(name, "otlp/") {
		m.sets++
	}
	m.m[name] = v
	return nil
}

func (m *marks) Mark(_ context.Context, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.m[name], nil
}

// A pipes is a network without a kernel: time in a bubble passes while its
// connections are idle.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes { return &pipes{conns: make(chan net.Conn), closed: make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 4317} }

func (p *pipes) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A receiver is an OTLP receiver, of both protocols, that can be told what to
// answer.
type receiver struct {
	collector.UnimplementedLogsServiceServer
	scheme string

	mu      sync.Mutex
	at      *pipes // nil while it is stopped
	stop    func()
	got     []*logs.LogRecord
	batches []int
	headers map[string]string
	// answer, if it is not nil, is asked before anything is taken; ms is how many
	// milliseconds the collector asks us to wait.
	answer func(records []*logs.LogRecord) (code codes.Code, ms int)
	reject int64 // records of the next request, in partial success
}

func (r *receiver) take(req *collector.ExportLogsServiceRequest) (*collector.ExportLogsServiceResponse, codes.Code, int) {
	var recs []*logs.LogRecord
	for _, rl := range req.GetResourceLogs() {
		for _, sl := range rl.GetScopeLogs() {
			recs = append(recs, sl.GetLogRecords()...)
		}
	}
	r.mu.Lock()
	answer := r.answer
	r.mu.Unlock()
	if answer != nil {
		if code, ms := answer(recs); code != codes.OK {
			return nil, code, ms
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.got = append(r.got, recs...)
	if len(recs) > 0 {
		r.batches = append(r.batches, len(recs))
	}
	resp := new(collector.ExportLogsServiceResponse)
	if r.reject > 0 {
		resp.PartialSuccess = &collector.ExportLogsPartialSuccess{RejectedLogRecords: r.reject, ErrorMessage: "not these"}
		r.reject = 0
	}
	return resp, codes.OK, 0
}

// Export implements OTLP/gRPC.
func (r *receiver) Export(ctx context.Context, req *collector.ExportLogsServiceRequest) (*collector.ExportLogsServiceResponse, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	r.mu.Lock()
	for k, v := range md {
		r.headers[k] = strings.Join(v, ",")
	}
	r.mu.Unlock()
	resp, code, ms := r.take(req)
	if code == codes.OK {
		return resp, nil
	}
	st := status.New(code, "told to")
	if ms > 0 {
		st, _ = st.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(time.Duration(ms) * time.Millisecond)})
	}
	return nil, st.Err()
}

// ServeHTTP implements OTLP/HTTP.
func (r *receiver) ServeHTTP(w http.ResponseWriter, h *http.Request) {
	r.mu.Lock()
	for k := range h.Header {
		r.headers[strings.ToLower(k)] = h.Header.Get(k)
	}
	r.mu.Unlock()
	body, err := io.ReadAll(h.Body)
	var req collector.ExportLogsServiceRequest
	if h.Method != http.MethodPost || h.URL.Path != "/v1/logs" || err != nil || proto.Unmarshal(body, &req) != nil {
		http.NotFound(w, h)
		return
	}
	resp, code, ms := r.take(&req)
	w.Header().Set("Content-Type", "application/x-protobuf")
	if ms > 0 {
		w.Header().Set("Retry-After", fmt.Sprint((ms+999)/1000))
	}
	if code != codes.OK {
		w.WriteHeader(map[codes.Code]int{
			codes.InvalidArgument: 400, codes.ResourceExhausted: 429, codes.Unavailable: 503,
			codes.Internal: 500, codes.Unauthenticated: 401, codes.FailedPrecondition: 302,
		}[code])
		return
	}
	b, _ := proto.Marshal(resp)
	w.Write(b)
}

// start serves until stop.
func (r *receiver) start() {
	at := newPipes()
	var wg sync.WaitGroup
	var stop func()
	if r.scheme == "grpc" {
		g := grpc.NewServer(grpc.MaxRecvMsgSize(16 << 20))
		collector.RegisterLogsServiceServer(g, r)
		wg.Go(func() { g.Serve(at) })
		stop = g.Stop
	} else {
		h := &http.Server{Handler: r}
		wg.Go(func() { h.Serve(at) })
		stop = func() { h.Close() }
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.stop = at, func() { stop(); wg.Wait() }
}

func (r *receiver) halt() {
	r.mu.Lock()
	stop := r.stop
	r.at, r.stop = nil, nil
	r.mu.Unlock()
	if stop != nil {
		stop()
	}
}

func (r *receiver) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if network != "tcp" || addr != "collector.test:4317" {
		return nil, fmt.Errorf("dialled %s %s", network, addr)
	}
	r.mu.Lock()
	at := r.at
	r.mu.Unlock()
	if at == nil {
		return nil, errors.New("connection refused")
	}
	return at.dial(ctx)
}

func (r *receiver) answers(f func([]*logs.LogRecord) (codes.Code, int)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = f
}

// words returns the marks of the records that it has, in the order in which they
// came.
func (r *receiver) words() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.got {
		all = append(all, wordsOf(l))
	}
	return all
}

func wordsOf(l *logs.LogRecord) string {
	if l.GetEventName() == "cardea.access.gap" {
		return "gap " + get(l.GetBody(), "lost").GetStringValue()
	}
	return get(l.GetBody(), "entry", "common", "reason", "words").GetStringValue()
}

// A rig is a log, a collector and a Sink between them.
type rig struct {
	*Sink
	log    audit.Log
	recv   *receiver
	config atomic.Pointer[api.Collector]
	marks  *marks
	said   *strings.Builder // the log of the process
	end    func()
}

// newRig makes a rig over the protocol of a scheme.
func newRig(t *testing.T, scheme string) *rig {
	l := new(memory.Log)
	r := &rig{log: l, recv: &receiver{scheme: scheme, headers: map[string]string{}}, marks: new(marks), said: new(strings.Builder)}
	r.config.Store(&api.Collector{URL: scheme + "://collector.test:4317"})
	r.Sink = r.sink(l)
	r.recv.start()
	t.Cleanup(r.recv.halt)
	return r
}

func (r *rig) sink(source audit.Source) *Sink {
	return &Sink{
		Source: source, Marks: r.marks, Instance: "test-1", Version: "1.2.3", Collector: r.config.Load, Dial: r.recv.dial,
		Secret: func(_ context.Context, name, host string) (string, error) {
			if name != "token" || host != "collector.test" {
				return "", errors.New("there is no such Secret")
			}
			return "Bearer canary", nil
		},
		Log: slog.New(slog.NewTextHandler(r.said, nil)),
	}
}

// run runs the Sink until stop; a new one with the same marks can follow.
func (r *rig) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	s := r.Sink
	go func() { done <- s.Run(ctx) }()
	r.end = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (r *rig) append(t *testing.T, words ...string) {
	t.Helper()
	for _, w := range words {
		must(t, r.log.Append(t.Context(), audittest.Denied(w)))
	}
}

func (r *rig) wants(t *testing.T, want ...string) {
	t.Helper()
	if got := r.recv.words(); !slices.Equal(got, want) {
		t.Errorf("the collector has %q, want %q", got, want)
	}
}

func numbers(from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(i))
	}
	return all
}

// both runs a test in a bubble, over each protocol.
func both(t *testing.T, test func(t *testing.T, r *rig)) {
	for _, scheme := range []string{"grpc", "http"} {
		t.Run(scheme, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, scheme)
				test(t, r)
				if r.end != nil {
					r.end()
				}
				r.recv.halt()
			})
		})
	}
}

// wait lets time pass, and what happens in it.
func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// Records come at once, each once, in order.
func TestSend(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.append(t, "before")
		r.run(t)
		r.append(t, numbers(0, 20)...)
		wait(2 * maxWait)
		r.wants(t, append([]string{"before"}, numbers(0, 20)...)...)
		if len(r.recv.batches) != 1 {
			t.Errorf("%d calls for what fits into one", len(r.recv.batches))
		}
		r.append(t, "later")
		wait(2 * maxWait)
		if n := len(r.recv.words()); n != 22 {
			t.Errorf("%d records, want 22", n)
		}
		if s := r.Stats(); !s.Configured || s.Sent != 22 || s.Lag != 0 || s.LagTime != 0 || s.Failed != 0 || s.LastError != "" {
			t.Errorf("%+v", s)
		}
	})
}

// A batch is no more than 512 records and 1 MiB, but a record that is longer goes
// alone.
func TestBatches(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.append(t, numbers(0, 1200)...)
		big := func(n int) {
			rec := audit.New(time.Now())
			rec.Entry.Info.API = &api.APIInfo{Verb: "update", After: []byte(`"` + strings.Repeat("x", n) + `"`)}
			must(t, r.log.Append(t.Context(), rec))
		}
		for range 3 {
			big(600 << 10)
		}
		big(3 << 20)
		r.append(t, "last")
		r.run(t)
		wait(5 * maxWait)
		if got, want := fmt.Sprint(r.recv.batches), "[512 512 177 1 1 1 1]"; got != want {
			t.Errorf("batches of %s records, want %s", got, want)
		}
	})
}

// While the collector is away, records wait; then they come, in order.
func TestStopped(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.run(t)
		r.append(t, "0")
		wait(time.Second)
		r.recv.halt()
		r.append(t, "1")
		wait(time.Minute)
		r.append(t, "2")
		wait(time.Minute)
		s := r.Stats()
		if s.Lag != 2 || s.LagTime < 110*time.Second || s.LastError == "" || s.Failed < 5 || s.Failed > 20 {
			t.Errorf("%+v", s)
		}
		r.recv.start()
		wait(lastRetry + time.Second)
		r.wants(t, "0", "1", "2")
		if s := r.Stats(); s.Lag != 0 || s.LastError != "" {
			t.Errorf("%+v", s)
		}
		r.end()
		if n := strings.Count(r.said.String(), "level=WARN"); n != 1 {
			t.Errorf("the same trouble is told %d times:\n%s", n, r.said)
		}
	})
}

// A collector that hangs is given up after a while, and asked again.
func TestHangs(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		var n atomic.Int64
		release := make(chan struct{})
		r.recv.answers(func([]*logs.LogRecord) (codes.Code, int) {
			if n.Add(1) == 1 {
				<-release
				return codes.Unavailable, 0
			}
			return codes.OK, 0
		})
		r.append(t, "0")
		r.run(t)
		wait(callLimit + 2*time.Second)
		r.wants(t, "0")
		close(release)
	})
}

// A slow collector gets everything, in greater batches; the log does not wait.
func TestSlow(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.recv.answers(func([]*logs.LogRecord) (codes.Code, int) { time.Sleep(10 * time.Second); return codes.OK, 0 })
		r.run(t)
		for i := range 100 {
			r.append(t, fmt.Sprint(i))
			wait(time.Second)
		}
		wait(time.Minute)
		r.wants(t, numbers(0, 100)...)
		if n := len(r.recv.batches); n > 12 {
			t.Errorf("%d calls in 100 s, of 10 s each", n)
		}
		if s := r.Stats(); s.Failed != 0 {
			t.Errorf("%+v", s)
		}
	})
}

// Errors that pass are waited out; what the collector says of how long is heeded.
func TestRetry(t *testing.T) {
	for _, code := range []codes.Code{codes.Unavailable, codes.ResourceExhausted, codes.Internal, codes.Unauthenticated, codes.FailedPrecondition} {
		both(t, func(t *testing.T, r *rig) {
			var good atomic.Bool
			var asked atomic.Int64
			r.recv.answers(func([]*logs.LogRecord) (codes.Code, int) {
				if asked.Add(1); good.Load() {
					return codes.OK, 0
				}
				return code, 60_000
			})
			r.append(t, numbers(0, 10)...)
			r.run(t)
			wait(50 * time.Second)
			if n := asked.Load(); n != 1 {
				t.Errorf("%v: asked %d times in 50 s, and was to wait for 60", code, n)
			}
			good.Store(true)
			wait(20 * time.Second)
			r.wants(t, numbers(0, 10)...)
			if s := r.Stats(); s.Refused != 0 || s.Sent != 10 {
				t.Errorf("%v: %+v", code, s)
			}
		})
	}
}

// A record that the collector refuses for good is left out, and no other.
func TestPoison(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.recv.answers(func(recs []*logs.LogRecord) (codes.Code, int) {
			for _, l := range recs {
				if wordsOf(l) == "13" || wordsOf(l) == "40" {
					return codes.InvalidArgument, 0
				}
			}
			return codes.OK, 0
		})
		r.append(t, numbers(0, 50)...)
		r.run(t)
		wait(time.Second)
		want := slices.DeleteFunc(numbers(0, 50), func(s string) bool { return s == "13" || s == "40" })
		r.wants(t, want...)
		if s := r.Stats(); s.Refused != 2 || s.Sent != 48 || s.Lag != 0 {
			t.Errorf("%+v", s)
		}
		r.end()
		if !strings.Contains(r.said.String(), "line=14") || !strings.Contains(r.said.String(), "line=41") {
			t.Errorf("nobody is told which records were left out:\n%s", r.said)
		}
	})
}

// Who refuses everything, even nothing, is no receiver: records wait until somebody
// has mended that.
func TestRefusesAll(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.recv.answers(func([]*logs.LogRecord) (codes.Code, int) { return codes.InvalidArgument, 0 })
		r.append(t, numbers(0, 50)...)
		r.run(t)
		wait(10 * time.Minute)
		if s := r.Stats(); s.Refused != 0 || s.Lag != 50 {
			t.Errorf("%+v", s)
		}
		r.recv.answers(nil)
		wait(time.Minute)
		r.wants(t, numbers(0, 50)...)
	})
}

func TestPartialSuccess(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.recv.reject = 3
		r.append(t, numbers(0, 10)...)
		r.run(t)
		wait(time.Second)
		r.append(t, "more")
		wait(time.Second)
		r.wants(t, append(numbers(0, 10), "more")...) // it is not sent again
		if s := r.Stats(); s.Refused != 3 || s.Sent != 8 {
			t.Errorf("%+v", s)
		}
	})
}

// What is configured is followed: headers with their Secrets, another collector,
// none, and one again.
func TestConfig(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.config.Store(nil)
		r.append(t, "0")
		r.run(t)
		wait(time.Minute)
		if s := r.Stats(); s.Configured || s.Lag != 0 {
			t.Errorf("without a collector: %+v", s)
		}
		c := &api.Collector{URL: r.recv.scheme + "://collector.test:4317", Headers: []api.CollectorHeader{
			{Name: "X-Tenant", Value: "a"}, {Name: "Authorization", FromSecret: "token"}}}
		r.config.Store(c)
		wait(2 * time.Second)
		r.wants(t, "0")
		if h := r.recv.headers; h["x-tenant"] != "a" || h["authorization"] != "Bearer canary" {
			t.Errorf("headers %v", h)
		}
		wrong := *c
		wrong.Headers = []api.CollectorHeader{{Name: "Authorization", FromSecret: "gone"}}
		r.config.Store(&wrong)
		r.append(t, "1")
		wait(time.Minute)
		r.wants(t, "0")
		if s := r.Stats(); s.LastError != "header Authorization: there is no such Secret" {
			t.Errorf("%+v", s)
		}
		r.config.Store(c) // heeded while it waits to try again
		wait(2 * time.Second)
		r.wants(t, "0", "1")
		r.config.Store(nil)
		wait(2 * time.Second)
		r.append(t, "2")
		wait(time.Minute)
		r.wants(t, "0", "1")
		r.config.Store(c)
		wait(2 * time.Second)
		r.wants(t, "0", "1", "2")
		r.end()
		if strings.Contains(r.said.String(), "canary") {
			t.Error("the value of a Secret is in the log of the process")
		}
	})
}

// A restart goes on where the collector was; the place is kept once a second at
// most, and at the end.
func TestRestart(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.run(t)
		for i := range 20 {
			r.append(t, fmt.Sprint(i))
			wait(maxWait + 50*time.Millisecond)
		}
		if n := r.marks.sets; n < 3 || n > 6 {
			t.Errorf("the place was kept %d times in 5 s", n)
		}
		r.append(t, "20")
		r.end() // sends it
		r.wants(t, numbers(0, 21)...)

		r.recv.halt()
		r.Sink = r.sink(r.Source)
		r.run(t)
		r.append(t, "21")
		wait(time.Second)
		begun := time.Now()
		r.end()
		if d := time.Since(begun); d != grace {
			t.Errorf("stopping took %v while the collector is away, want %v", d, grace)
		}

		r.append(t, "22")
		r.recv.start()
		r.Sink = r.sink(r.Source)
		r.run(t)
		begun = time.Now()
		r.end()
		if d := time.Since(begun); d > time.Second {
			t.Errorf("stopping took %v", d)
		}
		r.wants(t, numbers(0, 23)...)
	})
}

// A Sink that dies without a word sends again what it had not kept, and loses
// nothing.
func TestKilled(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		r.append(t, "0", "1")
		r.run(t)
		wait(2 * time.Second)
		kept := maps.Clone(r.marks.m)
		r.append(t, "2")
		wait(maxWait)
		r.end()
		r.marks.m = kept
		r.Sink = r.sink(r.Source)
		r.run(t)
		wait(time.Second)
		r.wants(t, "0", "1", "2", "2")
	})
}

// openJournal runs a journal with small segments until stop.
func openJournal(t *testing.T, dir string, m *marks, size int64) (j *journal.Journal, stop func()) {
	t.Helper()
	j, err := journal.Open(t.Context(), journal.Config{
		Dir: dir, Instance: "test-1", Signer: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)), Marks: m,
		Log: slog.New(slog.DiscardHandler), SegmentSize: 10_000, Retention: journal.Retention{Size: size},
	})
	must(t, err)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- j.Run(ctx) }()
	return j, func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Over a journal: restarts of both, rotation, and retention that is faster than the
// collector; it is told how many records are gone.
func TestJournal(t *testing.T) {
	both(t, func(t *testing.T, r *rig) {
		dir := filepath.Join(t.TempDir(), "log")
		j, stop := openJournal(t, dir, r.marks, 40_000)
		r.log, r.Sink = j, r.sink(j)
		r.run(t)
		r.append(t, numbers(0, 50)...)
		wait(2 * time.Second)
		r.wants(t, numbers(0, 50)...)
		if s := r.Stats(); s.Lag != 0 {
			t.Errorf("%+v", s)
		}
		r.append(t, numbers(50, 60)...) // sent at once, and not again by the next
		r.end()
		stop()

		j, stop = openJournal(t, dir, r.marks, 40_000)
		r.log, r.Sink = j, r.sink(j)
		r.run(t)
		r.append(t, numbers(60, 100)...)
		wait(2 * time.Second)
		r.wants(t, numbers(0, 100)...)

		r.recv.halt()
		r.append(t, numbers(100, 101)...) // is on its way
		wait(10 * time.Second)
		for i := 101; i < 500; i += 20 {
			r.append(t, numbers(i, min(i+20, 500))...)
			wait(2 * time.Second)
		}
		r.recv.start()
		wait(time.Minute)
		got := r.recv.words()
		var lost int
		at := slices.IndexFunc(got, func(s string) bool { return strings.HasPrefix(s, "gap ") })
		if at >= 0 {
			fmt.Sscanf(got[at], "gap %d", &lost)
		}
		want := slices.Concat(numbers(0, at), []string{fmt.Sprint("gap ", lost)}, numbers(at+lost, 500))
		if at < 101 || lost < 100 || !slices.Equal(got, want) {
			t.Errorf("%d are lost, and these came: %q", lost, got)
		}
		if s := r.Stats(); s.Lost != int64(lost) || s.Sent != int64(440-lost) || s.Lag != 0 {
			t.Errorf("%+v", s)
		}
		stop() // the log first
		r.end()
	})
}
