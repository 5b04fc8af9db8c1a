package client

import (
	"errors"
	"fmt"
	"os"
	"sync"
)

// maxLog is the size in bytes at which a Log is put aside.
const maxLog = 1 << 20

// A Log is the file in which the Daemon of a home tells what goes wrong. When it
// has grown to 1 MiB it becomes connect.log.1, in place of the one before, and
// begins anew. Each Write is one line.
type Log struct {
	path string

	mu   sync.Mutex
	file *os.File
	size int64
}

// OpenLog opens the Log of a home, see [LogFile].
func OpenLog(home string) (*Log, error) {
	l := &Log{path: LogFile(home)}
	return l, l.open()
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	i, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open the log: %w", err)
	}
	l.file, l.size = f, i.Size()
	return nil
}

// Write implements io.Writer.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size+int64(len(p)) > maxLog && l.size > 0 {
		old := l.file
		if err := errors.Join(os.Rename(l.path, l.path+".1"), l.open()); err == nil {
			old.Close()
		}
		// Otherwise it goes on in the file that there is.
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	return n, err
}

// Close closes the file.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.file.Close()
}
