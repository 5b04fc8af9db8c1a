//go:build !linux

package copy

// ends returns how the two legs are read and written.
func (d *direction) ends() (source, sink) { return d.plainSource(), d.plainSink() }

// tcpClosed is not known here: a reset that the kernel reported to a write only
// can then look like an end of file.
func (*leg) tcpClosed() bool { return false }

// waitTCP cannot tell here: a reset of a connection that has half-closed shows when
// it is written to.
func (*leg) waitTCP() error { return nil }

// lostTCP cannot tell here: a reset shows when what came before it has been read.
func (*leg) lostTCP() error { return nil }

// pipe does not occur: nothing is spliced here.
type pipe struct{}

func (*pipe) close() {}

// pipes lends none.
type pipes struct{}

func (*pipes) put(*pipe) {}
func (*pipes) close()    {}
