package jobspec

import (
	"bytes"
	"flag"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite generated files instead of comparing them")

func facts() Facts {
	return Facts{ModelHash: strings.Repeat("a", 64), DataHash: strings.Repeat("b", 64), Sequences: 9911, NumericClass: "amx-bf16 r1", MicroBatch: 1}
}

func resolve(t testing.TB, settings ...string) *Resolved {
	t.Helper()
	j, err := Read("job.yaml", strings.NewReader(pronounce(t)), settings...)
	if err != nil {
		t.Fatal(err)
	}
	r, err := j.Resolve(facts())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestTheResolvedSpecHashIsPinned(t *testing.T) {
	// A changed hash means that checkpoints of earlier builds are refused. Change
	// it together with resolvedVersion, and say so in the CHANGELOG.
	const wantArithmetic = "e5f811f3a084f8a0ecfd9cfab6094a29417da2ae03b0f1408f1831e88f6b575c"
	if got := resolve(t).ArithmeticHash(); got != wantArithmetic {
		t.Errorf("arithmetic hash of the pronounce job is %s, was %s", got, wantArithmetic)
	}
}

func TestTheCanonicalSpecDoesNotDependOnTheOrderOfTheFile(t *testing.T) {
	a := read(t, minimal)
	b := read(t, "train: {optimizer: {learningRate: 0.0001}, steps: 1}\ndata:\n  train: t.jsonl\nmodel: {base: m}\nname: a\nmethod: full\n")
	ra, _ := a.Resolve(facts())
	rb, _ := b.Resolve(facts())
	if !bytes.Equal(ra.Canonical(), rb.Canonical()) {
		t.Errorf("same job, two specs:\n%s\n%s", ra.Canonical(), rb.Canonical())
	}
}

func TestTheResolvedSpecReadsBackToTheSameHash(t *testing.T) {
	for _, settings := range [][]string{nil, {"train.seed=18446744073709551615"}, {"data.validation=12.5%"}, {"resources.memory=123456789"}, {"name=a-b"}, {"train.steps=0", "train.epochs=1.5"}} {
		r := resolve(t, settings...)
		back, err := ParseResolved(r.Canonical())
		if err != nil {
			t.Fatal(err)
		}
		if back.Hash() != r.Hash() || back.ArithmeticHash() != r.ArithmeticHash() {
			t.Errorf("%v: hash changed in\n%s\n%s", settings, r.Canonical(), back.Canonical())
		}
	}
}

func TestParseResolvedRefusesWhatItDoesNotUnderstand(t *testing.T) {
	good := string(resolve(t).Canonical())
	for name, bad := range map[string]string{
		"unknown key":         strings.Replace(good, `"version":1`, `"version":1,"flavour":2`, 1),
		"newer version":       strings.Replace(good, `"version":1`, `"version":2`, 1),
		"two values":          good + good,
		"cut short":           good[:len(good)/2],
		"conflict":            strings.Replace(good, `"worldSize":4`, `"worldSize":3`, 1),
		"no epochs, no steps": strings.Replace(good, `"steps":24`, `"steps":0`, 1),
		"unknown method":      strings.Replace(good, `"method":"full"`, `"method":"magic"`, 1),
	} {
		if bad == good {
			t.Fatalf("%s: the mutation did nothing", name)
		}
		if _, err := ParseResolved([]byte(bad)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestSettingsThatCannotChangeBitsLeaveTheArithmeticAlone(t *testing.T) {
	base := resolve(t)
	for _, s := range []string{
		"name=other", "model.base=elsewhere", "data.train=moved.jsonl", "train.steps=48", "train.activationCheckpointing=full",
		"cluster.zero=0", "cluster.workers.max=2", "checkpoint.every=2 steps", "checkpoint.keep=9", "output.export=./x",
		"output.dtype=fp32", "eval.every=3", "resources.threads=1", "resources.memory=1GiB",
	} {
		r := resolve(t, s)
		if r.ArithmeticHash() != base.ArithmeticHash() {
			t.Errorf("%s changed the arithmetic hash", s)
		}
		if r.Hash() == base.Hash() {
			t.Errorf("%s left the spec hash alone", s)
		}
		if err := r.MayContinue(base); err != nil {
			t.Errorf("%s: %v", s, err)
		}
	}
}

func TestACheckpointOfAnotherArithmeticIsRefusedByName(t *testing.T) {
	base := resolve(t)
	for setting, want := range map[string]string{
		"train.optimizer.learningRate=1e-4": "train.optimizer.learningRate was 0.0003 and is 0.0001",
		"train.seed=2":                      "train.seed was 1 and is 2",
		"cluster.worldSize=2":               "cluster.worldSize was 4 and is 2",
		"train.precision=fp32":              "train.precision was bf16 and is fp32",
		"cluster.wire=bf16":                 "cluster.wire was fp32 and is bf16",
		"data.sequenceLength=256":           "data.sequenceLength was 512 and is 256",
		"data.shuffle=true":                 "data.shuffle was false and is true",
		"train.globalBatch=8":               "train.globalBatch was 4 and is 8",
		"train.schedule.kind=cosine":        "train.schedule.kind was constant and is cosine",
	} {
		settings := []string{setting}
		if strings.HasPrefix(setting, "cluster.worldSize") {
			settings = append(settings, "cluster.workers.max=2")
		}
		err := resolve(t, settings...).MayContinue(base)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %q", setting, err, want)
		}
	}
	other := resolve(t)
	other.ModelHash = strings.Repeat("c", 64)
	if err := other.MayContinue(base); err == nil || !strings.Contains(err.Error(), "model (hash of the weights) was aaaaaaaaaaaa… and is cccccccccccc…") {
		t.Errorf("another model: %v", err)
	}
	if err := base.MayContinue(resolve(t, "train.schedule.kind=linear")); err == nil || !strings.Contains(err.Error(), "train.steps was 24 and no longer counts") {
		t.Errorf("a schedule that looked at the steps: %v", err)
	}
	epochs := *base
	epochs.Job.Train.Epochs = 2
	if err := epochs.MayContinue(base); err == nil || !strings.Contains(err.Error(), "train.epochs was absent and is 2") {
		t.Errorf("epochs where there were none: %v", err)
	}
}

func TestEveryStepOfAnEpochJobHasSamples(t *testing.T) {
	for _, epochs := range []string{"0.001", "0.6", "1", "1.5", "2.9999"} {
		for sequences := int64(8); sequences < 200; sequences++ {
			j := read(t, minimal, "train.steps=0", "train.epochs="+epochs, "train.globalBatch=8")
			r, err := j.Resolve(Facts{Sequences: sequences, NumericClass: "generic r1", MicroBatch: 1})
			if err != nil {
				t.Fatal(err)
			}
			steps, total := int64(r.Job.Train.Steps), r.Samples()
			if (steps-1)*8 >= total || steps*8 < total {
				t.Fatalf("%s epochs of %d sequences: %d samples in %d steps of 8", epochs, sequences, total, steps)
			}
		}
	}
}

func TestResolveDecidesWhatTheJobLeftOpen(t *testing.T) {
	j := read(t, minimal, "train.steps=0", "train.epochs=1.5", "cluster.worldSize=4", "train.globalBatch=8")
	r, err := j.Resolve(Facts{Sequences: 101, NumericClass: "generic r1", MicroBatch: 2})
	if err != nil {
		t.Fatal(err)
	}
	if r.Job.Train.Steps != 19 || r.Job.Train.MicroBatch != 2 || r.Job.Train.NumericClass != "generic r1" { // 1.5 · 101 / 8 = 18.9
		t.Errorf("resolved to %+v", r.Job.Train)
	}
	if j.Train.Steps != 0 || j.Train.MicroBatch != 0 {
		t.Error("Resolve changed the job itself")
	}
}

func TestResolveRefusesWhatTheFactsRuleOut(t *testing.T) {
	for _, c := range []struct {
		settings []string
		facts    Facts
		want     string
	}{
		{[]string{"train.globalBatch=8"}, Facts{Sequences: 7, MicroBatch: 1}, "7 sequences are fewer than one global batch of 8"},
		{[]string{"train.globalBatch=8"}, Facts{Sequences: 70, MicroBatch: 3}, "3 does not divide the 8 sequences of a rank"},
		{[]string{"train.steps=0", "train.epochs=1", "train.schedule.warmupSteps=51"}, Facts{Sequences: 50, MicroBatch: 1}, "is 51 of 50 steps"},
		{[]string{"train.steps=0", "train.epochs=1e6"}, Facts{Sequences: 1 << 40, MicroBatch: 1}, "give fewer"},
	} {
		j := read(t, minimal, c.settings...)
		if _, err := j.Resolve(c.facts); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.settings, err, c.want)
		}
	}
}

func TestSizesAndIntervalsReadBackWhatTheyWrite(t *testing.T) {
	for text, want := range map[string]ByteSize{"8GiB": 8 << 30, "8Gi": 8 << 30, "500MB": 5e8, "1.5 KiB": 1536, "17": 17, "17 B": 17} {
		var s ByteSize
		if err := s.UnmarshalText([]byte(text)); err != nil || s != want {
			t.Errorf("%s = %d, %v; want %d", text, s, err, want)
		}
		var back ByteSize
		if err := back.UnmarshalText([]byte(s.String())); err != nil || back != s {
			t.Errorf("%s writes %s, which reads as %d, %v", text, s, back, err)
		}
	}
	for _, n := range []Steps{1, 8} {
		b, _ := n.MarshalText()
		var back Steps
		if err := back.UnmarshalText(b); err != nil || back != n {
			t.Errorf("%s reads as %d, %v", b, back, err)
		}
	}
}

func TestTheReferenceOfTheJobFileIsCurrent(t *testing.T) {
	const file = "../docs/JOBFILE.md"
	if *rewrite {
		if err := os.WriteFile(file, []byte(Reference()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != Reference() {
		t.Errorf("docs/JOBFILE.md is not what the code says (%v); run `make generate`", err)
	}
}
