package protocol

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/skein-ml/skein/shard"
)

// held is a list of ranks: "012".
func held(digits string) []shard.Rank {
	var list []shard.Rank
	for _, d := range digits {
		list = append(list, shard.Rank(d-'0'))
	}
	return list
}

// at makes a report: a worker at a step, what it holds, of what it has the sums.
func at(worker string, step int64, holds, summed string) Report {
	return Report{Worker: worker, Step: step, Decision: []byte{byte(step)}, Held: held(holds), Summed: held(summed),
		Reaches: []string{"a", "b", "c", "d"}}
}

// partly is a report of one that reaches only some.
func partly(r Report, reaches ...string) Report {
	r.Reaches = reaches
	return r
}

// later is a report that was made after the others.
func later(r Report) Report {
	r.Order = 1
	return r
}

// abcd are four workers with two ranks each, each the mirror of the one before it.
var abcd = []string{"a", "a", "b", "b", "c", "c", "d", "d"}

func TestRecoverGoesOnFromTheHighestDecidedStep(t *testing.T) {
	for _, c := range []struct {
		name    string
		reports []Report
		target  int64
		members string
		sources string
	}{
		{"nobody failed", []Report{at("a", 5, "0167", ""), at("b", 5, "2301", ""), at("c", 5, "4523", ""), at("d", 5, "6745", "")},
			5, "a b c d", "a a b b c c d d"},
		{"the next worker takes over", []Report{at("a", 5, "0167", ""), at("b", 5, "2301", ""), at("d", 5, "6745", "")},
			5, "a b d", "a a b b d d d d"},
		{"the last worker's mirror is the first worker", []Report{at("a", 5, "0167", ""), at("b", 5, "2301", ""), at("c", 5, "4523", "")},
			5, "a b c", "a a b b c c a a"},
		{"one knows the decision, the others have the sums", []Report{at("a", 4, "0167", "0167"), at("b", 5, "2301", ""), at("d", 4, "6745", "6745")},
			5, "a b d", "a a b b d d d d"},
		{"nobody knows the decision", []Report{at("a", 4, "0167", "0167"), at("b", 4, "2301", "2301"), at("d", 4, "6745", "6745")},
			4, "a b d", "a a b b d d d d"},
		{"the log knows the decision", []Report{{Step: 5, Decision: []byte{5}}, at("a", 4, "0167", "0167"), at("b", 4, "2301", "2301"), at("c", 4, "4523", "4523"), at("d", 4, "6745", "6745")},
			5, "a b c d", "a a b b c c d d"},
		{"the log's step is long past", []Report{{Step: 1, Decision: []byte{1}}, at("a", 5, "0167", ""), at("c", 4, "4523", "4523")},
			5, "a c", "a a c c c c a a"},
		{"one has joined and got nothing yet", []Report{at("a", 5, "0167", ""), partly(Report{Worker: "b"}, "a", "c", "d"), at("c", 5, "4523", ""), at("d", 5, "6745", "")},
			5, "a b c d", "a a c c c c d d"},
		{"an owner without the sum", []Report{at("a", 5, "0167", ""), at("b", 5, "2301", ""), at("c", 4, "4523", "23"), at("d", 5, "6745", "")},
			5, "a b c d", "a a b b d d d d"},
		{"two parts that do not reach each other", []Report{partly(at("a", 5, "01234567", ""), "b"), partly(at("b", 5, "2301", ""), "a"), partly(at("c", 5, "01234567", ""), "d"), partly(at("d", 5, "6745", ""), "c")},
			5, "a b", "a a b b a a a a"},
		{"one that reaches others and is not reached", []Report{at("a", 5, "0167", ""), partly(at("b", 5, "2301", ""), "a", "c", "d"), partly(at("c", 5, "4523", ""), "a", "d"), partly(at("d", 5, "6745", ""), "a", "c")},
			5, "a c d", "a a c c c c d d"},
		{"one that was stopped while the others reported", []Report{partly(at("a", 5, "0167", ""), "d"), partly(at("d", 5, "6745", ""), "a"), later(at("b", 5, "2301", ""))},
			5, "a b d", "a a b b d d d d"},
		{"one that was cut off after the others had reported", []Report{at("a", 5, "0167", ""), at("b", 5, "2301", ""), at("c", 5, "4523", ""), later(partly(at("d", 5, "6745", "")))},
			5, "a b c", "a a b b c c a a"},
		{"one that goes on alone", []Report{partly(at("a", 5, "01234567", "")), partly(at("b", 5, "2301", ""))},
			5, "a", "a a a a a a a a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Recover(8, abcd, c.reports)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintln(p.Target, p.Decision[0], strings.Join(p.Members, " "), "; ", strings.Join(p.Sources, " "))
			if want := fmt.Sprintln(c.target, c.target, c.members, "; ", c.sources); got != want {
				t.Errorf("goes on with %s, want %s", got, want)
			}
		})
	}
}

func TestRecoverNamesWhatNobodyCanGive(t *testing.T) {
	for _, c := range []struct {
		name    string
		reports []Report
		want    string
	}{
		{"two neighbours are lost", []Report{at("a", 5, "0167", ""), at("d", 5, "6745", "")}, "ranks 2, 3 are held by nobody that is left"},
		{"a mirror was not filled", []Report{at("a", 5, "0167", ""), at("b", 5, "23", ""), at("d", 5, "674", "")}, "rank 5 is held by nobody that is left"},
		{"a mirror has no sum", []Report{at("a", 5, "0167", ""), at("b", 5, "2301", ""), at("d", 4, "6745", "674")}, "rank 5 is held by nobody that is left"},
		{"the only holder is out of reach", []Report{partly(at("a", 5, "0167", ""), "b", "c"), partly(at("b", 5, "2301", ""), "a", "c"), partly(at("c", 5, "23", ""), "a", "b"), partly(at("d", 5, "6745", ""))},
			"ranks 4, 5 are held only by workers that do not reach all the others"},
		{"everybody is lost", nil, "ranks 0, 1, 2, 3, 4, 5, 6, 7 are held by nobody that is left"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Recover(8, abcd, c.reports)
			if u := (*Uncovered)(nil); !errors.As(err, &u) || err.Error() != c.want {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
}

func TestRecoverRefusesReportsThatContradictEachOther(t *testing.T) {
	other := at("b", 5, "2301", "")
	other.Decision = []byte{9}
	for _, c := range []struct {
		name    string
		reports []Report
		want    string
	}{
		{"two steps apart", []Report{at("a", 3, "01", ""), at("b", 5, "23", "")}, "a is at step 3, b at step 5"},
		{"two decisions", []Report{at("a", 5, "0167", ""), other}, "different decisions of step 5"},
		{"a decision that is not the log's", []Report{{Step: 5, Decision: []byte{5}}, other}, "the log and b have different decisions"},
		{"a worker twice", []Report{at("a", 5, "01", ""), at("a", 5, "01", "")}, "a reports twice"},
		{"a rank beyond the world", []Report{at("a", 5, "9", "")}, "holds rank 9 of 8"},
		{"a rank below it", []Report{{Worker: "a", Held: []shard.Rank{-1}}}, "holds rank -1 of 8"},
		{"a rank twice", []Report{at("a", 5, "00", "")}, "holds rank 0 twice"},
		{"a sum of what it does not hold", []Report{at("a", 5, "01", "2")}, "has the sum of rank 2"},
		{"a step before the first", []Report{at("a", -1, "01", "")}, "step -1"},
		{"a log that holds ranks", []Report{at("", 5, "01", "")}, "the log holds ranks"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Recover(8, abcd, c.reports); !errors.Is(err, ErrReports) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
		})
	}
	if _, err := Recover(8, []string{"a"}, nil); err == nil {
		t.Error("one owner of eight ranks was accepted")
	}
	if _, err := Recover(0, nil, nil); err == nil {
		t.Error("a world without ranks was accepted")
	}
	var many []Report
	for i := range shard.WorldSizeMax + 1 {
		many = append(many, Report{Worker: fmt.Sprint("w", i)})
	}
	if _, err := Recover(8, abcd, many); err == nil {
		t.Error("more reports than there can be workers were accepted")
	}
}

// TestAPlanIsOneThatItsMembersCanCarryOut draws reports without any sense to them.
func TestAPlanIsOneThatItsMembersCanCarryOut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		worldSize := rapid.IntRange(1, 8).Draw(t, "world size")
		names := []string{"a", "b", "c", "d", "e"}
		owners := make([]string, worldSize)
		for i := range owners {
			owners[i] = names[i*len(names)/worldSize]
		}
		base := rapid.Int64Range(0, 3).Draw(t, "base")
		var reports []Report
		for _, n := range rapid.Permutation(names).Draw(t, "order")[:rapid.IntRange(0, 5).Draw(t, "reports")] {
			r := Report{Worker: n, Step: base + rapid.Int64Range(0, 1).Draw(t, "step")}
			r.Decision, r.Order = []byte{byte(r.Step)}, rapid.IntRange(0, 2).Draw(t, "order of report")
			for rank := range worldSize {
				if rapid.Bool().Draw(t, "holds") {
					r.Held = append(r.Held, shard.Rank(rank))
					if rapid.Bool().Draw(t, "sum") {
						r.Summed = append(r.Summed, shard.Rank(rank))
					}
				}
			}
			for _, o := range names {
				if rapid.IntRange(0, 3).Draw(t, "reaches") > 0 {
					r.Reaches = append(r.Reaches, o)
				}
			}
			reports = append(reports, r)
		}
		p, err := Recover(worldSize, owners, reports)
		again, err2 := Recover(worldSize, owners, rapid.Permutation(reports).Draw(t, "other order"))
		if fmt.Sprint(p, err) != fmt.Sprint(again, err2) {
			t.Fatalf("%v, %v; in another order %v, %v", p, err, again, err2)
		}
		if err != nil {
			if u := (*Uncovered)(nil); !errors.As(err, &u) || len(u.Ranks) == 0 {
				t.Fatal(err)
			}
			return
		}
		byName := map[string]Report{}
		for _, r := range reports {
			byName[r.Worker] = r
			if r.Step > p.Target {
				t.Fatalf("%s knows step %d decided, and the target is %d", r.Worker, r.Step, p.Target)
			}
		}
		for _, a := range p.Members {
			for _, b := range p.Members {
				if a != b && !byName[a].reaches(byName[b]) {
					t.Fatalf("%s does not reach %s", a, b)
				}
			}
		}
		for rank, from := range p.Sources {
			r := byName[from]
			list := r.Held
			if r.Step < p.Target {
				list = r.Summed
			}
			if !slices.Contains(p.Members, from) || !slices.Contains(list, shard.Rank(rank)) {
				t.Fatalf("rank %d from %s, which cannot give it at step %d: %+v", rank, from, p.Target, r)
			}
			if owner := byName[owners[rank]]; slices.Contains(p.Members, owners[rank]) && from != owners[rank] &&
				owner.gives(p.Target)&(1<<rank) != 0 {
				t.Fatalf("rank %d from %s, though its owner %s has it", rank, from, owners[rank])
			}
		}
	})
}
