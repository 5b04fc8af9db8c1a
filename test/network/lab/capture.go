//go:build linux

package lab

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Capture writes down what passes an Ethernet interface of the host, from now until
// stop is called the first time. What has passed when stop is called is in it. stop
// returns, a line each as tcpdump prints them, the packets that a filter of
// pcap-filter(7) selects.
func (h *Host) Capture(device string) (stop func(filter string) []string) {
	h.tb.Helper()
	read := h.record(device)
	return func(filter string) []string {
		h.tb.Helper()
		return strings.FieldsFunc(string(read("-n", filter)), func(r rune) bool { return r == '\n' })
	}
}

// Record is Capture, of the payloads of UDP over IPv4 and of nothing else.
func (h *Host) Record(device string) (stop func(filter string) [][]byte) {
	h.tb.Helper()
	read := h.record(device)
	return func(filter string) (payloads [][]byte) {
		h.tb.Helper()
		file := read("-w", "-", "ip proto 17 and ("+filter+")")
		for file = file[min(len(file), pcapHeaderSize):]; len(file) >= pcapRecordSize; {
			size := pcapRecordSize + int(binary.NativeEndian.Uint32(file[8:]))
			frame := file[pcapRecordSize:size]
			const ethernet, udp = 14, 8
			payloads = append(payloads, frame[ethernet+int(frame[ethernet]&15)*4+udp:])
			file = file[size:]
		}
		return payloads
	}
}

// record writes down what passes until it is read by tcpdump.
func (h *Host) record(device string) (read func(args ...string) []byte) {
	h.tb.Helper()
	if _, err := exec.LookPath("tcpdump"); err != nil {
		h.tb.Skip("needs tcpdump: see test/setup")
	}
	var fd int
	var err error
	h.Do(func() { fd, err = packetSocket(device) })
	if err != nil {
		h.tb.Fatalf("capture at %s: %v", device, err)
	}
	file, err := os.Create(filepath.Join(h.tb.TempDir(), "packets"))
	if err != nil {
		unix.Close(fd)
		h.tb.Fatal(err)
	}
	c := &capture{tb: h.tb, fd: fd, file: file}
	c.write(pcapHeader())
	var reading sync.WaitGroup
	over := make(chan struct{})
	reading.Go(func() {
		for {
			select {
			case <-over:
				c.drain()
				return
			default:
				c.wait()
				c.drain()
			}
		}
	})
	end := sync.OnceFunc(func() {
		close(over)
		reading.Wait()
		unix.Close(fd)
		file.Close()
	})
	h.tb.Cleanup(end)
	return func(args ...string) []byte {
		h.tb.Helper()
		end()
		out, err := exec.Command("tcpdump", append([]string{"-r", file.Name()}, args...)...).Output()
		if err != nil {
			h.tb.Fatalf("tcpdump %q: %v", args, err)
		}
		return out
	}
}

// packetSocket opens a packet(7) socket at a device of this thread's namespace.
func packetSocket(device string) (int, error) {
	all := binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})
	// It hears nothing until it is bound to the device.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	request, err := unix.NewIfreq(device)
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, request)
	}
	if err == nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(request.Uint32())})
	}
	if err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// capture is one that runs.
type capture struct {
	tb     testing.TB
	fd     int
	file   *os.File
	packet [256 << 10]byte
}

// wait returns when there is a packet, or after a while.
func (c *capture) wait() {
	unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, 50)
}

// drain writes down the packets that are there.
func (c *capture) drain() {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.packet[:], unix.MSG_DONTWAIT)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		now := time.Now()
		order := binary.NativeEndian
		record := order.AppendUint32(nil, uint32(now.Unix()))
		record = order.AppendUint32(record, uint32(now.Nanosecond()/1000))
		record = order.AppendUint32(record, uint32(n)) // here
		record = order.AppendUint32(record, uint32(n)) // on the wire
		c.write(append(record, c.packet[:n]...))
	}
}

func (c *capture) write(b []byte) {
	if _, err := c.file.Write(b); err != nil {
		c.tb.Errorf("capture: %v", err)
	}
}

// Sizes in a file of pcap-savefile(5): of its header, and of that of a packet.
const (
	pcapHeaderSize = 24
	pcapRecordSize = 16
)

// pcapHeader begins a file of pcap-savefile(5), of Ethernet.
func pcapHeader() []byte {
	order := binary.NativeEndian
	b := order.AppendUint32(nil, 0xa1b2c3d4)
	b = order.AppendUint16(b, 2)
	b = order.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...)
	b = order.AppendUint32(b, 256<<10)
	return order.AppendUint32(b, 1)
}
