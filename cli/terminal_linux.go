package cli

import "golang.org/x/sys/unix"

// termios asks a terminal for its settings, and fails for everything else.
const termios = unix.TCGETS
