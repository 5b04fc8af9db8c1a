// Package rpc is how our processes talk: HTTP and JSON of api types.
//
// A call that succeeds answers 200 with one JSON value, or with JSON lines. One
// that fails answers with an [api.Error] and the status of its code. The client
// side is [Client]; the server side is [Read], [Answer], [Lines] and [Fail].
package rpc

import (
	"net/http"

	"cardea/api"
)

// Limits of what one side reads of the other, in bytes.
const (
	// MaxRequest is the size of the largest request body.
	MaxRequest = 16 << 20
	// MaxAnswer is the size of the largest answer that is one JSON value.
	MaxAnswer = 256 << 20
	// MaxLine is the size of the largest of the JSON lines of an answer.
	MaxLine = 16 << 20
	// maxError is the size of the largest answer that says what failed.
	maxError = 4 << 20
)

// The media types of a request.
const (
	contentJSON  = "application/json"
	contentPatch = "application/merge-patch+json" // RFC 7386
)

// Status returns the HTTP status of a code.
func Status(c api.Code) int {
	switch c {
	case api.CodeInvalid:
		return http.StatusBadRequest
	case api.CodeUnauthenticated:
		return http.StatusUnauthorized
	case api.CodePermissionDenied:
		return http.StatusForbidden
	case api.CodeNotFound:
		return http.StatusNotFound
	case api.CodeConflict:
		return http.StatusConflict
	case api.CodeUnavailable:
		return http.StatusServiceUnavailable
	}
	return http.StatusInternalServerError
}
