package trainer

import (
	"math"

	"github.com/skein-ml/skein/allreduce"
	"github.com/skein-ml/skein/device"
)

// cells are the scalars that a step brings to the host.
type cells struct {
	mem memory
	// norms [hosted ranks·(buckets+1), 1] F64: squared norm of a rank's piece of each bucket, and of its own
	// gradient at the model's input.
	norms device.Tensor
	host  []float64
}

func (t *Trainer) newCells() (err error) {
	n := t.cfg.WorldSize * (t.table.Buckets() + 1) // as many ranks as may ever be here
	t.cells = cells{mem: memory{dev: t.dev}, host: make([]float64, n)}
	t.cells.norms, err = t.cells.mem.tensor(device.KindStaging, device.F64, n, 1)
	return err
}

// vote measures every reduced piece and makes the votes of the hosted ranks.
func (t *Trainer) vote(k int64) ([]allreduce.Vote, error) {
	buckets := t.table.Buckets()
	each := buckets + 1
	for i, r := range t.ranks {
		for b := range buckets {
			cell := i*each + b
			t.dev.SqNorm(t.stream, t.cells.norms.RowRange(cell, cell+1), t.sum(b, t.table.Bucket(b).Piece(r.id)))
		}
		input := r.sparse()
		t.dev.SqNorm(t.stream, t.cells.norms.RowRange(i*each+buckets, (i+1)*each), device.Make(input.Buf, input.DT, 1, input.Rows*input.Cols))
	}
	n := len(t.ranks) * each
	t.dev.Download(t.stream, device.HostBytes(t.cells.host[:n]), t.cells.norms.RowRange(0, n).Buf)
	if err := t.stream.Record().Wait(); err != nil {
		return nil, err
	}
	defer func() { t.asks = 0 }()
	t.votes = t.votes[:0]
	for i, r := range t.ranks {
		norms := t.cells.host[i*each : (i+1)*each-1]
		sound, err := t.sound(r, norms, t.cells.host[(i+1)*each-1])
		if err != nil {
			return nil, err
		}
		t.votes = append(t.votes, allreduce.Vote{Step: k, Rank: r.id, SqNorms: norms, Loss: r.loss, Tokens: r.tokens, Finite: sound, Requests: t.asks,
			Data: r.data, Compute: r.work})
	}
	return t.votes, nil
}

func finite(loss float64, norms []float64) bool {
	sum := loss
	for _, x := range norms {
		sum += x
	}
	return !math.IsNaN(sum) && !math.IsInf(sum, 0)
}

// Decide is what rank 0's worker does with all votes.
func (t *Trainer) Decide(votes []allreduce.Vote) (allreduce.Decision, error) {
	rule := allreduce.Rule{
		WorldSize: t.cfg.WorldSize, Buckets: t.table.Buckets(),
		LossShift: allreduce.LossShift(t.cfg.Batch.Global, t.cfg.Batch.SeqLen), Clip: t.cfg.Optimizer.Clip,
	}
	d, err := allreduce.Decide(votes, rule, t.cfg.Schedule.Bits(t.step+1), t.taken)
	t.layer, t.slowest = "", nil
	if !t.Alone() { // ranks on one device wait for each other anyway
		if s, found := t.laggards.look(votes); found {
			s.Worker = t.cfg.Placement.Worker(s.Rank)
			t.slowest = &s
		}
	}
	if err == nil && d.Cause == allreduce.CauseNotFinite && finite(d.Loss, nil) { // else the forward had it already
		if _, buckets := allreduce.NotFinite(votes); len(buckets) > 0 {
			t.layer = t.table.Bucket(buckets[len(buckets)-1]).Name
		}
	}
	return d, err
}
