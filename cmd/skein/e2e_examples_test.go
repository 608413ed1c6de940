package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/skein-ml/skein/worker/workertest"
)

// examplesJob is the job that the examples of the help speak of, and what they find
// around it.
func examplesJob(t *testing.T) workertest.Job {
	t.Helper()
	j := clusterJob(t)
	for old, now := range map[string]string{
		"name: tiny": "name: pronounce", "steps: 12": "steps: 24", "every: 5 steps": "every: 8 steps",
		"warmupSteps: 4": "warmupSteps: 2", "sequenceLength: 48": "sequenceLength: 64",
	} {
		j.Edit(t, "job.yaml", old, now)
	}
	workertest.Model{}.WriteGGUF(t, j.Path("model.gguf"))
	j.Write(t, "SmolLM2-135M-Instruct.Q4_1.gguf", j.Read(t, "model.gguf"))
	return j
}

// notHere are examples that need machines, disks or certificates of their own; other
// tests run their commands.
var notHere = []string{
	"bench smollm2", // minutes and gigabytes; make bench-quick runs it on little data
	"skein coordinator --id", "skein worker", "skein coordinator add", "skein coordinator remove", "skein coordinator restore", "--tls ",
	"--kube", // TestEveryExampleThatNamesKubernetesDoesWhatItSays
}

// placed puts the cluster and the job of a test into an example.
func (r *rig) placed(line, id string) []string {
	words := shellWords(strings.ReplaceAll(line, "pronounce-7f3a", id))
	for i, w := range words {
		if i > 0 && words[i-1] == "--coordinator" {
			words[i] = strings.Join(r.addresses, ",")
		}
		if w == "2h" {
			words[i] = patience.String()
		}
	}
	return words[1:]
}

func TestEveryExampleOfTheHelpDoesWhatItSays(t *testing.T) {
	j := examplesJob(t)
	r := newRig(t, j, 3, 1)
	t.Setenv(coordinatorVariable, strings.Join(r.addresses, ","))
	ran := map[string]bool{}
	run := func(folder workertest.Job, id, line string) {
		t.Helper()
		if ran[line] {
			return
		}
		ran[line] = true
		if status, _, errs := program(t, folder, r.placed(line, id)...); status != exitOK {
			t.Errorf("%s: status %d, %s", line, status, errs)
		}
	}
	// first are examples that others build on.
	for _, line := range examplesOf("import", "plan", "data prepare", "doctor", "bench", "version", "certs init", "certs issue", "certs show") {
		run(j, "", line)
	}
	for _, line := range examplesOf("train") {
		fresh := examplesJob(t)
		if !strings.Contains(line, "--set") && !strings.Contains(line, "--workers") {
			fresh = j // its checkpoints are exported
		}
		run(fresh, "", line)
	}
	workertest.CopyFolder(t, j.Path("trained"), j.Path("pronounce"))
	for _, line := range examplesOf("eval", "export", "generate") {
		if !strings.Contains(line, "7f3a") && !strings.Contains(line, "--job") {
			run(j, "", line)
		}
	}
	remove("trained")(t, j)
	remove("pronounce")(t, j)
	id := r.submit("train.steps=400", "output.export=./first")
	for _, line := range examplesOf("jobs", "nodes", "describe", "wait", "watch", "logs", "export", "generate", "cancel", "coordinator", "coordinator status", "coordinator transfer", "coordinator backup") {
		if !strings.HasPrefix(line, "skein cancel") {
			run(j, id, line)
		}
	}
	for i, line := range examplesOf("cancel") {
		run(j, r.submit("train.steps=100000", "output.export=./never-"+string(rune('a'+i))), line)
	}
	for i, line := range examplesOf("scale", "pause", "resume") {
		waits := r.submit("train.steps=100000", "output.export=./waits-"+string(rune('a'+i)))
		run(j, waits, line)
		run(j, waits, "skein cancel "+waits)
	}
	for _, line := range examplesOf("submit") {
		if !elsewhere(line) {
			run(examplesJob(t), "", line)
		}
	}
	run(examplesJob(t), "", "skein submit -f job.yaml --watch --coordinator 10.0.0.1:7401,10.0.0.2:7401")
	for _, c := range commands(newRoot(streams{}, &notes{})) {
		for line := range strings.Lines(c.Example) {
			if line = strings.TrimSpace(line); !ran[line] && !elsewhere(line) {
				t.Errorf("nobody has run %q", line)
			}
		}
	}
	if found, err := filepath.Glob(j.Path("*")); err != nil || len(found) < 10 {
		t.Errorf("the examples have left only %v (%v)", found, err)
	}
}

func elsewhere(line string) bool {
	for _, part := range notHere {
		if strings.Contains(line, part) {
			return true
		}
	}
	return false
}

// examplesOf lists the examples of commands that can be run here.
func examplesOf(names ...string) (lines []string) {
	for _, name := range names {
		for _, c := range commands(newRoot(streams{}, &notes{})) {
			if c.CommandPath() != "skein "+name {
				continue
			}
			for line := range strings.Lines(c.Example) {
				if line = strings.TrimSpace(line); !elsewhere(line) {
					lines = append(lines, line)
				}
			}
		}
	}
	return lines
}
