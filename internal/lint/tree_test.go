package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/skein-ml/skein"
	root   = "../.."
)

// notOurs are folders that hold no source of this repository.
var notOurs = []string{".git", ".cache", "bin", "demo-out", "__pycache__"}

// files lists the paths below the root of the repository that end in one of the
// suffixes, sorted.
func files(t *testing.T, suffixes ...string) []string {
	t.Helper()
	var found []string
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && slices.Contains(notOurs, e.Name()) {
			return filepath.SkipDir
		}
		if !e.IsDir() && slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(path, s) }) {
			rel, err := filepath.Rel(root, path)
			found = append(found, filepath.ToSlash(rel))
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func source(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// generated tells whether a program wrote the file, by Go's own convention.
func generated(src string) bool {
	head, _, _ := strings.Cut(src, "\npackage ")
	return strings.Contains(head, "// Code generated ") && strings.Contains(head, " DO NOT EDIT.")
}

// goFile is a parsed source file.
type goFile struct {
	path string // below the root, with slashes
	src  string
	fset *token.FileSet
	ast  *ast.File
}

// goFiles parses every Go file that people wrote.
func goFiles(t *testing.T) []goFile {
	t.Helper()
	var parsed []goFile
	for _, path := range files(t, ".go") {
		src := source(t, path)
		if generated(src) {
			continue
		}
		fset := token.NewFileSet()
		tree, err := parser.ParseFile(fset, path, src, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, goFile{path, src, fset, tree})
	}
	return parsed
}

// folder returns the package path below the module.
func (f goFile) folder() string { return filepath.ToSlash(filepath.Dir(f.path)) }

func (f goFile) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }
