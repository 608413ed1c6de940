package allreduce

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/skein-ml/skein/shard"
)

// keptRequest has no meaning yet, and reaches everybody all the same.
const keptRequest Requests = 8

var testRule = Rule{WorldSize: 3, Buckets: 2, LossShift: 11, Clip: 1}

func testVotes() []Vote {
	return []Vote{
		{Step: 7, Rank: 0, SqNorms: []float64{1, 2}, Loss: 10, Tokens: 5, Finite: true},
		{Step: 7, Rank: 1, SqNorms: []float64{3, 4}, Loss: 20, Tokens: 7, Finite: true, Requests: RequestCheckpoint, Data: 3, Compute: 1 << 40},
		{Step: 7, Rank: 2, SqNorms: []float64{5, 6}, Loss: 30, Tokens: 0, Finite: true, Requests: keptRequest},
	}
}

func TestDecisionHoldsMeanLossClippedScaleAndRequests(t *testing.T) {
	rate := math.Float32bits(3e-4)
	d, err := Decide(testVotes(), testRule, rate, 4)
	if err != nil {
		t.Fatal(err)
	}
	mean := 2048.0 / 12
	norm := math.Sqrt(21) * mean
	want := Decision{Step: 7, Action: Apply, Culprit: NoCulprit, Taken: 5, ScaleBits: math.Float32bits(float32(mean * (1 / (norm + 1e-6)))),
		RateBits: rate, Tokens: 12, Loss: 5, GradNorm: norm, Requests: RequestCheckpoint | keptRequest}
	if d != want {
		t.Errorf("decision %+v\nwant     %+v", d, want)
	}
	loose := testRule
	loose.Clip = 1e9
	none := testRule
	none.Clip = 0
	for _, rule := range []Rule{loose, none} {
		if d, _ := Decide(testVotes(), rule, rate, 4); d.ScaleBits != math.Float32bits(float32(mean)) {
			t.Errorf("clip %v changed a small gradient: scale %v", rule.Clip, math.Float32frombits(d.ScaleBits))
		}
	}
}

func TestDecisionDoesNotDependOnTheOrderInWhichVotesArrive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		worldSize := rapid.IntRange(1, shard.WorldSizeMax).Draw(t, "worldSize")
		rule := Rule{WorldSize: worldSize, Buckets: 5, LossShift: 9, Clip: 0.5}
		votes := make([]Vote, worldSize)
		for r := range votes {
			votes[r] = Vote{Step: 3, Rank: shard.Rank(r), Finite: true, Tokens: rapid.Int64Range(0, 100).Draw(t, "tokens"),
				Loss:    rapid.Float64Range(0, 1e6).Draw(t, "loss"),
				SqNorms: rapid.SliceOfN(rapid.Float64Range(0, 1e12), 5, 5).Draw(t, "norms")}
		}
		first, err := Decide(votes, rule, 1, 0)
		if err != nil {
			t.Fatal(err)
		}
		again, err := Decide(rapid.Permutation(votes).Draw(t, "order"), rule, 1, 0)
		if err != nil || again != first {
			t.Fatalf("another order: %+v, %v; before %+v", again, err, first)
		}
		var sqNorm, loss float64 // buckets in order within a rank, then ranks in order
		for _, v := range votes {
			var own float64
			for _, x := range v.SqNorms {
				own += x
			}
			sqNorm, loss = sqNorm+own, loss+v.Loss
		}
		if first.Tokens > 0 && (first.GradNorm != math.Sqrt(sqNorm)*(512/float64(first.Tokens)) || first.Loss != loss/float64(first.Tokens)) {
			t.Fatalf("norm %v, loss %v are not the sums in rank order", first.GradNorm, first.Loss)
		}
	})
}

func TestStepsWithoutTokensOrWithNaNAreSkippedWithTheCause(t *testing.T) {
	for _, c := range []struct {
		why     string
		change  func([]Vote)
		cause   Cause
		culprit shard.Rank
		text    string
	}{
		{"no tokens", func(v []Vote) { v[0].Tokens, v[1].Tokens = 0, 0 }, CauseNoTokens, NoCulprit, "no target token"},
		{"flag", func(v []Vote) { v[1].Finite = false }, CauseNotFinite, 1, "rank 1"},
		{"norm NaN", func(v []Vote) { v[2].SqNorms[1] = math.NaN() }, CauseNotFinite, 2, "rank 2"},
		{"whose gradient it is, not who has it in the sum", func(v []Vote) { v[1].SqNorms[0], v[2].Finite = math.Inf(1), false }, CauseNotFinite, 2, "rank 2"},
		{"loss", func(v []Vote) { v[0].Loss = math.Inf(1) }, CauseNotFinite, 0, "rank 0"},
		{"the loss of a later rank", func(v []Vote) { v[0].SqNorms[1], v[2].Loss, v[2].Finite = math.NaN(), math.NaN(), false }, CauseNotFinite, 2, "rank 2"},
		{"sum overflows", func(v []Vote) { v[0].SqNorms[0], v[1].SqNorms[0] = math.MaxFloat64, math.MaxFloat64 }, CauseNotFinite, NoCulprit, "gradient norm"},
	} {
		votes := testVotes()
		c.change(votes)
		d, err := Decide(votes, testRule, 1, 4)
		if err != nil || d.Action != Skip || d.Cause != c.cause || d.Culprit != c.culprit || d.Taken != 4 || d.ScaleBits != 0 {
			t.Errorf("%s: %+v, %v", c.why, d, err)
		}
		if !strings.Contains(d.String(), c.text) {
			t.Errorf("%s: %q does not say %q", c.why, d, c.text)
		}
		back, err := DecodeDecision(AppendDecision(nil, d))
		if err != nil || back.String() != d.String() {
			t.Errorf("%s: reads back as %+v, %v", c.why, back, err)
		}
	}
}

func TestNotFiniteNamesTheRankAndTheBuckets(t *testing.T) {
	votes := testVotes()
	if rank, buckets := NotFinite(votes); rank != NoCulprit || buckets != nil {
		t.Errorf("finite votes: rank %d, buckets %v", rank, buckets)
	}
	votes[0].SqNorms[1], votes[1].SqNorms[0], votes[2].SqNorms[1] = math.Inf(1), math.NaN(), math.NaN()
	if rank, buckets := NotFinite(votes); rank != 0 || fmt.Sprint(buckets) != "[0 1]" {
		t.Errorf("gradients: rank %d, buckets %v", rank, buckets)
	}
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 0, 2}} { // losses name, whatever the gradients say
		votes[1].Loss, votes[2].Loss = math.NaN(), math.Inf(1)
		if rank, _ := NotFinite([]Vote{votes[order[0]], votes[order[1]], votes[order[2]]}); rank != 1 {
			t.Errorf("losses in order %v: rank %d", order, rank)
		}
	}
}

func TestVotesThatDoNotFitTogetherDecideNothing(t *testing.T) {
	for why, change := range map[string]func([]Vote) []Vote{
		"one missing":     func(v []Vote) []Vote { return v[:2] },
		"none":            func(v []Vote) []Vote { return nil },
		"one twice":       func(v []Vote) []Vote { v[1].Rank = 0; return v },
		"unknown rank":    func(v []Vote) []Vote { v[1].Rank = 3; return v },
		"another step":    func(v []Vote) []Vote { v[2].Step = 8; return v },
		"bucket missing":  func(v []Vote) []Vote { v[2].SqNorms = v[2].SqNorms[:1]; return v },
		"negative tokens": func(v []Vote) []Vote { v[0].Tokens = -1; return v },
	} {
		if _, err := Decide(change(testVotes()), testRule, 1, 0); !errors.Is(err, ErrVotes) {
			t.Errorf("%s: error %v", why, err)
		}
	}
}

func TestLossShiftIsTheLogOfTheTokensOfABatch(t *testing.T) {
	for _, c := range [][3]int{{4, 512, 11}, {1, 1, 0}, {3, 300, 9}, {1, 1023, 9}, {1, 1024, 10}, {1 << 20, 1 << 20, 40}} {
		if got := LossShift(c[0], c[1]); got != c[2] {
			t.Errorf("%d sequences of %d tokens: shift %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

func FuzzDecodeDecision(f *testing.F) {
	d, err := Decide(testVotes(), testRule, 1, 4)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(AppendDecision(nil, d))
	votes := testVotes()
	votes[1].Finite = false
	skipped, err := Decide(votes, testRule, 1, 4)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(AppendDecision(nil, skipped))
	f.Add([]byte("SKND"))
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := DecodeDecision(b)
		if err != nil {
			if !errors.Is(err, ErrDecision) {
				t.Fatalf("error %v is not ErrDecision", err)
			}
			return
		}
		if got := AppendDecision(nil, d); string(got) != string(b) {
			t.Fatalf("%x was read and written as %x", b, got)
		}
	})
}

func TestADamagedDecisionIsNeverRead(t *testing.T) {
	d, err := Decide(testVotes(), testRule, math.Float32bits(1), 4)
	if err != nil {
		t.Fatal(err)
	}
	b := AppendDecision(nil, d)
	if back, err := DecodeDecision(b); err != nil || back != d {
		t.Fatalf("%+v read back as %+v, %v", d, back, err)
	}
	for i := range b {
		for bit := range 8 {
			b[i] ^= 1 << bit
			if _, err := DecodeDecision(b); !errors.Is(err, ErrDecision) {
				t.Fatalf("flipped bit %d of byte %d: %v", bit, i, err)
			}
			b[i] ^= 1 << bit
		}
	}
	for n := range b {
		if _, err := DecodeDecision(b[:n]); !errors.Is(err, ErrDecision) {
			t.Fatalf("the first %d bytes: %v", n, err)
		}
	}
}
