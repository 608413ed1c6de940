package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/worker/workertest"
)

// refused runs a command line that must end soon with this status and one line that
// says all of this.
func refused(t *testing.T, j workertest.Job, status int, says []string, args ...string) {
	t.Helper()
	p := start(t, j, args...)
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("skein %s goes on: %s", strings.Join(args, " "), p.err.String())
	}
	errs := p.err.String()
	lines := strings.Split(strings.TrimSpace(errs), "\n")
	said := lines[len(lines)-1]
	if got := p.wait(t); got != status {
		t.Errorf("skein %s: status %d, want %d: %s", strings.Join(args, " "), got, status, errs)
	}
	if !strings.HasPrefix(said, "skein: ") && !strings.HasPrefix(said, "--set ") && !strings.HasPrefix(said, "job.yaml: ") || len(said) > 700 {
		t.Errorf("skein %s: the last line is %q", strings.Join(args, " "), said)
	}
	for _, text := range says {
		if !strings.Contains(said, text) {
			t.Errorf("skein %s printed %q, which does not say %q", strings.Join(args, " "), said, text)
		}
	}
}

func TestCoordinatorsAndWorkersThatCannotStartSayWhy(t *testing.T) {
	j := workertest.New(t)
	r := newRig(t, j, 1, 1)
	c1, free := r.addresses[0], freeAddresses(t, 3)
	j.Write(t, "file", "not a folder")
	for name, c := range map[string]struct {
		args   string
		status int
		says   []string
	}{
		"port in use":                     {"coordinator --id c9 --alone --dir c9 --listen " + c1, exitFailure, []string{c1, "address already in use"}},
		"two on one folder":               {"coordinator --id c1 --alone --dir c1 --listen " + free[0], exitFailure, []string{"c1", "in use by another process"}},
		"folder that is a file":           {"coordinator --id c9 --alone --dir file --listen " + free[0], exitFailure, []string{"file"}},
		"without an id":                   {"coordinator --alone --dir c9", exitUsage, []string{"--id"}},
		"without a folder":                {"coordinator --id c9 --alone", exitUsage, []string{"--dir"}},
		"members without it":              {"coordinator --id c9 --dir c9 --listen " + free[0] + " --members c1=" + free[1], exitUsage, []string{"c9", "not among"}},
		"members that are none":           {"coordinator --id c9 --dir c9 --members c1", exitUsage, []string{"id=host:port"}},
		"plain on every address":          {"coordinator --id c9 --alone --dir c9 --listen 0.0.0.0:0 --advertise 192.0.2.1:7401", exitUsage, []string{"skein certs", "--insecure"}},
		"every address and none to call":  {"coordinator --id c9 --alone --dir c9 --listen 0.0.0.0:0", exitUsage, []string{"advertise", "host:port"}},
		"certificates that are not there": {"coordinator --id c9 --alone --dir c9 --tls nowhere", exitUsage, []string{"nowhere/ca.crt is missing", "skein certs"}},
		"worker without a name":           {"worker --coordinator " + c1, exitUsage, []string{"--name"}},
		"worker without a cluster":        {"worker --name w9", exitUsage, []string{"--coordinator", coordinatorVariable}},
		"worker on every address":         {"worker --name w9 --coordinator " + c1 + " --ring-listen 0.0.0.0:0", exitUsage, []string{"ring", "skein certs"}},
		"worker of another machine":       {"worker --name w9 --coordinator 192.0.2.1:7401", exitUsage, []string{"192.0.2.1:7401", "skein certs"}},
		"worker of unknown kernels":       {"worker --name w9 --coordinator " + c1 + " --numeric-class abacus", exitUsage, []string{"abacus", "skein doctor"}},
		"worker with no memory":           {"worker --name w9 --coordinator " + c1 + " --memory lots", exitUsage, []string{"--memory", "8GiB"}},
		"worker whose port is in use":     {"worker --name w9 --coordinator " + c1 + " --dir d9 --ring-listen " + c1, exitFailure, []string{c1, "--ring-listen"}},
		"worker whose folder is a file":   {"worker --name w9 --coordinator " + c1 + " --dir file", exitFailure, []string{"dir", "--dir"}},
		"worker of another cluster":       {"worker --name w9 --coordinator " + c1 + " --dir d9 --cluster other", exitFailure, []string{"cluster"}},
	} {
		t.Run(name, func(t *testing.T) { refused(t, j, c.status, c.says, strings.Fields(c.args)...) })
	}
	r.kill("c1")
	refused(t, j, exitFailure, []string{"c1", "belongs to"}, "coordinator", "--id", "c1", "--cluster", "other", "--alone", "--dir", "c1", "--listen", free[0])
	refused(t, j, exitFailure, []string{"c1", "belongs to"}, "coordinator", "--id", "c2", "--alone", "--dir", "c1", "--listen", free[0])
}

func TestClientsSayWhyNobodyAnswers(t *testing.T) {
	j := workertest.New(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0") // takes connections and says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { silent.Close() })
	free := freeAddresses(t, 3)
	alone := free[0]
	start(t, j, "coordinator", "--id", "c1", "--listen", alone, "--dir", "c1", "--members", "c1="+alone+",c2="+free[1]+",c3="+free[2])
	for name, c := range map[string]struct {
		args   string
		status int
		says   []string
	}{
		"no address":              {"jobs", exitUsage, []string{"--coordinator", coordinatorVariable}},
		"address without a port":  {"jobs --coordinator localhost", exitUsage, []string{"localhost", "host:port"}},
		"another machine, plain":  {"jobs --coordinator 192.0.2.1:7401", exitUsage, []string{"--tls", "skein certs", "--insecure"}},
		"nobody there":            {"jobs --connect-timeout 2s --coordinator " + free[1] + "," + free[2], exitUnreachable, []string{free[1], free[2], "connection refused", "skein coordinator"}},
		"no majority":             {"jobs --connect-timeout 4s --coordinator " + alone, exitUnreachable, []string{"c1 knows no leader", "majority"}},
		"silence":                 {"jobs --connect-timeout 5s --coordinator " + silent.Addr().String(), exitUnreachable, []string{"says nothing"}},
		"submit to nobody":        {"submit -f job.yaml --connect-timeout 2s --coordinator " + free[1], exitUnreachable, []string{free[1]}},
		"an impatient connection": {"jobs --connect-timeout 0s --coordinator " + alone, exitUsage, []string{"--connect-timeout"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refused(t, j, c.status, c.says, strings.Fields(c.args)...)
		})
	}
}

func TestAWorkerSaysSoonWhyNoCoordinatorAnswers(t *testing.T) {
	j := workertest.New(t)
	free := freeAddresses(t, 2)
	mustRun(t, j, "certs", "init", "--cluster", "lab", "--ca", "ca")
	issue(t, j, "ca", "coordinator", "c1")
	start(t, j, "coordinator", "--id", "c1", "--listen", free[0], "--dir", "c1", "--alone", "--tls", "certs/c1")
	for address, says := range map[string][]string{free[0]: {"closes plain connections", "--tls DIR"}, free[1]: {"connection refused"}} {
		p := start(t, j, "worker", "--name", "w1", "--dir", "w-"+address, "--coordinator", address)
		told := func() bool {
			for _, text := range says {
				if !strings.Contains(p.err.String(), text) {
					return false
				}
			}
			return true
		}
		for end := time.Now().Add(patience); !told(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("at %s it says nothing of %q: %s", address, says, p.err.String())
			}
		}
	}
}

func TestJobsThatCannotRunEndOrWaitWithTheReason(t *testing.T) {
	j := clusterJob(t)
	r := newRig(t, j, 1, 2)
	r.processes["w3"] = r.worker("w3", "--numeric-class", "generic")
	r.joined(3)
	at := []string{"--coordinator", r.addresses[0]}
	j.Write(t, "there/keep", "me")
	for name, c := range map[string]struct {
		set    string
		status int
		says   []string
	}{
		"model that is not there": {"model.base=./nowhere", exitUsage, []string{"model.base", "nowhere", "no such folder or file"}},
		"data that is not there":  {"data.train=no.jsonl", exitUsage, []string{"data.train", "no.jsonl"}},
		"learning rate 0":         {"train.optimizer.learningRate=0", exitUsage, []string{"train.optimizer.learningRate"}},
		"sequences too long":      {"data.sequenceLength=128", exitFailure, []string{"data.sequenceLength", "64"}},
		"memory that nobody has":  {"resources.memory=1000TiB", exitCannotFit, []string{"resources.memory"}},
		"store that is a file":    {"checkpoint.store=./train.jsonl", exitFailure, []string{"train.jsonl"}},
		"output that is there":    {"output.export=./there", exitUsage, []string{"output.export", "exists already"}},
	} {
		t.Run(name, func(t *testing.T) {
			refused(t, j, c.status, c.says, append([]string{"submit", "-f", "job.yaml", "--watch", "--set", c.set}, at...)...)
		})
	}
	for name, c := range map[string]struct {
		set, says string
	}{
		"more workers than there are": {"cluster.workers.min=4", "4 workers"},
		"more of a class":             {"cluster.workers.min=2,train.numericClass=avx512", "avx512"},
	} {
		if strings.Contains(c.set, "avx512") {
			if _, err := classes("avx512"); err != nil {
				continue // of this machine's own class there are three, then
			}
			r.kill("w2")
			r.joined(2)
		}
		id := r.submit(strings.Split(c.set, ",")...)
		r.eventually(name+" waits and says for what", func() bool {
			return strings.Contains(r.describe(id).WaitingFor, c.says)
		})
		if status, _, errs := r.run("wait", id, "--timeout", "100ms"); status != exitTimeout || !strings.Contains(errs, "not done after 100ms") {
			t.Errorf("%s: wait: status %d, %q", name, status, errs)
		}
		r.must("cancel", id)
	}
	if status, _, errs := r.run("describe", "nothing"); status != exitNotFound || !strings.Contains(errs, "skein jobs") {
		t.Errorf("no such job: status %d, %q", status, errs)
	}
	if status, _, errs := r.run("describe", "tiny"); status != exitNotFound || !strings.Contains(errs, "give more of the id") {
		t.Errorf("several jobs: status %d, %q", status, errs)
	}
}

func TestStrangersOnThePortsDisturbNobody(t *testing.T) {
	j := clusterJob(t)
	want, _ := alone(t, j, "train.steps=100")
	r := newRig(t, j, 1, 2)
	id := r.submit("train.steps=100", "cluster.workers.min=2")
	r.eventually("it runs", func() bool { return r.describe(id).Step > 5 })
	nodes := r.must("nodes", "-o", "wide")
	var ports []string
	for word := range strings.FieldsSeq(nodes) {
		if strings.HasPrefix(word, "127.0.0.1:") {
			ports = append(ports, word)
		}
	}
	if len(ports) != 5 {
		t.Fatalf("a coordinator's and two workers' ports are expected in\n%s", nodes)
	}
	for _, port := range ports {
		for _, text := range []string{"GET / HTTP/1.1\r\n\r\n", "SKNR\x00\x00\x00\x01" + strings.Repeat("\xff", 200), strings.Repeat("A", 1<<16)} {
			conn, err := net.Dial("tcp", port)
			if err != nil {
				t.Errorf("%s: %v", port, err)
				continue
			}
			_, _ = io.WriteString(conn, text) // they may hang up on us
			_ = conn.Close()
		}
	}
	if got := r.wait(id); got != want {
		t.Errorf("it ends on %s, undisturbed on %s", got, want)
	}
	if g := r.describe(id).Generation; g != 1 {
		t.Errorf("strangers have brought it to generation %d:\n%s", g, r.must("describe", id))
	}
}

func TestALowLimitOfOpenFilesIsRefusedByName(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash to set a limit with")
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	j := workertest.New(t)
	cmd := exec.Command(bash, "-c", "ulimit -Hn 64 && exec "+self+" worker --name w1 --coordinator 127.0.0.1:1 --dir d")
	cmd.Dir, cmd.Env = j.Dir, append(os.Environ(), asProgram+"=1")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "open files") && !strings.Contains(string(out), "ulimit") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestAStoreThatIsFullStopsNothingForGood(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a small file system can be mounted by root only")
	}
	j := clusterJob(t)
	small := j.Path("small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small).CombinedOutput(); err != nil {
		t.Skipf("no small file system: %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", small).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	})
	want, _ := alone(t, j, "train.steps=60")
	r := newRig(t, j, 1, 2)
	id := r.submit("train.steps=60", "checkpoint.store=./small", "checkpoint.every=10 steps", "cluster.workers.min=2")
	r.eventually("it runs", func() bool { return r.describe(id).Phase == "running" })
	ballast := filepath.Join(small, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 6<<20), 0o644); err == nil {
		t.Fatal("six megabytes fit into what is left of six")
	}
	r.eventually("it says that the store is full", func() bool {
		v := r.describe(id)
		return v.Phase == "done" || v.Progress != nil && strings.Contains(v.Progress.Unsaved, "no space left") ||
			strings.Contains(v.Reason+v.WaitingFor+fmt.Sprint(v.Events), "no space left") // before its first step
	})
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	if got := r.wait(id); got != want {
		t.Errorf("it ends on %s, undisturbed on %s", got, want)
	}
}
