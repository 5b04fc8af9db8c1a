package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Whoever connects to the API again and again gets no more connections than his
// share, and a connection that ends makes room for another.
func TestConnectionsToTheAPIAreBounded(t *testing.T) {
	w := newWeb(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") }), 64, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	cert := selfSigned(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	connect := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		near, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		client := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
		server := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{cert}})
		shaken := make(chan error, 1)
		go func() { shaken <- server.Handshake() }()
		if err := client.Handshake(); err != nil {
			t.Fatal(err)
		}
		if err := <-shaken; err != nil {
			t.Fatal(err)
		}
		w.take(server)
		return client
	}
	served := func(c net.Conn) bool {
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		n, _ := c.Read(make([]byte, 1))
		return n == 1
	}
	const share = 64 / webShare / oneShare
	var open []net.Conn
	for range share {
		c := connect()
		defer c.Close()
		if !served(c) {
			t.Fatalf("connection %d was not served", len(open)+1)
		}
		open = append(open, c)
	}
	over := connect()
	defer over.Close()
	if served(over) {
		t.Errorf("more than %d connections of one address were served", share)
	}
	open[0].Close()
	for deadline := time.Now().Add(30 * time.Second); ; {
		c := connect()
		defer c.Close()
		if served(c) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a connection that ended made no room")
		}
	}
}

// Whoever reaches the port of the metrics gets no more connections than his share.
func TestConnectionsToTheMetricsAreBounded(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- servePlain(ctx, l, nil, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "here") }), slog.New(slog.DiscardHandler))
	}()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	connect := func() (c net.Conn, served bool) {
		t.Helper()
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		n, _ := c.Read(make([]byte, 1))
		return c, n == 1
	}
	var open []net.Conn
	for range metricsMost / oneShare {
		c, served := connect()
		defer c.Close()
		if !served {
			t.Fatalf("connection %d was not served", len(open)+1)
		}
		open = append(open, c)
	}
	if c, served := connect(); served {
		t.Errorf("more than %d connections of one address were served", len(open))
		c.Close()
	}
	open[0].Close()
	for deadline := time.Now().Add(30 * time.Second); ; {
		c, served := connect()
		defer c.Close()
		if served {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a connection that ended made no room")
		}
	}
}

func selfSigned(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// When a process ends, calls that are under way do so first; those that wait for news are
// ended, and do not count as under way.
func TestCallsEndBeforeTheProcess(t *testing.T) {
	began, finish := make(chan string, 2), make(chan struct{})
	w := newWeb(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		began <- r.URL.Path
		w.(http.Flusher).Flush()
		if waitsForNews(r) {
			<-r.Context().Done()
			close(finish)
			return
		}
		<-finish // after those that follow were ended
		if r.Context().Err() == nil {
			io.WriteString(w, "whole")
		}
	}), 64, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.run(ctx) }()
	cert := selfSigned(t)
	got := map[string]chan string{}
	for _, path := range []string{"/logs", "/logs?follow=true"} {
		near, far := net.Pipe()
		served := tls.Server(near, &tls.Config{Certificates: []tls.Certificate{cert}})
		go w.take(served)
		c := tls.Client(far, &tls.Config{InsecureSkipVerify: true})
		answer := make(chan string, 1)
		got[path] = answer
		go func() {
			io.WriteString(c, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			b, _ := io.ReadAll(c)
			c.Close()
			answer <- string(b)
		}()
		<-began
	}
	if n := w.calls(); n != 1 {
		t.Errorf("%d calls are under way", n)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if b := <-got["/logs"]; !strings.Contains(b, "whole") {
		t.Errorf("the answer was cut: %q", b)
	}
	<-got["/logs?follow=true"]
}
