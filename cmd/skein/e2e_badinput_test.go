package main

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/skein-ml/skein/worker/workertest"
)

// badInput is one way to go wrong.
type badInput struct {
	name   string
	spoil  func(t *testing.T, j workertest.Job)
	set    string // of the job, "": nothing
	status int
	says   []string // all in the one line that is printed
}

// edit replaces a text in one of the job's files.
func edit(file, old, now string) func(*testing.T, workertest.Job) {
	return func(t *testing.T, j workertest.Job) { j.Edit(t, file, old, now) }
}

// write replaces one of the job's files.
func write(file, text string) func(*testing.T, workertest.Job) {
	return func(t *testing.T, j workertest.Job) { j.Write(t, file, text) }
}

const weightsFile = "model/model.safetensors"

// header changes the header of the weights and leaves the data as it is.
func header(change func(h map[string]map[string]any)) func(*testing.T, workertest.Job) {
	return func(t *testing.T, j workertest.Job) {
		file := j.Read(t, weightsFile)
		n := 8 + binary.LittleEndian.Uint64([]byte(file))
		var h map[string]map[string]any
		if err := json.Unmarshal([]byte(file[8:n]), &h); err != nil {
			t.Fatal(err)
		}
		change(h)
		text, err := json.Marshal(h)
		if err != nil {
			t.Fatal(err)
		}
		length := binary.LittleEndian.AppendUint64(nil, uint64(len(text)))
		j.Write(t, weightsFile, string(length)+string(text)+file[n:])
	}
}

const norm, gate = "model.norm.weight", "model.layers.0.mlp.gate_proj.weight"

var badModels = []badInput{
	{"model missing", edit("job.yaml", "./model}", "./nowhere}"), "", exitUsage, []string{"nowhere", "no such folder or file", "check the path"}},
	{"model without config.json", remove("model/config.json"), "", exitFailure, []string{"config.json is missing"}},
	{"model without weights", remove(weightsFile), "", exitFailure, []string{"model.safetensors", "only safetensors weights are read"}},
	{"weights cut off", func(t *testing.T, j workertest.Job) {
		j.Write(t, weightsFile, j.Read(t, weightsFile)[:100_000])
	}, "", exitFailure, []string{"model.safetensors", "fetch"}},
	{"weights cut off inside the header", func(t *testing.T, j workertest.Job) {
		j.Write(t, weightsFile, j.Read(t, weightsFile)[:100])
	}, "", exitFailure, []string{"model.safetensors", "fetch"}},
	{"weights of no bytes", write(weightsFile, ""), "", exitFailure, []string{"model.safetensors", "fetch"}},
	{"header of 2⁶³ bytes", func(t *testing.T, j workertest.Job) {
		j.Write(t, weightsFile, "\x00\x00\x00\x00\x00\x00\x00\x80"+j.Read(t, weightsFile)[8:])
	}, "", exitFailure, []string{"model.safetensors", "header"}},
	{"tensors that overlap", header(func(h map[string]map[string]any) {
		h[norm]["data_offsets"] = []int{0, 256}
	}), "", exitFailure, []string{"model.safetensors", "inside the tensor that ends at 256"}},
	{"shape beyond 2⁶³ elements", header(func(h map[string]map[string]any) {
		h[gate]["shape"] = []uint64{1 << 62, 1 << 62}
	}), "", exitFailure, []string{"model.safetensors", gate}},
	{"shape that is not the data's", header(func(h map[string]map[string]any) {
		h[gate]["shape"] = []int{96, 65}
	}), "", exitFailure, []string{"model.safetensors", gate}},
	{"shape that is not the configuration's", header(func(h map[string]map[string]any) {
		h[gate]["shape"] = []int{64, 96}
	}), "", exitFailure, []string{gate, "[64 96]", "[96 64]"}},
	{"weight that is NaN", func(t *testing.T, j workertest.Job) {
		file := []byte(j.Read(t, weightsFile))
		binary.LittleEndian.PutUint32(file[len(file)-4:], math.Float32bits(float32(math.NaN())))
		j.Write(t, weightsFile, string(file))
	}, "", exitFailure, []string{"NaN", "damaged"}},
	{"weight map that leaves the folder", func(t *testing.T, j workertest.Job) {
		j.Write(t, "model/model.safetensors.index.json", `{"metadata": {}, "weight_map": {"model.norm.weight": "../../secret.safetensors"}}`)
		remove(weightsFile)(t, j)
	}, "", exitFailure, []string{"weight_map", "../../secret.safetensors", "model's folder"}},
	{"unknown architecture", edit("model/config.json", `"model_type": "llama"`, `"model_type": "mamba"`), "", exitFailure, []string{"mamba", "llama"}},
	{"classifier", edit("model/config.json", "LlamaForCausalLM", "LlamaForSequenceClassification"), "", exitFailure, []string{"LlamaForSequenceClassification", "LlamaForCausalLM"}},
	{"unknown rope type", edit("model/config.json", `"rope_scaling": null`, `"rope_scaling": {"rope_type": "spiral", "factor": 2.0}`), "", exitFailure, []string{"rope_scaling", "spiral"}},
	{"tokens beyond the embedding", edit("model/tokenizer.json", `"added_tokens": [`, `"added_tokens": [{"id": 300, "content": "<|more|>", "special": true},`),
		"", exitFailure, []string{"tokenizer.json", "id 300", "300 rows", "belongs to the model"}},
	{"sequence beyond the positions", nil, "data.sequenceLength=128", exitFailure, []string{"data.sequenceLength", "128", "64", "lower"}},
	{"no tokenizer", remove("model/tokenizer.json"), "", exitFailure, []string{"tokenizer.json"}},
	{"unknown chat template", write("model/chat_template.jinja", "{{ messages }}"), "", exitFailure, []string{"chat template", "ChatML"}},
}

// remove deletes a file or folder of the job.
func remove(name string) func(*testing.T, workertest.Job) {
	return func(t *testing.T, j workertest.Job) {
		if err := os.RemoveAll(j.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
}

// long is an example of some hundred tokens.
var long = workertest.Chat("tell", strings.Repeat("etaoin ", 60))

var badData = []badInput{
	{"data missing", remove("train.jsonl"), "", exitUsage, []string{"data.train", "train.jsonl", "no such file"}},
	{"glob without a match", nil, "data.train=no*.jsonl", exitUsage, []string{"data.train", "no*.jsonl", "no file matches"}},
	{"data empty", write("train.jsonl", ""), "", exitFailure, []string{"data.train", "no examples"}},
	{"held-out data empty", write("heldout.jsonl", "\n\n"), "", exitFailure, []string{"data.validation", "no examples"}},
	{"malformed line", write("train.jsonl", workertest.Rows(1, 100)+"{\"messages\": [\n"), "", exitFailure, []string{"train.jsonl:101:", "JSON"}},
	{"malformed lines beyond the limit", write("train.jsonl", strings.Repeat("{]\n", 4)+workertest.Rows(1, 100)), "data.maxBadLines=3", exitFailure,
		[]string{"train.jsonl:4:", "3 bad lines before it", "train.jsonl:1:", "data.maxBadLines is 3"}},
	{"row of another schema", write("train.jsonl", `{"instruction": "a", "output": "b"}`), "", exitFailure, []string{"train.jsonl:1:", "Alpaca", "messages"}},
	{"all examples too long to keep", write("train.jsonl", strings.Repeat(long, 20)), "data.tooLong=drop", exitFailure,
		[]string{"data.train", "all 20 examples are longer than 48 tokens", "choose split or truncate"}},
	{"no target tokens", write("train.jsonl", strings.Repeat(`{"messages": [{"role": "user", "content": "hello"}]}`+"\n", 20)), "", exitFailure,
		[]string{"data.train", "nothing can be learnt from any of the 20 examples"}},
	{"target with no end token", func(t *testing.T, j workertest.Job) {
		text := j.Read(t, "model/config.json")
		at := strings.Index(text, `"eos_token_id": `) + len(`"eos_token_id": `)
		j.Write(t, "model/config.json", text[:at]+"65"+text[at+3:]) // a letter ends texts
		remove("model/generation_config.json")(t, j)
	}, "", exitFailure, []string{"train.jsonl:1:", "end token", "never learn to stop"}},
	{"fewer samples than one global batch", nil, "train.globalBatch=1024", exitFailure, []string{"packs", "1,024", "train.globalBatch", "lower"}},
	{"held-out share of nothing", func(t *testing.T, j workertest.Job) {
		j.Write(t, "train.jsonl", workertest.Rows(1, 60))
	}, "data.validation=0.01%", exitFailure, []string{"data.validation", "0.01 %"}},
}

var badSpecs = []badInput{
	{"learning rate 0", nil, "train.optimizer.learningRate=0", exitUsage, []string{"train.optimizer.learningRate", "0", "3e-4"}},
	{"learning rate NaN", nil, "train.optimizer.learningRate=.nan", exitUsage, []string{"train.optimizer.learningRate", "NaN", "3e-4"}},
	{"learning rate below 0", nil, "train.optimizer.learningRate=-1e-4", exitUsage, []string{"train.optimizer.learningRate", "-0.0001"}},
	{"world size that does not divide", edit("job.yaml", "worldSize: 2", "worldSize: 3"), "", exitUsage, []string{"job.yaml:", "train.globalBatch", "8", "3", "use 6 or 9"}},
	{"unknown key", edit("job.yaml", "learningRate", "learningrate"), "", exitUsage, []string{"job.yaml:12:", "learningrate", "train.optimizer.learningRate"}},
	{"kernels that cannot run here", nil, "train.numericClass=abacus", exitFailure, []string{"abacus"}},
	{"kernels of another precision", nil, "train.numericClass=amx-bf16-high", exitUsage, []string{"train.numericClass", "amx-bf16-high", "train.precision is bf16", "auto"}},
	{"output that exists", write("trained/keep", "me"), "", exitFailure, []string{"output.export", "trained", "exists already", "choose another folder"}},
	{"store inside the output", nil, "checkpoint.store=./trained/checkpoints", exitFailure, []string{"checkpoint.store", "output.export", "beside"}},
	{"memory that the model does not fit in", func(t *testing.T, j workertest.Job) {
		remove("model")(t, j)
		workertest.Model{Vocab: 90_000}.Write(t, j.Path("model"))
	}, "resources.memory=64MiB", exitCannotFit, []string{"resources.memory", "0.06 GiB", "needs"}},
	{"memory that the machine does not have", nil, "resources.memory=1000TiB", exitCannotFit, []string{"resources.memory", "1.1e+03 TB", "free", "lower it"}},
}

func TestBadInputIsRefusedInOneLineAndLeavesNothing(t *testing.T) {
	for _, list := range [][]badInput{badModels, badData, badSpecs} {
		for _, c := range list {
			t.Run(c.name, func(t *testing.T) {
				t.Parallel()
				c.check(t, workertest.New(t))
			})
		}
	}
}

// check runs the spoilt job and holds what it prints and leaves to what is promised.
func (c badInput) check(t *testing.T, j workertest.Job) {
	t.Helper()
	if c.spoil != nil {
		c.spoil(t, j)
	}
	before := kept(t, j)
	args := []string{"train", "-f", "job.yaml"}
	if c.set != "" {
		args = append(args, "--set", c.set)
	}
	status, _, errs := program(t, j, args...)
	if status != c.status {
		t.Errorf("status %d, want %d", status, c.status)
	}
	if strings.Count(errs, "\n") != 1 || len(errs) > 500 {
		t.Errorf("printed %q, want one line", errs)
	}
	for _, text := range c.says {
		if !strings.Contains(errs, text) {
			t.Errorf("printed %q, which does not say %q", errs, text)
		}
	}
	if diff := cmp.Diff(before, kept(t, j)); diff != "" {
		t.Errorf("files have come or gone:\n%s", diff)
	}
	noTemporary(t, j)
}

// kept are the files of a job but for prepared data, which is whole or not there.
func kept(t *testing.T, j workertest.Job) map[string]string {
	t.Helper()
	found := sums(t, j.Dir)
	for name := range found {
		if strings.HasPrefix(name, "cache"+string(filepath.Separator)) {
			delete(found, name)
		}
	}
	if left, err := filepath.Glob(j.Path("cache/skein/data/.preparing-*")); err != nil || len(left) > 0 {
		t.Errorf("%v is left of preparing data (%v)", left, err)
	}
	return found
}

func TestExamplesTooLongAreSplitCutOrDroppedAndCounted(t *testing.T) {
	for policy, want := range map[string]string{
		"split": "3 split", "truncate": "3 truncated", "drop": "3 too long and dropped",
	} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			j := workertest.New(t)
			j.Write(t, "train.jsonl", workertest.Rows(1, 100)+strings.Repeat(long, 3))
			out := mustRun(t, j, "train", "-f", "job.yaml", "--set", "data.tooLong="+policy, "--set", "train.steps=1", "--set", "train.schedule.warmupSteps=0")
			if !strings.Contains(out, "data.train: 103 examples") || !strings.Contains(out, want) {
				t.Errorf("train does not report %q:\n%s", want, out)
			}
		})
	}
}

func TestMalformedLinesWithinTheLimitAreNamedAndCounted(t *testing.T) {
	j := workertest.New(t)
	j.Write(t, "train.jsonl", "{]\n"+workertest.Rows(1, 100)+"[]\n")
	out := mustRun(t, j, "train", "-f", "job.yaml", "--set", "data.maxBadLines=2", "--set", "train.steps=1", "--set", "train.schedule.warmupSteps=0")
	for _, want := range []string{"train.jsonl:1:", "train.jsonl:102:", "2 bad lines skipped"} {
		if !strings.Contains(out, want) {
			t.Errorf("train does not say %q:\n%s", want, out)
		}
	}
}

func TestAStoreOfAnotherJobIsRefusedByNameAndLeftAsItIs(t *testing.T) {
	j := workertest.New(t)
	mustRun(t, j, "train", "-f", "job.yaml", "--set", "train.steps=10")
	remove("trained")(t, j)
	for _, c := range []badInput{
		{"other learning rate", nil, "train.optimizer.learningRate=1e-3", exitFailure, []string{"train.optimizer.learningRate was 0.003 and is 0.001", "checkpoint.store"}},
		{"other seed", nil, "train.seed=8", exitFailure, []string{"train.seed was 7 and is 8"}},
		{"other steps of a cosine", nil, "train.steps=30", exitFailure, []string{"train.steps was 10 and is 30"}},
		{"other world size", nil, "cluster.worldSize=4", exitFailure, []string{"cluster.worldSize was 2 and is 4"}},
		{"other data", write("train.jsonl", workertest.Rows(3, 240)), "train.steps=10", exitFailure, []string{"data (hash of the training sequences)"}},
		{"other weights", func(t *testing.T, j workertest.Job) {
			remove("model")(t, j)
			workertest.Model{Seed: 9}.Write(t, j.Path("model"))
		}, "train.steps=10", exitFailure, []string{"model (hash of the weights)"}},
		{"other shape", func(t *testing.T, j workertest.Job) {
			remove("model")(t, j)
			workertest.Model{Hidden: 32}.Write(t, j.Path("model"))
		}, "train.steps=10", exitFailure, []string{"model (hash of the weights)"}},
		{"other weights and no lineage", func(t *testing.T, j workertest.Job) {
			remove("model")(t, j)
			workertest.Model{Seed: 9}.Write(t, j.Path("model"))
			remove("checkpoints/lineage.json")(t, j)
		}, "train.steps=10", exitFailure, []string{"checkpoint of another job", "checkpoint.store"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			other := j.Copy(t)
			workertest.CopyFolder(t, j.Path("checkpoints"), other.Path("checkpoints"))
			c.check(t, other)
		})
	}
}

func TestAConstantScheduleCanBeProlongedButNotCutShort(t *testing.T) {
	j := workertest.New(t)
	j.Edit(t, "job.yaml", "kind: cosine, warmupSteps: 4, floor: 0.1", "kind: constant, warmupSteps: 4")
	whole := j.Copy(t)
	mustRun(t, whole, "train", "-f", "job.yaml", "--set", "train.steps=20")
	mustRun(t, j, "train", "-f", "job.yaml", "--set", "train.steps=10")
	remove("trained")(t, j)
	short := badInput{set: "train.steps=5", status: exitFailure, says: []string{"train.steps", "is 5", "step 10", "ask for more steps"}}
	short.check(t, j)
	mustRun(t, j, "train", "-f", "job.yaml", "--set", "train.steps=20")
	got, want := finished(t, j), finished(t, whole)
	if got.Hash != want.Hash || !cmp.Equal(got.Export, want.Export) || !cmp.Equal(got.Chain, want.Chain) {
		t.Errorf("ten steps and ten more end on %s, twenty on %s", got.Hash, want.Hash)
	}
}

func TestOtherCommandsRefuseBadInputInOneLineToo(t *testing.T) {
	j := workertest.New(t)
	j.Write(t, "there/keep", "me")
	j.Write(t, "broken.jsonl", "{]\n")
	const at = "--sequence-length 48"
	words := strings.Repeat("a", 100)
	for line, says := range map[string]string{
		"import nowhere out":                            "no such folder or file",
		"import job.yaml out":                           "neither a folder nor a GGUF file",
		"import model there":                            "exists already",
		"export nowhere out":                            "nowhere",
		"export . out":                                  "no published checkpoint",
		"generate nowhere hello":                        "no such folder or file",
		"generate model --raw " + words:                 "shorten it",
		"eval nowhere heldout.jsonl":                    "no such folder or file",
		"eval model nowhere.jsonl " + at:                "no such file",
		"eval model broken.jsonl " + at:                 "broken.jsonl:1:",
		"eval model heldout.jsonl --sequence-length 65": "a sequence of 65 tokens is beyond its 64 positions",
	} {
		before := kept(t, j)
		status, out, errs := program(t, j, strings.Fields(line)...)
		if status != exitFailure || out != "" || strings.Count(errs, "\n") != 1 || !strings.Contains(errs, says) {
			t.Errorf("skein %s: status %d, printed %q and %q, want %q", line, status, out, errs, says)
		}
		if diff := cmp.Diff(before, kept(t, j)); diff != "" {
			t.Errorf("skein %s: files have come or gone:\n%s", line, diff)
		}
		if _, err := os.Stat(j.Path("out")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("skein %s has made its output folder: %v", line, err)
		}
	}
}
