package lint

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestEveryPackageSaysWhatItIs(t *testing.T) {
	said, seen := map[string]bool{}, map[string]bool{}
	for _, f := range goFiles(t) {
		if f.isTest() {
			continue
		}
		seen[f.folder()] = true
		doc := f.ast.Doc.Text()
		if strings.HasPrefix(doc, "Package "+f.ast.Name.Name+" ") || f.ast.Name.Name == "main" && strings.HasPrefix(doc, "Command ") {
			said[f.folder()] = true
		}
	}
	for folder := range seen {
		if !said[folder] {
			t.Errorf("%s has no comment that begins %q", folder, "Package "+filepath.Base(folder)+" …")
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)\s]*)?\)`)

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	for _, doc := range files(t, ".md") {
		for _, m := range link.FindAllStringSubmatch(source(t, doc), -1) {
			if strings.Contains(m[1], "://") {
				continue // the network is not asked by a test
			}
			target := filepath.Join(root, filepath.Dir(doc), m[1])
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", doc, m[1])
			}
		}
	}
}

func TestEveryDecisionIsListed(t *testing.T) {
	list := source(t, "docs/adr/README.md")
	for _, doc := range files(t, ".md") {
		name, ok := strings.CutPrefix(doc, "docs/adr/")
		if ok && name != "README.md" && !strings.Contains(list, "]("+name+")") {
			t.Errorf("%s is not listed in docs/adr/README.md", doc)
		}
	}
}

var makeCall = regexp.MustCompile("(?m)(?:^|[`$] ?)make ([a-z][a-z0-9-]*)")

func TestEveryMakeTargetNamedInADocumentExists(t *testing.T) {
	makefile := source(t, "Makefile")
	for _, doc := range files(t, ".md") {
		for _, m := range makeCall.FindAllStringSubmatch(source(t, doc), -1) {
			if !regexp.MustCompile(`(?m)^` + m[1] + `:`).MatchString(makefile) {
				t.Errorf("%s tells the reader to run `make %s`, which the Makefile does not have", doc, m[1])
			}
		}
	}
}

var testName = regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w*)`")

// A design that names a test for what it claims names one that is there.
func TestEveryTestNamedInADesignIsThere(t *testing.T) {
	there := map[string]bool{}
	for _, f := range goFiles(t) {
		if !f.isTest() {
			continue
		}
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil {
				there[fn.Name.Name] = true
			}
		}
	}
	designs := 0
	for _, doc := range files(t, "DESIGN.md") {
		named := testName.FindAllStringSubmatch(source(t, doc), -1)
		if len(named) == 0 {
			t.Errorf("%s names no test; say for each row of its table which one shows it", doc)
		}
		for _, m := range named {
			if !there[m[1]] {
				t.Errorf("%s names %s, which is not in the tree", doc, m[1])
			}
		}
		designs++
	}
	if designs < 2 {
		t.Errorf("%d DESIGN.md, want the ring's and the coordinators' at least", designs)
	}
}
