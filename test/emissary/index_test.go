package emissary_test

import (
	"fmt"
	"os"
	"path/filepath"

	"go.yaml.in/yaml/v4"

	"cardea/api"
)

// An index is INDEX.yaml. A field that is not known here is an error: what nobody
// plays must not look as if it had been played.
type index struct {
	Meta      any        `yaml:"meta"`
	CaseCount int        `yaml:"case_count"`
	Cases     []testCase `yaml:"cases"`
}

// A testCase is documents, and what clients must find.
type testCase struct {
	ID       string    `yaml:"id"`
	File     string    `yaml:"file"`
	Title    string    `yaml:"title"`
	Origin   string    `yaml:"origin"`
	Upstream string    `yaml:"upstream_test_status"`
	Backends []service `yaml:"backends"`
	Probes   []probe   `yaml:"probes"`
	Note     string    `yaml:"note"`
	// Recommended is what we do where the original is wrong; see overrides.
	Recommended string `yaml:"recommended_for_clone"`
	Observed    any    `yaml:"emissary_observed_config"`
}

// A service is a backend, and what it speaks on each port, in words.
type service struct {
	Service string         `yaml:"service"`
	Ports   map[int]string `yaml:"ports"`
}

// A probe is one thing that is tried.
type probe struct {
	Connect *connect `yaml:"connect"`
	Expect  expect   `yaml:"expect"`
	// Diagnostics are what the original says of an Object, by NAME.NAMESPACE.1.
	Diagnostics map[string]any `yaml:"assert_diagnostics"`
	Config      *configuration `yaml:"assert_config"`
	Assert      string         `yaml:"assert"` // in words; see assertions
}

// connect says how a client connects.
type connect struct {
	Port          int     `yaml:"port"`
	TLS           bool    `yaml:"tls"`
	SNI           string  `yaml:"sni"`
	From          string  `yaml:"from"`
	Count         int     `yaml:"count"`
	NewConnection bool    `yaml:"new_connection_each"`
	Concurrent    int     `yaml:"concurrent"`
	Send          string  `yaml:"send"`
	ClientCert    *string `yaml:"client_cert"`
	MinVersion    string  `yaml:"min_version"` // TLS1.3
	MaxVersion    string  `yaml:"max_version"`
	Versions      string  `yaml:"versions"` // 1.0-1.1
	Ciphers       string  `yaml:"ciphers"`
	Curves        string  `yaml:"curves"`
}

// expect says what a client must find.
type expect struct {
	Backend           string         `yaml:"backend"` // NAME or NAME:PORT
	BackendSeesTLS    *bool          `yaml:"backend_sees_tls"`
	BackendSeesSNI    string         `yaml:"backend_sees_sni"`
	BackendSeesClient any            `yaml:"backend_sees_client_cert"` // false, or a name
	ServerCert        string         `yaml:"server_cert"`              // begins with a name
	Negotiated        string         `yaml:"negotiated"`               // begins with a version
	HTTPStatus        int            `yaml:"http_status"`
	Request           string         `yaml:"request"` // GET /path
	Bytes             string         `yaml:"bytes"`
	Errors            []string       `yaml:"error_any_of"`
	Split             map[string]int `yaml:"split"`
	Tolerance         int            `yaml:"tolerance"`
	Failures          *int           `yaml:"failures"`
	FailuresBetween   []int          `yaml:"failures_between_exclusive"`
	Why               string         `yaml:"why"`
	Note              string         `yaml:"note"`
	// What follows says how the client connects, in the place where the index has it.
	ClientCert     string `yaml:"client_cert"`
	ClientVersions string `yaml:"client_versions"`
	ClientCiphers  string `yaml:"client_ciphers"`
}

// A configuration is what the original's configuration must be like.
type configuration struct {
	Listeners int            `yaml:"listener_count"`
	Prefixes  map[int]string `yaml:"stat_prefix_by_port"`
	Filters   map[int]int    `yaml:"tcp_filters_per_listener"`
}

func readIndex(folder string) (*index, error) {
	if !filepath.IsAbs(folder) {
		return nil, fmt.Errorf("CARDEA_EMISSARY_CASES must be an absolute path, found %q", folder)
	}
	b, err := os.ReadFile(filepath.Join(folder, "INDEX.yaml"))
	if err != nil {
		return nil, err
	}
	x := new(index)
	return x, yaml.Load(b, x, yaml.WithKnownFields())
}

// An object is what any document of a case has.
type object struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string `yaml:"kind"`
	Metadata   struct {
		Name      string `yaml:"name"`
		Namespace string `yaml:"namespace"`
	} `yaml:"metadata"`
	Spec map[string]any `yaml:"spec"`
}

func (o object) String() string {
	return fmt.Sprintf("%s %s.%s", o.Kind, o.Metadata.Name, o.Metadata.Namespace)
}

// ours reports whether it is one of the Objects that Cardea keeps.
func (o object) ours() bool {
	group, _ := api.GroupOf(o.APIVersion)
	_, ok := api.KindIn(group, o.Kind)
	return ok
}

func readObjects(text string) (list []object, err error) {
	return list, yaml.Load([]byte(text), &list, yaml.WithAllDocuments())
}
