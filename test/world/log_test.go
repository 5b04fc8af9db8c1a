package world_test

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	otlp "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"

	"cardea/client"
)

// A record of a real connection has every field of the mission's example, under
// its name and of its type, with values of its form.
func TestRecordIsOfTheDocument(t *testing.T) {
	w := start(t)
	w.apply(groupOne + service("echo", echo(t)))
	alice := w.user("alice", "group-1")
	open(t, alice, "hello").Close()
	open(t, alice, "").Close()

	text, err := os.ReadFile("../../audit/testdata/mission-tcp-end.json")
	if err != nil {
		t.Fatal(err)
	}
	var example map[string]any
	if err := json.Unmarshal(text, &example); err != nil {
		t.Fatal(err)
	}
	want := leaves("", example)
	ids := regexp.MustCompile(`^[a-z0-9]{4}-[a-z0-9]{4}-[a-z0-9]{24}-[a-z0-9]{4}-[a-z0-9]{4}$`)
	started, ended, sizes := map[string]string{}, map[string]string{}, []string{}
	for _, rec := range w.ended(2) {
		have := leaves("", rec)
		id, kind := fmt.Sprint(have["/entry/common/connectionID"]), fmt.Sprint(have["/entry/info/tcp/type"])
		for _, name := range []string{"/entry/common/connectionID", "/metadata/id"} {
			if !ids.MatchString(fmt.Sprint(have[name])) {
				t.Errorf("%s is %v", name, have[name])
			}
		}
		if _, ok := have["/entry/common/regionRef/resourceVersion"]; ok {
			t.Error("regionRef has a resourceVersion")
		}
		if kind == "START" {
			started[id] = kind
			continue
		}
		ended[id] = kind
		for _, name := range slices.Sorted(maps.Keys(want)) {
			got, ok := have[name]
			if !ok || fmt.Sprintf("%T", got) != fmt.Sprintf("%T", want[name]) {
				t.Errorf("%s is %v (%T), and in the document %v (%T)", name, got, got, want[name], want[name])
			}
			if strings.HasSuffix(name, "At") {
				if at, err := time.Parse(time.RFC3339Nano, fmt.Sprint(got)); err != nil || at.Location() != time.UTC {
					t.Errorf("%s is %v, which is no time in UTC", name, got)
				}
			}
		}
		for _, same := range [][2]string{{"/metadata/actorRef", "/entry/common/sessionRef"}, {"/metadata/targetRef", "/entry/common/serviceRef"}} {
			for _, field := range []string{"/apiVersion", "/kind", "/name", "/uid", "/resourceVersion"} {
				if have[same[0]+field] != have[same[1]+field] {
					t.Errorf("%s%s is %v, %s%s is %v", same[0], field, have[same[0]+field], same[1], field, have[same[1]+field])
				}
			}
		}
		sizes = append(sizes, fmt.Sprint(have["/entry/info/tcp/receivedBytes"], "/", have["/entry/info/tcp/sentBytes"]))
	}
	if slices.Sort(sizes); !slices.Equal(sizes, []string{"0/0", "6/6"}) {
		t.Errorf("bytes from and to the clients: %v", sizes)
	}
	if len(started) != 2 || len(ended) != 2 {
		t.Errorf("START of %v, END of %v", started, ended)
	}
	for id := range started {
		if ended[id] == "" {
			t.Errorf("%s has no END", id)
		}
	}
}

// open opens a connection to echo and says a line, unless it is "".
func open(t *testing.T, who *client.Client, line string) net.Conn {
	t.Helper()
	c, err := who.Dial(t.Context(), "echo")
	if err != nil {
		t.Fatal(err)
	}
	if line != "" {
		if err := say(c, line); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// ended waits until so many connections have ended, and returns the records of all,
// as they are.
func (w *world) ended(n int) (recs []map[string]any) {
	w.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		a, err := w.root.API(w.t.Context())
		if err != nil {
			w.t.Fatal(err)
		}
		recs = nil
		ends := 0
		err = a.Stream(w.t.Context(), http.MethodGet, "/api/logs", nil, func(b json.RawMessage) error {
			var rec map[string]any
			if err := json.Unmarshal(b, &rec); err != nil {
				return err
			}
			switch leaves("", rec)["/entry/info/tcp/type"] {
			case "END":
				ends++
				fallthrough
			case "START":
				recs = append(recs, rec)
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
		if ends >= n {
			return recs
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("%d of %d connections have ended", ends, n)
		}
	}
}

// leaves returns the values of a JSON object by their pointers.
func leaves(at string, v any) map[string]any {
	object, ok := v.(map[string]any)
	if !ok {
		return map[string]any{at: v}
	}
	all := map[string]any{}
	for name, x := range object {
		maps.Copy(all, leaves(at+"/"+name, x))
	}
	return all
}

// A receiver is a collector that can be out of order.
type receiver struct {
	mu     sync.Mutex
	down   bool
	secret string
	ids    map[string]int // of the records that it took
	news   chan struct{}
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	var in collector.ExportLogsServiceRequest
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.down || err != nil || req.URL.Path != "/v1/logs" || proto.Unmarshal(body, &in) != nil {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	r.secret = req.Header.Get("X-Key")
	for _, a := range in.ResourceLogs {
		for _, b := range a.ScopeLogs {
			for _, rec := range b.LogRecords {
				r.ids[recordID(rec.Body)]++
			}
		}
	}
	select {
	case r.news <- struct{}{}:
	default:
	}
}

func recordID(body *otlp.AnyValue) string {
	for _, name := range []string{"metadata", "id"} {
		var next *otlp.AnyValue
		for _, kv := range body.GetKvlistValue().GetValues() {
			if kv.Key == name {
				next = kv.Value
			}
		}
		body = next
	}
	return body.GetStringValue()
}

// Every record goes to the collector that the ClusterConfig names, as it is made;
// while it does not take any nobody is held up, and nothing is lost.
func TestCollector(t *testing.T) {
	w := start(t)
	w.apply(groupOne + service("echo", echo(t)))
	alice := w.user("alice", "group-1")
	r := &receiver{ids: map[string]int{}, news: make(chan struct{}, 1)}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: r}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(l) }()
	t.Cleanup(func() {
		w.stop() // who is connected to it
		srv.Close()
		<-served
	})
	w.apply("kind: Secret\nmetadata: {name: collector}\nspec: {}\ndata: {value: key-of-the-collector}\n")
	w.apply(fmt.Sprintf("kind: ClusterConfig\nmetadata: {name: default}\nspec:\n  collector:\n    url: http://%s\n    headers: [{name: X-Key, fromSecret: collector}]\n", l.Addr()))

	arrive := func(n int) {
		t.Helper()
		timeout := time.After(time.Minute)
		for {
			missing := 0
			recs := w.ended(n)
			r.mu.Lock()
			for _, rec := range recs {
				if r.ids[rec["metadata"].(map[string]any)["id"].(string)] == 0 {
					missing++
				}
			}
			r.mu.Unlock()
			if missing == 0 {
				return
			}
			select {
			case <-r.news:
			case <-timeout:
				t.Fatalf("the collector lacks %d of %d records", missing, len(recs))
			}
		}
	}
	open(t, alice, "one").Close()
	arrive(1)
	r.mu.Lock()
	if r.secret != "key-of-the-collector" {
		t.Errorf("the header was %q", r.secret)
	}
	r.down = true
	r.mu.Unlock()
	for range 5 {
		open(t, alice, "not held up").Close()
	}
	w.ended(6)
	r.mu.Lock()
	r.down = false
	r.mu.Unlock()
	arrive(6)
}
