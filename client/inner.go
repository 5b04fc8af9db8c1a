package client

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

// A dialFunc opens a connection through a tunnel.
type dialFunc func(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error)

const (
	// WireGuard repeats a handshake that was lost after 5 seconds: who asks is patient for
	// longer than two of those.
	askTimes = 24
	askAgain = 500 * time.Millisecond // after which it is asked again: packets get lost
)

// ask asks a DNS server of the cluster, through the tunnel, for one type of record of a
// name, and returns the answer, whatever it says.
func ask(ctx context.Context, dial dialFunc, server netip.Addr, name string, t dnsmessage.Type) (*dnsmessage.Message, error) {
	asked, err := dnsmessage.NewName(name + ".")
	if err != nil {
		return nil, fmt.Errorf("%.100q is no name: %w", name, err)
	}
	var id [2]byte
	rand.Read(id[:]) // never fails
	question := dnsmessage.Question{Name: asked, Type: t, Class: dnsmessage.ClassINET}
	query := dnsmessage.Message{Header: dnsmessage.Header{ID: binary.BigEndian.Uint16(id[:]), RecursionDesired: true}, Questions: []dnsmessage.Question{question}}
	b, err := query.Pack()
	if err != nil {
		return nil, err
	}
	c, err := dial(ctx, "udp", netip.AddrPortFrom(server, 53))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	in := make([]byte, 4096)
	for range askTimes {
		if _, err := c.Write(b); err != nil {
			return nil, err
		}
		m, err := answer(ctx, c, in, &query)
		if err == nil {
			return m, nil
		}
		if late, ok := errors.AsType[net.Error](err); ctx.Err() != nil || !ok || !late.Timeout() {
			return nil, err
		}
	}
	return nil, errors.New("no answer in time")
}

// answer waits for the answer to a query, for a while.
func answer(ctx context.Context, c net.Conn, in []byte, query *dnsmessage.Message) (*dnsmessage.Message, error) {
	c.SetReadDeadline(time.Now().Add(askAgain))
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for {
		n, err := c.Read(in)
		if err != nil {
			return nil, err
		}
		var m dnsmessage.Message
		if m.Unpack(in[:n]) == nil && m.Response && m.ID == query.ID && len(m.Questions) == 1 && m.Questions[0].Type == query.Questions[0].Type {
			return &m, nil
		}
	}
}

// echo asks a DNS server of the cluster for its own name, and returns how long that took.
func echo(ctx context.Context, dial dialFunc, server netip.Addr, domain string) (time.Duration, error) {
	began := time.Now()
	_, err := ask(ctx, dial, server, "dns."+domain, dnsmessage.TypeA)
	return time.Since(began), err
}

// find asks for the addresses and the port of a Service.
func find(ctx context.Context, dial dialFunc, server netip.Addr, service, domain string) (netip.AddrPort, error) {
	name := service + ".svc." + domain
	m, err := ask(ctx, dial, server, name, dnsmessage.TypeSRV)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask the cluster where %s is: %w", service, err)
	}
	var port uint16
	for _, r := range m.Answers {
		if s, ok := r.Body.(*dnsmessage.SRVResource); ok {
			port = s.Port
		}
	}
	if m, err = ask(ctx, dial, server, name, dnsmessage.TypeA); err != nil {
		return netip.AddrPort{}, fmt.Errorf("ask the cluster where %s is: %w", service, err)
	}
	for _, r := range m.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok && port != 0 {
			return netip.AddrPortFrom(netip.AddrFrom4(a.A), port), nil
		}
	}
	return netip.AddrPort{}, errNoService
}

// errNoService says that the cluster's DNS knows no such Service, or does not tell.
var errNoService = errors.New("the cluster knows no such Service")
