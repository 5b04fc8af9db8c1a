package api

import (
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A ClusterConfig holds what is true of the whole cluster. There is one, named
// "default".
type ClusterConfig struct {
	Head
	Spec   ClusterConfigSpec   `json:"spec"`
	Status ClusterConfigStatus `json:"status,omitzero"`
}

// ClusterConfigName is the name of the only ClusterConfig.
const ClusterConfigName = "default"

// ClusterConfigSpec is what an administrator sets.
type ClusterConfigSpec struct {
	// Authorization applies to every request to every Service.
	Authorization Authorization   `json:"authorization,omitzero"`
	Session       ClusterSession  `json:"session,omitzero"`
	Device        ClusterDevice   `json:"device,omitzero"`
	DNS           ClusterDNS      `json:"dns,omitzero"`
	Upstream      ClusterUpstream `json:"upstream,omitzero"`
	Audit         ClusterAudit    `json:"audit,omitzero"`
	// Collector receives every record of the access log, as it is made.
	Collector      *Collector      `json:"collector,omitempty"`
	Attrs          Attrs           `json:"attrs,omitempty"`
	Gateway        *ClusterGateway `json:"gateway,omitempty"`
	Ingress        NotYet          `json:"ingress,omitzero"`
	Authenticator  NotYet          `json:"authenticator,omitzero"`
	Authentication NotYet          `json:"authentication,omitzero"`
	Routing        ClusterRouting  `json:"routing,omitzero"`
	Network        ClusterNetwork  `json:"network,omitzero"`
}

// ClusterSession says how long Sessions last, by the type of their User.
type ClusterSession struct {
	Human    *SessionSettings `json:"human,omitempty"`
	Workload *SessionSettings `json:"workload,omitempty"`
}

// SessionSettings say how Sessions are. What a User leaves out is that of the
// ClusterConfig; what that leaves out has a default.
type SessionSettings struct {
	// ClientDuration is how long a Session lasts: 21 hours for people, 90 days for
	// workloads.
	ClientDuration *Duration `json:"clientDuration,omitempty"`
	// AccessTokenDuration is how long a certificate of a Session is good: 4 hours.
	// It is renewed at half of that, by proof of the key.
	AccessTokenDuration *Duration `json:"accessTokenDuration,omitempty"`
	// MaxPerUser is how many Sessions a User may have: 16 for people, 128 for
	// workloads.
	MaxPerUser int `json:"maxPerUser,omitempty"`
	// DefaultState is that of a new Session: ACTIVE. A PENDING one waits for approval.
	DefaultState SessionState `json:"defaultState,omitempty"`
	// ClientlessDuration and RefreshTokenDuration have no effect: there are no
	// clientless Sessions yet, and no refresh tokens.
	ClientlessDuration   *Duration `json:"clientlessDuration,omitempty"`
	RefreshTokenDuration *Duration `json:"refreshTokenDuration,omitempty"`
}

// ClusterDevice says how Devices are registered, by the type of their User.
type ClusterDevice struct {
	Human    *DeviceSettings `json:"human,omitempty"`
	Workload *DeviceSettings `json:"workload,omitempty"`
}

// DeviceSettings say how Devices are registered.
type DeviceSettings struct {
	DefaultState DeviceState `json:"defaultState,omitempty"` // of a new Device: ACTIVE
	MaxPerUser   int         `json:"maxPerUser,omitempty"`   // 32
}

// ClusterGateway says how Gateways work.
type ClusterGateway struct {
	// WireguardKeyRotationDuration is for how long a Gateway keeps its WireGuard key: 12
	// hours. Connections outlive its change.
	WireguardKeyRotationDuration *Duration `json:"wireguardKeyRotationDuration,omitempty"`
}

// Durability says when a record of the access log is kept.
type Durability string

// The durabilities: PROCESS survives the death of the process, and is on disk
// within a second; DISK is on disk before the first byte goes up.
const (
	DurabilityProcess Durability = "PROCESS"
	DurabilityDisk    Durability = "DISK"
)

// Values implements Enum.
func (Durability) Values() []string {
	return []string{string(DurabilityProcess), string(DurabilityDisk)}
}

// ClusterAudit says how the access log is kept.
type ClusterAudit struct {
	Durability Durability      `json:"durability,omitempty"` // PROCESS
	Retention  *AuditRetention `json:"retention,omitempty"`
}

// AuditRetention says when the oldest part of the access log is deleted: when it
// is older than MaxAge, or when the log is larger than MaxSizeMegabytes.
type AuditRetention struct {
	MaxAge           *Duration `json:"maxAge,omitempty"`           // 90 days
	MaxSizeMegabytes int       `json:"maxSizeMegabytes,omitempty"` // 10240 (10 GiB)
}

// A Collector is where records go: an OTLP receiver (OpenTelemetry Protocol).
type Collector struct {
	// URL is grpc://HOST:PORT, grpcs://HOST:PORT (with TLS), http://HOST:PORT/PATH
	// or https://HOST:PORT/PATH; the path is /v1/logs if it is left out.
	URL string `json:"url"`
	// TrustedCAs is what its certificate is verified against; the system's if it
	// is left out.
	TrustedCAs []string `json:"trustedCAs,omitempty"` // PEM
	// Headers are sent with each request.
	Headers []CollectorHeader `json:"headers,omitempty"`
}

// A CollectorHeader is one header: a name, and a value or the Secret that has it.
type CollectorHeader struct {
	Name       string `json:"name"`
	Value      string `json:"value,omitempty"`
	FromSecret string `json:"fromSecret,omitempty"`
}

// ClusterDNS says how names are resolved.
type ClusterDNS struct {
	// Hosts maps upstream host names to their addresses, before any other
	// resolver is asked.
	Hosts map[string][]string `json:"hosts,omitempty"`
	// FallbackZone says who is asked for names that are not the cluster's.
	FallbackZone *FallbackZone `json:"fallbackZone,omitempty"`
	// Names says which Services a Session is told the addresses of: ALL if it is left out.
	Names NameVisibility `json:"names,omitempty"`
}

// NameVisibility says which Services the DNS of the cluster tells a Session of.
type NameVisibility string

// The values of NameVisibility.
const (
	NamesAll       NameVisibility = "ALL"       // of all
	NamesReachable NameVisibility = "REACHABLE" // of those that it may reach under some request
)

// Values implements Enum.
func (NameVisibility) Values() []string { return []string{string(NamesAll), string(NamesReachable)} }

// FallbackZone says who is asked for names that are not the cluster's.
type FallbackZone struct {
	// Servers are 8.8.8.8, dns://HOST:PORT (UDP, and TCP where that is too small),
	// tcp://HOST:PORT or tls://HOST:PORT (DNS over TLS, RFC 7858); those of the gateway's
	// own machine if it is left out.
	Servers []string `json:"servers,omitempty"`
	// CacheDuration bounds for how long answers are kept, beside their own time to live.
	CacheDuration *Duration `json:"cacheDuration,omitempty"`
}

// ClusterUpstream says what upstreams may be.
type ClusterUpstream struct {
	// Allow lists addresses (CIDR) that upstreams may have although they are
	// refused by default: loopback where the cluster listens elsewhere,
	// link-local and metadata addresses, multicast, the cluster's own listeners
	// (each only by its one address, /32 or /128).
	Allow []string `json:"allow,omitempty"`
	// ForbidInsecureSkipVerify refuses every upstream that is not verified.
	ForbidInsecureSkipVerify bool `json:"forbidInsecureSkipVerify,omitempty"`
}

// Verification says what becomes of a connection to an upstream whose certificate
// does not verify.
type Verification string

// The values of Verification.
const (
	VerificationRequire Verification = "REQUIRE" // it is refused
	VerificationReport  Verification = "REPORT"  // it is made; status and log say so
)

// Values implements Enum.
func (Verification) Values() []string {
	return []string{string(VerificationRequire), string(VerificationReport)}
}

// ClusterRouting says how public ports work.
type ClusterRouting struct {
	// UpstreamVerification is REQUIRE to refuse every upstream that does not verify.
	// Left out, it is REPORT for the TCPMappings that name no CA, and REQUIRE for the
	// rest.
	UpstreamVerification Verification `json:"upstreamVerification,omitempty"`
	// TrustedProxies are the networks (CIDR) from which PROXY headers are taken, where
	// a listener wants them; private networks and loopback if it is left out, nobody if
	// it is empty.
	TrustedProxies []string `json:"trustedProxies,omitzero"`
	// HelloTimeout is how long a client may take until its first bytes are there and,
	// on a port that has to read its hello, until that is whole; 5 seconds. A silent
	// client of a port that also takes any bytes waits a fifth of it and then gets
	// those, as protocols need in which the server speaks first.
	HelloTimeout *Duration `json:"helloTimeout,omitempty"`
	// DrainTime is how long the connections of a TCPMapping that is deleted may go on;
	// 10 minutes.
	DrainTime *Duration `json:"drainTime,omitempty"`
}

func (r *ClusterRouting) validate(p *Problems, at string) {
	for i, x := range r.TrustedProxies {
		if _, err := netip.ParsePrefix(x); err != nil {
			p.Add(fmt.Sprintf("%s/trustedProxies/%d", at, i), "must be a CIDR such as 10.0.0.0/8 or ::1/128", x)
		}
	}
	r.HelloTimeout.validate(p, at+"/helloTimeout", 100*time.Millisecond, time.Minute)
	r.DrainTime.validate(p, at+"/drainTime", time.Millisecond, 30*day)
}

// ClusterConfigStatus is what the cluster knows of itself.
type ClusterConfigStatus struct {
	Domain    string `json:"domain,omitempty"`
	RegionUID string `json:"regionUID,omitempty"`
	// Network is the address plan that is in force.
	Network ClusterNetwork `json:"network,omitzero"`
	// NoEffect lists the fields of spec that are kept and have no effect yet.
	NoEffect []string `json:"noEffect,omitempty"`
}

// Default implements Object.
func (c *ClusterConfig) Default() {
	c.APIVersion, c.Kind = Version, KindClusterConfig
	c.Status.NoEffect = nil
	c.Status.NoEffect = append(c.Status.NoEffect, c.Spec.Session.Human.noEffect("spec.session.human")...)
	c.Status.NoEffect = append(c.Status.NoEffect, c.Spec.Session.Workload.noEffect("spec.session.workload")...)
}

// noEffect returns the fields at a place that are kept and have no effect.
func (s *SessionSettings) noEffect(at string) (fields []string) {
	if s != nil && s.ClientlessDuration != nil {
		fields = append(fields, at+".clientlessDuration")
	}
	if s != nil && s.RefreshTokenDuration != nil {
		fields = append(fields, at+".refreshTokenDuration")
	}
	return fields
}

func (s *SessionSettings) validate(p *Problems, at string) {
	if s == nil {
		return
	}
	const least, most = 30 * time.Second, 10 * 360 * day
	s.ClientDuration.validate(p, at+"/clientDuration", least, most)
	s.AccessTokenDuration.validate(p, at+"/accessTokenDuration", least, most)
	s.ClientlessDuration.validate(p, at+"/clientlessDuration", least, most)
	s.RefreshTokenDuration.validate(p, at+"/refreshTokenDuration", least, most)
	if n := s.MaxPerUser; n < 0 || n > 10_000 {
		p.Add(at+"/maxPerUser", "must be from 1 to 10000", strconv.Itoa(n))
	}
	if s.DefaultState == SessionRejected {
		p.Add(at+"/defaultState", "must be ACTIVE or PENDING", string(s.DefaultState))
	}
}

func (s *DeviceSettings) validate(p *Problems, at string) {
	if s == nil {
		return
	}
	if n := s.MaxPerUser; n < 0 || n > 1000 {
		p.Add(at+"/maxPerUser", "must be from 1 to 1000", strconv.Itoa(n))
	}
	if s.DefaultState == DeviceRejected {
		p.Add(at+"/defaultState", "must be ACTIVE or PENDING", string(s.DefaultState))
	}
}

func (a *ClusterAudit) validate(p *Problems, at string) {
	if r := a.Retention; r != nil {
		r.MaxAge.validate(p, at+"/retention/maxAge", time.Hour, maxDuration)
		if n := r.MaxSizeMegabytes; n < 0 || n > 100_000_000 {
			p.Add(at+"/retention/maxSizeMegabytes", "must be from 1 to 100000000", strconv.Itoa(n))
		}
	}
}

func (c *Collector) validate(p *Problems, at string) {
	if c == nil {
		return
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil || u.Hostname() == "" || !slices.Contains([]string{"grpc", "grpcs", "http", "https"}, u.Scheme) || u.User != nil:
		p.Add(at+"/url", "must be grpc://HOST:PORT, grpcs://HOST:PORT, http://HOST:PORT/PATH or https://HOST:PORT/PATH", c.URL)
	case u.Port() == "":
		p.Add(at+"/url", "must have a port", c.URL)
	}
	validateCAs(p, at+"/trustedCAs", c.TrustedCAs)
	for i, h := range c.Headers {
		at := fmt.Sprintf("%s/headers/%d", at, i)
		if !headerName.MatchString(h.Name) {
			p.Add(at+"/name", "must be the name of a header", h.Name)
		}
		if (h.Value == "") == (h.FromSecret == "") {
			p.Add(at, "must have one of value and fromSecret", "")
		}
		if strings.ContainsAny(h.Value, "\r\n\x00") {
			p.Add(at+"/value", "must be on one line", "")
		}
	}
}

// headerName is a token of HTTP (RFC 9110, section 5.6.2), without the oddest of
// its characters.
var headerName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,100}$`)

// Validate implements Object.
func (c *ClusterConfig) Validate(p *Problems) {
	c.Metadata.validate(p, 1)
	if c.Metadata.Name != ClusterConfigName {
		p.Add("/metadata/name", "must be \"default\": there is one ClusterConfig", c.Metadata.Name)
	}
	c.Spec.Authorization.validate(p, "/spec/authorization")
	c.Spec.Session.Human.validate(p, "/spec/session/human")
	c.Spec.Session.Workload.validate(p, "/spec/session/workload")
	c.Spec.Device.Human.validate(p, "/spec/device/human")
	c.Spec.Device.Workload.validate(p, "/spec/device/workload")
	c.Spec.Audit.validate(p, "/spec/audit")
	c.Spec.Collector.validate(p, "/spec/collector")
	c.Spec.Routing.validate(p, "/spec/routing")
	c.Spec.Network.validate(p, "/spec/network")
	if g := c.Spec.Gateway; g != nil {
		g.WireguardKeyRotationDuration.validate(p, "/spec/gateway/wireguardKeyRotationDuration", time.Minute, 360*day)
	}
	c.Spec.DNS.FallbackZone.validate(p, "/spec/dns/fallbackZone")
	for h, addrs := range c.Spec.DNS.Hosts {
		at := "/spec/dns/hosts/" + Escape(h)
		if len(addrs) == 0 {
			p.Add(at, "must list at least one address", "")
		}
		for i, a := range addrs {
			if _, err := netip.ParseAddr(a); err != nil {
				p.Add(fmt.Sprintf("%s/%d", at, i), "must be an IP address", a)
			}
		}
	}
	for i, a := range c.Spec.Upstream.Allow {
		if _, err := netip.ParsePrefix(a); err != nil {
			p.Add(fmt.Sprintf("/spec/upstream/allow/%d", i), "must be a CIDR such as 10.0.0.0/8 or ::1/128", a)
		}
	}
}

func clusterConfigKind() Kind {
	return Kind{Name: KindClusterConfig, Plural: "clusterconfigs", Short: []string{"cc"}, ByHand: true,
		New:     func() Object { return new(ClusterConfig) },
		Columns: []Column{{Heading: "DOMAIN", Cell: func(o Object) string { return o.(*ClusterConfig).Status.Domain }}}}
}
