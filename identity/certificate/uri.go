package certificate

import (
	"net/url"
	"strings"
)

// SessionURI returns the name that the certificate of a Session has as its only
// subject alternative name: cardea://session/UID.
func SessionURI(uid string) *url.URL {
	return &url.URL{Scheme: "cardea", Host: "session", Path: "/" + uid}
}

// SessionOf returns the uid of the Session that u names, and false if u is not
// exactly what [SessionURI] makes of a uid: 1 to 64 characters of a-z, 0-9 and
// '-'.
func SessionOf(u *url.URL) (uid string, ok bool) {
	uid = strings.TrimPrefix(u.Path, "/")
	if uid == "" || len(uid) > 64 || strings.Trim(uid, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || *u != *SessionURI(uid) {
		return "", false
	}
	return uid, true
}
