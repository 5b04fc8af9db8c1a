//go:build !linux

package wireguard

import (
	"errors"
	"fmt"
)

func (g *Gateway) openKernel() (below, error) {
	return nil, fmt.Errorf("a gateway behind a network interface: %w", errors.ErrUnsupported)
}
