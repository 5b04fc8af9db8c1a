package resolver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const (
	keptFile = "resolver.json"
	maxFile  = 1 << 20 // bytes of a resolv.conf
)

// kept is what is to be put back, as it lies in Config.Dir.
type kept struct {
	Form    string   `json:"form"`              // Resolvconf or File
	Record  string   `json:"record,omitempty"`  // Resolvconf: the name that the settings have there
	Path    string   `json:"path,omitempty"`    // File: the file itself, of which /etc/resolv.conf may be a link
	Absent  bool     `json:"absent,omitempty"`  // there was none
	Before  string   `json:"before,omitempty"`  // its content
	After   string   `json:"after,omitempty"`   // what was put in its place
	Mark    string   `json:"mark,omitempty"`    // the line by which After is known
	Servers []string `json:"servers,omitempty"` // that were added
	Search  []string `json:"search,omitempty"`
}

// save writes it down, whole or not at all.
func (k *kept) save(dir string) error {
	text, err := json.Marshal(k)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(dir, keptFile+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), filepath.Join(dir, keptFile))
}

// load returns what is kept in dir; nil if nothing is.
func load(dir string) (*kept, error) {
	text, err := os.ReadFile(filepath.Join(dir, keptFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	k := new(kept)
	if err := json.Unmarshal(text, k); err != nil {
		return nil, fmt.Errorf("%s: %w: look at /etc/resolv.conf, and remove the file", filepath.Join(dir, keptFile), err)
	}
	return k, nil
}

// Recover puts back what was there before a Set with the same Dir, if it has not been
// put back yet, and reports whether there was something to put back. What somebody else
// has written since stays: of that, only the lines of Set are taken out.
func Recover(dir string) (bool, error) {
	k, err := load(dir)
	if k == nil || err != nil {
		return false, err
	}
	back := true
	if k.Form == Resolvconf {
		err = run("", "resolvconf", "-d", k.Record, "-f")
	} else {
		back, err = k.putBack()
	}
	if err != nil {
		return false, fmt.Errorf("the name servers of this machine cannot be put back: %w", err)
	}
	return back, os.Remove(filepath.Join(dir, keptFile))
}

// Left reports whether Recover would put something back.
func Left(dir string) bool {
	k, err := load(dir)
	if k == nil || err != nil {
		return err != nil
	}
	if k.Form == Resolvconf {
		return true
	}
	now, err := read(k.Path)
	return err == nil && (k.isMine(now) || strings.Contains(now, k.Mark))
}

// putBack reports whether there was something to put back.
func (k *kept) putBack() (bool, error) {
	now, err := read(k.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // who removed it knows why
	}
	if err != nil {
		return false, err
	}
	switch {
	case k.isMine(now) && k.Absent:
		return true, os.Remove(k.Path)
	case k.isMine(now):
		return true, write(k.Path, k.Before)
	case strings.Contains(now, k.Mark):
		return true, write(k.Path, k.without(now))
	}
	return false, nil
}

// isMine reports whether a content is what Set wrote, all of it or, if the process was
// killed in the midst of it, a part.
func (k *kept) isMine(now string) bool {
	torn := k.After
	if len(k.Before) > len(k.After) {
		torn += k.Before[len(k.After):]
	}
	return strings.HasPrefix(k.After, now) || now == torn
}

// without takes out what Set put in.
func (k *kept) without(now string) string {
	var b strings.Builder
	for line := range strings.Lines(now) {
		f := strings.Fields(line)
		switch {
		case strings.TrimSpace(line) == k.Mark:
			continue
		case len(f) == 2 && f[0] == "nameserver" && slices.Contains(k.Servers, f[1]):
			continue
		case len(f) > 1 && f[0] == "search":
			rest := slices.DeleteFunc(f, func(w string) bool { return slices.Contains(k.Search, w) })
			if len(rest) > 1 {
				b.WriteString(strings.Join(rest, " ") + "\n")
			}
			continue
		}
		b.WriteString(line)
	}
	return b.String()
}

// isMine reports whether resolv.conf is still as Set left it.
func isMine(dir string) (bool, error) {
	k, err := load(dir)
	if k == nil || err != nil {
		return false, err
	}
	now, err := read(k.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && strings.Contains(now, k.Mark), err
}

// setFile puts the servers and the search domains before those of a resolv.conf, see
// resolv.conf(5). The file is written in place: it may be mounted, as containers have
// it, and a link is followed.
func (c *Config) setFile(conf string) error {
	path, err := filepath.EvalSymlinks(conf)
	if errors.Is(err, fs.ErrNotExist) {
		path, err = end(conf), nil
	}
	if err != nil {
		return err
	}
	k := &kept{
		Form: File, Path: path, Servers: c.servers(), Search: c.Search,
		Mark: fmt.Sprintf("# %s: set by cardea connect (process %d), which puts back what was here", c.Interface, os.Getpid()),
	}
	k.Before, err = read(path)
	if errors.Is(err, fs.ErrNotExist) {
		k.Absent, err = true, nil
	}
	if err != nil {
		return err
	}
	k.After = k.Mark + "\n" + k.with(k.Before)
	if err := k.save(c.Dir); err != nil {
		return err
	}
	if err := write(path, k.After); err != nil {
		_, back := Recover(c.Dir)
		return errors.Join(fmt.Errorf("cannot set the name servers of this machine (connect without them: --no-dns): %w", err), back)
	}
	return nil
}

// end returns where the links that begin at a path lead to, if only to nothing.
func end(path string) string {
	for range 40 { // as the kernel does
		to, err := os.Readlink(path)
		if err != nil {
			break
		}
		if !filepath.IsAbs(to) {
			to = filepath.Join(filepath.Dir(path), to)
		}
		path = to
	}
	return path
}

// with puts the servers and the search domains before those of a content.
func (k *kept) with(before string) string {
	servers := slices.Clone(k.Servers)
	search := strings.Fields(localDomain())
	var rest strings.Builder
	for line := range strings.Lines(before) {
		f := strings.Fields(line)
		switch {
		case len(f) > 1 && f[0] == "nameserver":
			servers = append(servers, f[1])
		case len(f) > 1 && (f[0] == "search" || f[0] == "domain"): // the last of them counts
			search = f[1:]
		default:
			rest.WriteString(strings.TrimRight(line, "\n") + "\n")
		}
	}
	search = slices.DeleteFunc(search, func(d string) bool { return slices.Contains(k.Search, d) })
	return lines(servers, slices.Concat(k.Search, search)) + rest.String()
}

// localDomain is what the C library completes names with where resolv.conf does not
// say: that of the machine's own name.
func localDomain() string {
	host, _ := os.Hostname()
	_, domain, _ := strings.Cut(host, ".")
	return domain
}

// words returns what follows a keyword in the lines of a resolv.conf.
func words(text, keyword string) []string {
	var all []string
	for line := range strings.Lines(text) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == keyword {
			all = append(all, f[1:]...)
		}
	}
	return all
}

// comments returns the comments of a resolv.conf.
func comments(text string) string {
	var b strings.Builder
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func read(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if len(text) > maxFile {
		return "", fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return string(text), err
}

// write puts text in the place of a file's content: at no time is the file empty.
func write(path, text string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	_, err = f.WriteAt([]byte(text), 0)
	if err == nil {
		err = f.Truncate(int64(len(text)))
	}
	return errors.Join(err, f.Close())
}
