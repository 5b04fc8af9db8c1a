package wireguard

import (
	"bufio"
	"encoding/hex"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"
)

// steady is a tun.Device whose going up and down is nobody's business: the device is up
// as long as its owner wants. What another one says of itself is thrown away.
type steady struct {
	tun.Device
	events chan tun.Event
	once   sync.Once
	done   sync.WaitGroup
}

func newSteady(d tun.Device) *steady {
	s := &steady{Device: d, events: make(chan tun.Event)}
	if from := d.Events(); from != nil {
		s.done.Go(func() {
			for range from {
			}
		})
	}
	return s
}

// Events implements tun.Device.
func (s *steady) Events() <-chan tun.Event { return s.events }

// Close implements tun.Device.
func (s *steady) Close() error {
	err := error(nil)
	s.once.Do(func() {
		err = s.Device.Close()
		s.done.Wait()
		close(s.events)
	})
	return err
}

// nothing is the part of a tun.Device that no device of ours has.
type nothing struct{ mtu int }

func (nothing) File() *os.File           { return nil }
func (n nothing) MTU() (int, error)      { return n.mtu, nil }
func (nothing) Name() (string, error)    { return "cardea", nil }
func (nothing) Events() <-chan tun.Event { return nil }
func (nothing) BatchSize() int           { return conn.IdealBatchSize }

// logger tells what the device says to a slog.Logger. dropped is told why it drops a
// packet, where it says so. (It does not of data that are forged or were there before.)
func logger(log *slog.Logger, dropped func(why int)) *device.Logger {
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			switch {
			case strings.Contains(format, "disallowed source address"):
				dropped(dropSource)
			case strings.Contains(format, "invalid mac1"), strings.Contains(format, "invalid initiation"):
				dropped(dropHandshake)
			}
		},
		Errorf: func(format string, args ...any) {
			log.Debug("WireGuard: " + fmt.Sprintf(format, args...))
		},
	}
}

// peerStatus is what the device says of a peer.
type peerStatus struct {
	key            Key
	endpoint       string         // as the device names it
	at             netip.AddrPort // where that is, and by what it is reached, if that is known
	carrier        string
	handshake      time.Time
	received, sent uint64
}

// peersOf asks the device for all of its peers.
func peersOf(d *device.Device) ([]peerStatus, error) {
	text, err := d.IpcGet()
	if err != nil {
		return nil, err
	}
	var peers []peerStatus
	var seconds int64
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		name, value, _ := strings.Cut(s.Text(), "=")
		if name == "public_key" {
			var k Key
			hex.Decode(k[:], []byte(value))
			peers = append(peers, peerStatus{key: k})
			continue
		}
		if len(peers) == 0 {
			continue
		}
		p := &peers[len(peers)-1]
		switch name {
		case "endpoint":
			p.endpoint = value
		case "last_handshake_time_sec":
			seconds, _ = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			if nano, _ := strconv.ParseInt(value, 10, 64); seconds != 0 || nano != 0 {
				p.handshake = time.Unix(seconds, nano)
			}
		case "rx_bytes":
			p.received, _ = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			p.sent, _ = strconv.ParseUint(value, 10, 64)
		}
	}
	return peers, nil
}

// setting is a change of a device, in the language of its configuration protocol.
type setting struct{ strings.Builder }

func (s *setting) add(name, value string) {
	s.WriteString(name)
	s.WriteByte('=')
	s.WriteString(value)
	s.WriteByte('\n')
}

// peer begins a peer, or goes on with one.
func (s *setting) peer(k Key) { s.add("public_key", k.hex()) }

// allow sets the addresses of the peer.
func (s *setting) allow(prefixes []netip.Prefix) {
	s.add("replace_allowed_ips", "true")
	for _, p := range prefixes {
		s.add("allowed_ip", p.String())
	}
}

func (s *setting) apply(d *device.Device) error { return d.IpcSet(s.String()) }
