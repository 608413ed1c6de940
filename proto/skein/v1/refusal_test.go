package skeinv1

import (
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestARefusalTravelsInTheErrorOfACall(t *testing.T) {
	err := Refuse(codes.Unavailable, &Refusal{Kind: Refusal_KIND_NOT_LEADER, LeaderAddress: "127.0.0.1:7401"}, "c1 is not the leader")
	got := RefusalOf(fmt.Errorf("submit: %w", err))
	if got.GetKind() != Refusal_KIND_NOT_LEADER || got.GetLeaderAddress() != "127.0.0.1:7401" {
		t.Fatalf("the refusal came back as %v", got)
	}
	if status.Code(err) != codes.Unavailable {
		t.Fatalf("code %v, want unavailable", status.Code(err))
	}
}

func TestErrorsWithoutARefusalHaveNone(t *testing.T) {
	for _, err := range []error{nil, errors.New("disk full"), status.Error(codes.NotFound, "no such job")} {
		if got := RefusalOf(err); got != nil {
			t.Errorf("%v: refusal %v out of nothing", err, got)
		}
	}
}
