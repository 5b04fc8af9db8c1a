package rpc

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"mime"
	"net/http"
	"strings"
	"time"

	"cardea/api"
)

// Read decodes the body of a request into v: one JSON value without unknown
// fields, of at most MaxRequest bytes, declared to be application/json or, of a
// PATCH, application/merge-patch+json (so that a web page cannot send it without
// asking first). What is wrong is an *api.Error for the caller.
func Read(r *http.Request, v any) error {
	t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || t != contentJSON && !(t == contentPatch && r.Method == http.MethodPatch) {
		e := api.Errorf(api.CodeInvalid, "the body must be JSON")
		e.Hint = "send Content-Type: application/json (curl --json)"
		return e
	}
	if r.ContentLength > MaxRequest {
		return tooLarge(MaxRequest) // without reading it
	}
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, MaxRequest))
	d.DisallowUnknownFields()
	err = d.Decode(v)
	if err == nil {
		if _, err = d.Token(); err == io.EOF {
			return nil
		}
		if err == nil {
			err = errors.New("more than one value")
		}
	}
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(large.Limit)
	}
	return api.Errorf(api.CodeInvalid, "the body is not the JSON that is expected: %s", words(err))
}

// tooLarge says that a request is larger than it may be.
func tooLarge(limit int64) error {
	e := api.Errorf(api.CodeInvalid, "the request is larger than %d KiB", limit>>10)
	e.Hint = "send it in parts"
	return e
}

// words returns what a JSON decoder complains of, without Go's names and without
// values: a body may hold secrets.
func words(err error) string {
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Sprintf("a syntax error at byte %d", s.Offset)
	}
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Sprintf("the field %q must not be of type %s", t.Field, strings.Fields(t.Value)[0])
	}
	switch s := err.Error(); {
	case errors.Is(err, io.EOF):
		return "it is empty"
	case errors.Is(err, io.ErrUnexpectedEOF):
		return "it ends too early"
	case strings.HasPrefix(s, "json: unknown field"), s == "more than one value":
		return strings.TrimPrefix(s, "json: ")
	}
	return "it cannot be read"
}

// Answer sends v as JSON.
func Answer(w http.ResponseWriter, v any) {
	send(w, http.StatusOK, v)
}

func send(w http.ResponseWriter, status int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("rpc: an answer that does not marshal: " + err.Error())
	}
	// However long it took to work out: it has its own time to be taken.
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(takeTimeout))
	head(w)
	w.WriteHeader(status)
	w.Write(append(b, '\n')) // an error means that the caller has gone
}

func head(w http.ResponseWriter) {
	h := w.Header()
	h.Set("Content-Type", contentJSON)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
}

// Fail sends an *api.Error with the status of its code. Every other error is
// sent as INTERNAL, in words that tell nothing but an id under which log holds
// the details.
func Fail(w http.ResponseWriter, err error, log *slog.Logger) {
	e, ok := errors.AsType[*api.Error](err)
	if !ok {
		id := rand.Text()[:12]
		if errors.Is(err, context.Canceled) {
			log.Debug("a caller has gone", "request", id, "error", err)
		} else {
			log.Error("a call failed", "request", id, "error", err)
		}
		e = api.Errorf(api.CodeInternal, "internal error %s", id)
		e.Hint = "the log of the cluster says more under that id"
	}
	send(w, Status(e.Code), e)
}

// Lines sends what seq yields as JSON lines, each as soon as it is there. An
// error cuts the connection, so that the caller cannot take what it got for the
// whole; log holds the details. A caller who does not take a line for takeTimeout
// is given up.
func Lines[T any](w http.ResponseWriter, seq iter.Seq2[T, error], log *slog.Logger) {
	head(w)
	out := http.NewResponseController(w)
	if out.Flush() != nil {
		return
	}
	enc := json.NewEncoder(w)
	for v, err := range seq {
		if err != nil {
			log.Error("an answer of lines was cut", "error", err)
			panic(http.ErrAbortHandler)
		}
		// A server may bound its answers; this one is as long as its caller wants.
		out.SetWriteDeadline(time.Now().Add(takeTimeout))
		if enc.Encode(v) != nil || out.Flush() != nil {
			return
		}
	}
}

// takeTimeout is how long a caller may take for an answer, or for a line of one.
const takeTimeout = time.Minute
