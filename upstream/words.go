package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"cardea/secret"
)

// maxNames is the number of a certificate's names that are told.
const maxNames = 5

// explain makes an Error of a handshake that failed.
func (s *session) explain(gone error, timeout time.Duration, err error) *Error {
	fail := func(reason, words string) *Error {
		return errorAt(s.address, reason, words, err)
	}
	verification, unverified := errors.AsType[*tls.CertificateVerificationError](err)
	header, notTLS := errors.AsType[tls.RecordHeaderError](err)
	alert, refused := isAlert(err)
	switch {
	case errors.Is(gone, context.Canceled):
		return givenUp(gone, s.address)
	case outOfTime(err):
		return fail(DialTimeout, fmt.Sprintf("connected, and no answer to the TLS handshake within %v; see whether the upstream speaks TLS at this port, from the first byte", timeout))
	case unverified:
		return fail(UpstreamTLS, s.distrust(verification.Err))
	case notTLS:
		return fail(UpstreamTLS, s.noTLS(header.Msg))
	case refused:
		return fail(UpstreamTLS, s.refused(alert))
	case isDisorder(err):
		return fail(UpstreamTLS, s.noTLS("what it sends is not what a server begins with"))
	case strings.Contains(err.Error(), "unsupported protocol version"):
		return fail(UpstreamTLS, s.tooOld())
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		words := "the upstream ended the connection during the TLS handshake; see its own log, and whether it speaks TLS at this port"
		if s.asked.Load() {
			words = "the upstream asked for a client certificate and ended the connection: " + s.mine()
		}
		return fail(UpstreamTLS, words)
	}
	return fail(UpstreamTLS, fmt.Sprintf("TLS failed: %v", err))
}

// late makes an Error of what became of a handshake after its end: in TLS 1.3 the
// upstream looks at our certificate when we have finished.
func (s *session) late(err error) *Error {
	words := "the upstream asked for a client certificate and then ended the connection: " + s.mine()
	if alert, ok := isAlert(err); ok {
		words = s.refused(alert)
	}
	return errorAt(s.address, UpstreamTLS, words, attempts{syscall.ECONNRESET, err})
}

// isDisorder tells whether the peer sent a message of TLS that had no place there, as
// one does that sends our own back.
func isDisorder(err error) bool {
	return strings.Contains(err.Error(), "unexpected handshake message") || strings.Contains(err.Error(), "unexpected message")
}

// noTLS says that the upstream does not speak TLS, as is seen by what it sent.
func (s *session) noTLS(seen string) string {
	wayOut := fmt.Sprintf("correct %s, or leave %s out", s.field("its address", "service"), s.field("spec.config.tls", "tls"))
	if s.check {
		wayOut = fmt.Sprintf("correct %s, or %s", checkField(s.foreign, "type"), checkField(s.foreign, "port"))
	}
	return fmt.Sprintf("the upstream does not speak TLS (%s); %s", seen, wayOut)
}

// isAlert returns what the peer's alert says, if err is one.
func isAlert(err error) (words string, ok bool) {
	op, ok := errors.AsType[*net.OpError](err)
	if !ok || op.Op != "remote error" {
		return "", false
	}
	return strings.TrimPrefix(op.Err.Error(), "tls: "), true
}

// refused says what an alert of the upstream means.
func (s *session) refused(alert string) string {
	switch {
	case s.asked.Load():
		return fmt.Sprintf("the upstream asked for a client certificate and refused (%s): %s", alert, s.mine())
	case strings.Contains(alert, "protocol version"):
		return s.tooOld()
	case strings.Contains(alert, "unrecognized name"):
		return fmt.Sprintf("the upstream does not know the name %q; set %s to one that it knows", s.name, s.serverName())
	}
	return fmt.Sprintf("the upstream refused TLS (%s); its own log may say why", alert)
}

// mine says what we had for an upstream that asked for a certificate.
func (s *session) mine() string {
	if s.secret == "" {
		return "there is none; name its Secret in " + s.field("spec.config.tls.clientCertificate.fromSecret", "secret of a TLSContext")
	}
	return fmt.Sprintf("it does not take that of %s; see that the upstream trusts its CA", s.secret)
}

// tooOld says that there is no version of TLS that both ends speak.
func (s *session) tooOld() string {
	least, most := tls.VersionName(s.config.MinVersion), tls.VersionName(s.config.MaxVersion)
	if s.config.MaxVersion == tls.VersionTLS13 {
		return fmt.Sprintf("the upstream speaks no %s or later; enable it there", least)
	}
	return fmt.Sprintf("the upstream speaks no TLS from %s to %s; see which versions it has", least, most)
}

// field returns the field that leads out: of a Service, or of a foreign Object.
func (s *session) field(service, foreign string) string {
	if s.foreign {
		return foreign
	}
	return service
}

// serverName returns the field that says which name the upstream must prove.
func (s *session) serverName() string {
	return s.field("spec.config.tls.serverName", "sni of a TLSContext")
}

// trusted returns the field that says by which CAs it is verified.
func (s *session) trusted() string {
	return s.field("spec.config.tls.trustedCAs", "a Secret that ca_secret of a TLSContext names")
}

// distrust says why a certificate was not accepted. What the certificate says of
// itself is quoted: a stranger wrote it.
func (s *session) distrust(err error) string {
	host, isHost := errors.AsType[x509.HostnameError](err)
	authority, isAuthority := errors.AsType[x509.UnknownAuthorityError](err)
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	_, noRoots := errors.AsType[x509.SystemRootsError](err)
	switch {
	case err == errInsecure:
		return "the upstream is not verified: tls.insecureSkipVerify says so"
	case errors.Is(err, secret.ErrRevoked):
		return fmt.Sprintf("the upstream's certificate cannot be trusted: %v; issue another one there", err)
	case isHost:
		return fmt.Sprintf("the upstream's certificate is for %s, not for %q; correct %s, or set %s", names(host.Certificate), s.name, s.field("the url", "service"), s.serverName())
	case isAuthority:
		issuer := "an unknown authority"
		if c := authority.Cert; c != nil {
			issuer = fmt.Sprintf("an unknown authority (%.100q)", c.Issuer.String())
		}
		return "the upstream's certificate is signed by " + issuer + "; list the CA in " + s.trusted()
	case isInvalid && invalid.Reason == x509.Expired && time.Now().Before(invalid.Cert.NotBefore):
		return fmt.Sprintf("the upstream's certificate%s is not valid before %s; compare the clocks", of(invalid.Cert), day(invalid.Cert.NotBefore))
	case isInvalid && invalid.Reason == x509.Expired:
		return fmt.Sprintf("the upstream's certificate%s expired on %s; renew it there", of(invalid.Cert), day(invalid.Cert.NotAfter))
	case isInvalid && invalid.Reason == x509.IncompatibleUsage:
		return "the upstream's certificate is not one for servers (extended key usage); issue one that is"
	case noRoots:
		return "this machine has no CAs of its own; list the upstream's in " + s.trusted()
	}
	return fmt.Sprintf("the upstream's certificate cannot be trusted: %.300q", err.Error())
}

// names returns the names that a certificate is for.
func names(c *x509.Certificate) string {
	var list []string
	for _, n := range c.DNSNames {
		list = append(list, fmt.Sprintf("%.100q", n))
	}
	for _, ip := range c.IPAddresses {
		list = append(list, ip.String())
	}
	switch {
	case len(list) == 0:
		return fmt.Sprintf("no name (no subject alternative name, subject %.100q)", c.Subject.String())
	case len(list) > maxNames:
		return fmt.Sprintf("%s and %d more", strings.Join(list[:maxNames], ", "), len(list)-maxNames)
	}
	return strings.Join(list, ", ")
}

// of names a certificate that may be one of a chain.
func of(c *x509.Certificate) string {
	if c.Subject.CommonName == "" {
		return ""
	}
	return fmt.Sprintf(" (%.100q)", c.Subject.CommonName)
}

func day(t time.Time) string { return t.UTC().Format(time.RFC3339) }
