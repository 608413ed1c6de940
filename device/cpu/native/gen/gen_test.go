package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestRegeneratingChangesNothing(t *testing.T) {
	err := run("..", true, nil)
	if errors.Is(err, errNoCompiler) {
		t.Skip("SKIPPED:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestUnsafeSourcesAreRefused(t *testing.T) {
	headers := map[string]string{}
	for _, name := range []string{"kernel.h", "avx2.h"} {
		b, err := os.ReadFile(filepath.Join("..", "src", name))
		if err != nil {
			t.Fatal(err)
		}
		headers[name] = string(b)
	}
	const open = "struct k {\n  float *x;\n  int64_t n;\n};\n"
	for _, c := range []struct{ name, src, want string }{
		{"an undefined symbol", "float sinf(float);\n" + open + "KERNEL(AVX2, k) { p->x[0] = sinf(p->x[1]); }", "undefined"},
		{"writable data", "static int count;\n" + open + "KERNEL(AVX2, k) { p->x[0] = (float)++count; }", "written to"},
		{"a table of pointers", "static const char *const names[] = {\"a\", \"b\"};\n" + open +
			"KERNEL(AVX2, k) { p->x[0] = *names[p->n]; }", "loader"},
		{"AVX-512 in the form for AVX2", open + "KERNEL(BOTH, k) { __asm__ volatile(\"vpxord %%zmm1, %%zmm1, %%zmm1\" ::: \"xmm1\"); p->x[0] = 1; }",
			"for AVX2: \"vpxord"},
		{"a large stack", open + "KERNEL(AVX2, k) { volatile float b[3000]; b[p->n] = 1; p->x[0] = b[0]; }", "stack"},
		{"an unbounded stack", open + "KERNEL(AVX2, k) { volatile float b[p->n]; b[1] = 1; p->x[0] = b[0]; }", "no bound"},
		{"an unknown type", "struct k {\n  long n;\n};\nKERNEL(AVX2, k) { (void)p; }", "no Go counterpart"},
		{"a kernel without arguments", "KERNEL(AVX2, k) { (void)p; }", "no struct"},
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "src"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range headers {
			write(t, filepath.Join(dir, "src", name), text)
		}
		write(t, filepath.Join(dir, "src", "k.c"), "#include \"kernel.h\"\n"+c.src+"\n")
		err := run(dir, false, nil)
		if errors.Is(err, errNoCompiler) {
			t.Skip("SKIPPED:", err)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got error %v, want one with %q", c.name, err, c.want)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*_amd64.s")); len(left) != 0 {
			t.Errorf("%s: wrote %v", c.name, left)
		}
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
