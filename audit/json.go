package audit

import (
	"bytes"
	"encoding/json"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"
)

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
			return appendPrintable(out[:at:at], string(out[at:])), nil
		}
	}
	return out, nil
}

// appendText appends s as a string of JSON.
func appendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	plain := 0
	for plain < len(s) && s[plain] >= ' ' && s[plain] <= '~' && s[plain] != '"' && s[plain] != '\\' {
		plain++
	}
	dst = append(dst, s[:plain]...)
	for s = s[plain:]; len(s) > 0; {
		if c := s[0]; c == '"' || c == '\\' {
			dst = append(dst, '\\', c)
			s = s[1:]
			continue
		}
		n := 1
		for n < len(s) && s[n] != '"' && s[n] != '\\' {
			n++
		}
		dst = appendPrintable(dst, s[:n])
		s = s[n:]
	}
	return append(dst, '"')
}

// appendPrintable appends the inside of a string of JSON, escaping what does not
// print. In a whole document, such characters are in strings only.
func appendPrintable(dst []byte, s string) []byte {
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case unicode.IsPrint(r) && !(r == utf8.RuneError && n == 1):
			dst = append(dst, s[:n]...)
		case r > 0xffff:
			hi, lo := utf16.EncodeRune(r)
			dst = appendEscape(appendEscape(dst, hi), lo)
		default:
			dst = appendEscape(dst, r)
		}
		s = s[n:]
	}
	return dst
}

// appendEscape appends \u and the four hexadecimal digits of a UTF-16 unit.
func appendEscape(dst []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	return append(dst, '\\', 'u', hex[r>>12&15], hex[r>>8&15], hex[r>>4&15], hex[r&15])
}
