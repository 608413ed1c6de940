package agent

import (
	"fmt"
	"sync"
	"time"

	"github.com/skein-ml/skein/checkpoint/depot"
	skeinv1 "github.com/skein-ml/skein/proto/skein/v1"
)

// readWait is how long a read through a store may take before the leader hears that it
// hangs. It is shorter than the leader's own patience, so that the reason is told.
const readWait = 8 * time.Second

// prober knows which reads are under way: a file system that hangs holds one goroutine
// for each job, and no more.
type prober struct {
	mu      sync.Mutex
	reading map[string]bool // by job and object
}

// begin tells whether nobody reads this yet.
func (p *prober) begin(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reading[key] {
		return false
	}
	p.reading[key] = true
	return true
}

func (p *prober) end(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.reading, key)
}

// read answers a store probe: with what it has read, or that it takes too long. The
// read itself is the one thing here that nobody waits for at the end: a file system
// that hangs must not keep a worker from leaving.
func (a *agent) read(p *skeinv1.StoreProbe) {
	read := make(chan struct{})
	if key := p.GetJob() + "/" + p.GetNonceObject(); a.prober.begin(key) {
		go func() {
			defer close(read)
			nonce, err := depot.ReadNonce(a.config.FS, p.GetStore(), p.GetNonceObject())
			a.prober.end(key)
			answer := &skeinv1.StoreRead{Job: p.GetJob(), Nonce: nonce}
			if err != nil {
				answer.Error = err.Error()
				a.log.Warn("a store cannot be read here", "job", p.GetJob(), "store", p.GetStore(), "err", err)
			} else {
				a.log.Info("the store can be read here", "job", p.GetJob(), "store", p.GetStore())
			}
			a.outbox.answer(answer)
		}()
	}
	a.done.Go(func() {
		late := time.NewTimer(a.config.readWait)
		defer late.Stop()
		select {
		case <-read:
		case <-a.ctx.Done():
		case <-late.C:
			text := fmt.Sprintf("nothing could be read from %s for %s; does its file system hang?", p.GetStore(), a.config.readWait)
			a.log.Warn("a store hangs", "job", p.GetJob(), "store", p.GetStore(), "waited", a.config.readWait)
			a.outbox.answer(&skeinv1.StoreRead{Job: p.GetJob(), Error: text})
		}
	})
}
