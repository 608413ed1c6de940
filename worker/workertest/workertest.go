// Package workertest makes tiny jobs for tests: a model that speaks bytes, data
// that can be learnt, and a job file, in a folder of the test's own and in
// milliseconds. The same call always makes the same bytes.
package workertest

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Job is a job on disk: the folder model, train.jsonl, heldout.jsonl and job.yaml.
type Job struct {
	Dir string
}

// Spec is the job file: thirty steps of two ranks, saved every five, all checkpoints
// but the newest three removed on the way.
const Spec = `kind: FineTune
name: tiny
model: {base: ./model}
data:
  train: train.jsonl
  validation: heldout.jsonl
  sequenceLength: 48
train:
  steps: 30
  globalBatch: 8
  precision: bf16
  optimizer: {learningRate: 3e-3}
  schedule: {kind: cosine, warmupSteps: 4, floor: 0.1}
  seed: 7
eval: {every: 10 steps, exactMatch: 4, maxNewTokens: 12}
cluster: {worldSize: 2}
checkpoint: {every: 5 steps, keep: 3, store: ./checkpoints}
output: {export: ./trained}
resources: {threads: 2}
`

// New makes the job in a folder that goes with the test.
func New(t testing.TB) Job {
	t.Helper()
	j := Job{Dir: t.TempDir()}
	Model{}.Write(t, j.Path("model"))
	j.Write(t, "train.jsonl", Rows(1, 240))
	j.Write(t, "heldout.jsonl", Rows(2, 24))
	j.Write(t, "job.yaml", Spec)
	return j
}

// Copy makes the same job in another folder, without what a run has written.
func (j Job) Copy(t testing.TB) Job {
	t.Helper()
	to := Job{Dir: t.TempDir()}
	for _, name := range []string{"train.jsonl", "heldout.jsonl", "job.yaml"} {
		to.Write(t, name, j.Read(t, name))
	}
	CopyFolder(t, j.Path("model"), to.Path("model"))
	return to
}

// Model replaces the job's model.
func (j Job) Model(t testing.TB, m Model) {
	t.Helper()
	if err := os.RemoveAll(j.Path("model")); err != nil {
		t.Fatal(err)
	}
	m.Write(t, j.Path("model"))
}

// Path is a name in the job's folder.
func (j Job) Path(name string) string { return filepath.Join(j.Dir, name) }

// File is the path of the job file.
func (j Job) File() string { return j.Path("job.yaml") }

// Write makes or replaces a file of the job.
func (j Job) Write(t testing.TB, name, text string) {
	t.Helper()
	path := j.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Read returns a file of the job.
func (j Job) Read(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(j.Path(name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Edit replaces a text that a file of the job holds exactly once.
func (j Job) Edit(t testing.TB, name, old, now string) {
	t.Helper()
	text := j.Read(t, name)
	if n := strings.Count(text, old); n != 1 {
		t.Fatalf("%s holds %q %d times, want once", name, old, n)
	}
	j.Write(t, name, strings.Replace(text, old, now, 1))
}

// CopyFolder copies a folder and all below it.
func CopyFolder(t testing.TB, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// Rows are lines of JSONL, each a chat: the user says a word, the assistant spells it.
func Rows(seed uint64, n int) string {
	var b strings.Builder
	rng := rand.New(rand.NewPCG(seed, 5))
	for range n {
		word := make([]byte, 3+rng.IntN(4))
		for i := range word {
			word[i] = "etaoinsr"[rng.IntN(8)]
		}
		b.WriteString(Chat(string(word), strings.Join(strings.Split(string(word), ""), "-")))
	}
	return b.String()
}

// Chat is a line of JSONL with one question to the assistant and its answer.
func Chat(question, answer string) string {
	type message struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	}
	return line(map[string][]message{"messages": {{"user", question}, {"assistant", answer}}})
}

// Completion is a line of JSONL with a prompt and how it goes on.
func Completion(prompt, completion string) string {
	return line(map[string]string{"prompt": prompt, "completion": completion})
}

func line(v any) string {
	row, err := json.Marshal(v)
	if err != nil {
		panic(err) // strings only
	}
	return string(row) + "\n"
}
