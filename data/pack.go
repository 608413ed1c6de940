package data

import (
	"math"

	"github.com/skein-ml/skein/internal/invariant"
)

// NoTarget marks a row of a sequence that predicts nothing.
const NoTarget = int32(-100)

// padToken fills the end of a sequence. Its value matters to nothing: padding is a document of its own, sees no other, is
// seen by none, and has no targets.
const padToken = int32(0)

// pack is one sequence: documents end to end, then padding.
type pack struct {
	tokens    []int32 // [T]
	targets   []int32 // [T]; targets[i] is tokens[i+1] where that is to be learnt and of the same document, else NoTarget
	documents []int32 // lengths; their sum is T; padding, if there is any, is the last
	padding   int32   // tokens of padding
}

// packer fills packs greedily in order: a document that does not fit closes the pack. Positions, and so attention, start
// anew with every document. The order of the documents is kept, so the packs are a pure function of them.
type packer struct {
	seqLen int
	single bool // one document a pack
	cur    pack
	emit   func(*pack) error // the pack is valid during the call
	report *Report
}

func newPacker(seqLen int, packing bool, r *Report, emit func(*pack) error) *packer {
	return &packer{seqLen: seqLen, single: !packing, emit: emit, report: r, cur: pack{
		tokens: make([]int32, 0, seqLen), targets: make([]int32, 0, seqLen)}}
}

// add takes a document of 1 to seqLen tokens.
func (p *packer) add(x encoded) error {
	if invariant.Enabled {
		invariant.Check(len(x.ids) > 0 && len(x.ids) <= p.seqLen && len(x.ids) == len(x.target),
			"document of %d tokens and %d marks for packs of %d", len(x.ids), len(x.target), p.seqLen)
	}
	if len(p.cur.tokens)+len(x.ids) > p.seqLen || p.single {
		if err := p.flush(); err != nil {
			return err
		}
	}
	p.cur.tokens = append(p.cur.tokens, x.ids...)
	for i := range x.ids {
		if i+1 < len(x.ids) && x.target[i+1] {
			p.cur.targets = append(p.cur.targets, x.ids[i+1])
			p.report.Targets++
		} else {
			p.cur.targets = append(p.cur.targets, NoTarget)
		}
	}
	p.cur.documents = append(p.cur.documents, int32(len(x.ids)))
	p.report.Documents++
	p.report.Tokens += int64(len(x.ids))
	return nil
}

// flush closes the pack under way, if there is one.
func (p *packer) flush() error {
	if len(p.cur.tokens) == 0 {
		return nil
	}
	if n := p.seqLen - len(p.cur.tokens); n > 0 {
		p.cur.padding = int32(n)
		p.cur.documents = append(p.cur.documents, int32(n))
		for range n {
			p.cur.tokens = append(p.cur.tokens, padToken)
			p.cur.targets = append(p.cur.targets, NoTarget)
		}
		p.report.Padding += int64(n)
	}
	p.report.Packs++
	if invariant.Enabled {
		view := packs{rows: 1, seqLen: p.seqLen, tokens: p.cur.tokens, targets: p.cur.targets, documents: p.cur.documents,
			offsets: []int32{0, int32(len(p.cur.documents))}, padding: []int32{p.cur.padding}}
		err := view.check(math.MaxInt32)
		invariant.Check(err == nil, "a pack breaks its rules: %v", err)
	}
	err := p.emit(&p.cur)
	p.cur = pack{tokens: p.cur.tokens[:0], targets: p.cur.targets[:0], documents: p.cur.documents[:0]}
	return err
}
