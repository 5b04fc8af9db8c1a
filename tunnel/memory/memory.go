// Package memory is the road inside one process: conns of bytes in memory, with
// the whole contract of package tunnel and no socket. Tests use it, and what runs
// in the same process as the house.
//
// It works in a testing/synctest bubble.
package memory

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"cardea/api"
	"cardea/tunnel"
)

// Name is what the road writes into Facts.Tunnel.
const Name = "memory"

// A Road joins one Session to a Handler. It is a [tunnel.Dialer]. Its fields must
// not be changed while it is in use.
type Road struct {
	Handler tunnel.Handler
	Session string         // uid of the Session that dials; "" is nobody
	Source  netip.AddrPort // what the house takes for the client's address; invalid is none
}

// Dial opens a stream to a Service and waits for the Verdict.
func (r *Road) Dial(ctx context.Context, service string) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	told := make(chan api.Verdict, 1)
	client, server := pipe()
	a := api.Arrival{
		Conn:    &arrival{Conn: server, told: told},
		Service: api.ServiceName(service),
		Facts:   api.Facts{Tunnel: Name},
	}
	if r.Session != "" {
		a.Evidence = api.Evidence{Kind: api.EvidenceMemory, Data: []byte(r.Session)}
	}
	if r.Source.IsValid() {
		a.Facts.IP, a.Facts.Port = r.Source.Addr().Unmap().String(), int(r.Source.Port())
	}
	r.Handler.Arrive(a)

	select {
	case v := <-told:
		if err := tunnel.Refused(a.Service, v); err != nil {
			client.Reset("refused")
			return nil, err
		}
		return client, nil
	case <-server.gone:
		select { // it may have gone because the Verdict was told
		case v := <-told:
			if err := tunnel.Refused(a.Service, v); err != nil {
				return nil, err
			}
			return client, nil
		default:
			return nil, tunnel.Lost(a.Service, server.reason())
		}
	case <-ctx.Done():
		client.Reset("the client gave up")
		return nil, ctx.Err()
	}
}

// arrival is the house's end.
type arrival struct {
	*Conn
	told    chan api.Verdict // buffered; holds one
	decided bool             // guarded by Conn.mu
	refused bool
}

var (
	_ tunnel.Conn   = (*arrival)(nil)
	_ tunnel.Teller = (*arrival)(nil)
)

// errUntold is what bytes before the Verdict get.
var errUntold = errors.New("tunnel: no byte may be sent before the Verdict")

func (a *arrival) Verdict(v api.Verdict) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.decided {
		return errors.New("tunnel: the Verdict was told before")
	}
	if err := a.endedBy(); err != nil {
		return err
	}
	a.decided, a.refused = true, v.Code != api.VerdictOK
	a.told <- v
	return nil
}

// sendable tells why nothing may be sent now, if so.
func (a *arrival) sendable() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.decided || a.refused {
		return errUntold
	}
	return nil
}

func (a *arrival) Write(p []byte) (int, error) {
	if err := a.sendable(); err != nil {
		return 0, err
	}
	return a.Conn.Write(p)
}

func (a *arrival) CloseWrite() error {
	if err := a.sendable(); err != nil {
		return err
	}
	return a.Conn.CloseWrite()
}
