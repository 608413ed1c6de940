package lint

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// policy says who may import whom, read from the bottom of the tree to the top.
//
// "a, b < c" means that c may import a and b, and everything that a and b may
// import. What c is not given is forbidden to it. A folder stands for itself and
// for all folders below it that have no line of their own. Everyone may import
// internal, which imports nothing else of ours.
//
// Do not change this text to fix a build. Change it when the design changes,
// together with docs/ARCHITECTURE.md and an ADR.
const policy = `
	# Leaves.
	NONE < internal, proto, jobspec, tokenizer, device, model/config
	tokenizer < tokenizer/chat

	# Arithmetic only: pieces, placement, order. It may know a model's shapes.
	model/config < shard

	# Path of data: text to examples to packed sequences.
	tokenizer/chat, shard < data
	data < data/stream

	# Compute. A device knows no model, a model knows one device: the interface.
	device < device/cpu, device/devicetest
	device/cpu < device/opaque
	device, model/config < model
	model/config < model/modeltest
	model/config, tokenizer < model/hf, model/gguf
	model/hf, model/gguf < model/weights
	device, shard < optim
	model, data, tokenizer/chat < eval

	# The ring sees bytes and a type; checkpoints see ranges and names.
	shard < allreduce, checkpoint

	# How a job survives its workers: the rules of a step, and where it goes on.
	shard < protocol

	# One worker: where the path of data is driven.
	jobspec, model, model/weights, eval, optim, allreduce, checkpoint, data/stream, proto, protocol < worker/trainer
	worker/trainer < worker

	# Path of control. It moves names and numbers, never tensors: nothing of the
	# path of data but arithmetic. The deciders sit above the state that they read.
	NONE < coordinator/ledger
	proto, shard, protocol, jobspec, coordinator/ledger < coordinator/fsm
	coordinator/fsm < coordinator/scheduler, coordinator/membership, coordinator/recovery, coordinator/raftlog
	coordinator/scheduler, coordinator/membership, coordinator/recovery < coordinator/hearing
	coordinator/hearing, coordinator/raftlog < coordinator

	# The user's side of a cluster, and a whole cluster on one machine. They reach
	# workers through coordinators only.
	proto, jobspec, checkpoint < client
	client, coordinator < fleet

	# Kubernetes: what users write, how the API server checks it, what follows from it
	# (pure), and who does that. It reaches a cluster as a user does.
	jobspec < k8s/api
	k8s/api < k8s/crd
	k8s/api, proto < k8s/policy
	k8s/policy, client < k8s/operator
	k8s/operator < k8s/operator/operatortest
	k8s/policy < k8s/e2e

	NONE < k8s/helm

	# The user's way to such a cluster, from outside of it.
	k8s/policy < k8s/access
	k8s/access < k8s/access/accesstest
	k8s/operator/operatortest, k8s/access/accesstest < k8s/apitest

	# The pure machines of both paths over a model of everything else.
	worker, coordinator < sim

	# Benchmarks take steps as a worker does, and time the kernels of the processor.
	worker/trainer, device/cpu < bench

	# Binaries and tools see everything; nothing sees them.
	bench, sim, worker, coordinator, client, fleet, device/cpu, device/opaque, k8s/operator, k8s/access/accesstest < cmd, examples, scripts
`

func TestImportsFollowPolicy(t *testing.T) {
	may := parsePolicy(t, policy)
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", "./...")
	cmd.Dir, cmd.Stderr = root, os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		from := owner(may, strings.TrimPrefix(p.ImportPath, module+"/"))
		if from == "" {
			t.Errorf("%s: no line of the policy covers this package; add one", p.ImportPath)
			continue
		}
		for _, imp := range p.Imports {
			rel, ours := strings.CutPrefix(imp, module+"/")
			if !ours {
				continue
			}
			if to := owner(may, rel); to != from && to != "internal" && !may[from][to] {
				t.Errorf("%s imports %s: the policy does not allow %s → %s", p.ImportPath, rel, from, to)
			}
		}
	}
}

// confined are libraries that only one part of the tree may import, and why.
var confined = map[string]struct{ to, why string }{
	"github.com/apache/arrow/go/":     {"data", "Arrow v17 is frozen and reads hostile bytes carelessly; only data/ guards it"},
	"github.com/nikolalohinski/gonja": {"tokenizer/chat", "only templates whose golden renders it reproduces are let through, and chat holds that gate"},
	"github.com/spf13/cobra":          {"cmd", "flags belong to the command line; the rest takes a Config"},
	"go.yaml.in/yaml/":                {"jobspec", "YAML is read strictly in one place"},
	"k8s.io/":                         {"k8s", "the rest of Skein does not know that Kubernetes is there"},
	"sigs.k8s.io/":                    {"k8s", "the rest of Skein does not know that Kubernetes is there"},
}

func TestLibrariesStayWhereTheyAreConfined(t *testing.T) {
	for _, f := range goFiles(t) {
		if strings.HasPrefix(f.folder(), "tools/") {
			continue // modules of their own
		}
		for _, spec := range f.ast.Imports {
			path := strings.Trim(spec.Path.Value, `"`)
			for library, c := range confined {
				inside := f.folder() == c.to || strings.HasPrefix(f.folder(), c.to+"/")
				if strings.HasPrefix(path, library) && !inside {
					t.Errorf("%s imports %s, which stays inside %s/: %s", f.path, path, c.to, c.why)
				}
			}
			if path == "C" {
				t.Errorf("%s uses cgo: the binary is static and builds without a C compiler", f.path)
			}
		}
	}
}

// parsePolicy returns, for each package of the policy, the closed set of
// packages it may import. It fails the test on a cycle.
func parsePolicy(t *testing.T, text string) map[string]map[string]bool {
	t.Helper()
	may := map[string]map[string]bool{}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		lower, upper, ok := strings.Cut(line, "<")
		if !ok {
			t.Fatalf("policy line without '<': %q", line)
		}
		for _, u := range names(upper) {
			if may[u] == nil {
				may[u] = map[string]bool{}
			}
			for _, l := range names(lower) {
				allow(t, may, u, l)
			}
			if may[u][u] {
				t.Fatalf("%q may import itself: the policy has a cycle", u)
			}
		}
	}
	return may
}

// allow lets upper import lower and all that lower may import.
func allow(t *testing.T, may map[string]map[string]bool, upper, lower string) {
	t.Helper()
	if lower == "NONE" {
		return
	}
	if may[lower] == nil {
		t.Fatalf("%q is used before its own line; order the policy bottom up", lower)
	}
	may[upper][lower] = true
	for below := range may[lower] {
		may[upper][below] = true
	}
}

// owner returns the nearest folder at or above path that has a line.
func owner(may map[string]map[string]bool, path string) string {
	for {
		if may[path] != nil {
			return path
		}
		i := strings.LastIndexByte(path, '/')
		if i < 0 {
			return ""
		}
		path = path[:i]
	}
}

func names(s string) []string {
	var list []string
	for name := range strings.SplitSeq(s, ",") {
		list = append(list, strings.TrimSpace(name))
	}
	return list
}
