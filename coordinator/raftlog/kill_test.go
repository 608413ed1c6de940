package raftlog

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// process is a node in a process of its own.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func (g *group) spawn(s Server, all string) *process {
	g.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{filepath.Join(g.dir, s.ID), s.ID, s.Address, all}, "|"))
	in, err := cmd.StdinPipe()
	if err != nil {
		g.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		g.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.Fatal(err)
	}
	p := &process{cmd, in, bufio.NewScanner(out)}
	if !p.out.Scan() || p.out.Text() != "ready" {
		p.kill()
		g.Fatalf("%s did not start: %s", s.ID, p.out.Text())
	}
	return p
}

func (p *process) ask(line string) string {
	if _, err := fmt.Fprintln(p.in, line); err != nil || !p.out.Scan() {
		return "no process"
	}
	return p.out.Text()
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.in.Close()
}

// Three processes are killed with SIGKILL, one or all of them at a time, while jobs
// are submitted. Whatever was acknowledged must be there in the end.
func TestKillsLoseNoAcknowledgedJob(t *testing.T) {
	g := &group{T: t, dir: t.TempDir()}
	var addresses []string
	for i := range 3 {
		l := listen(t, "127.0.0.1:0")
		g.servers = append(g.servers, Server{fmt.Sprint("c", i+1), l.Addr().String()})
		addresses = append(addresses, fmt.Sprintf("c%d=%s", i+1, l.Addr()))
		l.Close()
	}
	all := strings.Join(addresses, ",")
	processes := make([]*process, 3)
	for i, s := range g.servers {
		processes[i] = g.spawn(s, all)
	}
	defer func() {
		for _, p := range processes {
			p.kill()
		}
	}()
	var acknowledged []string
	seed := rand.Uint64()
	dice := rand.New(rand.NewPCG(seed, 0))
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		for i := range 4 {
			acknowledged = append(acknowledged, g.submitTo(processes, fmt.Sprintf("request-%d-%d", round, i)))
		}
		victims := []int{dice.IntN(3)}
		if round%2 == 1 {
			victims = []int{0, 1, 2}
		}
		// One more is under way while they die; it may be acknowledged or not.
		going := processes[dice.IntN(3)]
		pending := fmt.Sprint("pending-", round)
		answered := make(chan string, 1)
		go func() { answered <- going.ask("submit " + pending) }()
		time.Sleep(time.Duration(dice.IntN(20)) * time.Millisecond)
		for _, v := range victims {
			processes[v].kill()
		}
		if strings.HasPrefix(<-answered, "ok ") {
			acknowledged = append(acknowledged, pending)
		}
		for _, v := range victims {
			listenable(t, g.servers[v].Address)
			processes[v] = g.spawn(g.servers[v], all)
		}
	}
	have := map[string]bool{}
	for r := range strings.FieldsSeq(g.askAny(processes, "list")) {
		have[r] = true
	}
	for _, r := range acknowledged {
		if !have[r] {
			t.Errorf("seed %d: %s was acknowledged and is lost", seed, r)
		}
	}
}

// listenable waits until the system has freed a port.
func listenable(t *testing.T, address string) {
	t.Helper()
	var l net.Listener = listen(t, address)
	l.Close()
}

func (g *group) submitTo(processes []*process, request string) string {
	g.Helper()
	g.askAny(processes, "submit "+request)
	return request
}

// askAny asks one after the other until one can answer.
func (g *group) askAny(processes []*process, line string) string {
	g.Helper()
	deadline := time.Now().Add(patience)
	for time.Now().Before(deadline) {
		for _, p := range processes {
			if got, ok := strings.CutPrefix(p.ask(line), "ok "); ok {
				return got
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	g.Fatalf("nobody answers %q", line)
	return ""
}
