package lint

import (
	"go/ast"
	"strings"
	"testing"
)

const (
	functionLinesMax = 70
	fileLinesMax     = 600
)

// longer lists what may be longer, and why it reads better in one piece. A file
// is named by its path, a function by path and name.
var longer = map[string]string{}

func TestFunctionsAndFilesStayShort(t *testing.T) {
	used := map[string]bool{}
	excused := func(name string) bool {
		used[name] = true
		return longer[name] != ""
	}
	for _, f := range goFiles(t) {
		if n := strings.Count(f.src, "\n"); n > fileLinesMax && !excused(f.path) {
			t.Errorf("%s has %d lines, more than %d: split it by noun", f.path, n, fileLinesMax)
		}
		if f.isTest() {
			continue // a table of cases may be as long as there are cases
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			n := f.fset.Position(fn.End()).Line - f.fset.Position(fn.Pos()).Line + 1
			if n > functionLinesMax && !excused(f.path+": "+fn.Name.Name) {
				t.Errorf("%s: %s has %d lines, more than %d: split it by step, or list it in longer with a reason", f.path, fn.Name.Name, n, functionLinesMax)
			}
		}
	}
	for name := range longer {
		if !used[name] {
			t.Errorf("longer lists %q, which is short by now or gone; remove the line", name)
		}
	}
}
