package main

import (
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// The handshake succeeds with one that is not ours, and the first message after it is
// taken.
func TestHandshake(t *testing.T) {
	key, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tun, _, err := netstack.CreateNetTUN([]netip.Addr{netip.MustParseAddr("10.0.0.1")}, nil, 1280)
	if err != nil {
		t.Fatal(err)
	}
	d := device.NewDevice(tun, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, ""))
	defer d.Close()
	i, err := newInitiator(key.PublicKey().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if err := d.IpcSet(fmt.Sprintf("private_key=%s\nlisten_port=0\npublic_key=%s\nallowed_ip=10.0.0.2/32\n", hex.EncodeToString(key.Bytes()), hex.EncodeToString(i.own.PublicKey().Bytes()))); err != nil {
		t.Fatal(err)
	}
	if err := d.Up(); err != nil {
		t.Fatal(err)
	}
	state := func(name string) (value string) {
		text, err := d.IpcGet()
		if err != nil {
			t.Fatal(err)
		}
		_, value, _ = strings.Cut(text, name+"=")
		value, _, _ = strings.Cut(value, "\n")
		return value
	}
	p := &peer{loader: &loader{wireguard: "127.0.0.1:" + state("listen_port")}, at: netip.MustParseAddr("127.0.0.1"), init: i}
	if err := p.handshake(); err != nil {
		t.Fatal(err)
	}
	for state("last_handshake_time_sec") == "0" {
		if t.Context().Err() != nil {
			t.Fatal("the device does not take what the keys have encrypted")
		}
	}
}
