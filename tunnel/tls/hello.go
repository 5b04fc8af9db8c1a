package tls

import (
	"crypto/tls"
	"net"
	"strings"

	"cardea/api"
	"cardea/tunnel"
)

// Protocol is the ALPN protocol of framed streams, and what Facts.Tunnel says of
// them; of raw streams it says [RawName], and of those that come without a Session
// [PublicName], as of a public port.
const (
	Protocol   = "cardea/1"
	RawName    = "tls"
	PublicName = "public"
)

// The ALPN protocols of what else a Session may want of a gateway.
const (
	PacketsProtocol = "cardea-packets/1" // a [tunnel.Pipe]
	ServeProtocol   = "cardea-serve/1"   // a reverse link
)

// GatewayName returns the server name at which framed streams are served.
func GatewayName(domain string) string { return tunnel.GatewayName(domain) }

// APIName returns the server name of the API.
func APIName(domain string) string { return "api." + domain }

// ServiceName returns the server name of a Service's raw stream. The name is
// SERVICE or SERVICE.NAMESPACE.
func ServiceName(service, domain string) string { return service + ".svc." + domain }

// A form is what a client wants, as its hello says it.
type form int

const (
	formNone form = iota // nothing that is served here
	formAPI
	formFramed
	formPackets
	formServe
	formRaw
)

// formOf returns the form of the first of our protocols that was offered, formNone if
// none was.
func formOf(protocols []string) form {
	for _, p := range protocols {
		switch p {
		case Protocol:
			return formFramed
		case PacketsProtocol:
			return formPackets
		case ServeProtocol:
			return formServe
		}
	}
	return formNone
}

// hello is what a ClientHello said.
type hello struct {
	seen    bool
	form    form
	service string // for formRaw, SERVICE.NAMESPACE
	public  bool   // the Service may be reached without a Session
	sni     string // lower case, at most 255 bytes
	alpn    string // the first that was offered
}

// sort tells by its hello what a client wants; public is that of [Server].
func sort(info *tls.ClientHelloInfo, domain string, public func(sni string) (service string, ok bool)) hello {
	h := hello{seen: true, sni: tunnel.ServerName(info.ServerName)}
	if len(info.SupportedProtos) > 0 {
		h.alpn = info.SupportedProtos[0]
	}
	own := formOf(info.SupportedProtos)
	service, inside := strings.CutSuffix(h.sni, ".svc."+domain)
	switch {
	case own != formNone:
		if h.sni == GatewayName(domain) {
			h.form = own
		}
	case h.sni == "" || h.sni == APIName(domain) || net.ParseIP(h.sni) != nil:
		h.form = formAPI
	case inside && isServiceName(service):
		h.form, h.service = formRaw, api.ServiceName(service)
	}
	if own == formNone {
		h.publish(public)
	}
	return h
}

// publish notes that a name is that of a public Service, if it is one: whatever its
// name, or a name that is nothing else here.
func (h *hello) publish(public func(sni string) (service string, ok bool)) {
	if public == nil || h.form != formRaw && h.form != formNone {
		return
	}
	service, ok := public(h.sni)
	if ok && (h.form == formNone || h.service == service) {
		h.form, h.service, h.public = formRaw, service, true
	}
}

// isServiceName tells whether s could be SERVICE or SERVICE.NAMESPACE. Whether
// there is one is not for the road to say.
func isServiceName(s string) bool {
	parts := strings.Split(s, ".")
	for _, p := range parts {
		if p == "" || len(p) > 63 || strings.Trim(p, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return false
		}
	}
	return len(parts) <= 2
}
