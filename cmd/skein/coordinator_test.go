package main

import (
	"testing"

	"github.com/skein-ml/skein/coordinator"
	"github.com/skein-ml/skein/coordinator/raftlog"
)

func TestACoordinatorThatIsNotAmongTheFirstWaitsIfItMay(t *testing.T) {
	first := []raftlog.Server{{ID: "c1", Address: "10.0.0.1:7401"}}
	c := coordinatorConfig{Config: coordinator.Config{ID: "c2", Listen: "10.0.0.2:7401", Members: first}}
	if c.checkMembers() == nil {
		t.Error("it founds a cluster that does not list it")
	}
	c.wait = true
	if err := c.checkMembers(); err != nil || len(c.Members) != 0 {
		t.Errorf("it begins with %v, %v", c.Members, err)
	}
	c = coordinatorConfig{Config: coordinator.Config{ID: "c1", Listen: "10.0.0.1:7401", Members: first}, wait: true}
	if err := c.checkMembers(); err != nil || len(c.Members) != 1 {
		t.Errorf("the first begins with %v, %v", c.Members, err)
	}
}
