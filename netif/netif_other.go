//go:build !linux

package netif

import (
	"errors"
	"os"

	"golang.zx2c4.com/wireguard/tun"
)

// Interface is a TUN interface. There is none on this system.
type Interface struct{}

// Open returns [errors.ErrUnsupported].
func Open(Config) (*Interface, error) { return nil, errors.ErrUnsupported }

// Inherit returns [errors.ErrUnsupported].
func Inherit(Config, *os.File) (*Interface, error) { return nil, errors.ErrUnsupported }

// Check returns [errors.ErrUnsupported].
func Check(Config) error { return errors.ErrUnsupported }

// Overlap returns [errors.ErrUnsupported].
func Overlap(Config) error { return errors.ErrUnsupported }

// Able returns [errors.ErrUnsupported].
func Able(string) error { return errors.ErrUnsupported }

// Name returns "".
func (*Interface) Name() string { return "" }

// IPv6 returns false.
func (*Interface) IPv6() bool { return false }

// TUN returns nil.
func (*Interface) TUN() tun.Device { return nil }

// Abort returns [errors.ErrUnsupported].
func (*Interface) Abort() (int, error) { return 0, errors.ErrUnsupported }

// Close does nothing.
func (*Interface) Close() error { return nil }

// Leave does nothing.
func (*Interface) Leave() error { return nil }
