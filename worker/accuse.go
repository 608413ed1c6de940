package worker

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/worker/trainer"
)

// heed waits for the link to break, and then does what others wait for and what takes time:
// it says who is at fault, and asks around who is still there. The coordinator asks the
// accused itself, at the same time as this worker seals. It ends with the link.
func (h *hosting) heed(link *allreduce.Link) {
	<-link.Broken()
	broken, ok := errors.AsType[*allreduce.LinkError](link.Err())
	if !ok || broken.Accused < 0 {
		return
	}
	if h.Accuse != nil {
		h.Accuse(h.nameOf(broken.Accused), broken.Error())
	}
	h.reached = h.askAround(h.nameOf(broken.Accused))
}

// Whoever is waited for is in the log of each worker after a second. The job's own lines say so when that is
// longer than steps take, or, while nobody knows how long they take, than any but the largest do.
const (
	lookEvery    = 250 * time.Millisecond
	waitedMin    = 1500 * time.Millisecond
	waitedSteps  = 2 // as long as so many steps
	waitedAtMost = 30 * time.Second
)

// lookOut notes who is waited for, once for each step. Of all that wait, the first one in the ring says it. It ends
// with the link.
func (h *hosting) lookOut(link *allreduce.Link) {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	var noted allreduce.Stuck
	for {
		select {
		case <-link.Broken():
			return
		case <-look.C:
		}
		s, ok := link.Stuck()
		says := 0
		if s.Worker == 0 {
			says = 1
		}
		if !ok || s.Worker < 0 || h.self != says || s.For < h.patience() || s.Worker == noted.Worker && s.Step == noted.Step {
			continue
		}
		noted = s
		h.note("%s", s)
	}
}

// patience is how long a wait is nothing to speak of.
func (h *hosting) patience() time.Duration {
	if took := h.took.Load(); took > 0 {
		return max(waitedMin, waitedSteps*time.Duration(took))
	}
	return waitedAtMost
}

// reachMax is how long a member's listener may take to answer: the machine may be busy. One that
// is accused is likely to take all of its time, and the next generation waits for that.
const (
	reachMax     = time.Second
	reachAccused = 300 * time.Millisecond
)

// askAround finds the members whose ring answers from here; their names come at once.
func (h *hosting) askAround(accused string) <-chan []string {
	members := h.Order.GetMembers()
	answer := make(chan []string, 1)
	go func() {
		var all sync.WaitGroup
		names := make([]string, len(members))
		for i, m := range members {
			all.Go(func() {
				wait := reachMax
				if m.GetWorker() == accused {
					wait = reachAccused
				}
				ctx, cancel := context.WithTimeout(context.Background(), wait)
				defer cancel()
				if m.GetWorker() == h.Worker || m.GetRingAddress() != "" && allreduce.Reach(ctx, allreduce.Probe{
					From: h.Worker, Name: m.GetWorker(), Addr: m.GetRingAddress(), TLS: h.TLS, PeerName: h.PeerName}) == nil {
					names[i] = m.GetWorker()
				}
			})
		}
		all.Wait()
		answer <- slices.DeleteFunc(names, func(s string) bool { return s == "" })
	}()
	return answer
}

// reaches names the members whose ring answers from here.
func (h *hosting) reaches() []string {
	if h.reached == nil {
		h.reached = h.askAround("")
	}
	names := <-h.reached
	h.reached = nil
	return names
}

// straggler says which rank all others wait for, and which worker hosts it. That it is
// another one than before is noted.
func (h *hosting) straggler(s *trainer.Straggler) (text, worker string) {
	if s == nil {
		return "", ""
	}
	does := "computes"
	if s.Data {
		does = "waits for its samples, and computes,"
	}
	worker = h.nameOf(s.Worker)
	text = fmt.Sprintf("rank %d on %s %s %.1f times as long as the median rank, for %d steps in a row", s.Rank, worker, does, s.Times, s.Steps)
	if h.slowest != int(s.Rank) {
		h.slowest = int(s.Rank)
		h.note("%s: all others wait for it", text)
	}
	return text, worker
}

// whereNotFinite says in which layer NaN or infinity began in a step that is skipped for it: in that of the
// rank that the decision names, if it is hosted here, or by the sums of all; "" if neither says.
func whereNotFinite(res trainer.Result) string {
	for _, x := range res.NotFinite {
		if x.Rank == res.Decision.Culprit && (x.Forward || x.Layer != "") {
			return ", " + x.String()
		}
	}
	if res.Layer != "" {
		return ", first in " + res.Layer
	}
	return ""
}

// noteNotFinite says which ranks here have computed NaN or infinity, and in which layer that began, but
// not the same in each of many steps.
func (h *hosting) noteNotFinite(res trainer.Result) {
	var ranks []string
	for _, x := range res.NotFinite {
		ranks = append(ranks, fmt.Sprintf("rank %d on %s, %s", x.Rank, h.Worker, x))
	}
	text := strings.Join(ranks, "; ")
	if text != "" && text != h.unsound {
		h.note("NaN or infinity in step %d: %s", res.Decision.Step, text)
	}
	h.unsound = text
}
