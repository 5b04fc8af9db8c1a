package api

import (
	"errors"
	"fmt"
	"strings"
)

// A Problem is one thing that is wrong with, or worth saying of, a document that
// somebody sent. It is data: whoever holds the text adds file, line and column.
type Problem struct {
	// Document is the index, from 0, of the document in the request.
	Document int `json:"document"`
	// Pointer is the path of the field within the document (RFC 6901).
	Pointer string `json:"pointer"`
	// Rule says what is expected: "must be from 1 to 65535".
	Rule string `json:"rule"`
	// Found is the value that breaks it, or "" if it is missing or would tell a secret.
	Found string `json:"found,omitempty"`
	// Allowed lists the values that are possible, where they can be listed.
	Allowed []string `json:"allowed,omitempty"`
	// Hint is the way out: "did you mean upstream?"
	Hint string `json:"hint,omitempty"`
	// Warning is set if the document is accepted all the same.
	Warning bool `json:"warning,omitempty"`
}

// Field returns the pointer as people write it: spec.rules[0].effect.
func (p Problem) Field() string {
	var b strings.Builder
	for s := range strings.SplitSeq(strings.TrimPrefix(p.Pointer, "/"), "/") {
		s = strings.NewReplacer("~1", "/", "~0", "~").Replace(s)
		if s != "" && strings.Trim(s, "0123456789") == "" {
			fmt.Fprintf(&b, "[%s]", s)
			continue
		}
		if b.Len() > 0 && s != "" {
			b.WriteByte('.')
		}
		b.WriteString(s)
	}
	return b.String()
}

// String returns the Problem on one line, without its place in a file.
func (p Problem) String() string {
	var b strings.Builder
	if f := p.Field(); f != "" {
		b.WriteString(f + ": ")
	}
	b.WriteString(p.Rule)
	if p.Found != "" {
		fmt.Fprintf(&b, ", found %s", quote(p.Found))
	}
	if len(p.Allowed) > 0 {
		fmt.Fprintf(&b, "; allowed: %s", strings.Join(p.Allowed, ", "))
	}
	if p.Hint != "" {
		fmt.Fprintf(&b, " (%s)", p.Hint)
	}
	return b.String()
}

// quote makes a value from outside fit for a terminal: quoted and short.
func quote(s string) string {
	if len(s) > 100 {
		s = strings.ToValidUTF8(s[:100], "") + "…"
	}
	return fmt.Sprintf("%q", s)
}

// Problems collects what is wrong with one document, all of it at once.
type Problems struct {
	Document int
	List     []Problem
}

// Add reports a Problem at a pointer such as /spec/port.
func (p *Problems) Add(pointer, rule, found string) *Problem {
	p.List = append(p.List, Problem{Document: p.Document, Pointer: pointer, Rule: rule, Found: found})
	return &p.List[len(p.List)-1]
}

// Warn reports something that does not stop the document from being accepted.
func (p *Problems) Warn(pointer, rule, found string) *Problem {
	w := p.Add(pointer, rule, found)
	w.Warning = true
	return w
}

// Err returns an *Error with code CodeInvalid if there is a Problem that is no
// warning, and nil otherwise.
func (p *Problems) Err() error {
	for _, x := range p.List {
		if !x.Warning {
			return &Error{Code: CodeInvalid, Message: "invalid input", Problems: p.List}
		}
	}
	return nil
}

// A Code says what kind of failure an [Error] is.
type Code string

// The codes of an Error.
const (
	CodeInvalid          Code = "INVALID"
	CodeNotFound         Code = "NOT_FOUND"
	CodeConflict         Code = "CONFLICT"          // changed since it was read, or exists already, or is in use
	CodeUnauthenticated  Code = "UNAUTHENTICATED"   // no valid Session
	CodePermissionDenied Code = "PERMISSION_DENIED" // a Session that may not
	CodeUnavailable      Code = "UNAVAILABLE"       // try again
	CodeInternal         Code = "INTERNAL"
)

// An Error is a failure that crosses a process boundary. Every other error is
// internal: its words go to the log and never to a peer.
type Error struct {
	Code     Code      `json:"code"`
	Message  string    `json:"message"`
	Hint     string    `json:"hint,omitempty"` // the way out
	Problems []Problem `json:"problems,omitempty"`
	// DecisionID is that of the decision that refused, for `why` and the log.
	DecisionID string `json:"decisionID,omitempty"`
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Message)
	for i, p := range e.Problems {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString("; ")
		}
		b.WriteString(p.String())
	}
	return b.String()
}

// Errorf returns an Error of that code.
func Errorf(c Code, format string, args ...any) *Error {
	return &Error{Code: c, Message: fmt.Sprintf(format, args...)}
}

// NotFound reports that there is no Object of that key.
func NotFound(k Key) *Error {
	name := k.Name
	if k.Namespace != "" {
		name = k.Namespace + "/" + name
	}
	return Errorf(CodeNotFound, "%s %q not found", k.Kind, name)
}

// HasCode reports whether err is, or wraps, an Error of that code.
func HasCode(err error, c Code) bool {
	var e *Error
	return errors.As(err, &e) && e.Code == c
}
