package api

import (
	"regexp"
	"strconv"
	"time"
)

// A Device is a machine of a User. Nobody creates one by hand: the User registers
// it from there.
type Device struct {
	Head
	Spec   DeviceSpec   `json:"spec"`
	Status DeviceStatus `json:"status,omitzero"`
}

// DeviceState says whether a Device may be used.
type DeviceState string

// The states of a Device.
const (
	DeviceActive   DeviceState = "ACTIVE"
	DevicePending  DeviceState = "PENDING"
	DeviceRejected DeviceState = "REJECTED"
)

// Values implements Enum.
func (DeviceState) Values() []string {
	return []string{string(DeviceActive), string(DevicePending), string(DeviceRejected)}
}

// DeviceSpec is what an administrator sets.
type DeviceSpec struct {
	State         DeviceState   `json:"state"`
	Authorization Authorization `json:"authorization,omitzero"`
	// Attrs is what policies read of a Device, written by administrators only.
	Attrs Attrs `json:"attrs,omitempty"`
}

// DeviceStatus is what the cluster knows of it.
type DeviceStatus struct {
	UserRef Ref    `json:"userRef"`
	OSType  OSType `json:"osType,omitempty"`
	// Reported is what the Device says of itself; nobody has verified it.
	Reported DeviceReport `json:"reported,omitzero"`
	SeenAt   time.Time    `json:"seenAt,omitzero"` // when it was registered last
}

// OSType is the operating system of a Device.
type OSType string

// The operating systems.
const (
	OSLinux   OSType = "LINUX"
	OSWindows OSType = "WINDOWS"
	OSMac     OSType = "MAC"
	OSAndroid OSType = "ANDROID"
	OSIOS     OSType = "IOS"
)

// Values implements Enum.
func (OSType) Values() []string {
	return []string{string(OSLinux), string(OSWindows), string(OSMac), string(OSAndroid), string(OSIOS)}
}

// DeviceReport is what a Device says of itself.
type DeviceReport struct {
	Hostname string `json:"hostname,omitempty"`
	// ID stays the same as long as the machine does: 64 hexadecimal digits.
	ID            string   `json:"id"`
	SerialNumber  string   `json:"serialNumber,omitempty"`
	MACAddresses  []string `json:"macAddresses,omitempty"`
	ClientVersion string   `json:"clientVersion,omitempty"`
}

var deviceID = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Validate reports what is wrong with what a Device says of itself.
func (r *DeviceReport) Validate(p *Problems, at string) {
	if !deviceID.MatchString(r.ID) {
		p.Add(at+"/id", "must be 64 hexadecimal digits", r.ID)
	}
	for _, x := range []struct{ name, value string }{
		{"hostname", r.Hostname}, {"serialNumber", r.SerialNumber}, {"clientVersion", r.ClientVersion},
	} {
		if len(x.value) > 128 {
			p.Add(at+"/"+x.name, "must be at most 128 bytes", x.value)
		}
	}
	if len(r.MACAddresses) > 16 {
		p.Add(at+"/macAddresses", "must be at most 16", strconv.Itoa(len(r.MACAddresses)))
	}
	for _, m := range r.MACAddresses {
		if len(m) > 32 {
			p.Add(at+"/macAddresses", "must be at most 32 bytes each", m)
		}
	}
}

// Default implements Object.
func (d *Device) Default() {
	d.APIVersion, d.Kind = Version, KindDevice
	if d.Spec.State == "" {
		d.Spec.State = DeviceActive
	}
}

// Validate implements Object.
func (d *Device) Validate(p *Problems) {
	d.Metadata.validateMade(p)
	d.Spec.Authorization.validate(p, "/spec/authorization")
}

func deviceKind() Kind {
	return Kind{Name: KindDevice, Plural: "devices", Short: []string{"dev"}, Updatable: true,
		New: func() Object { return new(Device) },
		Columns: []Column{
			{Heading: "USER", Cell: func(o Object) string { return o.(*Device).Status.UserRef.Name }},
			{Heading: "OS", Cell: func(o Object) string { return string(o.(*Device).Status.OSType) }},
			{Heading: "HOSTNAME", Cell: func(o Object) string { return o.(*Device).Status.Reported.Hostname }},
			{Heading: "STATE", Cell: func(o Object) string { return string(o.(*Device).Spec.State) }},
		}}
}
