package client

import (
	"strings"

	"cardea/api"
	"cardea/relay"
)

// reasons are the reasons of the log in words for a person.
var reasons = map[string]string{
	string(relay.ClientReset):         "the client broke it off",
	string(relay.UpstreamReset):       "the upstream broke it off",
	string(relay.IdleTimeout):         "nothing had passed for too long",
	string(relay.MaxDuration):         "it had lasted as long as it may",
	string(relay.Revoked):             "the right to it was withdrawn",
	string(relay.Limit):               "a limit was met",
	string(relay.Unhealthy):           "the upstream is not healthy",
	string(relay.Drained):             "the cluster, or what carries this, is stopping",
	string(relay.Crashed):             "the process of the cluster that carried it died",
	string(relay.ProtocolError):       "a peer broke the rules of its protocol",
	"SESSION_ENDED":                   "the Session has ended or was disconnected",
	string(api.ReasonNoPolicyMatch):   "no policy allows it",
	string(api.ReasonPolicyMatch):     "a policy denies it",
	string(api.ReasonDeviceNotActive): "this device is not approved",
	string(api.ReasonServiceDisabled): "it is switched off",
	string(api.ReasonConfig):          "none of its configs is for this request",
}

// reasonWords puts words in the place of the code with which a text begins, and the code
// behind them in brackets.
func reasonWords(s string) string {
	code := s[:len(s)-len(strings.TrimLeft(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"))]
	words, ok := reasons[code]
	if !ok {
		return s
	}
	return words + " (" + code + ")" + s[len(code):]
}

// refusalWords is reasonWords for what a gateway says of a connection that it has cut.
func refusalWords(s string) string {
	const cut = " was cut: "
	if what, why, ok := strings.Cut(s, cut); ok {
		return what + cut + reasonWords(why)
	}
	return s
}
