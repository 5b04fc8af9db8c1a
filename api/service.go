package api

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
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
	ModeAPI Mode = "API"
)

// Values implements Enum.
func (Mode) Values() []string { return []string{string(ModeTCP)} }

// Later implements LaterEnum.
func (Mode) Later() []string {
	return []string{"UDP", "HTTP", "WEB", "GRPC", "SSH", "KUBERNETES", "POSTGRES", "MYSQL", "DNS", "SOCKS5", "RDP_WEB", "MCP", "LLM"}
}

// ServiceSpec is what an administrator sets.
type ServiceSpec struct {
	Mode Mode `json:"mode"`
	// Port is the Service's own: any number of Services may have the same. Left
	// out, it comes from the upstream's URL.
	Port          int            `json:"port,omitempty"`
	IsDisabled    bool           `json:"isDisabled,omitempty"` // a disabled Service refuses everyone
	Region        string         `json:"region,omitempty"`
	Authorization Authorization  `json:"authorization,omitzero"`
	Config        *ServiceConfig `json:"config,omitempty"`
	DynamicConfig *DynamicConfig `json:"dynamicConfig,omitempty"`
	Attrs         Attrs          `json:"attrs,omitempty"`
	IsPublic      NotYet         `json:"isPublic,omitzero"`
	IsAnonymous   NotYet         `json:"isAnonymous,omitzero"`
	IsTLS         NotYet         `json:"isTLS,omitzero"`
	Deployment    NotYet         `json:"deployment,omitzero"`
}

// DefaultConfig is the name of spec.config in decisions and logs.
const DefaultConfig = "default"

// A ServiceConfig says how a Service's upstream is reached. spec.config has the
// name "default".
type ServiceConfig struct {
	Name              string   `json:"name,omitempty"`
	Upstream          Upstream `json:"upstream"`
	Parent            NotYet   `json:"parent,omitzero"`
	TLS               NotYet   `json:"tls,omitzero"`
	ClientCertificate NotYet   `json:"clientCertificate,omitzero"`
	HTTP              NotYet   `json:"http,omitzero"`
	SSH               NotYet   `json:"ssh,omitzero"`
	Postgres          NotYet   `json:"postgres,omitzero"`
	MySQL             NotYet   `json:"mysql,omitzero"`
	Kubernetes        NotYet   `json:"kubernetes,omitzero"`
}

// An Upstream is where the traffic of a Service goes.
type Upstream struct {
	URL         string `json:"url"` // tcp://HOST:PORT
	Loadbalance NotYet `json:"loadbalance,omitzero"`
	User        NotYet `json:"user,omitzero"`
	Container   NotYet `json:"container,omitzero"`
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
	if c := s.Spec.Config; c != nil && s.Status.Port == 0 {
		if _, port, err := c.Upstream.HostPort(); err == nil {
			s.Status.Port = port
		}
	}
}

// Config returns the config of that name, and nil if there is none.
func (s *Service) Config(name string) *ServiceConfig {
	if name == DefaultConfig {
		return s.Spec.Config
	}
	if d := s.Spec.DynamicConfig; d != nil {
		for i := range d.Configs {
			if d.Configs[i].Name == name {
				return &d.Configs[i]
			}
		}
	}
	return nil
}

// HostPort returns the host and the port of an upstream's URL. The error says
// what is wrong with it, without repeating the URL.
func (u *Upstream) HostPort() (host string, port int, err error) {
	const want = "must be tcp://HOST:PORT"
	p, err := url.Parse(u.URL)
	switch {
	case u.URL == "":
		return "", 0, fmt.Errorf("is required: tcp://HOST:PORT")
	case err != nil || p.Opaque != "" || p.Hostname() == "":
		return "", 0, fmt.Errorf("%s", want)
	case slices.Contains([]string{"tls", "https", "ssh", "postgres", "postgresql", "mysql", "redis", "http", "udp", "quic"}, p.Scheme):
		return "", 0, fmt.Errorf("%s: the scheme %s is not yet available", want, p.Scheme)
	case p.Scheme != "tcp":
		return "", 0, fmt.Errorf("%s: the scheme must be tcp", want)
	case p.User != nil || p.RawQuery != "" || p.Fragment != "" || (p.Path != "" && p.Path != "/"):
		return "", 0, fmt.Errorf("%s: no user, path, query or fragment", want)
	case p.Port() == "":
		return "", 0, fmt.Errorf("%s: the port is missing", want)
	}
	port, err = strconv.Atoi(p.Port())
	if err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("%s: the port must be from 1 to 65535", want)
	}
	if !validHost(p.Hostname()) {
		return "", 0, fmt.Errorf("%s: HOST must be a DNS name or an IP address", want)
	}
	return p.Hostname(), port, nil
}

// Address returns the upstream as HOST:PORT, or "" if its URL is not valid.
func (u *Upstream) Address() string {
	h, p, err := u.HostPort()
	if err != nil {
		return ""
	}
	return net.JoinHostPort(h, strconv.Itoa(p))
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

// maxConfigs is the most configs, and rules, that a dynamicConfig may have.
const maxConfigs = 1000

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
	s.Spec.Authorization.validate(p, "/spec/authorization")
	if s.Spec.Config == nil {
		p.Add("/spec/config", "is required", "")
	} else {
		if n := s.Spec.Config.Name; n != DefaultConfig {
			p.Add("/spec/config/name", "must be \"default\" or left out", n)
		}
		s.Spec.Config.validate(p, "/spec/config")
	}
	if s.Spec.DynamicConfig != nil {
		s.Spec.DynamicConfig.validate(p, "/spec/dynamicConfig")
	}
}

func (c *ServiceConfig) validate(p *Problems, at string) {
	if _, _, err := c.Upstream.HostPort(); err != nil {
		p.Add(at+"/upstream/url", err.Error(), c.Upstream.URL)
	}
}

func (d *DynamicConfig) validate(p *Problems, at string) {
	if len(d.Configs) > maxConfigs {
		p.Add(at+"/configs", fmt.Sprintf("must be at most %d", maxConfigs), strconv.Itoa(len(d.Configs)))
	}
	if len(d.Rules) > maxConfigs {
		p.Add(at+"/rules", fmt.Sprintf("must be at most %d", maxConfigs), strconv.Itoa(len(d.Rules)))
	}
	names := []string{DefaultConfig}
	for i := range d.Configs {
		c, at := &d.Configs[i], fmt.Sprintf("%s/configs/%d", at, i)
		switch {
		case c.Name == "":
			p.Add(at+"/name", "is required", "")
		case !validLabel(c.Name):
			p.Add(at+"/name", labelRule, c.Name)
		case slices.Contains(names, c.Name):
			p.Add(at+"/name", "must not be there twice; spec.config has the name \"default\"", c.Name)
		}
		names = append(names, c.Name)
		c.validate(p, at)
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
				if c := o.(*Service).Spec.Config; c != nil {
					return c.Upstream.URL
				}
				return ""
			}},
			{Heading: "DISABLED", Wide: true, Cell: func(o Object) string { return yes(o.(*Service).Spec.IsDisabled) }},
		}}
}
