package control

import (
	"encoding/json"
	"errors"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"

	"cardea/api"
	"cardea/store"
)

// machine is what the n-th machine says of itself.
func machine(n string) api.DeviceRequest {
	return api.DeviceRequest{OSType: api.OSLinux, Report: api.DeviceReport{ID: strings.Repeat(n, 64), Hostname: "host-" + n}}
}

func (w *world) register(who *person, in api.DeviceRequest) (out api.DeviceResponse, err error) {
	w.t.Helper()
	return out, w.do(who, "POST", "/api/self/device", in, &out)
}

// again logs a User in once more.
func (w *world) again(root *person, name string) *person { return w.login(w.token(root, name)) }

func TestRegisterDevice(t *testing.T) {
	w, root := newRoot(t)
	bob := w.user(root, "bob") // may do nothing else
	in := machine("a")
	in.Report.SerialNumber, in.Report.MACAddresses = "sn-1", []string{"00:00:5e:00:53:01"}
	records := len(w.journal.all())
	out, err := w.register(bob, in)
	if err != nil || !out.Created {
		t.Fatalf("%+v, %v", out, err)
	}
	d := get[*api.Device](w, api.KindDevice, out.Device.Metadata.Name)
	if !regexp.MustCompile(`^linux-[a-z0-9]{8}$`).MatchString(d.Metadata.Name) || d.Metadata.UID == "" || d.Metadata.ActorRef.Name != bob.session {
		t.Errorf("its metadata is %+v", d.Metadata)
	}
	if d.Spec.State != api.DeviceActive || len(d.Spec.Attrs) > 0 || len(d.Metadata.Labels) > 0 {
		t.Errorf("its spec is %+v", d.Spec)
	}
	if s := d.Status; s.UserRef.Name != "bob" || s.OSType != api.OSLinux || s.Reported.Hostname != "host-a" || s.Reported.SerialNumber != "sn-1" || !s.SeenAt.Equal(w.Now()) {
		t.Errorf("its status is %+v", s)
	}
	if s := get[*api.Session](w, api.KindSession, bob.session); s.Status.DeviceRef == nil || s.Status.DeviceRef.UID != d.Metadata.UID {
		t.Errorf("the Session is bound to %+v", s.Status.DeviceRef)
	}
	recs := w.journal.all()[records:]
	if len(recs) != 2 || recs[0].Entry.Info.API.Kind != api.KindDevice || recs[0].Entry.Info.API.Verb != verbCreate ||
		recs[1].Entry.Info.API.Kind != api.KindSession || recs[0].Entry.Common.UserRef.Name != "bob" {
		t.Errorf("the log says %+v", recs)
	}
	// His own he may see, and no other.
	w.must(bob, "GET", "/api/core/v1/devices/"+d.Metadata.Name, nil, nil)
	other, err := w.register(root, machine("b"))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.do(bob, "GET", "/api/core/v1/devices/"+other.Device.Metadata.Name, nil, nil); !api.HasCode(err, api.CodePermissionDenied) {
		t.Errorf("the Device of another: %v", err)
	}

	// The machine of another User is another Device, whoever came first.
	carols, err := w.register(w.user(root, "carol"), in)
	if err != nil || !carols.Created || carols.Device.Metadata.UID == d.Metadata.UID || carols.Device.Status.UserRef.Name != "carol" {
		t.Errorf("the same machine of carol: %+v, %v", carols, err)
	}

	// The machine again, from another Session of its User.
	w.clock.advance(time.Hour)
	in.Report.Hostname, in.OSType = "renamed", api.OSMac
	bob2 := w.again(root, "bob")
	again, err := w.register(bob2, in)
	if err != nil || again.Created || again.Device.Metadata.UID != d.Metadata.UID {
		t.Fatalf("%+v, %v", again, err)
	}
	d2 := get[*api.Device](w, api.KindDevice, d.Metadata.Name)
	if s := d2.Status; s.Reported.Hostname != "renamed" || s.OSType != api.OSLinux || !s.SeenAt.Equal(w.Now()) || d2.Metadata.ResourceVersion == d.Metadata.ResourceVersion {
		t.Errorf("its status is %+v", s)
	}
	if s := get[*api.Session](w, api.KindSession, bob2.session); s.Status.DeviceRef == nil || s.Status.DeviceRef.UID != d.Metadata.UID {
		t.Errorf("the second Session is bound to %+v", s.Status.DeviceRef)
	}
}

func TestRegisterDeviceRefused(t *testing.T) {
	w, root := newRoot(t)
	w.config(root, `{'device':{'human':{'maxPerUser':2}}}`)
	bob := w.user(root, "bob")
	if _, err := w.register(bob, machine("a")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.register(w.again(root, "bob"), machine("b")); err != nil {
		t.Fatal(err)
	}
	if _, err := w.register(w.again(root, "bob"), machine("a")); err != nil {
		t.Errorf("one that is there, at the limit: %v", err)
	}
	w.mustApply(root, `{'kind':'User','metadata':{'name':'denied'},'spec':{'type':'HUMAN','authorization':{'policies':['deny-all']}}}`,
		`{'kind':'Credential','metadata':{'name':'denied'},'spec':{'user':'denied'}}`)
	denied := w.again(root, "denied")
	fresh := w.again(root, "bob")
	long := machine("d")
	long.Report.Hostname = strings.Repeat("x", 129)
	for _, tc := range []struct {
		name string
		who  *person
		in   any
		code api.Code
		says string
	}{
		{"nobody", nil, machine("d"), api.CodeUnauthenticated, ""},
		{"who is denied", denied, machine("d"), api.CodePermissionDenied, ""},
		{"one too many", fresh, machine("d"), api.CodeConflict, "has 2 Devices"},
		{"from a Session that is bound to another", bob, machine("b"), api.CodeConflict, "bound to the Device linux-"},
		{"no report", fresh, api.DeviceRequest{OSType: api.OSLinux}, api.CodeInvalid, "report.id"},
		{"a report that is too long", fresh, long, api.CodeInvalid, "report.hostname"},
		{"no operating system", fresh, api.DeviceRequest{Report: machine("d").Report}, api.CodeInvalid, "osType"},
		{"attributes", fresh, `{"osType":"LINUX","report":{"id":"` + strings.Repeat("d", 64) + `"},"attrs":{"trusted":true}}`, api.CodeInvalid, "unknown field"},
		{"a flood", fresh, `{"osType":"` + strings.Repeat("X", maxLogin) + `"}`, api.CodeInvalid, "larger than"},
	} {
		before := w.revision()
		err := w.do(tc.who, "POST", "/api/self/device", tc.in, nil)
		if !api.HasCode(err, tc.code) || !strings.Contains(err.Error(), tc.says) {
			t.Errorf("%s: %v, want %s %q", tc.name, err, tc.code, tc.says)
		}
		if w.revision() != before {
			t.Errorf("%s: something was written", tc.name)
		}
	}
	name := get[*api.Session](w, api.KindSession, bob.session).Status.DeviceRef.Name
	w.must(root, "DELETE", "/api/core/v1/devices/"+name, nil, nil)
	if w.exists(api.KindSession, bob.session) {
		t.Error("a Session outlives its Device")
	}
	if _, err := w.register(fresh, machine("d")); err != nil {
		t.Errorf("with room for one more: %v", err)
	}
	w.must(root, "DELETE", "/api/core/v1/users/bob", nil, nil)
	for rec := range each(w, api.KindDevice) {
		if d := must(store.Decode(rec)).(*api.Device); d.Status.UserRef.Name == "bob" {
			t.Errorf("%s outlives its User", d.Metadata.Name)
		}
	}
}

func TestDeviceState(t *testing.T) {
	w, root := newRoot(t)
	w.config(root, `{'device':{'human':{'defaultState':'PENDING'}}}`)
	bob := w.user(root, "bob")
	out, err := w.register(bob, machine("a"))
	if err != nil || out.Device.Spec.State != api.DevicePending {
		t.Errorf("%+v, %v", out.Device, err)
	}
}

// TestDeviceUnrecorded: what cannot be recorded does not happen.
func TestDeviceUnrecorded(t *testing.T) {
	w, root := newRoot(t)
	bob := w.user(root, "bob")
	w.journal.fail = errors.New("the disk is full")
	before := w.revision()
	if _, err := w.register(bob, machine("a")); !api.HasCode(err, api.CodeUnavailable) {
		t.Errorf("got %v", err)
	}
	if w.revision() != before {
		t.Error("something was written")
	}
}

// FuzzRegisterDevice sends what a client may say of its machine.
func FuzzRegisterDevice(f *testing.F) {
	good, _ := json.Marshal(machine("a"))
	f.Add(string(good))
	f.Add(`{"osType":"LINUX","report":{"id":"x"}}`)
	w, root := newRoot(f)
	f.Fuzz(func(t *testing.T, body string) {
		w.t = t
		res := w.request(root, "POST", "/api/self/device", body)
		switch res.Code {
		case http.StatusOK, http.StatusBadRequest, http.StatusConflict:
		default:
			t.Fatalf("%d: %s", res.Code, res.Body)
		}
	})
}
