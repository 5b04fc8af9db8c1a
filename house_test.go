// Package house_test holds the rules of the house itself: the floor plan, and
// what no package may do.
package house_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "cardea/"

// plan is the floor plan. Each line names a room and the rooms that it may
// import; a room without a line does not exist. A star stands for one path
// element. Lines run from the ground up: no room may name one above itself. The
// conformance suites (*test) and tests may import anything.
const plan = `
	api              :
	api/gen          :
	api/gen/*        : api
	wire/*           :
	manifest         : api
	handover         :
	netif            :
	relay            :
	relay/copy       : relay
	relay/loop       : relay relay/copy
	relay/datagram   : relay
	rpc              : api
	dialect/*        : api

	store            : api
	store/*          : api store
	secret           : api store
	address          : api store
	identity         : api
	identity/*       : api identity
	cert             : api store secret identity/*

	policy           : api
	policy/*         : api store identity policy

	audit            : api
	audit/*          : api audit
	tunnel           : api
	tunnel/wireguard/kernel : wire/*
	tunnel/*         : api wire/* handover netif relay tunnel tunnel/wireguard/kernel
	dns              : api
	ingress          : api wire/* handover relay relay/datagram secret
	upstream/*       : api
	upstream         : api relay wire/* secret upstream/*

	proxy            : api policy relay audit
	mode/*           : api wire/* proxy
	mode             : proxy mode/*

	control          : api manifest dialect/* store secret address policy identity identity/* cert audit ingress rpc
	client/*         : api
	client           : api wire/* relay relay/copy relay/datagram netif tunnel tunnel/* rpc client/*
	server           : api api/gen handover netif dialect/* relay relay/copy relay/loop relay/datagram store store/* secret address identity identity/* cert policy/* audit audit/* tunnel tunnel/* dns ingress upstream proxy mode control
	cli              : api api/gen handover manifest rpc client control server policy/local
	cmd/*            : cli
	examples/*       : api client
	bench/*          : *
	bench/network/*  : *
	test/*           : *
	test/network/*   : *
`

func match(pat, s string) bool { ok, _ := path.Match(pat, s); return ok || pat == "*" }

type room struct {
	pat string
	may []string
}

func rooms(t *testing.T) []room {
	var rs []room
	for l := range strings.Lines(plan) {
		if n, may, ok := strings.Cut(l, ":"); ok {
			rs = append(rs, room{strings.TrimSpace(n), strings.Fields(may)})
		}
	}
	above := map[string]bool{}
	for _, r := range rs {
		for _, m := range r.may {
			if m == "*" || above[m] {
				continue
			}
			base, _, _ := strings.Cut(m, "/")
			if !above[base+"/*"] {
				t.Errorf("the plan lets %s look up to %s", r.pat, m)
			}
		}
		above[r.pat] = true
	}
	return rs
}

func TestFloorPlan(t *testing.T) {
	rs := rooms(t)
	find := func(dir string) *room {
		for i := range rs {
			if match(rs[i].pat, dir) && rs[i].pat != "*" {
				return &rs[i]
			}
		}
		return nil
	}
	each(t, func(dir, file string, f *ast.File) {
		if suite(dir) {
			return
		}
		r := find(dir)
		if r == nil {
			t.Errorf("%s: this room is not on the plan", dir)
			return
		}
		for _, im := range f.Imports {
			p, ours := strings.CutPrefix(strings.Trim(im.Path.Value, `"`), module)
			if ours && !slices.ContainsFunc(r.may, func(m string) bool { return match(m, p) }) {
				t.Errorf("%s imports %s, which the plan forbids", file, p)
			}
		}
	})
}

// suite reports whether a package is a conformance suite: tests in all but name.
func suite(dir string) bool { return strings.HasSuffix(path.Base(dir), "test") }

func TestHouseRules(t *testing.T) {
	doc := map[string]bool{}
	dials := regexp.MustCompile(`^(net|tls)\.Dial|^http\.(Default(Client|Transport)|Get|Head|Post|PostForm)$|^ssh\.Dial$`)
	junk := regexp.MustCompile(`^(utils?|common|helpers?|misc|base|shared|lib)$`)
	each(t, func(dir, file string, f *ast.File) {
		if f.Name.Name == "main" {
			doc[dir] = doc[dir] || strings.HasPrefix(f.Doc.Text(), "Command ")
		} else {
			doc[dir] = doc[dir] || strings.HasPrefix(f.Doc.Text(), "Package "+f.Name.Name+" ")
		}
		if junk.MatchString(path.Base(dir)) {
			t.Errorf("%s: name the room by what it holds", dir)
		}
		for _, d := range f.Decls {
			if fd, ok := d.(*ast.FuncDecl); ok && fd.Recv == nil && fd.Name.Name == "init" {
				t.Errorf("%s: nothing may happen because a package was imported", file)
			}
		}
		tool := suite(dir) || strings.HasPrefix(dir, "bench/") || strings.HasPrefix(dir, "test/") || strings.HasPrefix(dir, "examples/")
		if !tool {
			for _, im := range f.Imports {
				if im.Path.Value == `"testing"` {
					t.Errorf("%s: the house does not ask whether it is being tested", file)
				}
			}
			if !strings.HasPrefix(dir, "cmd/") { // the linker sets its version
				variables(t, file, f)
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			se, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			x, ok := se.X.(*ast.Ident)
			if ok && strings.HasPrefix(dir, "mode/") && dials.MatchString(x.Name+"."+se.Sel.Name) {
				t.Errorf("%s: %s.%s goes round the Grant", file, x.Name, se.Sel.Name)
			}
			if ok && x.Name == "context" && (se.Sel.Name == "Background" || se.Sel.Name == "TODO") && !tool && !strings.HasPrefix(dir, "cmd/") {
				t.Errorf("%s: take a context; only cmd may begin one", file)
			}
			if ok && x.Name == "os" && (se.Sel.Name == "Getenv" || se.Sel.Name == "LookupEnv" || se.Sel.Name == "Environ") && !tool && !strings.HasPrefix(dir, "cmd/") && dir != "cli" {
				t.Errorf("%s: the environment is read in cmd and cli only", file)
			}
			return true
		})
		for _, c := range f.Comments {
			if strings.Contains(c.Text(), "DO NOT EDIT") && !strings.HasPrefix(dir, "api/gen") {
				t.Errorf("%s: generated code lives in api/gen", file)
			}
		}
	})
	for dir, ok := range doc {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

// variables reports package variables that may change: only errors, values that
// are made once, assertions of an interface, and pools of memory (whose content
// nobody relies on) are let through.
func variables(t *testing.T, file string, f *ast.File) {
	fixed := regexp.MustCompile(`^(errors\.New|fmt\.Errorf|regexp\.MustCompile|netip\.MustParse\w+|strings\.NewReplacer|base32\.\w+|base64\.\w+|reflect\.TypeFor|time\.Unix)$`)
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			for i, n := range v.Names {
				if n.Name == "_" || strings.HasPrefix(strings.ToLower(n.Name), "err") {
					continue
				}
				if i < len(v.Values) {
					x := v.Values[i]
					if lit, ok := x.(*ast.CompositeLit); ok {
						if se, ok := lit.Type.(*ast.SelectorExpr); ok && se.Sel.Name == "Pool" {
							continue
						}
					}
					if call, ok := x.(*ast.CallExpr); ok {
						fun := call.Fun
						if ix, ok := fun.(*ast.IndexExpr); ok {
							fun = ix.X
						}
						if se, ok := fun.(*ast.SelectorExpr); ok {
							if x, ok := se.X.(*ast.Ident); ok && fixed.MatchString(x.Name+"."+se.Sel.Name) {
								continue
							}
							// base64.RawURLEncoding.Strict() and the like
							if in, ok := se.X.(*ast.SelectorExpr); ok {
								if x, ok := in.X.(*ast.Ident); ok && fixed.MatchString(x.Name+"."+in.Sel.Name) {
									continue
								}
							}
						}
					}
				}
				t.Errorf("%s: the package variable %s may change; make it a constant, a field or a function", file, n.Name)
			}
		}
	}
}

// TestSleeps keeps sleeps out of tests: time passes in a synctest bubble only.
func TestSleeps(t *testing.T) {
	fset := token.NewFileSet()
	walk(t, func(p string) {
		if !strings.HasSuffix(p, "_test.go") && !suite(filepath.Dir(p)) {
			return
		}
		f, err := parser.ParseFile(fset, p, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(f.Imports, func(i *ast.ImportSpec) bool { return i.Path.Value == `"testing/synctest"` }) {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			if se, ok := n.(*ast.SelectorExpr); ok && se.Sel.Name == "Sleep" {
				if x, ok := se.X.(*ast.Ident); ok && x.Name == "time" {
					t.Errorf("%s: wait for what you wait for, do not sleep", fset.Position(n.Pos()))
				}
			}
			return true
		})
	})
}

// TestDeps keeps the list of modules that are linked into the binary a reviewed
// one: who adds a dependency changes deps.txt and ARCHITECTURE.md with it.
func TestDeps(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "-f", "{{with .Module}}{{.Path}}{{end}}", "./cmd/cardea").Output()
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(string(out))
	slices.Sort(got)
	got = slices.DeleteFunc(slices.Compact(got), func(m string) bool { return m == "cardea" })
	want, err := os.ReadFile("deps.txt")
	if err != nil {
		t.Fatal(err)
	}
	if g := strings.Join(got, "\n") + "\n"; g != string(want) {
		t.Errorf("the binary links\n%s\nand deps.txt says\n%s", g, want)
	}
	arch, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	direct, err := exec.Command("go", "list", "-m", "-f", "{{if not (or .Indirect .Main)}}{{.Path}}{{end}}", "all").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range strings.Fields(string(direct)) {
		if !strings.Contains(string(arch), "`"+m+"`") {
			t.Errorf("ARCHITECTURE.md does not say what %s is for", m)
		}
	}
}

// each calls f for every Go file of the house that is no test.
func each(t *testing.T, f func(dir, file string, f *ast.File)) {
	fset := token.NewFileSet()
	walk(t, func(p string) {
		if strings.HasSuffix(p, "_test.go") {
			return
		}
		af, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		f(filepath.ToSlash(filepath.Dir(p)), p, af)
	})
}

func walk(t *testing.T, f func(path string)) {
	err := filepath.WalkDir(".", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && (strings.HasPrefix(d.Name(), ".") && p != "." || d.Name() == "bin" || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if strings.HasSuffix(p, ".go") {
			f(p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
