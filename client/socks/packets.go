package socks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	maxFlows   = 64               // that one client may have at once
	flowIdle   = 60 * time.Second // after which a flow is forgotten
	maxPacket  = 65535            // bytes of a datagram, its header included
	waitingFor = 16               // datagrams that may wait for a flow to be connected
)

// association is what one UDP ASSOCIATE opened: RFC 1928, section 7. It lasts as long
// as the connection that asked for it.
type association struct {
	server *Server
	socket *net.UDPConn
	host   netip.Addr // of the client

	mu     sync.Mutex
	client netip.AddrPort         // where its datagrams come from, once there was one
	flows  map[string]chan []byte // by address as it is written
	work   sync.WaitGroup
}

// associate serves a client that has asked for datagrams.
func (s *Server) associate(ctx context.Context, c net.Conn) {
	defer c.Close()
	here, ok := c.LocalAddr().(*net.TCPAddr)
	there, ok2 := c.RemoteAddr().(*net.TCPAddr)
	if s.DialPackets == nil || !ok || !ok2 {
		reply(c, replyCommand, nil)
		bye(c)
		return
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: here.IP, Zone: here.Zone})
	if err != nil {
		s.Log.Warn("cannot serve datagrams", "error", err)
		reply(c, replyFailed, nil)
		bye(c)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	a := &association{
		server: s, socket: socket, host: there.AddrPort().Addr().Unmap(), flows: map[string]chan []byte{},
	}
	if reply(c, replyOK, socket.LocalAddr()) == nil {
		a.work.Go(func() { a.read(ctx) })
		io.Copy(io.Discard, c) // until the client, or ctx, closes it
	}
	cancel()
	socket.Close()
	a.work.Wait()
}

// read takes the client's datagrams until the socket is closed.
func (a *association) read(ctx context.Context) {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := a.socket.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || !a.isClient(from) {
			continue
		}
		if host, port, payload, ok := parsePacket(buf[:n]); ok {
			a.send(ctx, host, port, payload)
		}
	}
}

// isClient reports whether a datagram is the client's: the first that is tells which
// of its ports it sends from.
func (a *association) isClient(from netip.AddrPort) bool {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.client.IsValid() {
		return from == a.client
	}
	if from.Addr() != a.host {
		return false
	}
	if admit := a.server.AdmitPackets; admit != nil {
		if err := admit(from, a.socket.LocalAddr().(*net.UDPAddr).AddrPort()); err != nil {
			a.server.Log.Warn("refused a datagram to the proxy", "error", err)
			return false
		}
	}
	a.client = from
	return true
}

// parsePacket takes a datagram of a client apart. One in fragments is none.
func parsePacket(p []byte) (host string, port int, payload []byte, ok bool) {
	if len(p) < 4 || p[0] != 0 || p[1] != 0 || p[2] != 0 { // RSV, FRAG
		return "", 0, nil, false
	}
	r := bytes.NewReader(p[3:])
	host, port, err := readAddress(r)
	if err != nil || port == 0 {
		return "", 0, nil, false
	}
	return host, port, p[len(p)-r.Len():], true
}

// send gives a datagram to its flow, which it begins if there is none. A flow that is
// too slow loses it, and so does one flow too many.
func (a *association) send(ctx context.Context, host string, port int, payload []byte) {
	key := string(appendAddress(nil, host, port))
	a.mu.Lock()
	queue, ok := a.flows[key]
	if !ok && len(a.flows) < maxFlows {
		queue = make(chan []byte, waitingFor)
		a.flows[key] = queue
		a.work.Go(func() {
			a.flow(ctx, host, port, queue)
			a.mu.Lock()
			delete(a.flows, key)
			a.mu.Unlock()
		})
	}
	a.mu.Unlock()
	select {
	case queue <- bytes.Clone(payload):
	default:
	}
}

// flow carries datagrams to and from one address until none has passed for a while.
func (a *association) flow(ctx context.Context, host string, port int, queue <-chan []byte) {
	dial, cancel := context.WithTimeout(ctx, dialTime)
	upstream, err := a.server.DialPackets(dial, host, port)
	cancel()
	if err != nil {
		return
	}
	stop := context.AfterFunc(ctx, func() { upstream.Close() })
	defer stop()
	idle := time.AfterFunc(flowIdle, func() { upstream.Close() })
	defer idle.Stop()
	over := make(chan struct{})
	a.work.Go(func() {
		defer close(over)
		a.answers(upstream, appendAddress([]byte{0, 0, 0}, host, port), idle)
	})
	for {
		select {
		case p := <-queue:
			idle.Reset(flowIdle)
			if _, err := upstream.Write(p); err != nil {
				upstream.Close()
			}
		case <-over:
			upstream.Close()
			return
		}
	}
}

// answers sends to the client, each behind a header, what comes from an upstream.
func (a *association) answers(upstream net.Conn, header []byte, idle *time.Timer) {
	buf := make([]byte, len(header)+maxPacket)
	copy(buf, header)
	for {
		n, err := upstream.Read(buf[len(header):])
		if err != nil {
			return
		}
		idle.Reset(flowIdle)
		a.mu.Lock()
		to := a.client
		a.mu.Unlock()
		a.socket.WriteToUDPAddrPort(buf[:len(header)+n], to)
	}
}
