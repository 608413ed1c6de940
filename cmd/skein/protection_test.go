package main

import (
	"testing"

	"github.com/skein-ml/skein/client"
)

func TestDescribeSaysWhetherALossCostsStepsAndUntilWhen(t *testing.T) {
	published := &client.Published{Step: 40}
	for _, c := range []struct {
		name string
		job  client.Job
		want string
	}{
		{"held twice", client.Job{Mirror: true, Published: published, Progress: &client.Progress{Protected: true}}, "protected: the loss of any one worker costs no step"},
		{
			"on one machine", client.Job{Mirror: true, Published: published, Domains: "w1 and w2 are on node a", Progress: &client.Progress{Protected: true}},
			"protected: the loss of any one worker costs no step; but w1 and w2 are on node a: to lose that sets it back to step 40",
		},
		{
			"told why", client.Job{Mirror: true, Published: published, Progress: &client.Progress{Exposed: "mirrors are being filled; until the next step"}},
			"exposed: mirrors are being filled; until the next step; a lost worker sets it back to step 40",
		},
		{"nothing told yet", client.Job{Mirror: true, Published: published}, "exposed until its mirrors are filled: a lost worker sets it back to step 40"},
		{"asked for", client.Job{Published: published}, "exposed (protect: checkpoint): a lost worker sets it back to step 40"},
	} {
		if got := protection(c.job); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}
