package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/skein-ml/skein/client"
)

// Faults of links and of the store: what newNetRig's hosts can suffer.

func (s *storm) check(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// cut cuts hosts off in some directions for a time, long enough that they are given up or not.
func (s *storm) cut(most time.Duration, directions []string, names ...string) string {
	s.Helper()
	away := s.upTo(most)
	for _, name := range names {
		for _, d := range directions {
			s.check(s.net.cut(name, d))
		}
	}
	began := time.Now()
	for _, name := range names {
		if s.net.reached(name) {
			s.Fatalf("%s is cut off and answers", name)
		}
	}
	time.Sleep(time.Until(began.Add(away)))
	for _, name := range names {
		for _, d := range directions {
			s.check(s.net.mend(name, d))
		}
	}
	return fmt.Sprintf("%s for %.1f s", strings.Join(names, ", "), time.Since(began).Seconds())
}

func (s *storm) cutWorker(j client.Job) string {
	return s.cut(4*time.Second, []string{from, to}, s.member(j))
}

// deafWorker is cut off one way: nothing reaches it, what it sends arrives.
func (s *storm) deafWorker(j client.Job) string {
	return s.cut(4*time.Second, []string{to}, s.member(j))
}

// muteWorker is cut off the other way.
func (s *storm) muteWorker(j client.Job) string {
	return s.cut(4*time.Second, []string{from}, s.member(j))
}

// partPair keeps two workers of the job from each other; coordinators reach both.
func (s *storm) partPair(j client.Job) string {
	if len(j.Workers) < 2 {
		return ""
	}
	at := s.rng.IntN(len(j.Workers))
	a, b := j.Workers[at].Worker, j.Workers[(at+1)%len(j.Workers)].Worker
	s.check(s.net.apart(a, b, true))
	away := s.upTo(4 * time.Second)
	time.Sleep(away)
	s.check(s.net.apart(a, b, false))
	return fmt.Sprintf("%s, %s for %.1f s", a, b, away.Seconds())
}

// flapLink pulls the plug of a worker of the job a few times.
func (s *storm) flapLink(j client.Job) string {
	victim, times := s.member(j), 2+s.rng.IntN(4)
	for range times {
		s.check(s.net.plug(victim, false))
		time.Sleep(s.upTo(500 * time.Millisecond))
		s.check(s.net.plug(victim, true))
		time.Sleep(s.upTo(500 * time.Millisecond))
	}
	return fmt.Sprintf("%s %d times", victim, times)
}

// slowLink counts if packets had to wait.
func (s *storm) slowLink(j client.Job) string {
	victim, rate := s.member(j), fmt.Sprint(1+s.rng.IntN(20), "mbit")
	s.check(s.net.slow(victim, rate))
	away := time.Second + s.upTo(3*time.Second)
	time.Sleep(away)
	felt := s.net.felt(victim)
	s.check(s.net.slow(victim, ""))
	if !felt {
		return ""
	}
	return fmt.Sprintf("%s %s for %.1f s", victim, rate, away.Seconds())
}

func (s *storm) cutLeader(client.Job) string {
	leader := s.leader()
	if leader == "" {
		return ""
	}
	return s.cut(3*time.Second, []string{from, to}, leader)
}

// cutQuorum leaves one coordinator of three within reach: none leads. No step waits for them.
func (s *storm) cutQuorum(client.Job) string {
	spared := 1 + s.rng.IntN(faultCoordinators)
	var names []string
	for i := 1; i <= faultCoordinators; i++ {
		if i != spared {
			names = append(names, fmt.Sprint("c", i))
		}
	}
	return s.cut(3*time.Second, []string{from, to}, names...)
}

// fillStore fills the store until the job says that a checkpoint has failed; it goes on, and
// publishes once there is room.
func (s *storm) fillStore(j client.Job) string {
	ballast := s.job.Path("small/ballast")
	s.fill(ballast)
	began := time.Now()
	var refused client.Job
	said := func() bool {
		refused = s.now(j.ID)
		return refused.Phase == "done" || refused.Phase == "running" && refused.Progress != nil && refused.Progress.Unsaved != ""
	}
	s.eventually("the job says that its checkpoint has failed", said)
	if refused.Phase != "done" && !strings.Contains(refused.Progress.Unsaved, "no space left on device") {
		s.Errorf("of a full store it says %q", refused.Progress.Unsaved)
	}
	s.eventually("the job goes on without a checkpoint", func() bool {
		v := s.now(j.ID)
		return v.Phase == "done" || v.Step > refused.Step+10 || v.Step == v.Steps
	})
	time.Sleep(s.upTo(2 * time.Second))
	full := time.Since(began)
	s.check(os.Remove(ballast))
	if refused.Phase == "done" {
		return ""
	}
	s.eventually("a checkpoint is published once there is room", func() bool {
		v := s.now(j.ID)
		return v.Phase == "done" || v.Published != nil && v.Published.Step > refused.Published.Step && v.Progress != nil && v.Progress.Unsaved == ""
	})
	return fmt.Sprintf("at step %d for %.1f s", refused.Step, full.Seconds())
}

// fill writes a file until nothing more fits.
func (s *storm) fill(path string) {
	s.Helper()
	f, err := os.Create(path)
	s.check(err)
	defer f.Close()
	for size := 1 << 20; size >= 1<<12; size /= 2 {
		for err = nil; err == nil; {
			_, err = f.Write(make([]byte, size))
		}
		if !errors.Is(err, syscall.ENOSPC) {
			s.Fatal(err)
		}
	}
}
