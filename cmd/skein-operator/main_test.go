package main

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
)

func TestACommandLineThatMeansNothingIsToldSo(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for what, c := range map[string]struct {
		args   []string
		status int
		out    string
		errs   string
	}{
		"version":       {[]string{"--version"}, 0, "skein-operator devel", ""},
		"help":          {[]string{"--help"}, 0, "", "-leader-elect"},
		"unknown flag":  {[]string{"--nosuch"}, exitUsage, "", "nosuch"},
		"argument":      {[]string{"start"}, exitUsage, "", `"start" is no flag`},
		"negative poll": {[]string{"--poll", "-1s", "--kubeconfig", "testdata/kubeconfig"}, exitFailure, "", "a time must be more than 0"},
		"no such file":  {[]string{"--kubeconfig", filepath.Join(t.TempDir(), "nosuch")}, exitFailure, "", "which API server?"},
	} {
		var out, errs bytes.Buffer
		status := run(t.Context(), c.args, &out, &errs)
		if status != c.status || !strings.Contains(out.String(), c.out) || !strings.Contains(errs.String(), c.errs) {
			t.Errorf("%s: status %d, %q, %q", what, status, out.String(), errs.String())
		}
	}
}
