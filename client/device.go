package client

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"cardea/api"
)

// machineFile holds, in a home, an id of this machine where the system has none.
const machineFile = "machine"

// RegisterDevice makes this machine a Device of the Session's User, and binds the
// Session to it. version is that of the program.
func (c *Client) RegisterDevice(ctx context.Context, version string) (api.DeviceResponse, error) {
	var out api.DeviceResponse
	l, err := c.current(ctx)
	if err != nil {
		return out, err
	}
	in := api.DeviceRequest{Report: api.DeviceReport{ClientVersion: version}}
	if in.OSType, err = osType(); err != nil {
		return out, err
	}
	if in.Report.ID, err = machineID(ctx, l.home); err != nil {
		return out, err
	}
	if in.Report.Hostname, err = os.Hostname(); err != nil {
		return out, fmt.Errorf("the name of this machine: %w", err)
	}
	in.Report.MACAddresses = macAddresses()
	return out, l.api.Do(ctx, http.MethodPost, "/api/self/device", in, &out)
}

func osType() (api.OSType, error) {
	switch runtime.GOOS {
	case "linux":
		return api.OSLinux, nil
	case "darwin":
		return api.OSMac, nil
	case "windows":
		return api.OSWindows, nil
	case "android":
		return api.OSAndroid, nil
	case "ios":
		return api.OSIOS, nil
	}
	return "", fmt.Errorf("%s is no system that a Device can have", runtime.GOOS)
}

// machineID returns what stays the same as long as this machine does: a hash of
// the system's own id (machine-id(5)), which is not told itself, or else a random
// one that is kept in the home.
func machineID(ctx context.Context, home string) (string, error) {
	for _, file := range []string{"/etc/machine-id", "/var/lib/dbus/machine-id"} {
		if b, err := os.ReadFile(file); err == nil && len(strings.TrimSpace(string(b))) >= 32 {
			sum := sha256.Sum256([]byte("cardea device " + strings.TrimSpace(string(b))))
			return hex.EncodeToString(sum[:]), nil
		}
	}
	unlock, err := lock(ctx, home)
	if err != nil {
		return "", err
	}
	defer unlock()
	b, err := os.ReadFile(filepath.Join(home, machineFile))
	if err == nil && len(strings.TrimSpace(string(b))) == 2*sha256.Size {
		return strings.TrimSpace(string(b)), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	id := make([]byte, sha256.Size)
	rand.Read(id) // never fails
	text := hex.EncodeToString(id)
	return text, writeFile(home, machineFile, []byte(text+"\n"))
}

// macAddresses returns those of the machine's own interfaces, at most 16.
func macAddresses() []string {
	all, err := net.Interfaces()
	if err != nil {
		return nil // it is told as far as it is known
	}
	var list []string
	for _, i := range all {
		if len(i.HardwareAddr) > 0 && i.Flags&net.FlagLoopback == 0 && len(list) < 16 {
			list = append(list, i.HardwareAddr.String())
		}
	}
	return list
}
