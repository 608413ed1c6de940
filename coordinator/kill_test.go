package coordinator

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/skein-ml/skein/coordinator/raftlog"
	"github.com/skein-ml/skein/internal/pki"
	"github.com/skein-ml/skein/proto/leader"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// member finds a coordinator by its id.
func (r *rig) member(id string) raftlog.Server {
	i := slices.IndexFunc(r.members, func(m raftlog.Server) bool { return m.ID == id })
	return r.members[i]
}

// respawn starts a coordinator that was killed, as soon as its port is free.
func (r *rig) respawn(id string) {
	r.Helper()
	m := r.member(id)
	r.until("the port of "+id+" is free", func() bool { return listenable(m.Address) })
	r.spawn(m, r.members)
}

func TestTheLeaderIsKilledWhileAJobIsWatched(t *testing.T) {
	r := newProcesses(t, 3)
	chatty := func(w *fakeWorker) { w.chatty = true }
	w1 := r.worker("w1", "p1", chatty)
	r.worker("w2", "p1", chatty)
	r.joined(2)
	w1.hold()
	id := r.submit("one", nil)
	var got record
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.watch(r.ctx(), skeinv1.NewJobsClient(r.dial(pki.Client, "alice")), id, &got)
	}()
	r.eventually(id, "it runs", inPhase(skeinv1.Phase_PHASE_RUNNING))
	first := r.leader()
	r.kill(first)
	began := time.Now()
	w1.letGo()
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	t.Logf("done %s after %s was killed", time.Since(began).Round(time.Millisecond), first)
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("the watch never ends")
	}
	if !errors.Is(got.ended, io.EOF) {
		t.Errorf("the watch ended with %v", got.ended)
	}
	var published []string
	for i, e := range got.events {
		if i > 0 && e.GetIndex() <= got.events[i-1].GetIndex() {
			t.Errorf("event %d comes after %d", e.GetIndex(), got.events[i-1].GetIndex())
		}
		if e.GetKind() == "published" {
			published = append(published, e.GetText())
		}
	}
	if last := got.events[len(got.events)-1]; len(published) != 3 || last.GetKind() != "done" {
		t.Errorf("%d checkpoints were published, and the last event is %v", len(published), last)
	}
	var of []string
	for _, l := range got.lines {
		if l.GetWorker() == "w1" {
			of = append(of, key(l))
		}
	}
	if want := w1.lines(); len(want) < 5 || !slices.Equal(of, want) {
		t.Errorf("w1 said %v, and the client has %v", want, of)
	}
}

func TestWhatWasAcknowledgedIsReadUnderTheNextLeaderAtOnce(t *testing.T) {
	r := newProcesses(t, 3)
	var jobs []string
	for round := range 3 {
		first := r.leader()
		jobs = append(jobs, r.submit(fmt.Sprint("round-", round), nil))
		if _, err := r.jobs.Cancel(r.ctx(), &skeinv1.CancelRequest{Job: jobs[round], Reason: "enough"}); err != nil {
			t.Fatal(err)
		}
		r.kill(first)
		// The very first answer of whoever answers must have both.
		if j := r.get(jobs[round]); j.GetPhase() != skeinv1.Phase_PHASE_CANCELED || j.GetReason() != "canceled: enough" {
			t.Errorf("round %d: %s was killed, and the job is %v", round, first, j)
		}
		r.respawn(first)
	}
	for _, m := range r.members { // a power cut
		r.kill(m.ID)
	}
	for _, m := range r.members {
		r.respawn(m.ID)
	}
	list, err := r.jobs.List(r.ctx(), &skeinv1.ListRequest{})
	if err != nil || len(list.GetJobs()) != len(jobs) {
		t.Fatalf("%d of %d jobs came back, %v", len(list.GetJobs()), len(jobs), err)
	}
}

// TestALeaderIsKilledAgainAndAgain measures how long it takes until the next leader answers:
// SKEIN_LEADER_KILLS=20 kills so many, and tells; by itself it kills two.
func TestALeaderIsKilledAgainAndAgain(t *testing.T) {
	kills := 2
	if s := os.Getenv(leaderKills); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 {
			t.Fatalf("SKEIN_LEADER_KILLS=%q: a number of kills is needed", s)
		}
		kills = n
	}
	r := newProcesses(t, 3)
	id := r.submit("one", nil)
	var took []time.Duration
	for range kills {
		r.settled()
		first := r.leader()
		r.kill(first)
		began := time.Now()
		if j := r.get(id); j.GetId() != id {
			t.Fatalf("the job is %v", j)
		}
		took = append(took, time.Since(began))
		r.respawn(first)
	}
	slices.Sort(took)
	t.Logf("%d leaders killed: the next one answered after %s (median), %s (95th percentile), %s at most",
		kills, took[kills/2].Round(time.Millisecond), took[(kills*95+99)/100-1].Round(time.Millisecond), took[kills-1].Round(time.Millisecond))
}

// settled waits until all coordinators follow the same leader and have all that it has.
func (r *rig) settled() {
	r.Helper()
	r.until("all coordinators agree", func() bool {
		leaders, applied := map[string]bool{}, map[uint64]bool{}
		for _, m := range r.members {
			conn, err := leader.New(leader.Config{Addresses: []string{m.Address}, TLS: r.files(pki.Admin, "olga").Expect(pki.Coordinator), Build: "test"})
			if err != nil {
				r.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(r.ctx(), 2*time.Second)
			s, err := skeinv1.NewClusterClient(conn).Status(ctx, &skeinv1.StatusRequest{})
			cancel()
			conn.Close()
			if err != nil || s.GetLeaderId() == "" {
				return false
			}
			leaders[s.GetLeaderId()], applied[s.GetAppliedIndex()] = true, true
		}
		return len(leaders) == 1 && len(applied) == 1
	})
}

// A process that was stopped wakes up with answers in its buffers from the time when it
// led, and with requests behind them.
func TestALeaderThatSleptThroughItsSuccessorDoesNotAnswerFromMemory(t *testing.T) {
	r := newProcesses(t, 3)
	for round := range 3 {
		id := r.submit(fmt.Sprint("round-", round), nil)
		first := r.leader()
		c := leader.Config{Addresses: []string{r.member(first).Address}, TLS: r.files(pki.Admin, "olga").Expect(pki.Coordinator), Build: "test"}
		sleeper, err := leader.New(c)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := skeinv1.NewJobsClient(sleeper).Get(r.ctx(), &skeinv1.GetRequest{Job: id}); err != nil { // it is connected
			t.Fatal(err)
		}
		sleeping := r.processes[first].cmd.Process
		if err := sleeping.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		answers := make(chan *skeinv1.GetResponse, 20)
		var asked sync.WaitGroup
		if _, err := r.jobs.Cancel(r.ctx(), &skeinv1.CancelRequest{Job: id, Reason: "by the next leader"}); err != nil {
			t.Fatal(err)
		}
		for range cap(answers) { // they wait in the sleeper's buffers
			asked.Go(func() {
				ctx, cancel := context.WithTimeout(r.ctx(), 3*time.Second)
				defer cancel()
				if got, err := skeinv1.NewJobsClient(sleeper).Get(ctx, &skeinv1.GetRequest{Job: id}); err == nil {
					answers <- got
				}
			})
		}
		time.Sleep(100 * time.Millisecond)
		if err := sleeping.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		asked.Wait()
		close(answers)
		for got := range answers {
			if got.GetJob().GetPhase() != skeinv1.Phase_PHASE_CANCELED {
				t.Errorf("round %d: %s says the job is %v, after it was canceled by another leader", round, first, got.GetJob().GetPhase())
			}
		}
		sleeper.Close()
	}
}

func TestAJobGoesOnAfterEveryCoordinatorWasKilled(t *testing.T) {
	r := newProcesses(t, 3)
	w1 := r.worker("w1", "p1", nil)
	r.worker("w2", "p1", nil)
	r.joined(2)
	w1.hold()
	id := r.submit("one", nil)
	before := r.eventually(id, "it runs", inPhase(skeinv1.Phase_PHASE_RUNNING))
	for _, m := range r.members {
		r.kill(m.ID)
	}
	for _, m := range r.members {
		r.respawn(m.ID)
	}
	w1.letGo()
	r.eventually(id, "it is done", inPhase(skeinv1.Phase_PHASE_DONE))
	if after := r.get(id); after.GetGeneration() != before.GetGeneration() {
		t.Errorf("workers that were there all the time were placed again: generation %d after %d, %s", after.GetGeneration(), before.GetGeneration(), after.GetReason())
	}
}

func TestACoordinatorWhoseDiskIsLostIsReplaced(t *testing.T) {
	r := newProcesses(t, 3)
	id := r.submit("one", nil)
	var lost string
	for _, m := range r.members {
		if m.ID != r.leader() {
			lost = m.ID
		}
	}
	r.kill(lost)
	// A log that is damaged, or gone from its folder, is refused by name: to begin anew in it
	// would be to vote twice.
	log := filepath.Join(r.dir, lost, "log.db")
	m := r.member(lost)
	r.until("the port of "+lost+" is free", func() bool { return listenable(m.Address) })
	for what, damage := range map[string]func() error{
		"overwritten": func() error { return os.WriteFile(log, bytes.Repeat([]byte("x"), 1<<16), 0o644) },
		"deleted":     func() error { return os.Remove(log) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if co, err := Start(r.config(m)); !errors.Is(err, raftlog.ErrCorrupt) || !strings.Contains(err.Error(), "join anew under another id") {
			t.Errorf("%s: %v, %v", what, co, err)
		}
	}
	if err := os.RemoveAll(filepath.Join(r.dir, lost)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.ops.RemoveCoordinator(r.ctx(), &skeinv1.RemoveCoordinatorRequest{Id: lost}); err != nil {
		t.Fatal(err)
	}
	c4 := raftlog.Server{ID: "c4", Address: freeAddress(t)}
	r.spawn(c4, nil)
	if _, err := r.ops.AddCoordinator(r.ctx(), &skeinv1.AddCoordinatorRequest{Id: c4.ID, Address: c4.Address}); err != nil {
		t.Fatal(err)
	}
	r.members = append(r.members, c4)
	// The new one counts: with one more of the old ones gone, two of three are left.
	gone := r.leader()
	r.kill(gone)
	if j := r.get(id); j.GetId() != id {
		t.Errorf("the job is %v", j)
	}
	r.submit("two", nil)
	n, err := r.ops.Nodes(r.ctx(), &skeinv1.NodesRequest{})
	if err != nil || len(n.GetCoordinators()) != 3 {
		t.Fatalf("the group is %v, %v", n.GetCoordinators(), err)
	}
	for _, c := range n.GetCoordinators() {
		if c.GetId() == lost {
			t.Errorf("%s was removed, and is a member", lost)
		}
	}
	// Two of three: the last one alone answers nothing.
	for _, m := range r.members {
		if m.ID != gone && m.ID != lost && m.ID != "c4" {
			r.kill(m.ID)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := r.jobs.Get(ctx, &skeinv1.GetRequest{Job: id}); status.Code(err) != codes.Unavailable && status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("one of three coordinators answers: %v", err)
	}
}
