package audit

import (
	"bytes"
	"encoding/json"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"cardea/api"
)

// AppendRecord appends rec to dst as [AppendJSON] does, with its times in UTC.
func AppendRecord(dst []byte, rec *api.AccessLog) ([]byte, error) {
	r := *rec // its times are written to
	r.Metadata.CreatedAt = r.Metadata.CreatedAt.UTC()
	r.Entry.Common.StartedAt = r.Entry.Common.StartedAt.UTC()
	r.Entry.Common.EndedAt = r.Entry.Common.EndedAt.UTC()
	return AppendJSON(dst, &r)
}

// AppendJSON appends v to dst as one line of JSON without the line's end. What
// is in it may come from a stranger and will be seen on a terminal, so that
// whatever does not print (controls, C1 and DEL among them, line and paragraph
// separators, formatting that turns the direction of text or hides, private and
// unassigned characters) is written as \u escapes, which say the same; bytes that
// are no UTF-8 become U+FFFD.
func AppendJSON(dst []byte, v any) ([]byte, error) {
	start := len(dst)
	b := bytes.NewBuffer(dst)
	e := json.NewEncoder(b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return dst[:start], err
	}
	out := bytes.TrimSuffix(b.Bytes(), []byte("\n"))
	for i, c := range out[start:] {
		if c < ' ' || c > '~' {
			at := start + i
			return appendPrintable(out[:at:at], out[at:]), nil
		}
	}
	return out, nil
}

// appendPrintable appends JSON text to dst, escaping what does not print. Such
// characters are in strings only, where an escape may stand for them.
func appendPrintable(dst, text []byte) []byte {
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case unicode.IsPrint(r) && !(r == utf8.RuneError && n == 1):
			dst = append(dst, text[:n]...)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			dst = appendEscape(appendEscape(dst, hi), lo)
		default:
			dst = appendEscape(dst, r)
		}
		text = text[n:]
	}
	return dst
}

// appendEscape appends \u and the four hexadecimal digits of a UTF-16 unit.
func appendEscape(dst []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
