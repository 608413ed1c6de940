package coordinator

import (
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/skein-ml/skein/coordinator/fsm"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// straggle is how long a watcher of lines stays after the job is over: a worker's last
// line and its last word to the log travel apart.
const straggle = time.Second

// Watch implements skeinv1.JobsServer.
func (s jobs) Watch(r *skeinv1.WatchRequest, stream skeinv1.Jobs_WatchServer) error {
	if _, _, err := s.look(stream.Context(), r.GetJob()); err != nil {
		return err
	}
	reign := s.leading()
	if reign == nil {
		return s.notLeader()
	}
	w := watcher{stream: stream, after: r.GetAfter(), lines: r.GetLines()}
	var over <-chan time.Time // after the job's end
	for {
		changed, heard := s.node.Changed(), reign.told()
		state := s.node.State()
		j := state.Jobs[r.GetJob()]
		if j == nil {
			return status.Errorf(codes.NotFound, "job %q has made way for newer ones", r.GetJob())
		}
		if err := w.show(state, j, reign.memory, int(r.GetLinesBefore())); err != nil {
			return err
		}
		if j.Phase.Final() {
			if !w.lines || !w.lived {
				return nil
			}
			if over == nil {
				timer := time.NewTimer(straggle)
				defer timer.Stop()
				over = timer.C
			}
		}
		w.lived = true
		select {
		case <-changed:
		case <-heard:
		case <-over:
			return nil
		case <-reign.ctx.Done():
			return s.notLeader()
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// watcher is one client that watches a job.
type watcher struct {
	stream   skeinv1.Jobs_WatchServer
	after    uint64            // index of the last event that was sent
	lines    bool              // wanted
	lived    bool              // it has seen the job before it was over
	begun    bool              // the kept lines were sent
	line     uint64            // number of the next line to send
	job      *skeinv1.Job      // as last sent
	progress *skeinv1.Progress // as last sent
}

// show sends what the client has not seen yet: events first, then lines, then the job if
// it differs, then progress. before is how many of the kept lines come first.
func (w *watcher) show(s *fsm.State, j *fsm.Job, m *memory, before int) error {
	for _, e := range j.Events {
		if e.Index <= w.after {
			continue
		}
		if err := w.stream.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Event{Event: eventOf(e)}}); err != nil {
			return err
		}
		w.after = e.Index
	}
	if err := w.showLines(j, m, before); err != nil {
		return err
	}
	job := jobOf(s, j, m)
	progress := job.Progress
	job.Progress, job.Ledger = nil, nil // that would be news each time
	if !proto.Equal(job, w.job) {
		if err := w.stream.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Job{Job: job}}); err != nil {
			return err
		}
		w.job = job
	}
	if progress != nil && !proto.Equal(progress, w.progress) {
		if err := w.stream.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Progress{Progress: progress}}); err != nil {
			return err
		}
		w.progress = progress
	}
	return nil
}

func (w *watcher) showLines(j *fsm.Job, m *memory, before int) error {
	if !w.lines {
		return nil
	}
	var list []*skeinv1.Line
	if w.begun {
		list, w.line = m.linesFrom(j.ID, w.line)
	} else {
		list, w.line = m.lastLines(j.ID, before)
		w.begun = true
	}
	for _, l := range list {
		if err := w.stream.Send(&skeinv1.WatchResponse{What: &skeinv1.WatchResponse_Line{Line: l}}); err != nil {
			return err
		}
	}
	return nil
}
