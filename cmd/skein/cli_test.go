package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"github.com/skein-ml/skein/internal/console"
	"github.com/skein-ml/skein/jobspec"
	"github.com/skein-ml/skein/worker"
)

// notes is an engine that only notes what it was asked.
type notes struct {
	asked  any
	fail   error
	report *planReport
	events []console.Event
}

func (n *notes) act(c any, emit func(console.Event)) error {
	n.asked = c
	for _, e := range n.events {
		emit(e)
	}
	return n.fail
}

func (n *notes) Train(_ context.Context, c trainConfig, emit func(console.Event)) error {
	return n.act(c, emit)
}

func (n *notes) Plan(_ context.Context, c planConfig, emit func(console.Event)) (*planReport, error) {
	return n.report, n.act(c, emit)
}

func (n *notes) Eval(_ context.Context, c evalConfig, emit func(console.Event)) error {
	return n.act(c, emit)
}

func (n *notes) Generate(_ context.Context, c generateConfig, write func(string)) error {
	err := n.act(c, nil)
	write("an answer\n")
	return err
}

func (n *notes) Export(_ context.Context, c exportConfig) (int64, error) {
	return 24, n.act(c, nil)
}

// skein runs a command line and returns what it printed.
func skein(t *testing.T, eng engine, stdin string, args ...string) (status int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status = run(t.Context(), args, streams{in: strings.NewReader(stdin), out: &stdout, err: &stderr}, eng)
	return status, stdout.String(), stderr.String()
}

const smallJob = "name: a\nmodel: {base: m}\ndata: {train: t.jsonl}\ntrain: {steps: 3, optimizer: {learningRate: 1e-4}}\n"

func jobFile(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"job.yaml": smallJob, "m": "", "t.jsonl": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(dir, "job.yaml")
}

// commands lists every command of the tree.
func commands(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, sub := range c.Commands() {
		all = append(all, commands(sub)...)
	}
	return all
}

func TestEveryHelpHasExamplesThatParse(t *testing.T) {
	root := newRoot(streams{}, &notes{})
	for _, c := range commands(root) {
		if c.Short == "" || c.Example == "" {
			t.Errorf("%s has no short description or no example", c.CommandPath())
			continue
		}
		for line := range strings.Lines(c.Example) {
			checkCommandLine(t, c.CommandPath()+" --help", strings.TrimSpace(line))
		}
	}
}

// checkCommandLine fails unless the flags and arguments of a "skein …" line are
// such as the command takes.
func checkCommandLine(t *testing.T, where, line string) {
	t.Helper()
	words := shellWords(line)
	if len(words) == 0 || words[0] != "skein" {
		t.Errorf("%s: %q does not begin with skein", where, line)
		return
	}
	c, rest, err := newRoot(streams{}, &notes{}).Find(words[1:])
	if err == nil {
		err = c.ParseFlags(rest)
	}
	if err == nil {
		err = c.ValidateArgs(c.Flags().Args())
	}
	if err != nil {
		t.Errorf("%s: %q: %v", where, line, err)
	}
}

// shellWords splits a line at spaces outside of double quotes, and drops a comment.
func shellWords(line string) []string {
	line, _, _ = strings.Cut(line, " #")
	var words []string
	for i, part := range strings.Split(line, `"`) {
		if i%2 == 1 {
			words = append(words, part)
			continue
		}
		words = append(words, strings.Fields(part)...)
	}
	return words
}

func TestEverySkeinCommandInTheDocumentsParses(t *testing.T) {
	for _, doc := range []string{"../../README.md", "../../docs/ARCHITECTURE.md", "../../docs/JOBFILE.md", "../../docs/CLUSTER.md", "../../docs/KUBERNETES.md", "../../CONTRIBUTING.md"} {
		text, err := os.ReadFile(doc)
		if err != nil {
			t.Fatal(err)
		}
		inside := false
		whole := strings.ReplaceAll(string(text), "\\\n", "") // a command may go on on the next line
		for line := range strings.Lines(whole) {
			if strings.HasPrefix(line, "```") {
				inside = !inside
			}
			command := strings.TrimPrefix(strings.TrimSpace(line), "$ ")
			if inside && strings.HasPrefix(command, "skein ") && !strings.HasPrefix(line, "   ") {
				checkCommandLine(t, doc, command)
			}
		}
	}
}

func TestEveryJobFileInTheDocumentsAndExamplesIsValid(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, part := range strings.Split(string(readme), "```yaml\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		if _, err := jobspec.Read("README.md", strings.NewReader(block)); err != nil {
			t.Error(err)
		}
		count++
	}
	if count == 0 {
		t.Error("the README shows no job file")
	}
	examples, err := filepath.Glob("../../examples/*/job.yaml")
	if err != nil || len(examples) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	for _, file := range examples {
		if strings.Contains(file, "kubernetes") { // an object of Kubernetes, which the tests of k8s read
			continue
		}
		if _, err := jobspec.ReadFile(file); err != nil {
			t.Error(err)
		}
	}
}

func TestTrainHandsTheJobToTheEngineAndPrintsItsEvents(t *testing.T) {
	eng := &notes{events: []console.Event{console.Step{Step: 1, Steps: 3, Loss: 2.5}}}
	status, out, errs := skein(t, eng, "", "train", "-f", jobFile(t), "--set", "train.steps=8", "--cache", "c")
	if status != exitOK || errs != "" || !strings.HasPrefix(out, "step        1/3  loss 2.500") {
		t.Errorf("status %d, out %q, err %q", status, out, errs)
	}
	if c := eng.asked.(trainConfig); c.Job.Train.Steps != 8 || c.Cache != "c" {
		t.Errorf("asked for %+v", c)
	}
	_, out, _ = skein(t, eng, "", "train", "-f", jobFile(t), "-o", "json")
	if !json.Valid([]byte(out)) {
		t.Errorf("-o json printed %q", out)
	}
	if _, _, errs = skein(t, eng, smallJob, "train", "-f", "-"); errs != "" {
		t.Errorf("a job on standard input: %s", errs)
	}
}

func TestABadJobFileIsShownLineByLineAndStartsNothing(t *testing.T) {
	eng := &notes{}
	path := filepath.Join(t.TempDir(), "job.yaml")
	if err := os.WriteFile(path, []byte("name: a\ntrian: {}\nmodle: {}\n"), 0o644); err != nil { //nolint:misspell // on purpose
		t.Fatal(err)
	}
	status, out, errs := skein(t, eng, "", "train", "-f", path)
	want := path + ":2: trian: unknown key; did you mean train?\n" + path + ":3: modle: unknown key; did you mean model?\n" //nolint:misspell // on purpose
	if status != exitUsage || out != "" || errs != want || eng.asked != nil {
		t.Errorf("status %d, out %q, err %q, want %q", status, out, errs, want)
	}
}

func TestExitStatusesAreThoseThatTheHelpLists(t *testing.T) {
	job := jobFile(t)
	for _, c := range []struct {
		fail error
		want int
	}{
		{nil, exitOK},
		{errors.New("the disk is full; free some"), exitFailure},
		{&worker.DoesNotFitError{Err: errors.New("lower train.globalBatch")}, exitCannotFit},
		{&jobspec.Invalid{Problems: []jobspec.Problem{{Message: "x"}}}, exitUsage},
		{context.Canceled, exitFailure}, // cancelled, but not by the user
	} {
		status, _, errs := skein(t, &notes{fail: c.fail}, "", "train", "-f", job)
		if status != c.want || strings.Count(errs, "\n") > 1 {
			t.Errorf("%v: status %d, want %d; printed %q", c.fail, status, c.want, errs)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out bytes.Buffer
	if status := run(ctx, []string{"train", "-f", job}, streams{out: &out, err: &out}, &notes{fail: context.Canceled}); status != exitInterrupted {
		t.Errorf("interrupted: status %d", status)
	}
}

func TestWrongCommandLinesAreRefusedInOneLine(t *testing.T) {
	for line, want := range map[string]string{
		"data prepare -f /nowhere/job.yaml": "no such file",
		"plan -f /nowhere/job.yaml":         "no such file",
		"trian":                             `unknown command "trian"`,
		"train":                             "which job? give -f job.yaml",
		"train x":                           "skein train takes no arguments",
		"train -f job.yaml -o xml":          `--output is "xml"; it is one of text, json`,
		"train --fast":                      "unknown flag: --fast; see `skein train --help`",
		"train -f /nowhere/job.yaml":        "no such file; check the path",
		"import model.gguf":                 "skein import takes MODEL DIR, but was given 1 argument;",
		"import m d --dtype fp16":           `--dtype is "fp16"; it is one of bf16, fp32`,
		"import m d --max-shard 1":          `--max-shard is "1"; give a size from 1MiB up`,
		"export s d --step -2":              "--step is -2; -1 is the newest checkpoint",
		"eval m":                            "skein eval takes MODEL DATA…",
		"eval m d --sequence-length 2":      "--sequence-length is 2; it must be at least 8",
		"eval m d --show 3":                 "--show 3 asks for more answers than --exact-match 0 gives",
		"eval m d --exact-match -1":         "must not be negative",
		"eval m d --max-new-tokens 0":       "--max-new-tokens is 0",
		"generate":                          "skein generate takes MODEL [PROMPT…]",
		"generate m hi --temperature NaN":   "--temperature is NaN",
		"generate m hi --top-p 0":           "--top-p is 0",
		"generate m hi --top-k -1":          "--top-k is -1",
		"generate m hi --max-new-tokens 0":  "--max-new-tokens is 0",
		"generate m hi --raw --system x":    "--raw and --system exclude each other",
		"generate m hi --precision fp8":     `--precision is "fp8"`,
		"generate m hi --threads -1":        "--threads is -1",
		"generate m":                        "nothing to answer; give a PROMPT, or one a line on standard input",
		"data prepare":                      "which job? give -f job.yaml",
		"cancel":                            "skein cancel takes JOB…",
		"coordinator --id c1 --dir d --listen 7902 --alone":                           `--listen: "7902" is not host:port`,
		"coordinator --id c1 --dir d --listen 10.0.0.1:7401 --alone":                  "--listen: 10.0.0.1:7401 can be reached from other machines",
		"coordinator --id c1 --dir d --alone --members c1=127.0.0.1:7401":             "give one or the other",
		"coordinator --id c1 --dir d --members c2=127.0.0.1:7401":                     "c1 is not among the first members",
		"coordinator --id c1 --dir d --members c1=127.0.0.1:7402":                     "it lists c1 at 127.0.0.1:7402, but it is reached at 127.0.0.1:7401",
		"coordinator --id c1 --dir d --alone --tls /nope":                             "--tls: /nope/ca.crt is missing",
		"coordinator --id c1 --dir d --alone --gossip-listen 10.0.0.1:7402":           "give --tls DIR",
		"worker --name w1 --coordinator 127.0.0.1:7401 --ring-listen 10.0.0.1:7411":   "ring: 10.0.0.1:7411 can be reached from other machines",
		"worker --name w1 --coordinator 127.0.0.1:7401 --gossip-listen 10.0.0.1:7413": "give --tls DIR",
		"certs issue client a/b":             `name "a/b"`,
		"submit -f /nowhere/job.yaml":        "job file /nowhere/job.yaml: no such file; check the path",
		"doctor -o yaml":                     `--output is "yaml"`,
		"plan -f job.yaml --calibrate=maybe": "invalid argument",
	} {
		status, out, errs := skein(t, &notes{}, "", strings.Fields(line)...)
		if status == exitOK || out != "" || !strings.Contains(errs, want) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s: status %d, printed %q and %q, want %q", line, status, out, errs, want)
		}
		if status != exitUsage {
			t.Errorf("%s: status %d, want %d", line, status, exitUsage)
		}
	}
}

func TestPlanShowsTheTableEvenOfAJobThatDoesNotFit(t *testing.T) {
	eng := &notes{
		report: &planReport{
			Name: "a", Parameters: 134515008, Architecture: "llama", NumericClass: "generic r1", Examples: 10, Sequences: 5, Steps: 24,
			StepTokens: 2048, Epochs: 1.5, WorldSize: 4, MicroBatch: 1, Memory: []planPart{{"optimizer", 1600e6}, {"mirrors", 0}},
			MemoryTotal: 1600e6, MemoryBudget: 1e9, DiskBytes: 1e9, DiskFree: 2e9, StepSeconds: 2.5, Notes: []string{"so it is"},
		},
		fail: &worker.DoesNotFitError{Err: errors.New("too little")},
	}
	status, out, errs := skein(t, eng, "", "plan", "-f", jobFile(t))
	want := `job          a
model        134.5M parameters, llama · bits: generic r1
data         10 examples → 5 sequences, 0 tokens, 0 targets, 0.0 % padding
steps        24 of 2,048 tokens = 1.50 epochs · world size 4, micro-batch 1
memory       1.6 GB of 1 GB per worker
                 1.6 GB  optimizer
disk         1 GB of 2 GB free, for checkpoints and the export
time         1m0s for 24 steps at 2.50 s each (819 tokens/s)
note         so it is
`
	if diff := cmp.Diff(want, out); diff != "" || status != exitCannotFit || errs != "skein: resources.memory: too little\n" {
		t.Errorf("status %d, err %q\n%s", status, errs, diff)
	}
	_, out, _ = skein(t, eng, "", "plan", "-f", jobFile(t), "-o", "json", "--calibrate=false")
	var back planReport
	if err := json.Unmarshal([]byte(out), &back); err != nil || back.MemoryTotal != 1600e6 {
		t.Errorf("-o json: %v, %+v", err, back)
	}
	if eng.asked.(planConfig).Calibrate {
		t.Error("--calibrate=false calibrates")
	}
}

func TestGenerateTakesPromptsFromArgumentsOrLines(t *testing.T) {
	eng := &notes{}
	_, out, errs := skein(t, eng, "", "generate", "m", "one", "two words", "--seed", "7", "--temperature", "0.5")
	if c := eng.asked.(generateConfig); len(c.Prompts) != 2 || c.Prompts[1] != "two words" || c.Seed != 7 || c.Temperature != 0.5 || out != "an answer\n" {
		t.Errorf("asked for %+v; printed %q, %q", c, out, errs)
	}
	skein(t, eng, "one\n\ntwo\n", "generate", "m")
	if c := eng.asked.(generateConfig); len(c.Prompts) != 2 || c.Prompts[1] != "two" {
		t.Errorf("asked for %+v", c)
	}
}

func TestExportSaysWhichStepItWrote(t *testing.T) {
	eng := &notes{}
	_, out, _ := skein(t, eng, "", "export", "store", "dir", "--dtype", "fp32", "--max-shard", "1GiB")
	want := exportConfig{Store: "store", Step: newest, Dir: "dir", DType: jobspec.DTypeFP32, MaxShard: 1 << 30}
	if diff := cmp.Diff(want, eng.asked); diff != "" || out != "exported dir: the weights of step 24, fp32\n" {
		t.Errorf("printed %q\n%s", out, diff)
	}
}

func TestEvalHandsItsFlagsToTheEngine(t *testing.T) {
	eng := &notes{}
	_, _, errs := skein(t, eng, "", "eval", "m", "a.jsonl", "b.jsonl", "--exact-match", "32", "--show", "3", "--precision", "fp32", "--cache", "c")
	want := evalConfig{
		Model: "m", Data: []string{"a.jsonl", "b.jsonl"}, Cache: "c", Precision: jobspec.PrecisionFP32,
		NumericClass: "auto", ExactMatch: 32, Show: 3, MaxNewTokens: 64,
	}
	if diff := cmp.Diff(want, eng.asked); diff != "" {
		t.Errorf("%s\n%s", errs, diff)
	}
}

func TestDoctorNamesTheKernelsOfThisMachine(t *testing.T) {
	status, out, errs := skein(t, &notes{}, "", "doctor", "--folder", t.TempDir())
	if status != exitOK || errs != "" {
		t.Fatalf("status %d: %s", status, errs)
	}
	for _, want := range []string{"processor ", "memory ", "generic", "chosen", "compute threads"} {
		if !strings.Contains(out, want) {
			t.Errorf("doctor does not say %q:\n%s", want, out)
		}
	}
	_, out, _ = skein(t, &notes{}, "", "doctor", "-o", "json")
	var d diagnosis
	if err := json.Unmarshal([]byte(out), &d); err != nil || d.Chosen == "" || d.Threads < 1 || len(d.Paths) == 0 {
		t.Errorf("-o json: %v, %+v", err, d)
	}
}

func TestVersionAndBareCommandsSayWhatThereIs(t *testing.T) {
	if _, out, _ := skein(t, &notes{}, "", "version"); !strings.HasPrefix(out, "skein devel go") {
		t.Errorf("version: %q", out)
	}
	for _, line := range []string{"", "--help", "data"} {
		status, out, _ := skein(t, &notes{}, "", strings.Fields(line)...)
		if status != exitOK || !strings.Contains(out, "Usage:") {
			t.Errorf("skein %s: status %d, %q", line, status, out)
		}
	}
}
