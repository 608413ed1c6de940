package jobspec

import (
	"errors"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// minimal is the least that a job needs.
const minimal = "name: a\nmodel: {base: m}\ndata: {train: t.jsonl}\ntrain: {steps: 1, optimizer: {learningRate: 1e-4}}\n"

func pronounce(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile("testdata/pronounce.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func read(t testing.TB, src string, settings ...string) *Job {
	t.Helper()
	j, err := Read("job.yaml", strings.NewReader(src), settings...)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func problems(t testing.TB, src string, settings ...string) []string {
	t.Helper()
	_, err := Read("job.yaml", strings.NewReader(src), settings...)
	if _, ok := errors.AsType[*Invalid](err); !ok {
		t.Fatalf("error is %v, want an *Invalid", err)
	}
	return strings.Split(err.Error(), "\n")
}

func TestReadTakesTheWholeJobFile(t *testing.T) {
	got := read(t, pronounce(t))
	want := &Job{
		Kind: KindFineTune, Name: "pronounce", Method: MethodFull,
		Model: Model{Base: "./SmolLM2-135M-Instruct"},
		Data: Data{
			Train: Paths{"cmudict-train.jsonl"}, Validation: Validation{Paths: Paths{"cmudict-heldout.jsonl"}},
			SequenceLength: 512, Packing: new(true), TooLong: TooLongSplit, Shuffle: new(false),
		},
		Train: Train{
			Steps: 24, GlobalBatch: 4, Precision: PrecisionBF16, NumericClass: Auto, ActivationCheckpointing: ActivationCheckpointingNone,
			Optimizer: Optimizer{
				Name: "adamw", LearningRate: 3e-4, Beta1: new(0.9), Beta2: new(0.95),
				Epsilon: new(1e-8), WeightDecay: new(0.1), Clip: new(1.0),
			},
			Schedule: Schedule{Kind: ScheduleConstant, WarmupSteps: 5}, Seed: 1,
		},
		Eval: Eval{Every: 8, ExactMatch: 32, Prompts: []string{"Pronounce: skein"}, MaxNewTokens: 40},
		Cluster: Cluster{
			WorldSize: 4, Workers: Workers{Min: 1, Max: 4}, Zero: new(1), Protect: ProtectCheckpoint, Wire: WireFP32,
		},
		Checkpoint: Checkpoint{Every: 8, Keep: 3, Store: "./checkpoints"},
		Output:     Output{Export: "./pronounce-smollm2", DType: DTypeBF16, MaxShard: 5 << 30},
		Resources:  Resources{Memory: 8 << 30, Threads: 2},
	}
	if diff := cmp.Diff(want, got, cmpopts.IgnoreUnexported(Job{})); diff != "" {
		t.Error(diff)
	}
}

func TestTheExampleNamesEveryKeyThereIs(t *testing.T) {
	j := read(t, pronounce(t))
	d := decoder{sources: map[string]string{}}
	d.document("job.yaml", []byte(pronounce(t)), j)
	for _, k := range Keys() {
		if _, given := d.sources[k.Path]; !given && k.Path != "train.epochs" {
			t.Errorf("testdata/pronounce.yaml lacks %s; tests that misspell every key would miss it", k.Path)
		}
		if !k.Section && k.Doc == "" {
			t.Errorf("%s has no doc tag", k.Path)
		}
	}
}

func TestAMinimalJobIsCompletedByDefaults(t *testing.T) {
	j := read(t, minimal)
	if *j.Train.Optimizer.Beta2 != 0.95 || j.Train.GlobalBatch != 1 || *j.Cluster.Zero != 1 || j.Output.Export != "./a" || !*j.Data.Packing {
		t.Errorf("defaults are not as documented: %+v", j)
	}
	again := *j
	again.EnsureDefaults()
	if !reflect.DeepEqual(*j, again) {
		t.Error("EnsureDefaults changed a job that it had completed")
	}
}

func TestExplicitZerosAreNotReplacedByDefaults(t *testing.T) {
	j := read(t, minimal, "train.optimizer.weightDecay=0", "train.optimizer.clip=0", "cluster.zero=0", "data.packing=false", "train.optimizer.beta1=0")
	o := j.Train.Optimizer
	if *o.WeightDecay != 0 || *o.Clip != 0 || *j.Cluster.Zero != 0 || *j.Data.Packing || *o.Beta1 != 0 {
		t.Errorf("a given zero was replaced: %+v", j)
	}
}

func TestAMisplacedKeyIsNamedWithItsLineAndNearestKnownOne(t *testing.T) {
	src := strings.Replace(pronounce(t), "  seed: 1\n", "  seed: 1\n  learningrate: 1e-3\n", 1)
	want := "job.yaml:24: train.learningrate: unknown key; did you mean train.optimizer.learningRate?"
	if got := problems(t, src); len(got) != 1 || got[0] != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestEveryKeyMisspeltInEveryWayIsRefusedAndSuggested(t *testing.T) {
	for _, k := range Keys() {
		section, name := split(k.Path)
		for i := range len(name) + 1 {
			wrong := []string{name[:i] + "q" + name[i:]}
			if i < len(name) && len(name) > 3 {
				wrong = append(wrong, name[:i]+name[i+1:])
			}
			if i+1 < len(name) && name[i] != name[i+1] {
				wrong = append(wrong, name[:i]+name[i+1:i+2]+name[i:i+1]+name[i+2:])
			}
			for _, w := range wrong {
				bad := join(section, w)
				got := problems(t, minimal, bad+"=1")
				want := "--set " + bad + "=1: " + bad + ": unknown key; did you mean " + k.Path + "?"
				if bad == "train.optimizer.beta" { // equally near to both
					want = strings.Replace(want, "beta2", "beta1", 1)
				}
				if len(got) != 1 || got[0] != want {
					t.Errorf("got  %q\nwant %q", got, want)
				}
			}
		}
	}
}

func TestEveryKeyInAnotherCaseOrSectionIsSuggested(t *testing.T) {
	for _, k := range Keys() {
		section, name := split(k.Path)
		for _, bad := range []string{join(section, strings.ToUpper(name)), join(section, snake(name))} {
			if bad == k.Path {
				continue
			}
			if got := problems(t, minimal, bad+"=1"); !strings.HasSuffix(got[0], "did you mean "+k.Path+"?") {
				t.Errorf("%s: %q", bad, got)
			}
		}
	}
	for bad, want := range map[string]string{
		"lr": "train.optimizer.learningRate", "learning_rate": "train.optimizer.learningRate", "train.zero": "cluster.zero",
		"batch_size": "train.globalBatch", "trian": "train", "train.max_seq_length": "data.sequenceLength",
		"optimizer": "train.optimizer", "output_dir": "output.export", "train.warmupSteps": "train.schedule.warmupSteps",
		"world_size": "cluster.worldSize", "num_train_epochs": "train.epochs", "data.base": "model.base",
	} {
		if got := problems(t, minimal, bad+"=1"); !strings.HasSuffix(got[0], "did you mean "+want+"?") {
			t.Errorf("%s: %q, want %s", bad, got, want)
		}
	}
}

func snake(camel string) string {
	var b strings.Builder
	for _, r := range camel {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}

func TestAKeyNearNothingListsWhatIsKnownThere(t *testing.T) {
	want := "job.yaml:5: checkpoint.flavour: unknown key; known here: every, keep, store"
	if got := problems(t, minimal+"checkpoint: {flavour: 1}\n"); got[0] != want {
		t.Errorf("got  %q\nwant %q", got[0], want)
	}
}

func TestProblemsAreReportedTogetherEachOnItsLine(t *testing.T) {
	src := "name: a\nmodell: {base: m}\ndata:\n  train: [a, 3]\n  sequenceLength: long\n  packing: yes\ntrain: 3\ntrain: {steps: 08}\n"
	want := []string{
		"job.yaml:2: modell: unknown key; did you mean model?",
		"job.yaml:4: data.train: must be a list of texts, and this item is 3",
		`job.yaml:5: data.sequenceLength: must be a whole number, not the text "long"`,
		`job.yaml:6: data.packing: must be true or false, not the text "yes"`,
		"job.yaml:7: train: must be a section of keys, not 3",
		"job.yaml:8: train: is given twice, first on line 7; remove one",
	}
	if diff := cmp.Diff(want, problems(t, src)); diff != "" {
		t.Error(diff)
	}
}

func TestIllTypedValuesAreRefused(t *testing.T) {
	for setting, want := range map[string]string{
		"train.steps=1.5":                  "must be a whole number, not 1.5",
		"train.steps=0x10":                 "must be a whole number, not 0x10",
		"train.steps=010":                  "must be a whole number, not 010",
		"train.steps=1_000":                "must be a whole number, not 1_000",
		"train.steps=99999999999":          "must be a whole number, not 99999999999",
		"train.steps='8'":                  `must be a whole number, not the text "8"`,
		"train.steps=~":                    "has no value; give one or remove the key",
		"train.steps=[8]":                  "must be a whole number, not a list",
		"train.steps={a: 8}":               "must be a whole number, not a section",
		"train.seed=-1":                    "must be a whole number from 0 up, not -1",
		"train.optimizer.learningRate=abc": `must be a number, not the text "abc"`,
		"name=7":                           "must be text (in quotes, if it looks like a number), not 7",
		"name=[a]":                         "must be text (in quotes, if it looks like a number), not a list",
		"data.packing=1":                   "must be true or false, not 1",
		"data.packing=True":                "must be true or false, not True",
		"data.train=[]":                    "is an empty list; give a value or remove the key",
		"data.train={}":                    "must be text or a list of texts, not a section",
		"data.validation={}":               "must be a path, a glob, a list of them, or a share such as 2%, not a section",
		"data.validation=0%":               `must be a share such as 2%, not the text "0%"`,
		"train.microBatch=some":            `must be auto or a whole number, not the text "some"`,
		"train.microBatch=0":               "must be auto or a whole number, not 0",
		"checkpoint.every=8 minutes":       `must be an interval such as 8 steps, not the text "8 minutes"`,
		"checkpoint.every=0":               "must be an interval such as 8 steps, not 0",
		"resources.memory=8 GoB":           `must be a size such as 8GiB, 500MB or a count of bytes, not the text "8 GoB"`,
		"resources.memory=-1":              "must be a size such as 8GiB, 500MB or a count of bytes, not -1",
		"resources.memory=99999999999TiB":  `must be a size such as 8GiB, 500MB or a count of bytes, not the text "99999999999TiB"`,
		"train.optimizer=adamw":            `must be a section of keys, not the text "adamw"`,
		"model=m":                          `must be a section of keys, not the text "m"`,
	} {
		if got := problems(t, minimal, setting); len(got) != 1 || !strings.HasSuffix(got[0], ": "+want) {
			t.Errorf("%s: got %q, want %q", setting, got, want)
		}
	}
}

func TestWhatHidesMeaningInYAMLIsRefused(t *testing.T) {
	bomb := "a: &a [x]\nb: &b [*a,*a]\n" + minimal
	for src, want := range map[string]string{
		"":                            "job.yaml: is empty; `skein train --help` shows a job file",
		"# only a comment\n":          "job.yaml: is empty; `skein train --help` shows a job file",
		minimal + "---\nname: b\n":    "holds more than one YAML document; a job file has one",
		minimal + "method: !x full\n": "job.yaml:5: method: carries the YAML tag !x, which a job file may not; remove it",
		"name: &n a\nmethod: *n\n":    "job.yaml:1: name: uses a YAML anchor or alias, which a job file may not; write the value out",
		"<<: {name: a}\n":             "job.yaml:1: uses a YAML merge key, which a job file may not; write the keys out",
		"- a\n":                       "job.yaml:1: must be a section of keys, not a list",
		"? [a]\n: b\n":                "job.yaml:1: a key must be a word, not a list",
		bomb:                          "unknown key",
		"name: [\n":                   "job.yaml:1: is not YAML: did not find expected node content",
		"name: a\nname: b\n":          "job.yaml:2: name: is given twice, first on line 1; remove one",
		"\xff\xfe":                    "job.yaml: ",
	} {
		if got := strings.Join(problems(t, src), "\n"); !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", src, got, want)
		}
	}
	if got := problems(t, strings.Repeat("#", fileBytesMax+1)); got[0] != "job.yaml: is larger than 1 MiB; that is not a job file" {
		t.Errorf("an oversized file: %q", got)
	}
}

func TestSettingsOverrideTheFile(t *testing.T) {
	j := read(t, pronounce(t), "train.steps=8", "data.train=[a.jsonl, b.jsonl]", "data.validation=2%", "train.optimizer.learningRate=1e-5")
	if j.Train.Steps != 8 || len(j.Data.Train) != 2 || j.Data.Validation.Share != 0.02 || len(j.Data.Validation.Paths) != 0 || j.Train.Optimizer.LearningRate != 1e-5 {
		t.Errorf("settings did not take: %+v", j)
	}
	for _, bad := range []string{"train.steps", "=8", "train.steps=", "train.steps=[", "..=1", "train..steps=1"} {
		problems(t, minimal, bad)
	}
}

func TestRelativePathsStartFromTheFolderOfTheJobFile(t *testing.T) {
	j, err := ReadFile("testdata/pronounce.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if got := j.Path(j.Model.Base); got != "testdata/SmolLM2-135M-Instruct" {
		t.Errorf("Path = %s", got)
	}
	if got := j.Path("/abs"); got != "/abs" {
		t.Errorf("Path = %s", got)
	}
	if got := j.Path(""); got != "" {
		t.Errorf("Path of nothing = %s", got)
	}
	if _, err := ReadFile("testdata/absent.yaml"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing job file: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(pronounce(f), "train.steps=8")
	f.Add(minimal, "data.validation=2%")
	f.Add(strings.Replace(minimal, "steps: 1", "epochs: 2", 1), "train.schedule.kind=cosine")
	f.Add("a: &a [*a]\n", "a=b")
	f.Add("? {a: b}\n: - c\n", "=")
	f.Add("%YAML 9.9\n---\n", "x.y=!!binary aGk=")
	f.Fuzz(func(t *testing.T, src, setting string) {
		var settings []string
		if setting != "" {
			settings = []string{setting}
		}
		j, err := Read("job.yaml", strings.NewReader(src), settings...)
		if err != nil {
			var invalid *Invalid
			if !errors.As(err, &invalid) || len(invalid.Problems) == 0 {
				t.Fatalf("a refusal must be an *Invalid with problems: %v", err)
			}
			return
		}
		if err := j.Validate(); err != nil {
			t.Fatalf("Read returned a job that Validate refuses: %v", err)
		}
		r, err := j.Resolve(Facts{Sequences: 1 << 40, NumericClass: "generic r1", MicroBatch: 1})
		if err != nil {
			return
		}
		back, err := ParseResolved(r.Canonical())
		if err != nil || back.Hash() != r.Hash() {
			t.Fatalf("the resolved spec does not survive its own JSON: %v\n%s", err, r.Canonical())
		}
	})
}
