package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-ml/skein/jobspec/badspec"
)

func TestNoBadJobIsSubmitted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "job.yaml")
	if err := os.WriteFile(file, []byte(badspec.Minimal), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range badspec.Cases {
		args := []string{"submit", "-f", file, "--coordinator", "127.0.0.1:1"}
		for _, s := range c.Settings {
			args = append(args, "--set", s)
		}
		var out, errs bytes.Buffer
		status := run(t.Context(), args, streams{in: strings.NewReader(""), out: &out, err: &errs, plain: true}, newEngine())
		if status != exitUsage || !strings.Contains(errs.String(), c.Key+": ") || out.Len() > 0 {
			t.Errorf("%s: status %d, %q %q", c, status, out.String(), errs.String())
		}
	}
}
