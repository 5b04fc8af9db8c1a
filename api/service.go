package api

import (
	"cmp"
	"crypto/x509"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Service is one protected resource.
type Service struct {
	Head
	Spec   ServiceSpec   `json:"spec"`
	Status ServiceStatus `json:"status,omitzero"`
}

// Mode is the protocol that a Service speaks.
type Mode string

// The modes. ModeAPI is the mode of Cardea's own API and of no other Service.
const (
	ModeTCP Mode = "TCP"
	ModeUDP Mode = "UDP" // each flow, the datagrams of one source, is a connection
	ModeAPI Mode = "API"
)

// Values implements Enum.
func (Mode) Values() []string { return []string{string(ModeTCP), string(ModeUDP)} }

// Later implements LaterEnum.
func (Mode) Later() []string {
	return []string{"HTTP", "WEB", "GRPC", "SSH", "KUBERNETES", "POSTGRES", "MYSQL", "DNS", "SOCKS5", "RDP_WEB", "MCP", "LLM"}
}

// ServiceSpec is what an administrator sets.
type ServiceSpec struct {
	Mode Mode `json:"mode"`
	// Port is the Service's own: any number of Services may have the same. Left
	// out, it comes from the upstream's URL.
	Port       int  `json:"port,omitempty"`
	IsDisabled bool `json:"isDisabled,omitempty"` // a disabled Service refuses everyone
	// IsPublic opens the port of the Service itself. Without IsAnonymous it needs
	// IsTLS, and who comes shows the certificate of a Session.
	IsPublic bool `json:"isPublic,omitempty"`
	// IsAnonymous lets in who has no Session: everybody, or with
	// authorization.enableAnonymous whom policies allow.
	IsAnonymous bool `json:"isAnonymous,omitempty"`
	// IsTLS makes the public port speak TLS, with a certificate of the cluster's CA
	// unless public.certificate names another.
	IsTLS bool `json:"isTLS,omitempty"`
	// Public says where the public port is, and what of its traffic is the Service's.
	Public        *ServicePublic `json:"public,omitempty"`
	Region        string         `json:"region,omitempty"`
	Authorization Authorization  `json:"authorization,omitzero"`
	Config        *ServiceConfig `json:"config,omitempty"`
	DynamicConfig *DynamicConfig `json:"dynamicConfig,omitempty"`
	Limits        *ServiceLimits `json:"limits,omitempty"`
	Attrs         Attrs          `json:"attrs,omitempty"`
	// Deployment has no effect yet: one process serves every Service.
	Deployment *Deployment `json:"deployment,omitempty"`
}

// ServiceLimits bound the connections of a Service; what is left out is not
// bounded, but for ConnectionsPerSecond.
type ServiceLimits struct {
	Connections           int `json:"connections,omitempty"`           // live at once
	ConnectionsPerSession int `json:"connectionsPerSession,omitempty"` // live at once, of one Session; of who has none, of one source network (an address of IPv4, a /64 of IPv6)
	// PendingConnections is how many connections may wait until there is one less than
	// connections, and PendingTimeout for how long: 5 seconds.
	PendingConnections int       `json:"pendingConnections,omitempty"`
	PendingTimeout     *Duration `json:"pendingTimeout,omitempty"`
	// ConnectionsPerSecond is how many new connections a second one source network
	// (an address of IPv4, a /64 of IPv6) may open at the public port; 200 if it is
	// left out. Twice as many may come at once. More are reset before anything is
	// decided, and recorded as refusals with a count: each connection that is let in
	// is two records of the access log, so without a bound a stranger fills the log
	// until retention drops what is older. It has no effect without isPublic. With mode
	// UDP, where anybody can say that he is anybody else, all sources together may open
	// five times as many.
	ConnectionsPerSecond int `json:"connectionsPerSecond,omitempty"`
	// IdleTimeout ends a connection on which nothing passed for so long; 60 seconds with
	// mode UDP if it is left out, as nothing else tells that a client has gone.
	IdleTimeout *Duration `json:"idleTimeout,omitempty"`
	// HalfCloseTimeout ends a connection of which one side has finished and the
	// other says nothing for so long.
	HalfCloseTimeout *Duration `json:"halfCloseTimeout,omitempty"`
	// MaxDuration ends a connection that has lasted so long.
	MaxDuration *Duration `json:"maxDuration,omitempty"`
	// MaxBytes ends a connection that has carried so many bytes, of both directions
	// together. It is looked at some times a second: what passes meanwhile is over it.
	MaxBytes int `json:"maxBytes,omitempty"`
	// UploadBytesPerSecond and DownloadBytesPerSecond are how fast one connection may
	// carry bytes to the upstream, and from it. A quarter of a second's worth may pass
	// at once.
	UploadBytesPerSecond   int `json:"uploadBytesPerSecond,omitempty"`
	DownloadBytesPerSecond int `json:"downloadBytesPerSecond,omitempty"`
}

// DefaultConnectionsPerSecond is what ServiceLimits.ConnectionsPerSecond is if it
// is left out.
const DefaultConnectionsPerSecond = 200

// Rate returns how many new connections a second one source network may open at
// the public port. l may be nil.
func (l *ServiceLimits) Rate() int {
	if l == nil || l.ConnectionsPerSecond == 0 {
		return DefaultConnectionsPerSecond
	}
	return l.ConnectionsPerSecond
}

// Deployment says how a Service is run.
type Deployment struct {
	Replicas int `json:"replicas,omitempty"`
}

// DefaultConfig is the name of spec.config in decisions and logs.
const DefaultConfig = "default"

// A ServiceConfig says how a Service's upstream is reached. spec.config has the
// name "default".
type ServiceConfig struct {
	Name string `json:"name,omitempty"`
	// Parent names the config from which this one takes what it leaves out.
	Parent   string   `json:"parent,omitempty"`
	Upstream Upstream `json:"upstream,omitzero"`
	// TLS says how TLS to the upstream is spoken; it is spoken if this, or
	// clientCertificate, is there, or the URL says so.
	TLS *UpstreamTLS `json:"tls,omitempty"`
	// ClientCertificate is the older form of tls.clientCertificate.
	ClientCertificate *ClientCertificateSource `json:"clientCertificate,omitempty"`
	HTTP              NotYet                   `json:"http,omitzero"`
	SSH               NotYet                   `json:"ssh,omitzero"`
	Postgres          NotYet                   `json:"postgres,omitzero"`
	MySQL             NotYet                   `json:"mysql,omitzero"`
	Kubernetes        NotYet                   `json:"kubernetes,omitzero"`
	SOCKS5            NotYet                   `json:"socks5,omitzero"`
	RDP               NotYet                   `json:"rdp,omitzero"`
	MCP               NotYet                   `json:"mcp,omitzero"`
	LLM               NotYet                   `json:"llm,omitzero"`
}

// An Upstream is where the traffic of a Service goes: one URL, or several
// endpoints.
type Upstream struct {
	// URL is tcp://HOST:PORT, tls://HOST:PORT, or one whose scheme is that of a
	// protocol over TCP, as postgres://HOST, and then says the port; with mode UDP it is
	// udp://HOST:PORT, or dns://HOST, whose port is 53. A HOST that begins
	// with "_", as _pg._tcp.db.example.com, is a name of SRV records (RFC 2782), which
	// say hosts and ports; a port in the URL does not count then.
	URL         string       `json:"url,omitempty"`
	Loadbalance *Loadbalance `json:"loadbalance,omitempty"`
	// ConnectTimeout bounds the time until a connection, TLS included, is there;
	// 10 seconds if it is left out.
	ConnectTimeout *Duration `json:"connectTimeout,omitempty"`
	// ProxyProtocol is the version of the header by which the upstream is told who
	// the client is, before anything else, TLS included.
	ProxyProtocol ProxyVersion `json:"proxyProtocol,omitempty"`
	// StartTLS is the protocol in which TLS to the upstream is asked for before it is
	// spoken: by us, if the config says TLS; else for a client whose TLS goes through.
	StartTLS StartTLS `json:"startTLS,omitempty"`
	// Families are the address families of the host's name that are used, IPv4 and
	// IPv6, the preferred first; left out, both as RFC 8305 has it.
	Families []IPFamily `json:"families,omitempty"`
	// Health says how it is found out which endpoints, and which addresses of their
	// names, serve.
	Health *UpstreamHealth `json:"health,omitempty"`
	// User names the User whose connected Sessions serve the upstream (connect --serve):
	// the connections travel through one of them, and URL, or each endpoint that names
	// no User of its own, says where the upstream is as that device sees it. Among the
	// Sessions one with the fewest connections is taken, unless loadbalance.algorithm
	// says otherwise.
	User      string `json:"user,omitempty"`
	Container NotYet `json:"container,omitzero"`
}

// IPFamily is a family of addresses.
type IPFamily string

// The values of IPFamily.
const (
	IPv4 IPFamily = "IPv4"
	IPv6 IPFamily = "IPv6"
)

// Values implements Enum.
func (IPFamily) Values() []string { return []string{string(IPv4), string(IPv6)} }

// Loadbalance says among which endpoints of an upstream its connections are shared,
// and how. When a connection to one cannot be made, another is tried.
type Loadbalance struct {
	// Endpoints are the places of the upstream. They may be left out where there is a
	// URL: then the addresses of its name are shared among.
	Endpoints []UpstreamEndpoint `json:"endpoints,omitempty"`
	// Algorithm is ROUND_ROBIN if it is left out; but among Sessions (user) those with the
	// fewest connections take turns then.
	Algorithm Balance `json:"algorithm,omitempty"`
	// SlowStart is how long an endpoint that has become healthy gets fewer connections
	// than its share: a tenth at first, then more and more.
	SlowStart *Duration `json:"slowStart,omitempty"`
	// Retries is how many other endpoints, or addresses, are tried when one fails; all
	// that there are if it is left out.
	Retries *int `json:"retries,omitempty"`
}

// An UpstreamEndpoint is one of several places of an upstream.
type UpstreamEndpoint struct {
	URL string `json:"url"`
	// Weight is its share, 1 to 1000; 1 if it is left out. With 0 it gets no new
	// connections, and keeps those that it has.
	Weight *int `json:"weight,omitempty"`
	// Backup is an endpoint that gets connections only while none of the others serves.
	Backup bool `json:"backup,omitempty"`
	// MaxConnections is how many connections it may have at once. When all have as many
	// as they may, a connection waits for a place until connectTimeout is over.
	MaxConnections int `json:"maxConnections,omitempty"`
	// User names the User whose Sessions serve this endpoint; that of the upstream if it
	// is left out. A User can serve one endpoint.
	User string `json:"user,omitempty"`
}

// UpstreamTLS says how TLS to an upstream is spoken. Its certificate is verified
// against TrustedCAs if there are any, else against those of the system.
type UpstreamTLS struct {
	TrustedCAs         []string `json:"trustedCAs,omitempty"`         // PEM
	AppendToSystemPool bool     `json:"appendToSystemPool,omitempty"` // trust TrustedCAs beside those of the system
	// ServerName is the name that is asked for and verified; the host of the URL
	// if it is left out.
	ServerName string `json:"serverName,omitempty"`
	// InsecureSkipVerify accepts any certificate: whoever stands in between reads
	// and writes everything. Each write and `why` warn of it.
	InsecureSkipVerify bool                     `json:"insecureSkipVerify,omitempty"`
	ClientCertificate  *ClientCertificateSource `json:"clientCertificate,omitempty"`
	// ALPN lists the protocols that are offered to the upstream.
	ALPN []string `json:"alpn,omitempty"`
	TLSTerms
	// What follows is of foreign Objects: where their certificates and CAs are, and
	// what becomes of a connection whose upstream does not verify.
	Own          *Material    `json:"own,omitempty" cardea:"internal"`
	CA           *Material    `json:"ca,omitempty" cardea:"internal"`
	CRL          *Material    `json:"crl,omitempty" cardea:"internal"`
	Verification Verification `json:"verification,omitempty" cardea:"internal"`
}

// ClientCertificateSource says where the certificate is by which Cardea shows
// itself to the upstream.
type ClientCertificateSource struct {
	// FromSecret names a Secret with a certificate chain and its key, PEM.
	FromSecret string `json:"fromSecret"`
	// TrustedCAs is of the older form: PEM of what the upstream is verified against.
	TrustedCAs []string `json:"trustedCAs,omitempty"`
}

// DynamicConfig chooses among several configs.
type DynamicConfig struct {
	Configs []ServiceConfig `json:"configs,omitempty"`
	// Rules are tried from the top; the first that matches names the config. If
	// none does, it is spec.config; if one cannot be evaluated, the request is denied.
	Rules []ConfigRule `json:"rules,omitempty"`
}

// A ConfigRule names the config of the requests that its condition matches.
type ConfigRule struct {
	Condition  Condition `json:"condition"`
	ConfigName string    `json:"configName,omitempty"`
	Eval       NotYet    `json:"eval,omitzero"`
	OPA        NotYet    `json:"opa,omitzero"`
}

// ServiceStatus is what the cluster knows of it.
type ServiceStatus struct {
	Port int `json:"port,omitempty"` // the one in force
	// Addresses are those of the Service in the private network. They are given when it
	// is made, and stay until it is deleted.
	Addresses Addresses `json:"addresses,omitzero"`
	// NoEffect lists the fields of spec that are kept and have no effect yet.
	NoEffect []string `json:"noEffect,omitempty"`
	// Conditions say how the Service does in this process; they are not stored.
	Conditions []StatusCondition `json:"conditions,omitempty"`
	// Endpoints say how the endpoints of its upstreams do in this process, where that
	// is known; they are not stored.
	Endpoints []EndpointStatus `json:"endpoints,omitempty"`
}

// A StatusCondition says one thing of the state of an Object.
type StatusCondition struct {
	Type    string    `json:"type"`             // "Listening"
	Status  string    `json:"status"`           // "True" or "False"
	Reason  string    `json:"reason,omitempty"` // in one word, for programs
	Message string    `json:"message,omitempty"`
	Since   time.Time `json:"since,omitzero"`
}

// Default implements Object.
func (s *Service) Default() {
	s.APIVersion, s.Kind = Version, KindService
	s.Metadata.Name = ServiceName(s.Metadata.Name)
	if s.Spec.Region == "" {
		s.Spec.Region = "default"
	}
	if c := s.Spec.Config; c != nil && c.Name == "" {
		c.Name = DefaultConfig
	}
	s.Status.Port = s.Spec.Port
	for c := range s.configs() {
		if s.Status.Port != 0 {
			break
		}
		if e, err := c.Upstream.Endpoints(); err == nil && len(e) > 0 {
			s.Status.Port = e[0].Port
		}
	}
	s.Status.NoEffect = nil
	if s.Spec.Deployment != nil {
		s.Status.NoEffect = []string{"spec.deployment"}
	}
}

// configs yields the configs, spec.config first.
func (s *Service) configs() iter.Seq[*ServiceConfig] {
	return func(yield func(*ServiceConfig) bool) {
		if s.Spec.Config != nil && !yield(s.Spec.Config) {
			return
		}
		if d := s.Spec.DynamicConfig; d != nil {
			for i := range d.Configs {
				if !yield(&d.Configs[i]) {
					return
				}
			}
		}
	}
}

// ConfigNames yields the names of the configs, that of spec.config first.
func (s *Service) ConfigNames() iter.Seq[string] {
	return func(yield func(string) bool) {
		for c := range s.configs() {
			if !yield(c.Name) {
				return
			}
		}
	}
}

// Config returns the config of that name as it is written, and nil if there is none.
func (s *Service) Config(name string) *ServiceConfig {
	for c := range s.configs() {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// EffectiveConfig returns the config of that name with what it takes from its
// parents, and nil if there is none. What it shares with s must not be written to.
func (s *Service) EffectiveConfig(name string) *ServiceConfig {
	c := s.Config(name)
	if c == nil {
		return nil
	}
	out := *c
	seen := []string{name}
	for up := s.Config(c.Parent); up != nil && !slices.Contains(seen, up.Name); up = s.Config(up.Parent) {
		seen = append(seen, up.Name)
		out.inherit(up)
	}
	return &out
}

// inherit takes from p what c leaves out: field by field, but for the place of
// the upstream (url or loadbalance), which is taken whole or not at all. Lists of
// CAs are joined.
func (c *ServiceConfig) inherit(p *ServiceConfig) {
	u, pu := &c.Upstream, &p.Upstream
	if u.URL == "" && u.Loadbalance == nil {
		u.URL, u.Loadbalance, u.User = pu.URL, pu.Loadbalance, cmp.Or(u.User, pu.User)
	}
	if u.ConnectTimeout == nil {
		u.ConnectTimeout = pu.ConnectTimeout
	}
	u.ProxyProtocol = cmp.Or(u.ProxyProtocol, pu.ProxyProtocol)
	u.StartTLS = cmp.Or(u.StartTLS, pu.StartTLS)
	if u.Families == nil {
		u.Families = pu.Families
	}
	if u.Health == nil {
		u.Health = pu.Health
	}
	if c.ClientCertificate == nil {
		c.ClientCertificate = p.ClientCertificate
	}
	if p.TLS == nil {
		return
	}
	if c.TLS == nil {
		c.TLS = p.TLS
		return
	}
	t := *c.TLS
	t.TrustedCAs = slices.Concat(p.TLS.TrustedCAs, t.TrustedCAs)
	t.AppendToSystemPool = t.AppendToSystemPool || p.TLS.AppendToSystemPool
	t.ServerName = cmp.Or(t.ServerName, p.TLS.ServerName)
	if t.ALPN == nil {
		t.ALPN = p.TLS.ALPN
	}
	t.inherit(p.TLS.TLSTerms)
	t.InsecureSkipVerify = t.InsecureSkipVerify || p.TLS.InsecureSkipVerify
	if t.ClientCertificate == nil {
		t.ClientCertificate = p.TLS.ClientCertificate
	}
	c.TLS = &t
}

// Certificate returns where the certificate is that the upstream is shown, nil
// if it is shown none. Of the two forms tls.clientCertificate counts first.
func (c *ServiceConfig) Certificate() *ClientCertificateSource {
	if c.TLS != nil && c.TLS.ClientCertificate != nil {
		return c.TLS.ClientCertificate
	}
	return c.ClientCertificate
}

// Secrets yields the names of the Secrets that the config uses, and the pointer
// of each within it.
func (c *ServiceConfig) Secrets() iter.Seq2[string, string] {
	return func(yield func(name, pointer string) bool) {
		if c.TLS != nil && c.TLS.ClientCertificate != nil && !yield(c.TLS.ClientCertificate.FromSecret, "/tls/clientCertificate/fromSecret") {
			return
		}
		if c.ClientCertificate != nil {
			yield(c.ClientCertificate.FromSecret, "/clientCertificate/fromSecret")
		}
	}
}

// An Endpoint is one place where an upstream can be reached.
type Endpoint struct {
	Host string // a DNS name or an IP address; one that begins with "_" is a name of SRV records
	Port int    // 0 if SRV records say it
	TLS  bool   // the URL says that TLS is spoken
	UDP  bool   // the URL says that it is reached by datagrams
	User string // whose Sessions serve it, and see Host; "" if the cluster connects to it itself

	Weight         int  // its share; at least 1
	Backup         bool // it is for when no other serves
	MaxConnections int  // at once; 0 is any number
}

// Address returns HOST:PORT, or HOST alone if SRV records say the port; and the User, if
// one serves it.
func (e Endpoint) Address() string {
	if e.Port == 0 {
		return e.Host
	}
	at := net.JoinHostPort(e.Host, strconv.Itoa(e.Port))
	if e.User != "" {
		at += " (user " + e.User + ")"
	}
	return at
}

// Endpoints returns the places of the upstream that get connections, at least one. The
// error says what is wrong with the first that is, without repeating its URL.
func (u *Upstream) Endpoints() ([]Endpoint, error) {
	if u.Loadbalance == nil || u.URL != "" {
		e, err := parseEndpoint(u.URL)
		e.Weight, e.User = 1, u.User
		return []Endpoint{e}, err
	}
	var list []Endpoint
	for _, x := range u.Loadbalance.Endpoints {
		e, err := parseEndpoint(x.URL)
		if err != nil {
			return nil, err
		}
		e.Weight, e.Backup, e.MaxConnections, e.User = 1, x.Backup, x.MaxConnections, cmp.Or(x.User, u.User)
		if x.Weight != nil {
			e.Weight = *x.Weight
		}
		if e.Weight > 0 {
			list = append(list, e)
		}
	}
	if len(list) == 0 {
		return nil, errors.New("has no endpoints")
	}
	return list, nil
}

// Address returns the first endpoint as HOST:PORT, or "" if there is none.
func (u *Upstream) Address() string {
	e, err := u.Endpoints()
	if err != nil {
		return ""
	}
	return e[0].Address()
}

// scheme returns the port that the scheme of an upstream's URL stands for, 0 if
// it stands for none, and whether TLS is spoken from the first byte.
func scheme(s string) (port int, tls, ok bool) {
	switch s {
	case "tcp":
		return 0, false, true
	case "tls":
		return 0, true, true
	case "ssh":
		return 22, false, true
	case "postgres", "postgresql":
		return 5432, false, true
	case "mysql":
		return 3306, false, true
	case "redis":
		return 6379, false, true
	case "mongodb":
		return 27017, false, true
	case "amqp":
		return 5672, false, true
	case "rdp":
		return 3389, false, true
	case "http", "ws":
		return 80, false, true
	case "https", "wss":
		return 443, true, true
	}
	return 0, false, false
}

// wantStream is what the URL of an upstream must be, but with mode UDP.
const wantStream = "must be tcp://HOST:PORT or tls://HOST:PORT"

func parseEndpoint(text string) (Endpoint, error) { return parseURL(text, wantStream) }

// parseURL is parseEndpoint for words that say what the URL must be.
func parseURL(text, want string) (Endpoint, error) {
	var none Endpoint
	p, err := url.Parse(text)
	switch {
	case text == "":
		_, form, _ := strings.Cut(want, "must be ")
		form, _, _ = strings.Cut(form, " or ")
		return none, errors.New("is required: " + form)
	case err != nil || p.Opaque != "" || p.Hostname() == "":
		return none, errors.New(want)
	case slices.Contains([]string{"quic", "h2c", "unix", "socks5", "dot"}, p.Scheme):
		return none, fmt.Errorf("%s: the scheme %s is not yet available", want, p.Scheme)
	}
	e := Endpoint{Host: p.Hostname()}
	var ok bool
	if e.Port, ok = datagramScheme(p.Scheme); ok {
		e.UDP = true
	} else if e.Port, e.TLS, ok = scheme(p.Scheme); !ok {
		return none, errors.New(want + ": the scheme must be tcp, tls or that of a protocol over TCP")
	}
	switch {
	case p.User != nil || p.RawQuery != "" || p.Fragment != "" || (p.Path != "" && p.Path != "/"):
		return none, errors.New(want + ": no user, path, query or fragment")
	case strings.HasPrefix(e.Host, "_"): // SRV records say the port
		e.Port = 0
	case p.Port() == "" && e.Port == 0:
		return none, errors.New(want + ": the port is missing")
	case p.Port() != "":
		if e.Port, err = strconv.Atoi(p.Port()); err != nil || e.Port < 1 || e.Port > 65535 {
			return none, errors.New(want + ": the port must be from 1 to 65535")
		}
	}
	if !validHost(e.Host) {
		return none, errors.New(want + ": HOST must be a DNS name or an IP address")
	}
	return e, nil
}

func validHost(h string) bool {
	if _, err := netip.ParseAddr(h); err == nil {
		return true
	}
	if len(h) > 253 {
		return false
	}
	for l := range strings.SplitSeq(strings.TrimSuffix(h, "."), ".") {
		if l == "" || len(l) > 63 || strings.Trim(strings.ToLower(l), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// Limits of a Service.
const (
	maxConfigs   = 1000 // and as many rules, of a dynamicConfig
	maxEndpoints = 100
	maxCAs       = 32
	maxReplicas  = 100
	maxWeight    = 1000
	maxRetries   = 100
	leastRate    = 1 << 10 // bytes, and bytes a second
	mostRate     = 1 << 50
)

// Validate implements Object. It does not compile expressions.
func (s *Service) Validate(p *Problems) {
	s.Metadata.validate(p, 2)
	switch s.Spec.Mode {
	case "":
		p.Add("/spec/mode", "is required", "").Allowed = s.Spec.Mode.Values()
	case ModeAPI:
		if s.Metadata.Name != APIService {
			p.Add("/spec/mode", "is reserved for "+APIService, string(s.Spec.Mode)).Allowed = s.Spec.Mode.Values()
		}
		return
	}
	if n := s.Spec.Port; n < 0 || n > 65535 {
		p.Add("/spec/port", "must be from 1 to 65535", strconv.Itoa(n))
	}
	if s.Spec.Region != "default" {
		p.Add("/spec/region", "must be \"default\": other Regions are not yet available", s.Spec.Region)
	}
	s.validatePublic(p)
	s.Spec.Authorization.validatePolicies(p, "/spec/authorization")
	s.Spec.Limits.validate(p, "/spec/limits")
	if d := s.Spec.Deployment; d != nil && (d.Replicas < 0 || d.Replicas > maxReplicas) {
		p.Add("/spec/deployment/replicas", fmt.Sprintf("must be from 0 to %d", maxReplicas), strconv.Itoa(d.Replicas))
	}
	switch c, d := s.Spec.Config, s.Spec.DynamicConfig; {
	case c != nil:
		if c.Name != DefaultConfig {
			p.Add("/spec/config/name", "must be \"default\" or left out", c.Name)
		}
		if c.Parent != "" {
			p.Add("/spec/config/parent", "must be left out: spec.config has no parent", c.Parent)
		}
		s.validateConfig(p, "/spec/config", c)
	case d == nil || len(d.Configs) == 0:
		p.Add("/spec/config", "is required, unless dynamicConfig has configs", "")
	}
	if s.Spec.DynamicConfig != nil {
		s.validateDynamic(p, "/spec/dynamicConfig")
	}
}

func (l *ServiceLimits) validate(p *Problems, at string) {
	if l == nil {
		return
	}
	for _, x := range []struct {
		name string
		n    int
	}{{"connections", l.Connections}, {"connectionsPerSession", l.ConnectionsPerSession}, {"pendingConnections", l.PendingConnections}} {
		if x.n < 0 || x.n > 1_000_000 {
			p.Add(at+"/"+x.name, "must be from 0 (no limit) to 1000000", strconv.Itoa(x.n))
		}
	}
	if n := l.ConnectionsPerSecond; n < 0 || n > 1_000_000 {
		p.Add(at+"/connectionsPerSecond", "must be from 1 to 1000000, or left out: 200", strconv.Itoa(n))
	}
	if l.PendingConnections > 0 && l.Connections == 0 {
		p.Add(at+"/pendingConnections", "needs connections: without it none has to wait", strconv.Itoa(l.PendingConnections))
	}
	if l.PendingTimeout != nil && l.PendingConnections == 0 {
		p.Add(at+"/pendingTimeout", "needs pendingConnections", l.PendingTimeout.String())
	}
	for _, x := range []struct {
		name string
		n    int
	}{{"maxBytes", l.MaxBytes}, {"uploadBytesPerSecond", l.UploadBytesPerSecond}, {"downloadBytesPerSecond", l.DownloadBytesPerSecond}} {
		if x.n != 0 && (x.n < leastRate || x.n > mostRate) {
			p.Add(at+"/"+x.name, fmt.Sprintf("must be from %d to %d bytes, or left out: no limit", leastRate, mostRate), strconv.Itoa(x.n))
		}
	}
	l.PendingTimeout.validate(p, at+"/pendingTimeout", 10*time.Millisecond, time.Hour)
	l.IdleTimeout.validate(p, at+"/idleTimeout", 100*time.Millisecond, maxDuration)
	l.HalfCloseTimeout.validate(p, at+"/halfCloseTimeout", 100*time.Millisecond, maxDuration)
	l.MaxDuration.validate(p, at+"/maxDuration", 100*time.Millisecond, maxDuration)
}

// validateConfig checks a config as it is with what it takes from its parents.
func (s *Service) validateConfig(p *Problems, at string, c *ServiceConfig) {
	u := &c.Upstream
	u.Loadbalance.Validate(p, at+"/upstream/loadbalance")
	u.Health.Validate(p, at+"/upstream/health")
	switch {
	case u.URL != "" && u.Loadbalance != nil && len(u.Loadbalance.Endpoints) > 0:
		p.Add(at+"/upstream", "must have one of url and loadbalance.endpoints", "both")
	case u.URL == "" && u.Loadbalance != nil:
		s.validateEndpoints(p, at+"/upstream/loadbalance/endpoints", u.Loadbalance.Endpoints)
	case u.URL != "" || c.Parent == "":
		if e, err := s.parseEndpoint(u.URL); err != nil {
			p.Add(at+"/upstream/url", err.Error(), u.URL)
		} else if e.Port == 0 && s.Spec.Port == 0 {
			p.Add("/spec/port", "is required: the upstream's port comes from SRV records", "")
		}
	}
	s.validateServing(p, at, c)
	if s.Spec.Mode == ModeUDP {
		s.validateDatagrams(p, at, c)
	}
	u.ConnectTimeout.validate(p, at+"/upstream/connectTimeout", 10*time.Millisecond, time.Hour)
	if f := u.Families; len(f) > 2 || len(f) == 2 && f[0] == f[1] {
		p.Add(at+"/upstream/families", "must be IPv4, IPv6 or both, each once", strconv.Itoa(len(f))).Allowed = IPFamily("").Values()
	}
	if u.StartTLS != "" && !s.speaksTLS(c) {
		p.Add(at+"/upstream/startTLS", "needs tls, or public.passthrough: nobody would speak TLS to the upstream", string(u.StartTLS))
	}
	if t := c.TLS; t != nil {
		validateCAs(p, at+"/tls/trustedCAs", t.TrustedCAs)
		if t.ServerName != "" && !validHost(t.ServerName) {
			p.Add(at+"/tls/serverName", "must be a DNS name or an IP address", t.ServerName)
		}
		if t.InsecureSkipVerify {
			p.Warn(at+"/tls/insecureSkipVerify", "the upstream is not verified: whoever stands in between reads and writes everything", "true").
				Hint = "list its CA in trustedCAs instead"
		}
		t.TLSTerms.validate(p, at+"/tls")
		validateALPN(p, at+"/tls/alpn", t.ALPN)
		t.ClientCertificate.validate(p, at+"/tls/clientCertificate")
		if t.ClientCertificate != nil && len(t.ClientCertificate.TrustedCAs) > 0 {
			p.Add(at+"/tls/clientCertificate/trustedCAs", "must be left out here", "").Hint = "use tls.trustedCAs"
		}
	}
	c.ClientCertificate.validate(p, at+"/clientCertificate")
	if c.ClientCertificate != nil && c.TLS != nil && c.TLS.ClientCertificate != nil {
		p.Add(at+"/clientCertificate", "must be left out where tls.clientCertificate is there", "")
	}
}

// speaksTLS reports whether TLS goes to the upstream of a config, ours or the
// client's.
func (s *Service) speaksTLS(c *ServiceConfig) bool {
	e := s.EffectiveConfig(c.Name)
	if e == nil { // the name is wrong, which is reported there
		e = c
	}
	list, err := e.Upstream.Endpoints()
	return err != nil || list[0].TLS || e.TLS != nil || e.Certificate() != nil || s.Spec.Public != nil && s.Spec.Public.Passthrough
}

func (s *Service) validateEndpoints(p *Problems, at string, list []UpstreamEndpoint) {
	if len(list) == 0 || len(list) > maxEndpoints {
		p.Add(at, fmt.Sprintf("must be 1 to %d", maxEndpoints), strconv.Itoa(len(list)))
	}
	first := Endpoint{}
	for i, x := range list {
		e, err := s.parseEndpoint(x.URL)
		at := fmt.Sprintf("%s/%d/url", at, i)
		switch {
		case err != nil:
			p.Add(at, err.Error(), x.URL)
		case e.Port == 0 && s.Spec.Port == 0:
			p.Add("/spec/port", "is required: the port of an endpoint comes from SRV records", "")
		case first == Endpoint{}:
			first = e
		case e.TLS != first.TLS:
			p.Add(at, "must have the scheme of the other endpoints", x.URL)
		case e.Port != first.Port && s.Spec.Port == 0:
			p.Add(at, fmt.Sprintf("must have port %d, as the others, or spec.port must be set", first.Port), x.URL)
		}
	}
}

// Validate checks what stands beside the URLs of the endpoints; at is a pointer such as
// /spec/config/upstream/loadbalance. l may be nil.
func (l *Loadbalance) Validate(p *Problems, at string) {
	if l == nil {
		return
	}
	l.SlowStart.validate(p, at+"/slowStart", time.Second, time.Hour)
	if n := l.Retries; n != nil && (*n < 0 || *n > maxRetries) {
		p.Add(at+"/retries", fmt.Sprintf("must be from 0 to %d, or left out: as many as there are others", maxRetries), strconv.Itoa(*n))
	}
	first := len(l.Endpoints) == 0
	for i, e := range l.Endpoints {
		at := fmt.Sprintf("%s/endpoints/%d", at, i)
		if w := e.Weight; w != nil && (*w < 0 || *w > maxWeight) {
			p.Add(at+"/weight", fmt.Sprintf("must be from 0 (no new connections) to %d, or left out: 1", maxWeight), strconv.Itoa(*w))
		}
		within(p, at+"/maxConnections", e.MaxConnections, 1, 1_000_000, "no limit")
		first = first || !e.Backup && (e.Weight == nil || *e.Weight != 0)
	}
	if !first {
		p.Add(at+"/endpoints", "must have one that is neither backup nor of weight 0", "")
	}
}

func validateCAs(p *Problems, at string, list []string) {
	if len(list) > maxCAs {
		p.Add(at, fmt.Sprintf("must be at most %d", maxCAs), strconv.Itoa(len(list)))
	}
	for i, text := range list {
		if !x509.NewCertPool().AppendCertsFromPEM([]byte(text)) {
			p.Add(fmt.Sprintf("%s/%d", at, i), "must be a certificate, PEM", "")
		}
	}
}

func (c *ClientCertificateSource) validate(p *Problems, at string) {
	if c == nil {
		return
	}
	if !validLabel(c.FromSecret) {
		p.Add(at+"/fromSecret", "must name a Secret with a certificate and its key", c.FromSecret)
	}
	validateCAs(p, at+"/trustedCAs", c.TrustedCAs)
}

func (s *Service) validateDynamic(p *Problems, at string) {
	d := s.Spec.DynamicConfig
	if len(d.Configs) > maxConfigs {
		p.Add(at+"/configs", fmt.Sprintf("must be at most %d", maxConfigs), strconv.Itoa(len(d.Configs)))
	}
	if len(d.Rules) > maxConfigs {
		p.Add(at+"/rules", fmt.Sprintf("must be at most %d", maxConfigs), strconv.Itoa(len(d.Rules)))
	}
	var names []string
	if s.Spec.Config != nil {
		names = []string{DefaultConfig}
	}
	for i := range d.Configs {
		c, at := &d.Configs[i], fmt.Sprintf("%s/configs/%d", at, i)
		switch {
		case c.Name == "":
			p.Add(at+"/name", "is required", "")
		case !validLabel(c.Name):
			p.Add(at+"/name", labelRule, c.Name)
		case slices.Contains(names, c.Name) || c.Name == DefaultConfig:
			p.Add(at+"/name", "must not be there twice; spec.config has the name \"default\"", c.Name)
		}
		names = append(names, c.Name)
		s.validateConfig(p, at, c)
	}
	for i := range d.Configs {
		s.validateParent(p, fmt.Sprintf("%s/configs/%d", at, i), &d.Configs[i], names)
	}
	for i := range d.Rules {
		r, at := &d.Rules[i], fmt.Sprintf("%s/rules/%d", at, i)
		r.Condition.validate(p, at+"/condition", 1)
		if r.ConfigName == "" {
			p.Add(at+"/configName", "is required", "").Allowed = names
		} else if !slices.Contains(names, r.ConfigName) {
			p.Add(at+"/configName", "must name a config of this Service", r.ConfigName).Allowed = names
		}
	}
}

// validateParent checks that the parents of a config exist and lead somewhere.
func (s *Service) validateParent(p *Problems, at string, c *ServiceConfig, names []string) {
	if c.Parent == "" {
		return
	}
	if !slices.Contains(names, c.Parent) {
		p.Add(at+"/parent", "must name a config of this Service", c.Parent).Allowed = names
		return
	}
	path := []string{c.Name}
	for up := c.Parent; up != ""; {
		if path = append(path, up); slices.Contains(path[:len(path)-1], up) {
			p.Add(at+"/parent", "must not lead back to a config below it", c.Parent).Hint = "the circle is " + strings.Join(path, " → ")
			return
		}
		parent := s.Config(up)
		if parent == nil {
			return // reported there
		}
		up = parent.Parent
	}
	if u := s.EffectiveConfig(c.Name).Upstream; u.URL == "" && u.Loadbalance == nil {
		p.Add(at+"/upstream", "is required: no parent has one either", "")
	}
}

// upstream returns the upstream of spec.config for a table.
func (s *Service) upstream() string {
	c := s.Spec.Config
	switch {
	case c == nil:
		return ""
	case c.Upstream.URL == "" && c.Upstream.Loadbalance != nil && len(c.Upstream.Loadbalance.Endpoints) > 0:
		return fmt.Sprintf("%s (and %d more)", c.Upstream.Loadbalance.Endpoints[0].URL, len(c.Upstream.Loadbalance.Endpoints)-1)
	case c.Upstream.User != "":
		return fmt.Sprintf("%s (user %s)", c.Upstream.URL, c.Upstream.User)
	}
	return c.Upstream.URL
}

// publicPlace returns where the public port is, and which server names are the
// Service's, for a table: "*:443 db.example.com". The address of one that names none
// is left out: it is that of the cluster's own listener.
func (s *Service) publicPlace() string {
	p := s.Spec.Public
	if !s.Spec.IsPublic {
		return ""
	}
	if p == nil {
		p = new(ServicePublic)
	}
	place := Bind{Address: strings.TrimPrefix(p.Address, "*"), Port: s.Status.Port, UDP: s.Spec.Mode == ModeUDP}.String()
	if p.Address == "" {
		place = strings.TrimPrefix(place, "*:")
	}
	return strings.Join(append([]string{place}, p.Hosts...), " ")
}

func serviceKind() Kind {
	return Kind{Name: KindService, Plural: "services", Short: []string{"svc"}, ByHand: true,
		New: func() Object { return new(Service) },
		Columns: []Column{
			{Heading: "MODE", Cell: func(o Object) string { return string(o.(*Service).Spec.Mode) }},
			{Heading: "PORT", Cell: func(o Object) string {
				if port := o.(*Service).Status.Port; port != 0 {
					return strconv.Itoa(port)
				}
				return ""
			}},
			{Heading: "UPSTREAM", Cell: func(o Object) string {
				return o.(*Service).upstream()
			}},
			{Heading: "PUBLIC", Wide: true, Cell: func(o Object) string { return o.(*Service).publicPlace() }},
			{Heading: "DISABLED", Wide: true, Cell: func(o Object) string { return yes(o.(*Service).Spec.IsDisabled) }},
			{Heading: "STATE", Cell: func(o Object) string {
				return (&RouteStatus{Conditions: o.(*Service).Status.Conditions}).Summary()
			}},
		}}
}
