//go:build !linux

package wireguard

import (
	"errors"
	"fmt"
)

func (g *Gateway) openTUN() (below, error) {
	return nil, fmt.Errorf("a gateway behind a network interface: %w", errors.ErrUnsupported)
}

func (g *Gateway) openKernel() (core, error) {
	return nil, fmt.Errorf("a gateway of the kernel: %w", errors.ErrUnsupported)
}
