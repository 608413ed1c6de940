package fleet

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// crew are the worker processes. One that is lost is started again: the job has gone on
// without it meanwhile.
type crew struct {
	config      Config
	dir         string // of their folders and logs
	coordinator string

	mu       sync.Mutex
	stopping bool
	running  map[string]*exec.Cmd
	wake     chan struct{} // closed when the crew stops
	done     sync.WaitGroup
}

const (
	startAgain = time.Second
	// A worker that ends so soon, so often in a row, cannot run here.
	tooSoon  = 5 * time.Second
	tooOften = 3
)

// start starts all workers. Failed is called once if one cannot run here.
func (c *crew) start(failed func(error)) {
	c.running, c.wake = map[string]*exec.Cmd{}, make(chan struct{})
	for i := range c.config.Workers {
		name := fmt.Sprint("w", i+1)
		c.done.Go(func() { c.keep(name, failed) })
	}
}

// keep runs one worker until the crew stops.
func (c *crew) keep(name string, failed func(error)) {
	for quick := 0; ; {
		began := time.Now()
		err := c.live(name)
		c.mu.Lock()
		stopping := c.stopping
		c.mu.Unlock()
		if stopping {
			return
		}
		if quick++; time.Since(began) > tooSoon {
			quick = 0
		}
		if quick >= tooOften {
			failed(fmt.Errorf("worker %s cannot run: %w", name, err))
			return
		}
		select {
		case <-time.After(startAgain):
		case <-c.wake:
			return
		}
	}
}

// live is one life of a worker. Its error is the last thing that it said.
func (c *crew) live(name string) error {
	log, err := logFile(filepath.Join(c.dir, name+".log"))
	if err != nil {
		return err
	}
	defer log.Close()
	last := &lastLine{to: log}
	p := c.config.Program
	args := append(p[1:len(p):len(p)], "worker", "--name", name, "--coordinator", c.coordinator, "--dir", filepath.Join(c.dir, name),
		"--threads", fmt.Sprint(c.config.Threads), "--numeric-class", c.config.Job.Train.NumericClass, "--until-stdin-ends")
	if c.config.Memory > 0 {
		args = append(args, "--memory", fmt.Sprint(c.config.Memory))
	}
	cmd := exec.Command(p[0], args...)
	cmd.Stdout, cmd.Stderr = last, last
	cmd.SysProcAttr = apart()
	// The worker ends when this pipe does: with this process, whatever ends it.
	rope, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := c.begin(name, cmd); err != nil {
		return errors.Join(err, rope.Close())
	}
	err = cmd.Wait()
	c.mu.Lock()
	delete(c.running, name)
	c.mu.Unlock()
	if said := last.line(); said != "" {
		return errors.New(said)
	}
	return err
}

func (c *crew) begin(name string, cmd *exec.Cmd) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopping {
		return errors.New("stopping")
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	c.running[name] = cmd
	return nil
}

// stop asks all workers to leave, and ends those that have not after a while.
func (c *crew) stop(patience time.Duration) error {
	c.mu.Lock()
	if c.wake == nil {
		c.mu.Unlock()
		return nil
	}
	if !c.stopping {
		c.stopping = true
		close(c.wake)
	}
	for _, cmd := range c.running {
		if patience > 0 {
			_ = leave(cmd.Process) // it has ended, if this fails
		}
	}
	c.mu.Unlock()
	gone := make(chan struct{})
	go func() { c.done.Wait(); close(gone) }()
	if patience > 0 {
		select {
		case <-gone:
			return nil
		case <-time.After(patience):
		}
	}
	c.mu.Lock()
	for _, cmd := range c.running {
		_ = cmd.Process.Kill() // as above
	}
	c.mu.Unlock()
	<-gone
	return nil
}

// lastLine passes on what a process says and keeps its last line.
type lastLine struct {
	to   io.Writer
	mu   sync.Mutex
	tail []byte
}

const tailMax = 4096

// Write implements io.Writer.
func (l *lastLine) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail, b...)
	l.tail = l.tail[max(0, len(l.tail)-tailMax):]
	return l.to.Write(b)
}

// line is the last line, without the name of the program in front.
func (l *lastLine) line() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(l.tail), []byte("\n"))
	return strings.TrimPrefix(string(lines[len(lines)-1]), "skein: ")
}
