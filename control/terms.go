package control

import (
	"time"

	"cardea/api"
	"cardea/store"
)

// What holds where neither the User nor the ClusterConfig says otherwise.
const (
	humanSession     = 21 * time.Hour
	workloadSession  = 90 * 24 * time.Hour
	humanSessions    = 16 // of one User
	workloadSessions = 128
	certificateLife  = 4 * time.Hour
	userDevices      = 32 // of one User
)

// terms are on what a User gets a Session.
type terms struct {
	life        time.Duration // of the Session
	certificate time.Duration // of each of its certificates
	most        int           // Sessions that the User may have
	state       api.SessionState
}

// termsOf returns the terms of a User: each as the User says, or else the
// ClusterConfig for Users of that type, or else by default.
func termsOf(r store.Reader, user *api.User) (terms, error) {
	cc, err := clusterConfig(r)
	if err != nil {
		return terms{}, err
	}
	t := terms{humanSession, certificateLife, humanSessions, api.SessionActive}
	of := cc.Spec.Session.Human
	if user.Spec.Type == api.UserWorkload {
		t.life, t.most = workloadSession, workloadSessions
		of = cc.Spec.Session.Workload
	}
	for _, s := range []*api.SessionSettings{of, user.Spec.Session} {
		if s == nil {
			continue
		}
		t.life, t.certificate = s.ClientDuration.Or(t.life), s.AccessTokenDuration.Or(t.certificate)
		if s.MaxPerUser > 0 {
			t.most = s.MaxPerUser
		}
		if s.DefaultState != "" {
			t.state = s.DefaultState
		}
	}
	return t, nil
}

// deviceTermsOf returns the state of a new Device of a User, and how many there
// may be.
func deviceTermsOf(r store.Reader, user *api.User) (state api.DeviceState, most int, err error) {
	cc, err := clusterConfig(r)
	if err != nil {
		return "", 0, err
	}
	state, most = api.DeviceActive, userDevices
	of := cc.Spec.Device.Human
	if user.Spec.Type == api.UserWorkload {
		of = cc.Spec.Device.Workload
	}
	if of != nil && of.MaxPerUser > 0 {
		most = of.MaxPerUser
	}
	if of != nil && of.DefaultState != "" {
		state = of.DefaultState
	}
	return state, most, nil
}

// clusterConfig returns the one there is.
func clusterConfig(r store.Reader) (*api.ClusterConfig, error) {
	return store.Get[*api.ClusterConfig](r, coreKey(api.KindClusterConfig, api.ClusterConfigName))
}
