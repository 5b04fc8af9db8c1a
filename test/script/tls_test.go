package script_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// certificate NAME [ca=NAME] HOST…: writes NAME.pem and NAME.key: a certificate for
// those hosts, signed by another one or by itself.
func certificate() {
	name, hosts := os.Args[1], os.Args[2:]
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	check(err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	check(err)
	leaf := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	issuer, signer := leaf, key
	if len(hosts) > 0 {
		if ca, ok := strings.CutPrefix(hosts[0], "ca="); ok {
			hosts = hosts[1:]
			pair, err := tls.LoadX509KeyPair(ca+".pem", ca+".key")
			check(err)
			issuer, signer = pair.Leaf, pair.PrivateKey.(*ecdsa.PrivateKey)
			leaf.IsCA = false
		}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			leaf.IPAddresses = append(leaf.IPAddresses, ip)
		} else {
			leaf.DNSNames = append(leaf.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, issuer, &key.PublicKey, signer)
	check(err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	check(err)
	check(os.WriteFile(name+".pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	check(os.WriteFile(name+".key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600))
}

// tls-secret FILE SECRET NAME: writes a Secret of Kubernetes with NAME.pem and
// NAME.key, as YAML.
func tlsSecret() {
	cert, err := os.ReadFile(os.Args[3] + ".pem")
	check(err)
	key, err := os.ReadFile(os.Args[3] + ".key")
	check(err)
	b, err := json.Marshal(map[string]any{
		"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": map[string]any{"name": os.Args[2]},
		"data": map[string][]byte{"tls.crt": cert, "tls.key": key},
	})
	check(err)
	check(os.WriteFile(os.Args[1], b, 0o600))
}

// echo-tls ADDRESS NAME READYFILE CERTIFICATE: as echo-upstream, over TLS. It says
// which name it was asked for and which certificate it was shown, if one.
func echoTLS() {
	pair, err := tls.LoadX509KeyPair(os.Args[4]+".pem", os.Args[4]+".key")
	check(err)
	l, err := tls.Listen("tcp", os.Args[1], &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequestClientCert})
	check(err)
	answer(l, os.Args[3], func(c net.Conn) string {
		state := c.(*tls.Conn).ConnectionState()
		who := "nobody"
		if len(state.PeerCertificates) > 0 {
			who = state.PeerCertificates[0].Subject.CommonName
		}
		return fmt.Sprintf("%s (TLS, asked for %q by %s)", os.Args[2], state.ServerName, who)
	})
}

// dial ADDRESS [notls|sni=NAME|alpn=A,B|cert=NAME|from=IP|max=1.2]… LINE…: opens a
// connection, by TLS unless notls is given, prints whose certificate it was shown,
// sends each line and prints each answer. It fails, and says how, if the connection
// comes to nothing.
func dial() {
	config := &tls.Config{InsecureSkipVerify: true}
	d := net.Dialer{Timeout: 10 * time.Second}
	plain := false
	args := os.Args[2:]
	for ; len(args) > 0; args = args[1:] {
		k, v, _ := strings.Cut(args[0], "=")
		switch k {
		case "notls":
			plain = true
		case "sni":
			config.ServerName = v
		case "alpn":
			config.NextProtos = strings.Split(v, ",")
		case "cert":
			pair, err := tls.LoadX509KeyPair(v+".pem", v+".key")
			check(err)
			config.Certificates = []tls.Certificate{pair}
		case "from":
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(v)}
		case "max":
			config.MaxVersion = tls.VersionTLS12
		default:
			goto lines
		}
	}
lines:
	c, err := d.Dial("tcp", os.Args[1])
	if err != nil {
		ended(err)
	}
	check(c.SetDeadline(time.Now().Add(time.Minute)))
	if !plain {
		t := tls.Client(c, config)
		if err := t.Handshake(); err != nil {
			ended(err)
		}
		fmt.Printf("certificate of %s\n", t.ConnectionState().PeerCertificates[0].Subject.CommonName)
		c = t
	}
	converse(c, args)
}

// counts ADDRESS N: opens N connections, one after the other, and prints how often
// each upstream has answered.
func counts() {
	n, err := strconv.Atoi(os.Args[2])
	check(err)
	answered := map[string]int{}
	for range n {
		c := connect(os.Args[1])
		fmt.Fprintln(c, "x")
		answer, err := bufio.NewReader(c).ReadString('\n')
		if err != nil {
			ended(err)
		}
		c.Close()
		who, _, _ := strings.Cut(answer, ":")
		answered[who]++
	}
	for _, who := range slices.Sorted(maps.Keys(answered)) {
		fmt.Printf("%s: %d\n", who, answered[who])
	}
}
