// Package emissary_test plays the cases of Emissary's own tests, and of its
// documentation, against the program as it is built: real listeners, real TLS,
// real backends. The cases are data that is not kept here; CARDEA_EMISSARY_CASES
// names the folder that has them: an INDEX.yaml, and the documents of each case.
//
// Each case has two network namespaces (Linux, root), so that all may have the
// ports that the documents name: the cluster is in one, its backends and the
// clients in the other.
package emissary_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"cardea/api"
	"cardea/test/cluster"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestCases plays every case of the folder, and ends with a table of them.
func TestCases(t *testing.T) {
	folder := os.Getenv("CARDEA_EMISSARY_CASES")
	if folder == "" {
		t.Skip("skipped: CARDEA_EMISSARY_CASES does not name the folder of the cases")
	}
	if os.Getuid() != 0 {
		t.Skip("skipped: the cases are played in network namespaces, which only root makes")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("skipped: ip is not installed; test/setup installs it (iproute2) on Debian as root")
	}
	if s, err := newSpace(); err != nil {
		t.Skipf("skipped: no network namespace can be made here: %v", err)
	} else {
		s.close()
	}
	index, err := readIndex(folder)
	if err != nil {
		t.Fatal(err)
	}
	if len(index.Cases) != index.CaseCount {
		t.Errorf("the index says %d cases, and has %d", index.CaseCount, len(index.Cases))
	}
	bin, err := cluster.Build(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	papers := newPapers()

	var mu sync.Mutex
	played := map[string]*tally{}
	t.Run("cases", func(t *testing.T) {
		for _, c := range index.Cases {
			t.Run(c.ID, func(t *testing.T) {
				t.Parallel()
				score := new(tally)
				mu.Lock()
				played[c.ID] = score
				mu.Unlock()
				g := &game{T: t, folder: folder, bin: bin, papers: papers, c: c, score: score}
				g.play()
			})
		}
	})
	var table strings.Builder
	fmt.Fprintf(&table, "%-56s %8s %8s\n", "case", "probes", "passed")
	var all tally
	for _, c := range index.Cases {
		score := played[c.ID]
		if score == nil {
			continue // -run chose others
		}
		fmt.Fprintf(&table, "%-56s %8d %8d\n", c.ID, score.probes, score.passed)
		all.probes, all.passed = all.probes+score.probes, all.passed+score.passed
	}
	fmt.Fprintf(&table, "%-56s %8d %8d\n", fmt.Sprintf("%d cases", len(played)), all.probes, all.passed)
	t.Logf("\n%s", table.String())
}

// A tally is how many probes of a case were played, and how many came out as they
// should.
type tally struct{ probes, passed int }

// A game is one case while it is played.
type game struct {
	*testing.T
	folder, bin string
	papers      *papers
	c           testCase
	score       *tally

	documents string // of the case, with its certificates
	objects   []object
	dir       string
	inside    *space // where the cluster is
	outside   *space // where its backends and clients are
	cluster   *cluster.Cluster
	backends  map[string]*backend // by the service's name in the documents
}

// play plays a case from its documents to its last probe.
func (g *game) play() {
	text, err := os.ReadFile(filepath.Join(g.folder, g.c.File))
	if err != nil {
		g.Fatal(err)
	}
	g.documents, err = g.papers.fill(string(text))
	if err != nil {
		g.Fatal(err)
	}
	if g.objects, err = readObjects(g.documents); err != nil {
		g.Fatal(err)
	}
	g.documents += g.missingSecrets()
	g.dir = g.TempDir()
	g.inside, g.outside = g.newSpaces()
	g.startBackends()

	first := g.documents
	if g.refusedWhole() {
		first = "" // the cluster starts without them
	}
	g.up(first)
	for i, p := range g.c.Probes {
		g.probe(fmt.Sprintf("probe %d", i+1), func() error { return g.playProbe(i, p) })
	}
	if more := extra[g.c.ID]; more != nil {
		more(g)
	}
	g.checkAgrees()
}

// probe counts what f comes to, and reports it.
func (g *game) probe(name string, f func() error) {
	g.Helper()
	g.score.probes++
	if err := f(); err != nil {
		g.Errorf("%s: %v", name, err)
		return
	}
	g.score.passed++
}

// The addresses of a case: the cluster's, and those of the clients and backends.
const (
	listen       = "127.0.0.1:7443"
	clusterHost  = "10.77.0.1"
	clusterHost6 = "fd77::1"
	clientHost   = "10.77.0.2"
)

// up starts the cluster in its own namespace with documents, and the addresses of
// the backends in its ClusterConfig.
func (g *game) up(documents string) {
	hosts := map[string][]string{}
	for _, b := range g.backends {
		name, namespace, _ := strings.Cut(b.service, ".")
		if namespace == "" {
			hosts[name] = []string{b.host}
			namespace = "default"
		}
		hosts[name+"."+namespace] = []string{b.host}
	}
	spec := map[string]any{"dns": map[string]any{"hosts": hosts}}
	for _, o := range g.objects {
		if to, ok := o.Spec["service"].(string); ok && strings.HasPrefix(to, "localhost:") {
			// One mapping leads to another's port. That an upstream may be the cluster
			// itself has to be said.
			spec["upstream"] = map[string]any{"allow": []string{"127.0.0.1/32"}}
		}
	}
	config, err := json.Marshal(map[string]any{"kind": api.KindClusterConfig, "metadata": map[string]any{"name": api.ClusterConfigName}, "spec": spec})
	if err != nil {
		g.Fatal(err)
	}
	given := filepath.Join(g.dir, "given")
	if err := errors.Join(os.Mkdir(given, 0o700), os.WriteFile(filepath.Join(given, "cluster.yaml"), config, 0o600),
		os.WriteFile(filepath.Join(given, "case.yaml"), []byte(documents), 0o600)); err != nil {
		g.Fatal(err)
	}
	g.cluster = &cluster.Cluster{Bin: g.bin, Dir: g.dir, Listen: listen, Args: []string{"-f", given, "--ambassador-namespace", g.namespace()}}
	ctx, cancel := context.WithTimeout(g.Context(), time.Minute)
	defer cancel()
	if err := g.inside.do(func() error { return g.cluster.Start(ctx) }); err != nil {
		g.Fatal(err)
	}
	g.Cleanup(func() {
		if err := g.cluster.Stop(context.WithoutCancel(ctx)); err != nil {
			g.Errorf("the cluster ended with: %v", err)
		}
	})
}

// run runs the program where the cluster is, as root.
func (g *game) run(stdin string, args ...string) (out string, err error) {
	err = g.inside.do(func() error {
		out, err = g.cluster.Run(g.Context(), "root", strings.NewReader(stdin), args...)
		return err
	})
	return out, err
}

// refusedWhole reports whether the documents are ones that apply refuses.
func (g *game) refusedWhole() bool {
	return slices.ContainsFunc(g.c.Probes, func(p probe) bool {
		for _, want := range p.Diagnostics {
			if strings.Contains(fmt.Sprint(want), "in body is required") {
				return true
			}
		}
		return false
	})
}

// missingSecrets returns the Secrets that contexts of the case name and its
// documents lack: those of the documentation's examples.
func (g *game) missingSecrets() (documents string) {
	var there, named []string
	for _, o := range g.objects {
		switch o.Kind {
		case api.KindSecret:
			there = append(there, o.Metadata.Name)
		case api.KindTLSContext:
			if name, ok := o.Spec["secret"].(string); ok && strings.HasPrefix(g.c.ID, "doc-") && !slices.Contains(named, name) {
				named = append(named, name)
			}
		}
	}
	for _, name := range named {
		if slices.Contains(there, name) {
			continue
		}
		p := g.papers.of(name)
		documents += fmt.Sprintf("---\napiVersion: v1\nkind: Secret\ntype: kubernetes.io/tls\nmetadata: {name: %s, namespace: default}\nstringData:\n  tls.crt: %q\n  tls.key: %q\n", name, p.certificatePEM(), p.keyPEM())
	}
	return documents
}

// statuses returns how it stands with each Object of the kinds of which routes are
// made, by KIND NAME.NAMESPACE; get says it of a running cluster.
func (g *game) statuses() (map[string]*api.RouteStatus, error) {
	all := map[string]*api.RouteStatus{}
	for _, kind := range []string{api.KindTCPMapping, api.KindTLSContext, api.KindHost, api.KindListener} {
		out, err := g.run("", "get", kind, "-o", "json")
		if err != nil {
			return nil, err
		}
		var list struct {
			Items []struct {
				api.Head
				Status *api.RouteStatus `json:"status"`
			} `json:"items"`
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return nil, fmt.Errorf("get %s -o json: %w", kind, err)
		}
		for _, x := range list.Items {
			if x.Status == nil {
				x.Status = new(api.RouteStatus)
			}
			all[kind+" "+x.Metadata.Name+"."+x.Metadata.Namespace] = x.Status
		}
	}
	return all, nil
}

// said returns all that a status says, in one text.
func said(s *api.RouteStatus) string {
	if s == nil {
		return "nothing"
	}
	var b strings.Builder
	for _, c := range s.Conditions {
		fmt.Fprintf(&b, "%s=%s %s %s; ", c.Type, c.Status, c.Reason, c.Message)
	}
	return b.String() + strings.Join(s.Notes, "; ")
}

// checkAgrees fails if the documents, checked offline, are said to be in order and
// the cluster says that one of them is not, or the other way round. What only a
// running cluster can know (whether a port is open, whether an upstream verifies)
// is left out.
func (g *game) checkAgrees() {
	if g.refusedWhole() {
		return
	}
	online, err := g.statuses()
	if err != nil {
		g.Errorf("the statuses: %v", err)
		return
	}
	out, err := g.check(filepath.Join(g.dir, "given"))
	if err != nil {
		g.Errorf("check -f: %v", err)
		return
	}
	for _, name := range slices.Sorted(maps.Keys(online)) {
		for _, c := range online[name].Conditions {
			says := c.Message
			if secret, _, ok := strings.Cut(says, ", which is not there"); ok { // told once, with all that need it
				says = secret[strings.LastIndex(secret, "Secret "):] + " is not there"
			}
			if c.Status == "False" && (c.Type == api.ConditionAccepted || c.Type == api.ConditionResolved) && !strings.Contains(out, c.Message) && !strings.Contains(out, says) {
				g.Errorf("get says of %s %q, and check -f does not:\n%s", name, c.Message, out)
			}
		}
	}
}

// namespace is that of documents which name none. Those that are only read and written
// back have some names twice, once with the namespace default: they are two there.
func (g *game) namespace() string {
	if strings.HasPrefix(g.c.ID, "crd-") {
		return "none"
	}
	return "default"
}

// check runs check -f on a path, and returns all that it prints. It fails only if
// it could not be run.
func (g *game) check(path string) (string, error) {
	cmd := exec.CommandContext(g.Context(), g.bin, "check", "-f", path)
	cmd.Env = append(os.Environ(), "CARDEA_HOME="+filepath.Join(g.dir, "home-nobody"), "AMBASSADOR_NAMESPACE="+g.namespace())
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() > 0 {
		err = nil
	}
	return string(out), err
}
