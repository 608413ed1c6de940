package main

import (
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/client"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

func TestDescribeSaysWhereAJobsTimeWent(t *testing.T) {
	v := client.View(&skeinv1.Job{Id: "pronounce-7f3a", Phase: skeinv1.Phase_PHASE_RUNNING, Ledger: &skeinv1.Ledger{
		PreparingMs: 20_000, ProductiveMs: 611_000, RecoveryMs: 1900, ReworkMs: 800, CheckpointMs: 400, PausedMs: 5700, Capacity: .972,
	}})
	if g := v.Goodput; g == nil || g.Wall != 639.8 || g.Share < .985 || g.Share > .987 {
		t.Fatalf("goodput %+v", g)
	}
	text := description(v, time.Now())
	for _, want := range []string{
		"Goodput      98.6 %  productive 611.0 s · recovery 1.9 s · rework 0.8 s · checkpoint 0.4 s · data wait 0.0 s · paused 5.7 s · preparing 20.0 s\n",
		"Capacity     97.2 % of the workers",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("it does not say %q:\n%s", want, text)
		}
	}
	if text := description(client.View(&skeinv1.Job{Id: "new", Ledger: &skeinv1.Ledger{PreparingMs: 5}}), time.Now()); strings.Contains(text, "Goodput") {
		t.Errorf("a job that was never trained has goodput:\n%s", text)
	}
}
