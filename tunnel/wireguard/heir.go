package wireguard

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"time"

	"cardea/handover"

	"golang.zx2c4.com/wireguard/device"
)

// A Gateway of a process that another one replaces is handed over in three steps: that
// other one is given what [Gateway.Bequeath] returns, and makes its own Gateway of it with
// Open, which reads nothing until Run. Then this one is left, or stays.
//
// A packet that comes in between waits in its socket. What this Gateway has agreed with
// peers is not handed over: they make new handshakes, which the new one begins. Behind a
// network interface, TCP connections live in the kernel and do not notice.
//
// One of form KERNEL hands nothing over: what it has ends with Leave.

// DeviceName is the name of the network interface's device among what is handed over. The
// connections behind it live as long as it does.
const DeviceName = "tun"

// inherit returns what the process before has handed over by a name, nil for nothing; each
// is asked for once.
type inherit func(name string) *os.File

func (i inherit) take(name string) *os.File {
	if i == nil {
		return nil
	}
	return i(name)
}

// heritable is what has descriptors that can be handed over.
type heritable interface {
	bequeath(add func(name string, of syscall.Conn) error) error
}

// A memory is what a Gateway is to know of the one before.
type memory struct {
	Ports map[int]int               `json:"ports,omitempty"` // of the kernel's sockets, by those of Services
	Peers map[string]netip.AddrPort `json:"peers,omitempty"` // where they are, by public key
}

// portName names the socket of the kernel for a port of Services.
func portName(port int) string { return fmt.Sprint("tcp ", port) }

// Bequeath returns what the Gateway has open, by names, and what is to be known of it, for
// a Gateway in another process; the caller closes the files. Until Leave or Stay is called
// the Gateway opens and closes no socket, so that both have the same. If nothing can be
// handed over the text is "".
func (g *Gateway) Bequeath() (files map[string]*os.File, text string, err error) {
	o, ok := g.core.(heritable)
	if !ok {
		return nil, "", nil
	}
	files = map[string]*os.File{}
	add := func(name string, of syscall.Conn) error {
		f, err := handover.Duplicate(of, name)
		if err != nil {
			return fmt.Errorf("the descriptor of %s: %w", name, err)
		}
		files[name] = f
		return nil
	}
	m := memory{Peers: map[string]netip.AddrPort{}}
	err = o.bequeath(add)
	if k, ok := g.plane.below.(heirloom); ok {
		m.Ports = k.hold()
		err = cmp.Or(err, k.bequeath(add))
	}
	peers, e := g.core.peers()
	for _, p := range peers {
		if p.carrier == CarrierUDP && time.Since(p.handshake) < device.RejectAfterTime {
			m.Peers[p.key.Text()] = p.at
		}
	}
	b, failed := json.Marshal(m)
	if err = errors.Join(err, e, failed); err != nil {
		for _, f := range files {
			f.Close()
		}
		g.Stay()
		return nil, "", err
	}
	return files, string(b), nil
}

// Stay says that nobody takes over what Bequeath returned.
func (g *Gateway) Stay() {
	if k, ok := g.plane.below.(heirloom); ok {
		k.release()
		g.Refresh()
	}
}

// heirloom is a below that outlives its process.
type heirloom interface {
	heritable
	hold() (ports map[int]int) // the sockets stay what they are
	release()                  // they need not any more
	leave()                    // what this process has of them is closed
}

// Leave ends this Gateway's part in the tunnels, which are another process's. If that has
// taken the network interface (kept), TCP connections behind it go on: whoever decides on
// them cuts them as before, and Remove and the end of Run do. All else is over. Peers that
// are put are not its own any more.
func (g *Gateway) Leave(kept bool) {
	g.change.Lock()
	defer g.change.Unlock()
	g.left = true
	if k, ok := g.plane.below.(heirloom); ok && kept {
		k.leave()
	}
	g.core.close()
}

// endpoint returns where a peer is that the Gateway before this one knew, once; zero if it
// did not. g.change must be held.
func (g *Gateway) endpoint(of Key) netip.AddrPort {
	at, ok := g.known.Peers[of.Text()]
	delete(g.known.Peers, of.Text())
	if ok {
		g.recalled = append(g.recalled, of)
	}
	return at
}

// hasBegun reports whether Run was called.
func (g *Gateway) hasBegun() bool {
	select {
	case <-g.begun:
		return true
	default:
		return false
	}
}

// recall makes new handshakes with the peers of the Gateway before this one: they would
// take a while to find out that it is gone.
func (g *Gateway) recall() {
	g.change.Lock()
	keys := g.recalled
	g.recalled = nil
	g.change.Unlock()
	for _, key := range keys {
		g.core.greet(key, nil)
	}
}
