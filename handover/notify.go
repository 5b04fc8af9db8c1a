package handover

import (
	"context"
	"fmt"
	"net"
	"strings"
)

// Notify tells the service manager the state of this process, as sd_notify(3) of
// systemd does: one datagram to the socket that NOTIFY_SOCKET names. A socket of ""
// is nobody to tell.
func Notify(ctx context.Context, socket string, states ...string) error {
	if socket == "" {
		return nil
	}
	if strings.HasPrefix(socket, "@") { // the abstract namespace of unix(7)
		socket = "\x00" + socket[1:]
	}
	c, err := new(net.Dialer).DialContext(ctx, "unixgram", socket)
	if err == nil {
		if end, ok := ctx.Deadline(); ok { // a manager that does not read is not waited for longer
			c.SetWriteDeadline(end)
		}
		_, err = c.Write([]byte(strings.Join(states, "\n")))
		c.Close()
	}
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}
