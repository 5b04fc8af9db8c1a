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

// AppendText appends s as a string of JSON, as [AppendJSON] does.
func AppendText(dst []byte, s string) []byte {
	dst = append(dst, '"')
	n := plain(s)
	dst = append(dst, s[:n]...)
	for s = s[n:]; len(s) > 0; {
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

// plain returns how many bytes at the beginning of s stand for themselves in a string of
// JSON: ASCII that prints, but for '"' and '\\'. It looks at eight at a time.
func plain(s string) int {
	const (
		ones = 0x0101010101010101
		high = 0x8080808080808080
	)
	n := 0
	for len(s)-n >= 8 {
		w := s[n : n+8]
		v := uint64(w[0]) | uint64(w[1])<<8 | uint64(w[2])<<16 | uint64(w[3])<<24 |
			uint64(w[4])<<32 | uint64(w[5])<<40 | uint64(w[6])<<48 | uint64(w[7])<<56
		// In each of these a byte has its high bit set if that of v is less than a space,
		// is one of the two, or is DEL or no ASCII. A borrow may set others, which only
		// sends us to look at each.
		quote, slash := v^'"'*ones, v^'\\'*ones
		if ((v-' '*ones)|(quote-ones)|(slash-ones)|(v+ones)|v)&high != 0 {
			break
		}
		if n += 8; n < len(s) && n > len(s)-8 {
			n = len(s) - 8 // the rest, with some of what was seen
		}
	}
	for n < len(s) && s[n] >= ' ' && s[n] <= '~' && s[n] != '"' && s[n] != '\\' {
		n++
	}
	return n
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
