package main

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/skein-ml/skein/client"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/worker/workertest"
)

// runbook is one page of docs/runbooks, and how it is tried.
type runbook struct {
	page   string
	strike func(*books)
	before int      // so many of its commands come before the failure
	late   bool     // what it says is seen is so after its commands
	unseen []string // lines that cannot be made here: they must be in the sources
	after  func(*books)
}

// runbooks are the pages in the order in which they are tried, on one cluster.
var runbooks = []runbook{
	{page: "worker-dies", strike: func(b *books) { b.kill("w2") }},
	{page: "worker-hangs", strike: (*books).hang},
	{page: "worker-slow", strike: func(b *books) { b.protected(4) }, late: true},
	{page: "node-lost", strike: func(b *books) { b.kill("w3", "w4") }},
	{page: "partition", strike: (*books).cut, unseen: []string{"… its connection broke … ago", "… knows no leader"}},
	{page: "does-not-fit", strike: func(b *books) { b.kill("w3", "w4", "w2") }},
	{page: "store", strike: func(*books) {}, unseen: []string{"Checkpoint … failed: …no space left on device…; it is tried again"}},
	{page: "leader-lost", strike: func(b *books) { b.kill(b.leads("c1")) }},
	{page: "quorum-lost", strike: (*books).loseQuorum, after: (*books).wentOn},
	{page: "bad-numbers", strike: (*books).explode, unseen: []string{
		"skipped: … saw a loss or gradient that is not finite…, first in …",
		"diverged … the copies of … and of its mirror on … differ after step …", "the same steps gave other bits"}},
	{page: "certificate", strike: (*books).expire, unseen: []string{"its certificate has expired or is not valid yet"}},
	{page: "disk-lost", strike: (*books).damage},
	{page: "restored", strike: (*books).loseCoordinators, before: 1, late: true},
}

// TestEveryCommandOfARunbookDoesWhatItSays makes each failure that docs/runbooks has a page
// for, waits for what the page says is seen, and runs the commands of the page.
func TestEveryCommandOfARunbookDoesWhatItSays(t *testing.T) {
	pages, err := filepath.Glob("../../docs/runbooks/*.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range pages {
		name := strings.TrimSuffix(filepath.Base(p), ".md")
		tried := slices.ContainsFunc(runbooks, func(r runbook) bool { return r.page == name })
		if !tried && name != "README" && name != "stopped-job" {
			t.Errorf("nobody tries %s", p)
		}
	}
	b := newBooks(t)
	for _, r := range runbooks {
		sees, does := readRunbook(t, r.page)
		began := time.Now()
		look := func() {
			for _, line := range sees {
				if slices.Contains(r.unseen, line) {
					b.written(r.page, line)
				} else {
					b.sees(r.page, line)
				}
			}
		}
		for i, line := range does {
			if i == r.before {
				r.strike(b)
				if !r.late {
					look()
				}
			}
			b.does(r.page, line)
		}
		if r.late {
			look()
		}
		if r.after != nil {
			r.after(b)
		}
		t.Logf("%-14s %d lines seen, %d commands, %.1f s", r.page, len(sees)-len(r.unseen), len(does), time.Since(began).Seconds())
	}
}

// readRunbook finds what a page says is seen, and the commands that it gives.
func readRunbook(t *testing.T, page string) (sees, does []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/runbooks/" + page + ".md")
	if err != nil {
		t.Fatal(err)
	}
	for i, block := range strings.Split(string(text), "\n```")[1:] {
		if i%2 == 1 {
			continue // between two blocks
		}
		kind, lines, _ := strings.Cut(block, "\n")
		for line := range strings.Lines(strings.ReplaceAll(lines, "\\\n", "") + "\n") {
			if line = strings.TrimSpace(line); line == "" {
				continue
			}
			if kind == "sh" {
				does = append(does, line)
			} else {
				sees = append(sees, line)
			}
		}
	}
	if len(does) == 0 {
		t.Fatalf("%s gives no command", page)
	}
	return sees, does
}

// books is the cluster on which the pages are tried.
type books struct {
	*rig
	id    string          // of the job that the page is about
	tiny  string          // of the job that trains all the time
	lags  map[string]*lag // by worker: what its ring is reached through
	heard []string        // what commands that had to fail have said
	was   client.Job      // before something that it must not notice
}

func newBooks(t *testing.T) *books {
	j := clusterJob(t)
	certify(t, j, "ca")
	issue(t, j, "ca", "admin", "me")
	for _, name := range []string{"w3", "w4"} {
		issue(t, j, "ca", "worker", name)
	}
	b := &books{rig: &rig{T: t, job: j, processes: map[string]*process{}, addresses: freeAddresses(t, 4), secure: true}, lags: map[string]*lag{}}
	spare := b.addresses[3]
	b.addresses = b.addresses[:3]
	for n := range 3 {
		b.coordinator(n + 1)
	}
	b.addresses = append(b.addresses, spare) // 10.0.0.4, where nobody is yet
	t.Setenv(coordinatorVariable, strings.Join(b.addresses, ","))
	t.Setenv(tlsVariable, j.Path("certs/me"))
	for n := range 4 {
		b.does("the beginning", fmt.Sprintf("skein worker --name w%[1]d --coordinator 10.0.0.1:7401,10.0.0.2:7401,10.0.0.3:7401 --dir /var/lib/skein/w%[1]d --tls /etc/skein/w%[1]d", n+1))
	}
	b.joined(4)
	b.tiny = b.submit("train.steps=100000", "train.schedule.warmupSteps=4", "checkpoint.every=4 steps", "cluster.protect=mirror", "cluster.workers.min=2", "cluster.workers.max=4")
	b.id = b.tiny
	b.protected(4)
	return b
}

// protected waits until the job trains on so many workers and can lose any one of them. On a
// busy machine a worker may be left out for a minute, because another one did not reach it.
func (b *books) protected(workers int) {
	b.Helper()
	for deadline := time.Now().Add(4 * patience); ; time.Sleep(100 * time.Millisecond) {
		j := b.describe(b.tiny)
		if j.Phase == "running" && len(j.Workers) == workers && j.Progress != nil && j.Progress.Protected {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("it is never protected on %d workers: %s\n%s", workers, b.must("describe", b.tiny), b.logs())
		}
	}
}

// leads makes a coordinator the leader.
func (b *books) leads(id string) string {
	b.Helper()
	b.must("coordinator", "transfer", "--to", id)
	b.eventually(id+" leads", func() bool { return regexp.MustCompile(`(?m)^` + id + `\s+leader`).MatchString(b.must("nodes")) })
	return id
}

// fails runs a command that has to fail.
func (b *books) fails(args ...string) {
	b.Helper()
	status, out, errs := program(b.T, b.job, args...)
	if status == exitOK {
		b.Errorf("skein %s does not fail: %s", strings.Join(args, " "), out)
	}
	b.heard = append(b.heard, errs)
}

func (b *books) hang() {
	b.protected(4)
	if err := b.processes["w3"].cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		b.Fatal(err)
	}
}

// loseQuorum leaves one coordinator of three, for a few steps.
func (b *books) loseQuorum() {
	b.protected(2)
	b.was = b.describe(b.tiny)
	b.kill("c1", "c2")
	b.fails("jobs", "--connect-timeout", "2s")
}

// wentOn looks whether the job has gone on as if nothing had been.
func (b *books) wentOn() {
	b.eventually("the leader hears of its steps", func() bool { return b.describe(b.tiny).Step > b.was.Step })
	if now := b.describe(b.tiny); now.Generation != b.was.Generation {
		b.Errorf("without a quorum the job came from generation %d to %d: %s", b.was.Generation, now.Generation, now.Reason)
	}
}

// cut breaks the ring between two workers that both live.
func (b *books) cut() {
	b.protected(4)
	b.lags["w2"].cut()
}

// explode submits a job of a model whose first layer overflows.
func (b *books) explode() {
	b.must("pause", b.tiny)
	b.eventually("it is paused", func() bool { return b.describe(b.tiny).Phase == "paused" })
	workertest.CopyFolder(b.T, b.job.Path("model"), b.job.Path("hot"))
	file := b.job.Path("hot/model.safetensors")
	raw, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	n := binary.LittleEndian.Uint64(raw)
	var tensors map[string]struct {
		Offsets []uint64 `json:"data_offsets"`
	}
	if err := json.Unmarshal(raw[8:8+n], &tensors); err != nil {
		b.Fatal(err)
	}
	at := tensors["model.layers.0.mlp.down_proj.weight"].Offsets
	if len(at) != 2 {
		b.Fatalf("the model has no such tensor: %s", raw[8:8+n])
	}
	for i := at[0]; i < at[1]; i++ {
		raw[8+n+i] = 0x7f // the largest numbers that there are, in fp32 and in bf16
	}
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		b.Fatal(err)
	}
	hot := b.submit("model.base=./hot", "checkpoint.store=./hot-store", "output.export=./hot-trained")
	b.eventually("it fails", func() bool { return b.describe(hot).Phase == "failed" })
	b.heard = append(b.heard, b.must("describe", hot))
	b.id = b.submit("train.steps=100000", "train.schedule.warmupSteps=4", "checkpoint.store=./other-store", "output.export=./other-trained")
	b.eventually("it runs", func() bool { return b.describe(b.id).Phase == "running" })
}

// expire waits until a certificate that was made for a second is no good any more.
func (b *books) expire() {
	b.id = b.tiny
	b.must("resume", b.tiny)
	ca, err := pki.LoadCA(b.job.Path("ca"))
	if err == nil {
		err = ca.IssueTo(b.job.Path("certs/late"), pki.Client, "late", nil, time.Second)
	}
	if err != nil {
		b.Fatal(err)
	}
	b.eventually("it has expired", func() bool {
		status, _, errs := program(b.T, b.job, "nodes", "--tls", "certs/late")
		b.heard = append(b.heard, errs)
		return status != exitOK && strings.Contains(errs, "expired")
	})
}

// damage spoils the log of c2.
func (b *books) damage() {
	b.kill("c2")
	path := b.job.Path("c2/log.db")
	log, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	for i := 4 << 12; i < len(log); i++ { // behind the database's own head
		log[i] ^= 0x5a
	}
	if err := os.WriteFile(path, log, 0o600); err != nil {
		b.Fatal(err)
	}
	b.fails("coordinator", "--id", "c2", "--listen", b.addresses[1], "--dir", "c2", "--tls", "certs/c2")
}

// loseCoordinators loses all of them, with their disks.
func (b *books) loseCoordinators() {
	for name := range b.processes {
		if strings.HasPrefix(name, "c") {
			b.kill(name)
		}
	}
}

// sees waits until a line of a page is what a user has before him. In it … stands for
// anything.
func (b *books) sees(page, line string) {
	b.Helper()
	pattern := regexp.QuoteMeta(line)
	pattern = strings.ReplaceAll(pattern, "…", ".*")
	like := regexp.MustCompile(regexp.MustCompile(`\s+`).ReplaceAllString(pattern, `\s+`))
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		text := b.sight()
		if like.MatchString(text) {
			return
		}
		if time.Now().After(deadline) {
			b.Fatalf("%s: nowhere is seen %q in\n%s\n%s", page, line, text, b.logs())
		}
	}
}

// sight is what a user sees: of the job, of the cluster, and of commands that failed.
func (b *books) sight() string {
	all := slices.Clone(b.heard)
	for _, args := range [][]string{{"describe", b.id}, {"jobs", "-o", "wide"}, {"nodes"}} {
		_, out, errs := program(b.T, b.job, append(args, "--connect-timeout", "2s")...)
		all = append(all, out, errs)
	}
	return strings.Join(all, "\n")
}

// written looks for a line that cannot be made here in the sources, part by part: what is
// variable in it is so there.
func (b *books) written(page, line string) {
	b.Helper()
	for part := range strings.SplitSeq(line, "…") {
		if part = strings.Trim(part, " ,:;0123456789"); len(part) < 8 {
			continue
		}
		if !strings.Contains(sources(b.T), part) {
			b.Errorf("%s: no program says %q", page, part)
		}
	}
}

// sources are all that the programs are made of, in one text.
var sources = func() func(*testing.T) string {
	var once sync.Once
	var text strings.Builder
	return func(t *testing.T) string {
		t.Helper()
		once.Do(func() {
			err := filepath.WalkDir("../..", func(path string, e fs.DirEntry, err error) error {
				if err != nil {
					return err
				}
				if e.IsDir() && (e.Name() == ".cache" || e.Name() == ".git") {
					return fs.SkipDir
				}
				if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
					return nil
				}
				raw, err := os.ReadFile(path)
				text.Write(raw)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		})
		return text.String()
	}
}()

// does runs a command of a page: one that goes on is left running, under its name.
func (b *books) does(page, line string) {
	b.Helper()
	words := b.here(line)
	if words[0] != "skein" {
		cmd := exec.Command(words[0], words[1:]...)
		cmd.Dir = b.job.Dir
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Errorf("%s: %s: %v, %s", page, line, err, out)
		}
		return
	}
	name, isWorker := strings.CutPrefix(line, "skein worker --name ")
	if !isWorker {
		if name, _ = strings.CutPrefix(line, "skein coordinator --id "); name == line {
			if status, _, errs := program(b.T, b.job, words[1:]...); status != exitOK {
				b.Fatalf("%s: %s: status %d, %s\n%s", page, line, status, errs, b.logs())
			}
			return
		}
	}
	name, _, _ = strings.Cut(name, " ")
	if old := b.processes[name]; old != nil {
		b.kill(name)
	}
	if isWorker {
		if b.lags[name] == nil {
			b.lags[name] = newLag(b.T)
		}
		words = append(words, "--threads", "1", "--memory", "2GiB", "--ring-listen", b.lags[name].to, "--ring-advertise", b.lags[name].address, "--node", nodes[name])
	}
	p := start(b.T, b.job, words[1:]...)
	b.processes[name] = p
	if isWorker {
		p.err.waitFor(b.T, "session opened")
	} else {
		p.err.waitFor(b.T, "coordinator started")
	}
}

// nodes are the machines that workers are on.
var nodes = map[string]string{"w1": "n1", "w2": "n1", "w3": "n2", "w4": "n2"}

// here puts this cluster into a command: addresses, folders and the job.
func (b *books) here(line string) []string {
	for n, a := range b.addresses {
		line = strings.ReplaceAll(line, fmt.Sprintf("10.0.0.%d:7401", n+1), a)
	}
	line = regexp.MustCompile(`10\.0\.0\.\d`).ReplaceAllString(line, "127.0.0.1")
	line = strings.ReplaceAll(line, "/var/lib/skein/", b.job.Path("")+"/")
	line = strings.ReplaceAll(line, "/etc/skein/", b.job.Path("certs")+"/")
	words := shellWords(line)
	for i, w := range words {
		if w == "tiny" {
			words[i] = b.id
		}
	}
	return words
}

// lag is what a worker's ring is reached through: it takes its time, so that the job takes
// a step now and then and the machine has time for the rest.
type lag struct {
	address, to string
	done        sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]bool
}

const lagTime = 20 * time.Millisecond

func newLag(t *testing.T) *lag {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &lag{address: l.Addr().String(), to: freeAddresses(t, 1)[0], conns: map[net.Conn]bool{}}
	g.done.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", g.to)
			if err != nil {
				near.Close()
				continue
			}
			g.mu.Lock()
			g.conns[near], g.conns[far] = true, true
			g.mu.Unlock()
			g.done.Go(func() { g.pump(near, far) })
			g.done.Go(func() { g.pump(far, near) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		g.cut()
		g.done.Wait()
	})
	return g
}

func (g *lag) pump(to, from net.Conn) {
	b := make([]byte, 1<<20)
	for {
		n, err := from.Read(b)
		time.Sleep(lagTime)
		if n > 0 && err == nil {
			_, err = to.Write(b[:n])
		}
		if err != nil {
			break
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range []net.Conn{from, to} {
		c.Close()
		delete(g.conns, c)
	}
}

// cut breaks every connection to the worker.
func (g *lag) cut() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for c := range g.conns {
		c.Close()
	}
}
