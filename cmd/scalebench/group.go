package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// coordinator is one process of the group.
type coordinator struct {
	id, address string
	cmd         *exec.Cmd
	in          io.WriteCloser // it ends when this is closed
	dead        bool
}

// group are the coordinators.
type group struct{ all []*coordinator }

func startGroup(dir, skein string, n int) (*group, error) {
	g := &group{}
	var members []string
	var ports []net.Listener
	for i := range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		ports = append(ports, l)
		c := &coordinator{id: fmt.Sprint("c", i+1), address: l.Addr().String()}
		g.all = append(g.all, c)
		members = append(members, c.id+"="+c.address)
	}
	for _, l := range ports { // at the end, so that none is given twice
		_ = l.Close() // nobody has connected
	}
	for _, c := range g.all {
		log, err := os.Create(filepath.Join(dir, c.id+".log"))
		if err != nil {
			g.end()
			return nil, err
		}
		c.cmd = exec.Command(skein, "coordinator", "--id", c.id, "--listen", c.address, "--dir", filepath.Join(dir, c.id), "--members", strings.Join(members, ","), "--until-stdin-ends")
		c.cmd.Stderr = log
		if c.in, err = c.cmd.StdinPipe(); err == nil {
			err = c.cmd.Start()
		}
		log.Close() // the process has it
		if err != nil {
			g.end()
			return nil, err
		}
	}
	return g, nil
}

func (g *group) addresses() (list []string) {
	for _, c := range g.all {
		list = append(list, c.address)
	}
	return list
}

// leads is the coordinator that leads, as soon as one says so that is alive.
func (g *group) leads(ctx context.Context, api skeinv1.ClusterClient) (found *coordinator, err error) {
	err = until(ctx, "a coordinator leads", func() bool {
		one, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		n, err := api.Nodes(one, &skeinv1.NodesRequest{})
		if err != nil {
			return false
		}
		for _, m := range n.GetCoordinators() {
			for _, c := range g.all {
				if m.GetLeader() && c.id == m.GetId() && !c.dead {
					found = c
				}
			}
		}
		return found != nil
	})
	return found, err
}

// kill ends one with SIGKILL.
func (g *group) kill(c *coordinator) {
	if c.cmd == nil || c.cmd.Process == nil || c.dead {
		return
	}
	c.dead = true
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
	c.in.Close()
}

func (g *group) end() {
	for _, c := range g.all {
		g.kill(c)
	}
}

// cpu is what all but one have used.
func (g *group) cpu(but *coordinator) (sum time.Duration) {
	for _, c := range g.all {
		if c != but && !c.dead {
			sum += c.cpu()
		}
	}
	return sum
}

// tick is the unit of processor time in /proc, on every Linux.
const tick = 10 * time.Millisecond

// cpu is the processor time of a process; 0 if it cannot be read.
func (c *coordinator) cpu() time.Duration {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	_, after, _ := strings.Cut(string(b), ") ") // the program's name may have spaces
	f := strings.Fields(after)
	if len(f) < 13 {
		return 0
	}
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * tick
}

// memory is a line of /proc/PID/status in MiB; 0 if it cannot be read.
func (c *coordinator) memory(name string) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == name+":" {
			kib, _ := strconv.Atoi(f[1])
			return kib >> 10
		}
	}
	return 0
}
