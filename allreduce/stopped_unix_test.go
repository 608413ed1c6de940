//go:build unix

package allreduce

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// nextAddress tells the process that is a worker of its own where the next one listens.
const nextAddress = "SKEIN_TEST_RING_NEXT"

func processOptions() ringOptions {
	return ringOptions{worldSize: 6, workers: 3, elem: 4, mirror: true, chunk: 2000, elems: []int64{3000, 300}, seed: 1,
		change: func(c *LinkConfig) { c.Silence = 0 }}
}

// TestWorkerProcess is w1 of a ring of three, in a process that TestAStoppedProcess…
// starts; elsewhere it does nothing.
func TestWorkerProcess(t *testing.T) {
	next := os.Getenv(nextAddress)
	if next == "" {
		t.Skip("this is a worker in a process of its own, for the test after it")
	}
	w := newWorkers(t, processOptions())[1]
	w.c.Next = next
	fmt.Println("listening on", w.listener.Addr())
	connect(t, []*testWorker{w})
	fmt.Println("connected")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the parent ends
}

// another starts w1 of a ring of three as a process of its own and connects the others to it.
func another(t *testing.T) (here []*testWorker, w1 *os.Process) {
	t.Helper()
	ring := newWorkers(t, processOptions())
	here = []*testWorker{ring[0], ring[2]}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(t.Context(), program, "-test.run=^TestWorkerProcess$", "-test.v")
	child.Env = append(os.Environ(), nextAddress+"="+ring[2].listener.Addr())
	child.Stderr = os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = child.Process.Kill()
		_ = in.Close()
		_ = child.Wait()
	})
	lines := bufio.NewScanner(out)
	said := func(prefix string) string {
		for lines.Scan() {
			if rest, ok := strings.CutPrefix(lines.Text(), prefix); ok {
				return strings.TrimSpace(rest)
			}
		}
		t.Fatalf("the process ends without %q", prefix)
		return ""
	}
	ring[0].c.Next = said("listening on")
	connect(t, here)
	said("connected")
	return here, child.Process
}

// TestAStoppedProcessIsAccusedByBothNeighbours stops a worker's process as a debugger or
// a machine without memory does: its kernel still answers.
func TestAStoppedProcessIsAccusedByBothNeighbours(t *testing.T) {
	here, w1 := another(t)
	each(t, here, func(w *testWorker) error { return w.link.Begin(t.Context(), 7) })
	if err := w1.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	stopped := time.Now()
	var wg sync.WaitGroup
	for _, w := range here {
		wg.Go(func() {
			err := w.link.WaitReduced(t.Context(), 1)
			broken, ok := errors.AsType[*LinkError](err)
			if !ok || broken.Accused != 1 || fmt.Sprint(broken.Ranks) != "[2 3]" {
				t.Errorf("worker %d: %v", w.c.Worker, err)
			}
			t.Logf("worker %d, after %v: %v", w.c.Worker, time.Since(stopped).Round(time.Millisecond), err)
		})
	}
	wg.Wait()
}
