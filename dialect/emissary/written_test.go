package emissary

import (
	"encoding/json"
	"reflect"
	"testing"

	"cardea/api"
)

// What is read is what was written: it can be written again, and read again.
func FuzzReadJSON(f *testing.F) {
	for _, text := range []string{
		`{}`, `{"algorithm":"LEAST_CONNECTIONS","slowStart":{"seconds":30},"retries":2}`, `{"Algorithm":"ROUND_ROBIN"}`,
		`{"check":{"type":"TLS","interval":{"milliseconds":500},"send":"PING\\r\\n","expect":"PONG"}}`,
		`{"ejection":{"failures":1,"maxPercent":100},"check":null}`, `[]`, `{"check":[{}]}`, `{"endpoints":[{"url":"","user":1}]}`, `{"retries":1e400}`, `{"endpoints":[]}`, `{"check":{"type":"HTTP","http":{"statuses":[]}}}`,
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, into := range []checked{new(api.Loadbalance), new(api.UpstreamHealth)} {
			if readJSON(text, into) != nil {
				continue
			}
			// A list without elements is one that is not there.
			switch x := into.(type) {
			case *api.Loadbalance:
				if len(x.Endpoints) == 0 {
					x.Endpoints = nil
				}
			case *api.UpstreamHealth:
				if x.Check != nil && x.Check.HTTP != nil && len(x.Check.HTTP.Statuses) == 0 {
					x.Check.HTTP.Statuses = nil
				}
			}
			again, err := json.Marshal(into)
			if err != nil {
				t.Fatal(err)
			}
			same := reflect.New(reflect.TypeOf(into).Elem()).Interface().(checked)
			if err := readJSON(string(again), same); err != nil || !reflect.DeepEqual(into, same) {
				t.Errorf("%s becomes %s: %v", text, again, err)
			}
		}
	})
}
