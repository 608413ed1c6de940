package badspec

import (
	"strings"
	"testing"

	"github.com/skein-ml/skein/jobspec"
)

func TestTheJobFileOfNoCaseIsTaken(t *testing.T) {
	if _, err := jobspec.Read("job.yaml", strings.NewReader(Minimal)); err != nil {
		t.Fatalf("the job that they spoil is no good one: %v", err)
	}
	for _, c := range Cases {
		_, err := jobspec.Read("job.yaml", strings.NewReader(Minimal), c.Settings...)
		if err == nil || !strings.Contains(err.Error(), c.Key+": ") {
			t.Errorf("%s: %v, want a problem of %s", c, err, c.Key)
		}
	}
}

func TestEachCaseIsATree(t *testing.T) {
	for _, c := range Cases {
		spec, err := c.Spec()
		if err != nil {
			t.Errorf("%s: %v", c, err)
			continue
		}
		if spec["model"] == nil || spec["train"] == nil {
			t.Errorf("%s: the rest of the job is gone: %v", c, spec)
		}
	}
}
