package agent

import (
	"sync"

	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// outbox holds what a session has to say, but for heartbeats and lines: answers to pings,
// answers of store reads, and of each job only the newest progress.
type outbox struct {
	wake chan struct{} // one token: there is something

	mu       sync.Mutex
	reads    []*skeinv1.StoreRead
	ping     uint64                          // of this session that is to be answered; 0: none
	progress map[string]*skeinv1.JobProgress // by job
}

func newOutbox() *outbox {
	return &outbox{wake: make(chan struct{}, 1), progress: map[string]*skeinv1.JobProgress{}}
}

func (o *outbox) answer(r *skeinv1.StoreRead) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reads = append(o.reads, r)
	signal(o.wake)
}

func (o *outbox) report(p *skeinv1.JobProgress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.progress[p.GetJob()] = p
	signal(o.wake)
}

// clear forgets answers to questions of an earlier session.
func (o *outbox) clear() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.reads, o.ping = nil, 0
}

// pong answers a ping.
func (o *outbox) pong(number uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ping = number
	signal(o.wake)
}

// take empties the box.
func (o *outbox) take() []*skeinv1.WorkerMessage {
	o.mu.Lock()
	defer o.mu.Unlock()
	var list []*skeinv1.WorkerMessage
	if o.ping > 0 {
		list = append(list, &skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Pong{Pong: &skeinv1.Pong{Number: o.ping}}})
	}
	for _, r := range o.reads {
		list = append(list, &skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_StoreRead{StoreRead: r}})
	}
	for _, p := range o.progress { // one job's, as only one runs
		list = append(list, &skeinv1.WorkerMessage{What: &skeinv1.WorkerMessage_Progress{Progress: p}})
	}
	o.reads, o.ping = nil, 0
	clear(o.progress)
	return list
}

// signal leaves a token in a channel that holds one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
