package agent

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// moody is a coordinator that is late where its moods say so, and at the end.
type moody struct {
	skeinv1.ClusterClient
	moods string // l: late, other letters: in time
	asked int
}

func (m *moody) Status(context.Context, *skeinv1.StatusRequest, ...grpc.CallOption) (*skeinv1.StatusResponse, error) {
	m.asked++
	if m.asked > len(m.moods) || m.moods[m.asked-1] == 'l' {
		return nil, status.Error(codes.DeadlineExceeded, "late")
	}
	return &skeinv1.StatusResponse{LeaderId: "c1"}, nil
}

func TestALeaderIsLeftForTwoLateAnswersInARow(t *testing.T) {
	conn, err := leader.New(leader.Config{Addresses: []string{"127.0.0.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for moods, want := range map[string]int{"": 2, "l": 2, "lil": 4, "ililil": 7, "ill": 3} {
		m := &moody{moods: moods}
		a := &agent{conn: conn, cluster: m}
		err := a.watch(t.Context(), &skeinv1.Welcome{Coordinator: "c1", LeaseMs: 1})
		if err == nil || !strings.Contains(err.Error(), "2 times in a row") || m.asked != want {
			t.Errorf("%q: asked %d times, not %d: %v", moods, m.asked, want, err)
		}
	}
}
