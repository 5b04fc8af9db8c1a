package api

import (
	"fmt"
	"regexp"
	"strings"
)

// label is one part of a name: 2 to 40 characters.
var label = regexp.MustCompile(`^[a-z][a-z0-9-]{0,38}[a-z0-9]$`)

const labelRule = "must be 2 to 40 characters of a-z, 0-9 and '-', starting with a letter, ending with a letter or digit, without '--'"

func validLabel(s string) bool { return label.MatchString(s) && !strings.Contains(s, "--") }

// DefaultNamespace is the Namespace of a Service whose name says none.
const DefaultNamespace = "default"

// SystemNamespace holds the Services that are Cardea itself.
const SystemNamespace = "cardea"

// APIService is the name of the Service that the API is. Who may use the API is
// decided by policies as for any other Service.
const APIService = "api." + SystemNamespace

// ServiceName returns the full form of a Service's name: "nats" and
// "nats.default" are one Service.
func ServiceName(s string) string {
	if s != "" && !strings.Contains(s, ".") {
		return s + "." + DefaultNamespace
	}
	return s
}

// NamespaceOf returns the Namespace that a Service's full name says.
func NamespaceOf(service string) string {
	_, ns, _ := strings.Cut(service, ".")
	return ns
}

// CanonicalName returns the name under which an Object of a kind is stored.
func CanonicalName(kind, name string) string {
	if kind == KindService {
		return ServiceName(name)
	}
	return name
}

// validate checks what the user may say in metadata. depth is the number of
// labels that the name may have.
func (m *Metadata) validate(p *Problems, depth int) {
	m.validateName(p, depth)
	m.validateRest(p)
}

// validateMade checks what the user may say in the metadata of an Object that the
// system made and named.
func (m *Metadata) validateMade(p *Problems) {
	if m.Name == "" {
		p.Add("/metadata/name", "is required", "")
	}
	m.validateRest(p)
}

func (m *Metadata) validateRest(p *Problems) {
	if m.Namespace != "" {
		p.Add("/metadata/namespace", "must be left out: only Objects of other systems have one", m.Namespace).
			Hint = "a Service says its Namespace in its name: SERVICE.NAMESPACE"
	}
	if len(m.DisplayName) > 100 {
		p.Add("/metadata/displayName", "must be at most 100 bytes", m.DisplayName)
	}
	if len(m.Description) > 1024 {
		p.Add("/metadata/description", "must be at most 1024 bytes", m.Description)
	}
	if len(m.Labels) > 64 {
		p.Add("/metadata/labels", "must be at most 64", fmt.Sprint(len(m.Labels)))
	}
	for k, v := range m.Labels {
		if !validLabel(k) {
			p.Add("/metadata/labels/"+Escape(k), "the key "+labelRule, k)
		}
		if len(v) > 63 {
			p.Add("/metadata/labels/"+Escape(k), "must be at most 63 bytes", v)
		}
	}
	if len(m.Annotations) > 64 {
		p.Add("/metadata/annotations", "must be at most 64", fmt.Sprint(len(m.Annotations)))
	}
	seen := map[string]bool{}
	for i, t := range m.Tags {
		if seen[t] {
			p.Add(fmt.Sprintf("/metadata/tags/%d", i), "must not be there twice", t)
		}
		seen[t] = true
	}
}

func (m *Metadata) validateName(p *Problems, depth int) {
	if m.Name == "" {
		p.Add("/metadata/name", "is required", "")
		return
	}
	parts := strings.Split(m.Name, ".")
	if len(parts) > depth {
		rule := "must not contain '.'"
		if depth == 2 {
			rule = "must be SERVICE or SERVICE.NAMESPACE"
		}
		p.Add("/metadata/name", rule, m.Name)
		return
	}
	for _, l := range parts {
		if !validLabel(l) {
			p.Add("/metadata/name", labelRule, l)
			return
		}
	}
}

// foreignName is a name in Kubernetes (RFC 1123, a subdomain).
var foreignName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$`)

// validateForeign checks the metadata of an Object of another system: what makes
// its identity. The rest is kept as it came.
func (m *Metadata) validateForeign(p *Problems) {
	if m.Name == "" {
		p.Add("/metadata/name", "is required", "")
	} else if !foreignName.MatchString(m.Name) {
		p.Add("/metadata/name", "must be 1 to 253 characters of a-z, 0-9, '-' and '.', with a letter or digit at both ends", m.Name)
	}
	if m.Namespace != "" && (!foreignName.MatchString(m.Namespace) || strings.Contains(m.Namespace, ".") || len(m.Namespace) > 63) {
		p.Add("/metadata/namespace", "must be 1 to 63 characters of a-z, 0-9 and '-', with a letter or digit at both ends", m.Namespace)
	}
}

// Escape makes s fit to be one step of a JSON pointer (RFC 6901).
func Escape(s string) string { return strings.NewReplacer("~", "~0", "/", "~1").Replace(s) }

// checkNames reports names in a list that are malformed or there twice.
func checkNames(p *Problems, pointer string, names []string) {
	seen := map[string]bool{}
	for i, n := range names {
		at := fmt.Sprintf("%s/%d", pointer, i)
		if !validLabel(n) {
			p.Add(at, labelRule, n)
		} else if seen[n] {
			p.Add(at, "must not be there twice", n)
		}
		seen[n] = true
	}
}
