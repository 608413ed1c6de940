package shard

import (
	"math"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestOrderVisitsEverySampleOncePerEpoch(t *testing.T) {
	sizes := []int64{1, 2, 3, 4, 5, 7, 13, 97, 101, 1009, 9911}
	for k := 2; k <= 14; k++ {
		sizes = append(sizes, 1<<k-1, 1<<k, 1<<k+1)
	}
	for _, s := range sizes {
		for _, seed := range []uint64{0, 1, math.MaxUint64} {
			o := Order{Seed: seed, Samples: s, GlobalBatch: 1}
			for epoch := range int64(2) {
				seen := make([]bool, s)
				for p := range s {
					i, e := o.Sample(epoch*s+p+1, 0)
					if i < 0 || i >= s || seen[i] || e != epoch {
						t.Fatalf("S %d seed %d epoch %d position %d: index %d of epoch %d, seen before: %v", s, seed, epoch, p, i, e, seen[max(i, 0)%s])
					}
					seen[i] = true
				}
			}
		}
	}
}

// The golden values. If this test fails, every job's data order has changed: put the arithmetic back.
func TestOrderNeverChanges(t *testing.T) {
	for _, c := range []struct {
		seed    uint64
		samples int64
		epoch   int64
		want    []int64
	}{
		{1, 2, 0, []int64{0, 1}},
		{1, 9911, 0, []int64{1479, 8084, 606, 3622, 2577, 2699, 5185, 1248}},
		{1, 9911, 1, []int64{3342, 3021, 5341, 444, 843, 5135, 8846, 9028}},
		{42, 1 << 40, 7, []int64{410409442460, 52226323552, 1049827147605, 157514087782, 448967735806, 786154771431, 1033321252032, 72738482769}},
		{math.MaxUint64, 1000, math.MaxInt32, []int64{746, 300, 221, 475, 309, 721, 993, 552}},
	} {
		o := Order{Seed: c.seed, Samples: c.samples, GlobalBatch: 1}
		var got []int64
		for p := range min(8, c.samples) {
			i, _ := o.Sample(c.epoch*c.samples+p+1, 0)
			got = append(got, i)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("seed %d, S %d, epoch %d: %v, want %v", c.seed, c.samples, c.epoch, got, c.want)
		}
	}
}

func TestOrderBatchesStraddleEpochsAndEndInFiller(t *testing.T) {
	o := Order{Seed: 3, Samples: 5, GlobalBatch: 4, Total: 10}
	if got := o.Steps(); got != 3 {
		t.Fatalf("%d steps for 10 samples in batches of 4, want 3", got)
	}
	count := map[int64]int{}
	for step := int64(1); step <= 4; step++ {
		for j := range int64(4) {
			i, epoch := o.Sample(step, j)
			n := (step-1)*4 + j
			if epoch != n/5 {
				t.Errorf("sample %d: epoch %d", n, epoch)
			}
			if (i == Filler) != (n >= 10) {
				t.Errorf("sample %d: index %d", n, i)
			}
			count[i]++
		}
	}
	for i := range int64(5) {
		if count[i] != 2 {
			t.Errorf("sample %d was seen %d times in two epochs", i, count[i])
		}
	}
}

func TestOrderEndsInsideAnEpochToo(t *testing.T) {
	o := Order{Seed: 3, Samples: 10, GlobalBatch: 4, Total: 15} // one and a half epochs
	if got := o.Steps(); got != 4 {
		t.Errorf("%d steps for 15 samples in batches of 4, want 4", got)
	}
	for n := range int64(20) {
		if i, _ := o.Sample(n/4+1, n%4); (i == Filler) != (n >= 15) {
			t.Errorf("sample %d: index %d", n, i)
		}
	}
}

func TestSequentialOrderIsTheFilesOrder(t *testing.T) {
	o := Order{Seed: 9, Samples: 3, GlobalBatch: 2, Sequential: true}
	var got []int64
	for step := int64(1); step <= 3; step++ {
		for j := range int64(2) {
			i, _ := o.Sample(step, j)
			got = append(got, i)
		}
	}
	if want := []int64{0, 1, 2, 0, 1, 2}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestOrderDoesNotDependOnTheBatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.Int64Range(1, 1<<40).Draw(t, "samples")
		g := rapid.Int64Range(1, 4096).Draw(t, "globalBatch")
		step := rapid.Int64Range(1, 1<<30).Draw(t, "step")
		seed := rapid.Uint64().Draw(t, "seed")
		j := rapid.Int64Range(0, g-1).Draw(t, "j")
		i, e := Order{Seed: seed, Samples: s, GlobalBatch: g}.Sample(step, j)
		single, se := Order{Seed: seed, Samples: s, GlobalBatch: 1}.Sample((step-1)*g+j+1, 0)
		if i != single || e != se || i < 0 || i >= s {
			t.Fatalf("(%d, %d) with batch %d, (%d, %d) one by one", i, e, g, single, se)
		}
	})
}

// Every index should stand at every position equally often over many epochs, and the next position's index should not follow
// from this one's. χ² over S cells with 20,000 draws; the bound is the mean plus six standard deviations.
func TestOrderLooksRandom(t *testing.T) {
	for _, s := range []int64{2, 3, 5, 16, 17, 100} {
		o := Order{Seed: 11, Samples: s, GlobalBatch: 1}
		first, step := make([]float64, s), make([]float64, s)
		const draws = 20000
		for epoch := range int64(draws) {
			a, _ := o.Sample(epoch*s+1, 0)
			b, _ := o.Sample(epoch*s+2, 0)
			first[a]++
			step[(b-a+s)%s]++
		}
		dof := float64(s - 1)
		if chi := chiSquare(first, draws/float64(s)); chi > dof+6*math.Sqrt(2*dof) {
			t.Errorf("S %d: χ² %.1f for the first position, %v degrees of freedom", s, chi, dof)
		}
		if step[0] != 0 {
			t.Errorf("S %d: neighbours were equal", s)
		}
		if chi := chiSquare(step[1:], draws/(dof)); chi > dof-1+6*math.Sqrt(2*dof) {
			t.Errorf("S %d: χ² %.1f for the distance of neighbours", s, chi)
		}
	}
}

func chiSquare(count []float64, expected float64) (chi float64) {
	for _, c := range count {
		chi += (c - expected) * (c - expected) / expected
	}
	return chi
}

func TestOrderValidateNamesTheFault(t *testing.T) {
	good := Order{Samples: 1, GlobalBatch: 1}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, o := range map[string]Order{
		"empty": {GlobalBatch: 1}, "batch": {Samples: 1}, "total": {Samples: 1, GlobalBatch: 1, Total: -1},
	} {
		if o.Validate() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func BenchmarkOrder(b *testing.B) {
	o := Order{Seed: 1, Samples: 9911, GlobalBatch: 4}
	var sum int64
	for i := 0; b.Loop(); i++ {
		index, _ := o.Sample(int64(i)+1, 0)
		sum += index
	}
	_ = sum
}
