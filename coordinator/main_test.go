package coordinator

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/internal/leak"
	"github.com/skein-ml/skein/internal/pki"
)

// childEnv makes the test program a coordinator in a process of its own, to be killed:
// "root|id|address|members"; members is a comma-separated list of id=address, or empty.
// It ends by itself when its standard input does, which is when the test ends.
const childEnv = "SKEIN_COORDINATOR_CHILD"

// leaderKills is how many leaders to kill to measure how soon the next ones answer.
const leaderKills = "SKEIN_LEADER_KILLS"

func TestMain(m *testing.M) {
	if spec := os.Getenv(childEnv); spec != "" {
		if err := child(strings.Split(spec, "|")); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
		return
	}
	leak.Main(m)
}

func child(f []string) error {
	r := &rig{dir: f[0]}
	for s := range strings.SplitSeq(f[3], ",") {
		if id, address, ok := strings.Cut(s, "="); ok {
			r.members = append(r.members, raftlog.Server{ID: id, Address: address})
		}
	}
	c := r.config(raftlog.Server{ID: f[1], Address: f[2]})
	c.Membership.Lease = 15 * time.Second // a busy machine takes its time to connect again
	if os.Getenv(leaderKills) != "" {     // it is measured, with the timeout that coordinators have
		c.ElectionTimeout = 0
	}
	var err error
	if c.TLS, err = pki.Load(filepath.Join(f[0], "pki", "coordinator-"+f[1])); err != nil {
		return err
	}
	co, err := Start(c)
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, co.Stop())
}

// process is a coordinator in a process of its own.
type process struct {
	cmd *exec.Cmd
	in  io.WriteCloser
}

// newProcesses is a rig whose coordinators are processes.
func newProcesses(t *testing.T, size int) *rig {
	t.Parallel() // it waits most of the time
	r := &rig{T: t, dir: t.TempDir(), ca: newCA(t, "test"), processes: map[string]*process{}}
	for i := range size {
		r.members = append(r.members, raftlog.Server{ID: fmt.Sprint("c", i+1), Address: freeAddress(t)})
	}
	t.Cleanup(func() {
		for id := range r.processes {
			r.kill(id)
		}
	})
	for _, m := range r.members {
		r.spawn(m, r.members)
	}
	r.connect()
	return r
}

// spawn starts a coordinator; without members it waits to be added.
func (r *rig) spawn(m raftlog.Server, members []raftlog.Server) {
	r.Helper()
	r.files(pki.Coordinator, m.ID)
	var list []string
	for _, s := range members {
		list = append(list, s.ID+"="+s.Address)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{r.dir, m.ID, m.Address, strings.Join(list, ",")}, "|"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		r.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		r.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		r.Fatal(err)
	}
	r.processes[m.ID] = &process{cmd, in}
	if s := bufio.NewScanner(out); !s.Scan() || s.Text() != "ready" {
		r.Fatalf("%s did not start: %s", m.ID, s.Text())
	}
}

// kill ends a coordinator with SIGKILL.
func (r *rig) kill(id string) {
	p := r.processes[id]
	delete(r.processes, id)
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
	p.in.Close()
}

// listenable tells whether a port is free.
func listenable(address string) bool {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return false
	}
	l.Close()
	return true
}
