package coordinator

import (
	"encoding/json"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/jobspec/badspec"
)

// TestNoBadJobIsAdmitted is about whoever speaks to a coordinator without a client that
// has looked at the job before.
func TestNoBadJobIsAdmitted(t *testing.T) {
	good, err := badspec.Case{}.Spec()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := submission("0123456789abcdef", raw); err != nil {
		t.Fatalf("the job that they spoil is not admitted: %v", err)
	}
	for _, c := range badspec.Cases {
		spec, err := c.Spec()
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(spec)
		if err != nil {
			continue // NaN and infinity are no JSON
		}
		if _, err := submission("0123456789abcdef", raw); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", c, err)
		}
	}
}
