package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestAJobIsExportedAskedAndReadAboutFromItsId(t *testing.T) {
	j := clusterJob(t)
	r := newRig(t, j, 1, 1)
	submit := []string{"submit", "-f", "job.yaml", "-o", "name", "--set", "cluster.workers.max=1", "--request", "a-request-of-ours"}
	id := strings.TrimSpace(r.must(submit...))
	if again := strings.TrimSpace(r.must(submit...)); again != id {
		t.Errorf("one request has become jobs %s and %s", id, again)
	}
	watched := r.must("watch", "tiny", "--lines", "-1")
	for _, want := range []string{"preparing   model 0.1M parameters", "running     generation 1 from step 0: w1:0,1,2,3", "step        12/12  loss ", "published   step 12", "done        12 steps"} {
		if !strings.Contains(watched, want) {
			t.Errorf("skein watch does not say %q:\n%s", want, watched)
		}
	}
	if strings.Count(watched, "\ndone ") != 1 {
		t.Errorf("the end is told more than once:\n%s", watched)
	}
	if logs := r.must("logs", id); !strings.Contains(logs, "step        12/12") || !strings.Contains(logs, "done        12 steps") {
		t.Errorf("skein logs prints\n%s", logs)
	}
	want := r.hash(id)
	r.must("export", id, "again")
	if diff := cmp.Diff(sums(t, j.Path("trained")), sums(t, j.Path("again"))); diff != "" {
		t.Errorf("skein export writes other files than the job:\n%s", diff)
	}
	if out := r.must("export", "tiny", "before", "--step", "5", "--dtype", "fp32"); !strings.Contains(out, "the weights of step 5, fp32") {
		t.Errorf("skein export prints %q", out)
	}
	answer := mustRun(t, j, "generate", "trained", "seat", "--max-new-tokens", "12")
	if got := r.must("generate", "--job", id, "seat", "--max-new-tokens", "12"); got != answer {
		t.Errorf("the job says %q, its export %q", got, answer)
	}
	if left, _ := filepath.Glob(filepath.Join(os.TempDir(), "skein-generate-*")); len(left) > 0 {
		t.Errorf("%v is left", left)
	}
	r.listed(id, want)
}

// listed checks the formats of what is listed.
func (r *rig) listed(id, hash string) {
	r.Helper()
	table := strings.Split(r.must("jobs", "-o", "wide"), "\n")
	if !strings.HasPrefix(table[0], "JOB ") || !strings.HasPrefix(table[1], id) || !strings.Contains(table[1], "done") || !strings.Contains(table[1], "12/12") {
		r.Errorf("skein jobs -o wide prints %q", table)
	}
	if text := r.must("describe", id); !strings.Contains(text, hash[:12]) || !strings.Contains(text, "resolved") {
		r.Errorf("skein describe prints\n%s", text)
	}
	if text := r.must("describe", id, "-o", "yaml"); !strings.Contains(text, "\nphase: done\n") || !strings.Contains(text, "\nid: "+id+"\n") {
		r.Errorf("skein describe -o yaml prints\n%s", text)
	}
	for _, what := range []string{"jobs", "nodes", "coordinator status"} {
		for _, output := range []string{"text", "wide", "json", "yaml"} {
			if out := r.must(append(strings.Fields(what), "-o", output)...); len(out) < 10 {
				r.Errorf("skein %s -o %s prints %q", what, output, out)
			}
		}
	}
}

func TestInputsAreUploadedByContentAndFoundThere(t *testing.T) {
	j := clusterJob(t)
	want, _ := alone(t, j)
	r := newRig(t, j, 1, 1)
	status, out, errs := r.run("submit", "-f", "job.yaml", "--upload", "-o", "name", "--set", "cluster.workers.max=1", "--set", "data.train=train*.jsonl")
	if status != exitOK || strings.Count(errs, "uploading") != 3 || !strings.Contains(errs, "train.jsonl: ") {
		t.Fatalf("status %d, printed %q, %q", status, out, errs)
	}
	for _, name := range []string{"model", "train.jsonl", "heldout.jsonl"} { // nothing is read from here any more
		if err := os.RemoveAll(j.Path(name)); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.wait(strings.TrimSpace(out)); got != want {
		t.Errorf("it ends on %s, in one process on %s", got, want)
	}
}

func TestCtrlCStopsWatchingAndNotTheJob(t *testing.T) {
	j := clusterJob(t)
	r := newRig(t, j, 1, 1)
	p := start(t, j, "submit", "-f", "job.yaml", "--watch", "--set", "cluster.workers.max=1", "--set", "train.steps=80", "--coordinator", r.addresses[0])
	p.out.waitFor(t, "\nstep ")
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if status := p.wait(t); status != exitInterrupted {
		t.Errorf("status %d, want %d", status, exitInterrupted)
	}
	said := p.err.String()
	_, command, ok := strings.Cut(said, "watch it again with: skein ")
	if strings.Count(said, "\n") != 1 || !ok || !strings.Contains(said, "the job goes on") {
		t.Fatalf("printed %q", said)
	}
	if out := mustRun(t, j, strings.Fields(command)...); !strings.Contains(out, "done        80 steps") {
		t.Errorf("the command that it names prints\n%s", out)
	}
}

func TestACoordinatorIsAddedReplacedBackedUpAndRestored(t *testing.T) {
	j := clusterJob(t)
	r := newRig(t, j, 3, 1)
	id := r.submit("cluster.workers.max=1", "train.steps=5", "train.schedule.warmupSteps=0")
	want := r.wait(id)
	r.kill("c2") // its disk is lost, too
	fourth := freeAddresses(t, 1)[0]
	status, _, errs := r.run("coordinator", "remove", "c3") // c1 alone could decide nothing
	if status != exitFailure || !strings.Contains(errs, "c2") || !strings.Contains(errs, "--force") {
		t.Errorf("one of the two that are left is removed: status %d, %q", status, errs)
	}
	p := start(t, j, "coordinator", "--id", "c4", "--listen", fourth, "--dir", "c4")
	p.err.waitFor(t, "started")
	r.must("coordinator", "add", "c4", fourth)
	r.must("coordinator", "remove", "c2")
	r.addresses = append(r.addresses, fourth)
	r.must("coordinator", "transfer", "--to", "c4")
	r.eventually("c4 leads", func() bool { return strings.Contains(r.must("nodes"), "c4            leader") })
	if got := r.hash(id); got != want {
		t.Errorf("the new leader says the job ended on %s, the old one %s", got, want)
	}
	r.must("coordinator", "backup", "state.backup")
	status, _, errs = r.run("coordinator", "backup", "state.backup")
	if status != exitFailure || !strings.Contains(errs, "exists already") {
		t.Errorf("a second backup over the first: status %d, %q", status, errs)
	}
	r.kill(r.everybody()...)
	_ = p.cmd.Process.Kill() // as the others
	p.wait(t)
	address := freeAddresses(t, 1)[0]
	mustRun(t, j, "coordinator", "restore", "state.backup", "--id", "n1", "--advertise", address, "--dir", "n1")
	start(t, j, "coordinator", "--id", "n1", "--listen", address, "--dir", "n1").err.waitFor(t, "started")
	r.addresses = []string{address}
	if got := r.hash(id); got != want {
		t.Errorf("restored, the job ended on %s, before on %s", got, want)
	}
}
