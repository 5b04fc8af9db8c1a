package client

import (
	"strings"

	"cardea/api"
	"cardea/relay"
)

// reasonWords puts words for a person in the place of the reason, as the log has it, with
// which a text begins, and the reason behind them in brackets.
func reasonWords(s string) string {
	code := s[:len(s)-len(strings.TrimLeft(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"))]
	words := wordsOf(code)
	if words == "" {
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

// wordsOf returns what a reason means; "" if it is not known.
func wordsOf(code string) string {
	switch relay.Reason(code) {
	case relay.ClientReset:
		return "the client broke it off"
	case relay.UpstreamReset:
		return "the upstream broke it off"
	case relay.IdleTimeout:
		return "nothing had passed for too long"
	case relay.MaxDuration:
		return "it had lasted as long as it may"
	case relay.Revoked:
		return "the right to it was withdrawn"
	case relay.Limit:
		return "a limit was met"
	case relay.Unhealthy:
		return "the upstream is not healthy"
	case relay.Drained:
		return "what carried it is stopping"
	case relay.Crashed:
		return "the process of the cluster that carried it died"
	case relay.ProtocolError:
		return "a peer broke the rules of its protocol"
	case "SESSION_ENDED": // as a gateway has it
		return "the Session has ended or was disconnected"
	}
	switch api.ReasonType(code) {
	case api.ReasonNoPolicyMatch:
		return "no policy allows it"
	case api.ReasonPolicyMatch:
		return "a policy denies it"
	case api.ReasonDeviceNotActive:
		return "this device is not approved"
	case api.ReasonServiceDisabled:
		return "it is switched off"
	case api.ReasonConfig:
		return "none of its configs is for this request"
	}
	return ""
}
