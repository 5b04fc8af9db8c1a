package api

import (
	"crypto/tls"
	"slices"
	"strings"
	"testing"
)

func TestTLSTerms(t *testing.T) {
	const gcm = tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
	for _, x := range []struct {
		name        string
		in          TLSTerms
		least, most uint16
		suites      []uint16
		curves      []tls.CurveID
	}{
		{"nothing", TLSTerms{}, tls.VersionTLS12, tls.VersionTLS13, nil, nil},
		{"an old maximum", TLSTerms{MaxVersion: "v1.1"}, tls.VersionTLS11, tls.VersionTLS11, nil, nil},
		{"an old minimum", TLSTerms{MinVersion: "v1.0", MaxVersion: "v1.2"}, tls.VersionTLS10, tls.VersionTLS12, nil, nil},
		{"only the newest", TLSTerms{MinVersion: "v1.3"}, tls.VersionTLS13, tls.VersionTLS13, nil, nil},
		{"names of OpenSSL", TLSTerms{CipherSuites: []string{"ECDHE-RSA-AES128-GCM-SHA256", "AES256-SHA", "DES-CBC3-SHA", "ECDHE-ECDSA-CHACHA20-POLY1305"}},
			tls.VersionTLS12, tls.VersionTLS13, []uint16{gcm, tls.TLS_RSA_WITH_AES_256_CBC_SHA, tls.TLS_RSA_WITH_3DES_EDE_CBC_SHA, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256}, nil},
		{"names of IANA", TLSTerms{CipherSuites: []string{"TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"}}, tls.VersionTLS12, tls.VersionTLS13, []uint16{gcm}, nil},
		{"equal preference", TLSTerms{CipherSuites: []string{"[ECDHE-RSA-AES128-GCM-SHA256|AES128-SHA]"}}, tls.VersionTLS12, tls.VersionTLS13, []uint16{gcm, tls.TLS_RSA_WITH_AES_128_CBC_SHA}, nil},
		{"curves", TLSTerms{Curves: []string{"P-256", "x25519", "secp384r1", "X25519MLKEM768"}}, tls.VersionTLS12, tls.VersionTLS13, nil, []tls.CurveID{tls.CurveP256, tls.X25519, tls.CurveP384, tls.X25519MLKEM768}},
	} {
		t.Run(x.name, func(t *testing.T) {
			least, most, suites, curves, err := x.in.Resolve()
			if err != nil || least != x.least || most != x.most || !slices.Equal(suites, x.suites) || !slices.Equal(curves, x.curves) {
				t.Errorf("%x to %x, %x, %v, %v", least, most, suites, curves, err)
			}
			var p Problems
			if x.in.validate(&p, "/t"); p.Err() != nil {
				t.Error(p.Err())
			}
		})
	}
}

// Each name that crypto/tls knows is found by the name that OpenSSL has for it,
// and there is no other for which it could be taken.
func TestNamesOfSuites(t *testing.T) {
	for _, s := range allSuites() {
		list, err := cipherSuites(openSSLName(s.Name))
		if only13 := slices.Equal(s.SupportedVersions, []uint16{tls.VersionTLS13}); (err == nil) == only13 || err == nil && !slices.Equal(list, []uint16{s.ID}) {
			t.Errorf("%s: %v, %v", s.Name, list, err)
		}
		if n := openSSLName(s.Name); !strings.HasPrefix(n, "TLS_AES") && !strings.HasPrefix(n, "TLS_CHACHA") && strings.Contains(n, "_") {
			t.Errorf("OpenSSL has no %s", n)
		}
	}
}

func TestBadTLSTerms(t *testing.T) {
	for words, in := range map[string]TLSTerms{
		"/t/cipherSuites/1": {CipherSuites: []string{"AES128-SHA", "ECDHE-RSA-AES128-GCM-SHA257"}},
		"/t/cipherSuites/0": {CipherSuites: []string{"TLS_AES_128_GCM_SHA256"}},
		"/t/curves/0":       {Curves: []string{"P-224"}},
		"/t/minVersion":     {MinVersion: "v1.3", MaxVersion: "v1.2"},
		"/t/maxVersion":     {MaxVersion: "v1.4"},
	} {
		_, _, _, _, err := in.Resolve()
		var p Problems
		if in.validate(&p, "/t"); err == nil || len(p.List) != 1 || p.List[0].Pointer != words {
			t.Errorf("%+v: %v, %+v", in, err, p.List)
		}
	}
	var p Problems
	if (TLSTerms{CipherSuites: []string{"ECDHE-RSA-AES128-GCM-SHA257"}}).validate(&p, ""); p.List[0].Hint != "did you mean ECDHE-RSA-AES128-GCM-SHA256?" {
		t.Errorf("%+v", p.List)
	}
}
