package linear

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

	"github.com/skein-ml/skein/coordinator"
	"github.com/skein-ml/skein/coordinator/membership"
	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/coordinator/recovery"
	"github.com/skein-ml/skein/coordinator/scheduler"
	"github.com/skein-ml/skein/internal/leak"
)

// childEnv makes the test program a coordinator in a process of its own, to be killed:
// "dir|id|members". It ends with its standard input.
const childEnv = "SKEIN_LINEAR_CHILD"

// patience is generous: the machine may be busy with other things.
const patience = 60 * time.Second

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

// members reads id=address,….
func members(text string) (list []raftlog.Server) {
	for s := range strings.SplitSeq(text, ",") {
		id, address, _ := strings.Cut(s, "=")
		list = append(list, raftlog.Server{ID: id, Address: address})
	}
	return list
}

// child is a coordinator that others reach through a wire only.
func child(f []string) error {
	c := coordinator.Config{
		Cluster: "test", ID: f[1], Dir: filepath.Join(f[0], f[1]), Build: "test", Members: members(f[2]),
		ElectionTimeout: 300 * time.Millisecond, Tick: 20 * time.Millisecond, Heartbeat: 100 * time.Millisecond,
		Membership: membership.Config{Lease: 3 * time.Second, Reconnect: time.Second},
		Recovery:   recovery.Config{LostStateWait: 100 * time.Millisecond, Settle: 50 * time.Millisecond},
		Scheduler:  scheduler.Config{Settle: 50 * time.Millisecond},
	}
	for _, m := range c.Members {
		if m.ID == c.ID {
			c.Advertise = m.Address
		}
	}
	var co *coordinator.Coordinator
	for try := 0; co == nil; try++ {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		c.Listen = l.Addr().String()
		l.Close()
		if co, err = coordinator.Start(c); err != nil && try == 20 { // somebody else took the port
			return err
		}
	}
	fmt.Println("ready", c.Listen)
	_, err := io.Copy(io.Discard, os.Stdin)
	return errors.Join(err, co.Stop())
}

// node is a coordinator's process.
type node struct {
	id  string
	cmd *exec.Cmd
	in  io.WriteCloser
}

// spawn starts a coordinator on its folder, and leads its wire there.
func (c *cluster) spawn(id string) {
	c.Helper()
	var list []string
	for _, m := range c.members {
		list = append(list, m.ID+"="+m.Address)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+strings.Join([]string{c.dir, id, strings.Join(list, ",")}, "|"))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		c.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.nodes[id] = &node{id, cmd, in}
	s := bufio.NewScanner(out)
	if s.Scan(); !strings.HasPrefix(s.Text(), "ready ") {
		c.Fatalf("%s did not start: %s", id, s.Text())
	}
	c.wire.lead(id, strings.TrimPrefix(s.Text(), "ready "))
}

// kill ends a coordinator with SIGKILL.
func (c *cluster) kill(id string) {
	n := c.nodes[id]
	if n == nil {
		return
	}
	delete(c.nodes, id)
	_ = n.cmd.Process.Kill()
	_ = n.cmd.Wait()
	n.in.Close()
}
