package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// The files of a home.
const (
	sessionFile     = "session.json"
	keyFile         = "key"         // PEM, PKCS #8
	certificateFile = "certificate" // PEM
	lockFile        = "lock"        // held by who reads or writes the others
	daemonLock      = "connect.lock"
	daemonSocket    = "connect.sock"
	daemonLog       = "connect.log"
	endFile         = "connect.ended"
)

// LogFile returns where the Daemon of a home tells what goes wrong, with one line
// for each refusal and each connection that was cut.
func LogFile(home string) string { return filepath.Join(home, daemonLog) }

// A record is what session.json holds.
type record struct {
	Address string   `json:"address"`
	Domain  string   `json:"domain"`
	User    string   `json:"user"`
	Session string   `json:"session"`
	CA      [][]byte `json:"ca"` // DER
}

// A state is all that a home holds of a Session.
type state struct {
	record
	roots       *x509.CertPool
	key         *ecdsa.PrivateKey
	certificate *tls.Certificate
}

// check takes the certificate, if it is one of the key by the CA that the record
// names, and the roots of the record.
func (s *state) check(der []byte) error {
	s.roots = x509.NewCertPool()
	for _, ca := range s.CA {
		c, err := x509.ParseCertificate(ca)
		if err != nil {
			return fmt.Errorf("the CA certificate: %w", err)
		}
		s.roots.AddCert(c)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return fmt.Errorf("the certificate: %w", err)
	}
	if key, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !key.Equal(s.key.Public()) {
		return errors.New("the certificate is of another key")
	}
	// Whether it is valid now is for the cluster's clock to say.
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: s.roots, CurrentTime: leaf.NotBefore, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return fmt.Errorf("the certificate: %w", err)
	}
	s.certificate = &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: s.key, Leaf: leaf}
	return nil
}

// holds reports whether root is among the CAs of the record.
func (s *state) holds(root *x509.Certificate) bool {
	for _, ca := range s.CA {
		if string(ca) == string(root.Raw) {
			return true
		}
	}
	return false
}

// fingerprint returns the SHA-256 of the first CA of the record, in hex.
func (s *state) fingerprint() string {
	if len(s.CA) == 0 {
		return ""
	}
	return fmt.Sprintf("%x", sha256.Sum256(s.CA[0]))
}

// A stamp tells whether the files of a home have been written.
type stamp struct {
	session, certificate time.Time
}

// look returns the stamp of a home.
func look(home string) (stamp, error) {
	var s stamp
	for name, at := range map[string]*time.Time{sessionFile: &s.session, certificateFile: &s.certificate} {
		i, err := os.Stat(filepath.Join(home, name))
		if errors.Is(err, fs.ErrNotExist) {
			return s, loggedOut("not logged in: there is no Session in " + home)
		}
		if err != nil {
			return s, err
		}
		*at = i.ModTime()
	}
	return s, nil
}

// load reads a home when nobody writes it.
func load(ctx context.Context, home string) (*state, stamp, error) {
	unlock, err := lock(ctx, home)
	if err != nil {
		return nil, stamp{}, err
	}
	defer unlock()
	seen, err := look(home)
	if err != nil {
		return nil, seen, err
	}
	s, err := read(home)
	return s, seen, err
}

// read reads a home. Its lock must be held.
func read(home string) (*state, error) {
	s, err := readFiles(home)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, loggedOut("not logged in: there is no Session in " + home)
	}
	if err != nil {
		e := loggedOut(fmt.Sprintf("the Session in %s cannot be read: %v", home, err))
		return nil, e
	}
	return s, nil
}

func readFiles(home string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(home, sessionFile))
	if err != nil {
		return nil, err
	}
	s := new(state)
	if err := json.Unmarshal(b, &s.record); err != nil {
		return nil, fmt.Errorf("%s: %w", sessionFile, err)
	}
	der, err := readPEM(home, keyFile)
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", keyFile, err)
	}
	var ok bool
	if s.key, ok = key.(*ecdsa.PrivateKey); !ok {
		return nil, fmt.Errorf("%s: not an ECDSA key", keyFile)
	}
	if der, err = readPEM(home, certificateFile); err != nil {
		return nil, err
	}
	return s, s.check(der)
}

func readPEM(home, name string) ([]byte, error) {
	b, err := os.ReadFile(filepath.Join(home, name))
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return nil, fmt.Errorf("%s: not PEM", name)
	}
	return block.Bytes, nil
}

// save makes s the Session of a home.
func save(ctx context.Context, home string, s *state) error {
	unlock, err := lock(ctx, home)
	if err != nil {
		return err
	}
	defer unlock()
	key, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	// A crash between two of these leaves a certificate of another key, which
	// read tells.
	return errors.Join(
		writeFile(home, keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		saveCertificate(home, s),
		saveRecord(home, s),
	)
}

// canSave reports why nothing can be saved to a home, which it makes if it is not there.
func canSave(ctx context.Context, home string) error {
	unlock, err := lock(ctx, home)
	if err != nil {
		return err
	}
	defer unlock()
	f, err := os.CreateTemp(home, keyFile+".*")
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

// saveRecord puts the record of s into a home. Its lock must be held.
func saveRecord(home string, s *state) error {
	text, err := json.MarshalIndent(s.record, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", sessionFile, err)
	}
	return writeFile(home, sessionFile, append(text, '\n'))
}

// saveCertificate puts the certificate of s into a home. Its lock must be held.
func saveCertificate(home string, s *state) error {
	return writeFile(home, certificateFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.certificate.Certificate[0]}))
}

// The files that [Export] writes.
const (
	ExportedKey         = "key.pem"
	ExportedCertificate = "cert.pem"
	ExportedCA          = "ca.pem"
)

// Export writes the Session of a home to a directory as other TLS programs read
// it: key, certificate and CAs, PEM. The key does not follow when the Session is
// replaced, nor the certificate when it is renewed.
func Export(ctx context.Context, home, dir string) error {
	s, _, err := load(ctx, home)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	var cas []byte
	for _, ca := range s.CA {
		cas = append(cas, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca})...)
	}
	return errors.Join(
		writeFile(dir, ExportedKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})),
		writeFile(dir, ExportedCertificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.certificate.Certificate[0]})),
		writeFile(dir, ExportedCA, cas),
	)
}

// forget removes the Session of a home.
func forget(ctx context.Context, home string) error {
	unlock, err := lock(ctx, home)
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, name := range []string{sessionFile, certificateFile, keyFile} {
		if err := os.Remove(filepath.Join(home, name)); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// writeFile writes a file of a home, so that a reader sees the old or the new
// content, also after a crash.
func writeFile(home, name string, content []byte) (err error) {
	f, err := os.CreateTemp(home, name+".*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", filepath.Join(home, name), err)
	}
	return os.Rename(f.Name(), filepath.Join(home, name))
}

// lock takes the lock of a home, which it makes if it is not there.
func lock(ctx context.Context, home string) (unlock func(), err error) {
	if home == "" {
		return nil, errors.New("client: no home is set")
	}
	if err := os.MkdirAll(home, 0o700); err != nil {
		return nil, fmt.Errorf("make the home of the Session: %w", err)
	}
	f, err := waitLock(ctx, filepath.Join(home, lockFile))
	if errors.Is(err, errLocked) {
		return nil, fmt.Errorf("another process writes %s: %w", home, ctx.Err())
	}
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", home, err)
	}
	return func() { f.Close() }, nil
}

// waitLock takes a lock, for which it waits until ctx is done; then it is
// errLocked.
func waitLock(ctx context.Context, path string) (*os.File, error) {
	every := time.NewTicker(lockPoll)
	defer every.Stop()
	for {
		f, err := tryLock(path)
		if !errors.Is(err, errLocked) {
			return f, err
		}
		select {
		case <-ctx.Done():
			return nil, errLocked
		case <-every.C:
		}
	}
}

// lockPoll is the time between two attempts to take a lock.
const lockPoll = 10 * time.Millisecond

// errLocked says that another holds a lock.
var errLocked = errors.New("another process holds the lock")
