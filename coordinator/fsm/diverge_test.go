package fsm

import (
	"strings"
	"testing"
)

func TestWhatHasDivergedIsNotGoneOnFromAndNamesBoth(t *testing.T) {
	b := newBench(t)
	id := b.in(Running) // w1: 0 1, w2: 2 3
	kept := []string{"w1", "w1", "w2", "w2"}
	b.must(register("w3"))
	b.refused(&Diverge{id, 2, "w1", "w2"}, ErrFenced)
	b.refused(&Diverge{id, 1, "w1", "w3"}, ErrConflict)
	b.refused(&Diverge{id, 1, "w1", "w1"}, ErrConflict)
	b.must(&Diverge{id, 1, "w1", "w2"}, &Diverge{id, 1, "w2", "w1"})
	j := b.s.Jobs[id]
	if times, _ := j.Doubted("w1", 0); j.Sound() || times != 1 || len(j.Doubts) != 2 {
		t.Fatalf("sound: %t, doubts %v", j.Sound(), j.Doubts)
	}
	b.refused(live(id, 2, 0, 3, kept, "w1", "w2"), ErrConflict)
	b.must(generate(id, 2, 0, "w1", "w2"))
	if j = b.s.Jobs[id]; !j.Sound() {
		t.Error("the next generation is not sound")
	}
	b.must(&Suspend{Job: id, Generation: 3}, &Diverge{id, 2, "w1", "w2"})
	b.refused(after(2, live(id, 4, 0, 3, kept, "w1", "w2")), ErrConflict)
	if times, last := b.s.Jobs[id].Doubted("w2", 0); times != 2 || last == 0 {
		t.Errorf("w2 was named %d times, last at %d", times, last)
	}
	if times, _ := b.s.Jobs[id].Doubted("w2", 1<<60); times != 0 {
		t.Errorf("w2 was named %d times lately", times)
	}
}

func TestADomainThatMirrorsShareIsNamed(t *testing.T) {
	for _, c := range []struct {
		what, nodes, zones string
		want               string
	}{
		{"each on its node", "a b c d", "", ""},
		{"all on one node", "a a a a", "", "no second failure domain: all its workers share node a"},
		{"some neighbours on one node", "a b b c", "", "mirrors share node b"},
		{"some neighbours on several", "a a b b", "", "mirrors share node a, node b"},
		{"nodes in turn", "a b a b", "", ""},
		{"zones in turn", "a b c d", "x y x y", ""},
		{"some neighbours in one zone", "a b c d", "x x x y", "mirrors share zone x"},
		{"one zone is all there is", "a b c d", "x x x x", ""},
		{"a zone and a node", "a a c d", "x x y y", "mirrors share node a, zone y"},
	} {
		t.Run(c.what, func(t *testing.T) {
			b := newBench(t)
			id := b.in(Running)
			nodes, zones := strings.Fields(c.nodes), strings.Fields(c.zones)
			for i, w := range []string{"w1", "w2", "w3", "w4"} {
				d := register(w)
				if d.Worker.Node = nodes[i]; len(zones) > 0 {
					d.Worker.Zone = zones[i]
				}
				b.must(d)
			}
			b.must(generate(id, 2, 0, "w1", "w2", "w3", "w4"))
			j := *b.s.Jobs[id]
			if got := b.s.SharedDomains(&j); got != "" {
				t.Errorf("without mirrors: %q", got)
			}
			j.Mirror = true
			if got := b.s.SharedDomains(&j); got != c.want {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

func TestSpreadTakesZonesInTurnThenNodes(t *testing.T) {
	var all []*Worker
	for w := range strings.FieldsSeq("w1/n1/a w2/n1/a w3/n2/a w4/n3/b w5/n3/b w6/n4/b w7/n5/c") {
		f := strings.Split(w, "/")
		all = append(all, &Worker{Name: f[0], Node: f[1], Zone: f[2]})
	}
	var got []string
	for _, w := range Spread(all) {
		got = append(got, w.Name)
	}
	if text := strings.Join(got, " "); text != "w1 w4 w7 w3 w6 w2 w5" {
		t.Error(text)
	}
}

func TestDoubtedWorkersAreSparedOnlyAsFarAsTheOthersAreTooFew(t *testing.T) {
	for _, c := range []struct {
		least, most, others int
		doubted             map[string]int
		want                string
	}{
		{1, 2, 1, map[string]int{"w1": 2, "w2": 2}, ""},
		{1, 2, 0, map[string]int{"w1": 2, "w2": 2}, "w1 w2"}, // two, so that copies are compared
		{1, 1, 0, map[string]int{"w1": 3, "w2": 2}, "w2"},
		{2, 4, 1, map[string]int{"w1": 3, "w2": 2, "w3": 2}, "w2"},
		{3, 4, 1, map[string]int{"w1": 3, "w2": 2, "w3": 2}, "w2 w3"},
		{4, 4, 1, map[string]int{"w1": 2}, "w1"},
		{2, 2, 1, nil, ""},
	} {
		j := Job{WorkersMin: c.least, WorkersMax: c.most}
		if got := strings.Join(j.Spared(c.doubted, c.others), " "); got != c.want {
			t.Errorf("%d to %d workers, %d others, doubted %v: %q, want %q", c.least, c.most, c.others, c.doubted, got, c.want)
		}
	}
}
