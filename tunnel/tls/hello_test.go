package tls

import (
	"crypto/tls"
	"regexp"
	"strings"
	"testing"

	"cardea/api"
)

// FuzzSort sorts hellos with any server name and protocols.
func FuzzSort(f *testing.F) {
	f.Add("gateway.cardea.internal", "cardea/1")
	f.Add("nats.prod.svc.cardea.internal", "")
	f.Add("API.cardea.internal", "h2,http/1.1")
	f.Add("10.0.0.1", "")
	f.Add("..svc.cardea.internal", "a")
	f.Add("fe80::1%\x1b[2J", "")
	f.Add(strings.Repeat("a", 300)+".svc.cardea.internal", "\x00")
	service := regexp.MustCompile(`^[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})?$`)
	f.Fuzz(func(t *testing.T, sni, protos string) {
		info := &tls.ClientHelloInfo{ServerName: sni}
		if protos != "" {
			info.SupportedProtos = strings.Split(protos, ",")
		}
		h := sort(info, "cardea.internal", nil)
		if h.public {
			t.Errorf("%q is public", sni)
		}
		every := func(string) (string, bool) { return "web.default", true }
		switch p := sort(info, "cardea.internal", every); {
		case h.form == formRaw && h.service != "web.default":
			if p != h {
				t.Errorf("%q of Service %s becomes that of %s", sni, h.service, p.service)
			}
		case h.form == formRaw, h.form == formNone && !strings.Contains(","+protos+",", ",cardea/1,"):
			if p.form != formRaw || p.service != "web.default" || !p.public {
				t.Errorf("%q, %q is not public: %+v", sni, protos, p)
			}
		default:
			if p != h {
				t.Errorf("%q, %q is %+v, and %+v where all is public", sni, protos, h, p)
			}
		}
		framed := strings.Contains(","+protos+",", ",cardea/1,")
		switch h.form {
		case formRaw:
			asked := strings.TrimSuffix(strings.ToLower(sni), ".svc.cardea.internal")
			if !service.MatchString(h.service) || h.service != api.ServiceName(asked) || framed {
				t.Errorf("%q, %q is raw to %q", sni, protos, h.service)
			}
		case formFramed:
			if strings.ToLower(sni) != "gateway.cardea.internal" || !framed {
				t.Errorf("%q, %q is framed", sni, protos)
			}
		case formAPI:
			if framed {
				t.Errorf("%q, %q is the API's", sni, protos)
			}
		}
		if len(h.sni) > 255 {
			t.Errorf("a name of %d bytes is kept", len(h.sni))
		}
	})
}
