package otlp

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/logs/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"

	logs "go.opentelemetry.io/proto/otlp/logs/v1"

	"cardea/api"
)

// certificate makes a certificate for localhost that is its own CA.
func certificate(t *testing.T) (tls.Certificate, string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	must(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// Over real sockets, with TLS: only the collector whose CA is configured gets
// records.
func TestTLS(t *testing.T) {
	for _, scheme := range []string{"grpcs", "https"} {
		for _, network := range []string{"127.0.0.1:0", "[::1]:0"} {
			t.Run(scheme+" "+network, func(t *testing.T) { t.Parallel(); testTLS(t, scheme, network) })
		}
	}
}

func testTLS(t *testing.T, scheme, address string) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip(err)
	}
	cert, ca := certificate(t)
	_, other := certificate(t)
	trust := &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}
	r := newRig(t, strings.TrimSuffix(scheme, "s"))
	took := make(chan int, 100)
	r.recv.answers(func(recs []*logs.LogRecord) (codes.Code, int) { took <- len(recs); return codes.OK, 0 })
	var serving sync.WaitGroup
	defer serving.Wait()
	if scheme == "grpcs" {
		g := grpc.NewServer(grpc.Creds(credentials.NewTLS(trust)))
		collector.RegisterLogsServiceServer(g, r.recv)
		serving.Go(func() { g.Serve(l) })
		defer g.Stop()
	} else {
		h := &http.Server{Handler: r.recv, TLSConfig: trust, ErrorLog: log.New(io.Discard, "", 0)}
		serving.Go(func() { h.ServeTLS(l, "", "") })
		defer h.Close()
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	must(t, err)
	url := scheme + "://localhost:" + port
	tried := make(chan struct{}, 100)
	r.Dial = func(ctx context.Context, network, addr string) (net.Conn, error) {
		tried <- struct{}{}
		if addr != "localhost:"+port {
			t.Errorf("dialled %s", addr)
		}
		return new(net.Dialer).DialContext(ctx, network, l.Addr().String())
	}
	r.config.Store(&api.Collector{URL: url, TrustedCAs: []string{other}})
	r.append(t, "0", "1")
	r.run(t)
	defer r.end()
	<-tried
	<-tried // so the first was no use
	if got := r.recv.words(); len(got) > 0 || !strings.Contains(r.Stats().LastError, "certificate") {
		t.Errorf("a collector that nobody vouches for has %q; %+v", got, r.Stats())
	}
	r.config.Store(&api.Collector{URL: url, TrustedCAs: []string{ca}})
	if n := <-took; n != 2 {
		t.Errorf("%d records in the first call", n)
	}
	r.end()
	r.wants(t, "0", "1")
}
