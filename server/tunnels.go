package server

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cardea/address"
	"cardea/api"
	"cardea/dns"
	"cardea/store"
	"cardea/tunnel/wireguard"
)

func (n *network) key() api.Key {
	return api.Key{Group: api.GroupCore, Kind: api.KindGateway, Name: gatewayName}
}

// networkKinds are the kinds of which something of the network follows, in the order in
// which they are read.
func networkKinds() []string {
	return []string{api.KindClusterConfig, api.KindService, api.KindGateway, api.KindSession}
}

// follow keeps what is known of the store, and the peers of the gateway, what they are
// after that revision, until ctx is done.
func (n *network) follow(ctx context.Context, at api.Revision) error {
	for {
		err := n.watch(ctx, at)
		if err == nil || errors.Is(err, store.ErrCompacted) {
			at, err = n.load(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// load reads everything.
func (n *network) load(ctx context.Context) (at api.Revision, err error) {
	var all []store.Record
	err = n.store.View(ctx, func(r store.Reader) error {
		at = r.Revision()
		for _, kind := range networkKinds() {
			for rec, err := range r.List(api.GroupCore, kind) {
				if err != nil {
					return err
				}
				all = append(all, rec)
			}
		}
		return nil
	})
	if err != nil {
		return at, err
	}
	there := map[string]bool{}
	for _, rec := range all {
		there[rec.UID] = true
		if err := n.see(ctx, at, rec, false); err != nil {
			return at, err
		}
	}
	for _, rec := range n.forgotten(there) {
		if err := n.see(ctx, at, rec, true); err != nil {
			return at, err
		}
	}
	return at, nil
}

// forgotten returns, as deletions, what is known and not among those that are there.
func (n *network) forgotten(there map[string]bool) (gone []store.Record) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	note := func(o api.Object) {
		if h := o.Header(); !there[h.Metadata.UID] {
			gone = append(gone, store.Record{Key: h.Key(), UID: h.Metadata.UID})
		}
	}
	for _, o := range n.services {
		note(o)
	}
	for _, o := range n.sessions {
		note(o)
	}
	for _, o := range n.gateways {
		note(o)
	}
	return gone
}

// watch takes over what changes after a revision.
func (n *network) watch(ctx context.Context, from api.Revision) error {
	for c, err := range n.store.Watch(ctx, from) {
		if err != nil {
			return err
		}
		for _, x := range c.Changes {
			if err := n.see(ctx, c.Revision, x.Record, x.Deleted); err != nil {
				return err
			}
		}
	}
	return nil
}

// see notes an Object, or that it is gone.
func (n *network) see(ctx context.Context, at api.Revision, rec store.Record, deleted bool) error {
	if rec.Key.Group != api.GroupCore || !slices.Contains(networkKinds(), rec.Key.Kind) {
		return nil
	}
	var o api.Object
	if !deleted {
		var err error
		if o, err = store.Decode(rec); err != nil {
			return fmt.Errorf("server: %w", err)
		}
	}
	switch rec.Key.Kind {
	case api.KindClusterConfig:
		if c, ok := o.(*api.ClusterConfig); ok {
			if plan, err := address.ParsePlan(c.Status.Network); err != nil || plan != n.plan {
				return errors.Join(err, errReplan)
			}
		}
	case api.KindService:
		s, _ := o.(*api.Service)
		n.seeService(rec.Key.Name, s)
		n.gateway.Refresh()
	case api.KindGateway:
		g, _ := o.(*api.Gateway)
		n.seeGateway(rec.Key.Name, g)
	case api.KindSession:
		s, _ := o.(*api.Session)
		n.seeSession(ctx, at, rec.UID, s)
	}
	return nil
}

// seeService notes a Service, nil if it is gone.
func (n *network) seeService(name string, s *api.Service) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if old := n.services[name]; old != nil {
		for _, a := range addressesOf(old.Status.Addresses) {
			delete(n.at, a)
		}
		delete(n.services, name)
	}
	if s == nil || s.Spec.Mode == api.ModeAPI {
		return
	}
	n.services[name] = s
	for _, a := range addressesOf(s.Status.Addresses) {
		n.at[a] = name
	}
}

// seeGateway notes a Gateway, nil if it is gone.
func (n *network) seeGateway(name string, g *api.Gateway) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.gateways, name)
	if g != nil {
		n.gateways[name] = g
	}
	close(n.changed)
	n.changed = make(chan struct{})
}

// seeSession notes a Session, nil if it is gone, and lets its tunnel be what it says.
func (n *network) seeSession(ctx context.Context, at api.Revision, uid string, s *api.Session) {
	if s != nil && (s.Status.Connection == nil || s.Spec.State != api.SessionActive) {
		s = nil
	}
	n.mu.Lock()
	old := n.sessions[uid]
	delete(n.sessions, uid)
	if s != nil {
		n.sessions[uid] = s
	}
	n.mu.Unlock()
	switch {
	case s == nil && old == nil:
	case s == nil:
		n.cut(ctx, at, uid)
	case s.Status.Connection.PublicKey == "":
		if old != nil && old.Status.Connection.PublicKey != "" {
			n.gateway.Remove(uid)
			n.gate.LeaveTunnel(uid, wireguard.Name) // whatever the client could not tell any more
		}
	default:
		if err := n.put(uid, s.Status.Connection); err != nil {
			n.cfg.Log.Error("a Session has no tunnel", "session", s.Metadata.Name, "error", err)
		}
	}
}

// put makes a Session a peer.
func (n *network) put(uid string, c *api.SessionConnection) error {
	key, err := wireguard.ParseKey(c.PublicKey)
	if err != nil {
		return err
	}
	return n.gateway.Put(wireguard.Peer{Session: uid, PublicKey: key, Addresses: addressesOf(c.Addresses)})
}

// cut ends all that a Session had, once its connections were cut: their resets go
// through the tunnel.
func (n *network) cut(ctx context.Context, at api.Revision, uid string) {
	n.removing.Go(func() {
		if n.decider.Await(ctx, at) == nil {
			n.awaitKin(ctx, at)
			select {
			case <-time.After(cutTime):
			case <-ctx.Done():
			}
		}
		n.mu.RLock()
		back := n.sessions[uid] != nil
		n.mu.RUnlock()
		if back {
			return
		}
		n.gateway.Remove(uid)
		n.tunnels.DropSession(uid)
		n.quic.DropSession(uid)
	})
}

// awaitKin returns when older processes have cut what they have to cut by a revision, or
// soon.
func (n *network) awaitKin(ctx context.Context, at api.Revision) {
	soon, cancel := context.WithTimeout(ctx, cutKinTime)
	defer cancel()
	n.kin.await(soon, at, nil)
}

// addressesOf returns the addresses that are there.
func addressesOf(a api.Addresses) (list []netip.Addr) {
	for _, text := range []string{a.IPv4, a.IPv6} {
		if x, err := netip.ParseAddr(text); err == nil {
			list = append(list, x)
		}
	}
	return list
}

// serviceAt returns the Service at an address and port of the network.
func (n *network) serviceAt(to netip.AddrPort, protocol string) (string, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	name, ok := n.at[to.Addr()]
	if !ok {
		return "", false
	}
	s := n.services[name]
	return name, s.Status.Port == int(to.Port()) && protocolOf(s.Spec.Mode) == protocol
}

// nameAt returns the Service at an address of the network.
func (n *network) nameAt(a netip.Addr) (string, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	name, ok := n.at[a]
	return name, ok
}

// protocolOf returns what a mode speaks over.
func protocolOf(m api.Mode) string {
	if m == api.ModeUDP {
		return "udp"
	}
	return "tcp"
}

// tcpPorts returns the ports of Services, each once.
func (n *network) tcpPorts() []int {
	n.mu.RLock()
	defer n.mu.RUnlock()
	ports := map[int]struct{}{}
	for _, s := range n.services {
		if protocolOf(s.Spec.Mode) == "tcp" && s.Status.Port != 0 {
			ports[s.Status.Port] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(ports))
}

// find returns what DNS says of a Service.
func (n *network) find(name string) (dns.Entry, bool) {
	n.mu.RLock()
	defer n.mu.RUnlock()
	s := n.services[name]
	if s == nil {
		return dns.Entry{}, false
	}
	return dns.Entry{Service: name, Addresses: addressesOf(s.Status.Addresses), Port: s.Status.Port, Protocol: protocolOf(s.Spec.Mode)}, true
}

// mayBeTold reports whether a Session may know where a Service is.
func (n *network) mayBeTold(ctx context.Context, session, service string) bool {
	return n.settings.spec().DNS.Names != api.NamesReachable || n.decider.Possible(ctx, session, service)
}

// Gateways implements control.Network.
func (n *network) Gateways() []api.GatewayPlace {
	n.mu.RLock()
	defer n.mu.RUnlock()
	var prefixes []string
	for _, p := range n.plan.Services() {
		prefixes = append(prefixes, p.String())
	}
	list := []api.GatewayPlace{}
	for _, name := range slices.Sorted(maps.Keys(n.gateways)) {
		s := n.gateways[name].Status
		p := api.GatewayPlace{Name: name, Region: s.RegionRef.Name, Addresses: s.PublicIPs, Services: prefixes}
		if s.WireGuard != nil {
			p.WireGuardPort, p.PublicKey = s.WireGuard.Port, s.WireGuard.PublicKey
		}
		if s.QUIC != nil {
			p.QUICPort = s.QUIC.Port
		}
		list = append(list, p)
	}
	return list
}

// Changed implements control.Network.
func (n *network) Changed() <-chan struct{} {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.changed
}

// keep says in the store what this Gateway is, and gives it another key when its own is
// old, until ctx is done.
func (n *network) keep(ctx context.Context) error {
	if err := n.announce(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var later time.Time // not before that
	for told := true; ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if time.Now().Before(later) {
			continue
		}
		var err error
		if time.Since(n.keys.At) >= n.settings.keyRotation() {
			if err = n.rotateKey(); err == nil {
				told = false
			}
		}
		if err == nil && !told {
			err = n.announce(ctx)
			told = err == nil
		}
		if err != nil && ctx.Err() == nil {
			n.cfg.Log.Error("the WireGuard key of the gateway could not be renewed; it is tried again in a minute", "error", err)
			later = time.Now().Add(time.Minute)
		}
	}
}

// announce stores what this Gateway is.
func (n *network) announce(ctx context.Context) error {
	host, err := os.Hostname()
	if err != nil {
		host = ""
	}
	g := &api.Gateway{Head: api.Head{Metadata: api.Metadata{Name: gatewayName, Description: "The tunnels of this cluster."}}, Status: api.GatewayStatus{
		RegionRef: *api.Key{Group: api.GroupCore, Kind: api.KindRegion, Name: api.DefaultRegion}.Ref(),
		PublicIPs: n.cfg.Network.Addresses, Hostname: host, Form: strings.ToUpper(n.form),
		WireGuard: &api.GatewayWireGuard{Port: n.gateway.Port(), PublicKey: wireguard.Key(n.keys.Private).Public().Text(), KeyRotatedAt: n.keys.At.UTC().Truncate(time.Second)},
	}}
	if n.udp != nil {
		g.Status.QUIC = &api.GatewayQUIC{Port: int(n.quicAt.Port())}
	}
	if err := n.control.PutGateway(ctx, g); ctx.Err() == nil {
		return err
	}
	return nil
}

// rotateKey gives the gateway another key. What goes through the tunnels goes on: each
// client makes a new handshake with the key that it is told.
func (n *network) rotateKey() error {
	key, next := wireguard.NewKey(), n.keys
	next.Private, next.At = key[:], time.Now()
	if err := n.saveKeys(next); err != nil {
		return err
	}
	if err := n.gateway.SetKey(key); err != nil {
		return errors.Join(err, n.saveKeys(n.keys))
	}
	n.keys = next
	return nil
}

// A gatewayKeys is what a Gateway has to keep secret, as its file has it.
type gatewayKeys struct {
	Private []byte    `json:"private"` // of WireGuard
	At      time.Time `json:"at"`      // when it was made
	Reset   []byte    `json:"reset"`   // signs QUIC's stateless resets (RFC 9000, section 10.3)
}

// openKeys reads the keys of this Gateway, or makes them.
func (n *network) openKeys() error {
	path := filepath.Join(n.cfg.DataDir, gatewayKeyFile)
	text, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		key := wireguard.NewKey()
		n.keys = gatewayKeys{Private: key[:], At: time.Now(), Reset: make([]byte, resetKeySize)}
		rand.Read(n.keys.Reset)
		return n.saveKeys(n.keys)
	}
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, &n.keys); err != nil || len(n.keys.Private) != len(wireguard.Key{}) || len(n.keys.Reset) != resetKeySize {
		return fmt.Errorf("%s does not hold the keys of a gateway; remove it, and others are made", path)
	}
	return nil
}

// saveKeys writes the keys of this Gateway, whole or not at all.
func (n *network) saveKeys(keys gatewayKeys) error {
	text, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	path := filepath.Join(n.cfg.DataDir, gatewayKeyFile)
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// describe adds to a Gateway what is true of it now.
func (n *network) describe(g *api.Gateway) api.Object {
	c := *g
	if gw := n.current(); gw != nil && g.Metadata.Name == gatewayName {
		c.Status.Sessions, c.Status.Dropped = len(n.connected(gw)), gw.Dropped()
	}
	return &c
}

// connected returns the Sessions that are connected, by uid: they have a tunnel, or their
// client listens for what is new.
func (n *network) connected(g *wireguard.Gateway) map[string]struct{} {
	all := map[string]struct{}{}
	for _, p := range g.Peers() {
		if isAlive(p) {
			all[p.Session] = struct{}{}
		}
	}
	for _, uid := range n.control.Connected() {
		all[uid] = struct{}{}
	}
	return all
}

func isAlive(p wireguard.PeerStatus) bool { return time.Since(p.Handshake) < aliveTime }

// A traffic is what goes through the tunnels.
type traffic struct {
	peers, alive   int
	received, sent int64 // bytes
}

func trafficOf(g *wireguard.Gateway) (t traffic) {
	for _, p := range g.Peers() {
		t.peers++
		if isAlive(p) {
			t.alive++
		}
		t.received += int64(p.Received)
		t.sent += int64(p.Sent)
	}
	return t
}

// aliveTime is how old the last handshake of a peer may be that is there: WireGuard makes
// one at least every two minutes while packets go.
const aliveTime = 3 * time.Minute
