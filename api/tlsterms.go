package api

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Resolve returns what the terms are in package crypto/tls. Without a MinVersion it
// is TLS 1.2, or MaxVersion if that is older. No suites, and no curves, are those
// that crypto/tls thinks are safe. The error names the first value that is not
// known, or says that nothing is left.
//
// The suites of TLS 1.3 cannot be chosen (see crypto/tls), nor can the order of any.
func (t TLSTerms) Resolve() (least, most uint16, suites []uint16, curves []tls.CurveID, err error) {
	fail := func(err error) (uint16, uint16, []uint16, []tls.CurveID, error) { return 0, 0, nil, nil, err }
	if least, err = t.MinVersion.number(); err != nil {
		return fail(fmt.Errorf("minimum version: %w", err))
	}
	if most, err = t.MaxVersion.number(); err != nil {
		return fail(fmt.Errorf("maximum version: %w", err))
	}
	most = cmp.Or(most, tls.VersionTLS13)
	least = cmp.Or(least, min(tls.VersionTLS12, most))
	if least > most {
		return fail(fmt.Errorf("the minimum version %s is above the maximum %s", t.MinVersion, t.MaxVersion))
	}
	for _, text := range t.CipherSuites {
		list, err := cipherSuites(text)
		if err != nil {
			return fail(fmt.Errorf("cipher suite %s: %w", quote(text), err))
		}
		suites = append(suites, list...)
	}
	for _, text := range t.Curves {
		curve, err := curveOf(text)
		if err != nil {
			return fail(fmt.Errorf("curve %s: %w", quote(text), err))
		}
		curves = append(curves, curve)
	}
	return least, most, suites, curves, nil
}

// inherit takes what t leaves out from p.
func (t *TLSTerms) inherit(p TLSTerms) {
	t.MinVersion = cmp.Or(t.MinVersion, p.MinVersion)
	t.MaxVersion = cmp.Or(t.MaxVersion, p.MaxVersion)
	if t.CipherSuites == nil {
		t.CipherSuites = p.CipherSuites
	}
	if t.Curves == nil {
		t.Curves = p.Curves
	}
}

// validate reports each value that cannot be resolved.
func (t TLSTerms) validate(p *Problems, at string) {
	for i, text := range t.CipherSuites {
		if _, err := cipherSuites(text); err != nil {
			p.Add(fmt.Sprintf("%s/cipherSuites/%d", at, i), err.Error(), text).Hint = nearestHint(text, cipherNames())
		}
	}
	for i, text := range t.Curves {
		if _, err := curveOf(text); err != nil {
			p.Add(fmt.Sprintf("%s/curves/%d", at, i), err.Error(), text).Allowed = curveNames()
		}
	}
	least, err := t.MinVersion.number()
	if err != nil {
		p.Add(at+"/minVersion", err.Error(), string(t.MinVersion))
	}
	most, err := t.MaxVersion.number()
	if err != nil {
		p.Add(at+"/maxVersion", err.Error(), string(t.MaxVersion))
	}
	if most != 0 && least > most {
		p.Add(at+"/minVersion", "must not be above maxVersion", string(t.MinVersion))
	}
}

// number returns the version as crypto/tls has it, 0 if there is none.
func (v TLSVersion) number() (uint16, error) {
	switch v {
	case "":
		return 0, nil
	case "v1.0":
		return tls.VersionTLS10, nil
	case "v1.1":
		return tls.VersionTLS11, nil
	case "v1.2":
		return tls.VersionTLS12, nil
	case "v1.3":
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("must be one of %s", strings.Join(v.Values(), ", "))
}

// cipherSuites returns the suites that a text names: one, by its IANA or OpenSSL
// name, or several as [A|B], which stands for equal preference in BoringSSL.
func cipherSuites(text string) ([]uint16, error) {
	var list []uint16
	for name := range strings.SplitSeq(strings.TrimSuffix(strings.TrimPrefix(text, "["), "]"), "|") {
		i := slices.IndexFunc(allSuites(), func(s *tls.CipherSuite) bool {
			return strings.EqualFold(s.Name, name) || strings.EqualFold(openSSLName(s.Name), name)
		})
		if i < 0 {
			return nil, errors.New("must be the IANA or OpenSSL name of a suite of TLS 1.2 or older, as ECDHE-RSA-AES128-GCM-SHA256")
		}
		s := allSuites()[i]
		if slices.Equal(s.SupportedVersions, []uint16{tls.VersionTLS13}) {
			return nil, errors.New("must be left out: the suites of TLS 1.3 cannot be chosen")
		}
		list = append(list, s.ID)
	}
	return list, nil
}

// allSuites returns all suites, those that are not safe last.
func allSuites() []*tls.CipherSuite { return append(tls.CipherSuites(), tls.InsecureCipherSuites()...) }

// openSSLName returns what OpenSSL calls a suite of TLS 1.2 or older; see
// openssl-ciphers(1).
func openSSLName(iana string) string {
	return strings.NewReplacer(
		"TLS_RSA_WITH_", "", "TLS_ECDHE_RSA_WITH_", "ECDHE-RSA-", "TLS_ECDHE_ECDSA_WITH_", "ECDHE-ECDSA-",
		"3DES_EDE_CBC_", "DES-CBC3-", "RC4_128_", "RC4-", "CHACHA20_POLY1305_SHA256", "CHACHA20-POLY1305",
		"AES_128_GCM_", "AES128-GCM-", "AES_256_GCM_", "AES256-GCM-", "AES_128_CBC_", "AES128-", "AES_256_CBC_", "AES256-",
	).Replace(iana)
}

func cipherNames() (names []string) {
	for _, s := range allSuites() {
		names = append(names, s.Name, openSSLName(s.Name))
	}
	return names
}

func nearestHint(text string, names []string) string {
	if n := Nearest(text, names); n != "" {
		return "did you mean " + n + "?"
	}
	return ""
}

// A namedCurve is a key exchange by the names that crypto/tls, BoringSSL and
// OpenSSL have for it. The first is the one that is shown.
type namedCurve struct {
	id    tls.CurveID
	names []string
}

func namedCurves() []namedCurve {
	return []namedCurve{
		{tls.X25519, []string{"X25519"}},
		{tls.CurveP256, []string{"P-256", "CurveP256", "P256", "prime256v1", "secp256r1"}},
		{tls.CurveP384, []string{"P-384", "CurveP384", "P384", "secp384r1"}},
		{tls.CurveP521, []string{"P-521", "CurveP521", "P521", "secp521r1"}},
		{tls.X25519MLKEM768, []string{"X25519MLKEM768"}},
		{tls.SecP256r1MLKEM768, []string{"SecP256r1MLKEM768"}},
		{tls.SecP384r1MLKEM1024, []string{"SecP384r1MLKEM1024"}},
	}
}

func curveNames() (names []string) {
	for _, c := range namedCurves() {
		names = append(names, c.names[0])
	}
	return names
}

func curveOf(text string) (tls.CurveID, error) {
	for _, c := range namedCurves() {
		if slices.ContainsFunc(c.names, func(n string) bool { return strings.EqualFold(n, text) }) {
			return c.id, nil
		}
	}
	return 0, fmt.Errorf("must be one of %s", strings.Join(curveNames(), ", "))
}
