package model

import (
	"fmt"

	"github.com/skein-ml/skein/device"
	"github.com/skein-ml/skein/model/config"
)

// What families do differently: names, norms, positions, activations. The rest of a layer
// is the same in all of them.
//
//	           Llama and its kin             GPT-2
//	norm       RMSNorm                       LayerNorm with a bias
//	positions  rotate queries and keys       a learned table, added to the embedding
//	MLP        Down·(silu(Gate·x) ⊙ (Up·x))  Down·gelu(Inner·x)

// names are the names of a family's tensors, without .weight and .bias. Where several
// stand side by side and are used as one, it is that of the first.
type names struct {
	finalNorm string
	layers    string // the prefix, with a place for the number
	inLayer   layerNames
}

type layerNames struct{ norm1, qkv, out, norm2, inner, down string }

func newNames(cfg config.Config) names {
	if cfg.Gated() {
		return names{"model.norm", "model.layers.%d.", layerNames{"input_layernorm", "self_attn.q_proj", "self_attn.o_proj",
			"post_attention_layernorm", "mlp.gate_proj", "mlp.down_proj"}}
	}
	return names{"transformer.ln_f", "transformer.h.%d.", layerNames{"ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj"}}
}

// layer is the full names in layer i.
func (n names) layer(i int) layerNames {
	p, l := fmt.Sprintf(n.layers, i), n.inLayer
	return layerNames{p + l.norm1, p + l.qkv, p + l.out, p + l.norm2, p + l.inner, p + l.down}
}

// normParts are a norm's weight and, of a LayerNorm, its bias; or their gradients. All [1, C].
type normParts struct{ w, b device.Tensor }

func (m *Model) normParts(flat []device.Tensor, name string) normParts {
	return normParts{m.layout.view(flat, name+".weight", 1), m.layout.biasView(flat, name+".bias", m.cfg.Hidden)}
}

// statsCols is S, what a norm keeps of a row for its backward: 1/σ, or mean and 1/σ.
func (m *Model) statsCols() int {
	if m.cfg.Gated() {
		return 1
	}
	return 2
}

// norm: y = norm(x).
func (m *Model) norm(s device.Stream, y, stats, x device.Tensor, p normParts) {
	if m.cfg.Gated() {
		m.dev.RMSNorm(s, y, stats, x, p.w, m.cfg.NormEps)
	} else {
		m.dev.LayerNorm(s, y, stats, x, p.w, p.b, m.cfg.NormEps)
	}
}

// normGrad: dx from dy (+ add), and the parts' gradients g.
func (m *Model) normGrad(s device.Stream, dx device.Tensor, g normParts, dy, x, stats device.Tensor, p normParts, add device.Tensor) {
	if m.cfg.Gated() {
		m.dev.RMSNormGrad(s, dx, g.w, dy, x, stats, p.w, add, m.opt.SeqLen, m.ws)
	} else {
		m.dev.LayerNormGrad(s, dx, g.w, g.b, dy, x, stats, p.w, add, m.opt.SeqLen, m.ws)
	}
}

func (m *Model) normGradOp() device.Op {
	if m.cfg.Gated() {
		return device.OpNormGrad
	}
	return device.OpLayerNormGrad
}

// rotate turns queries and keys by their positions, or back.
func (m *Model) rotate(s device.Stream, q, k device.Tensor, b batchView, inverse bool) {
	if m.cfg.Rotary() {
		m.dev.Rope(s, q, k, m.rope, b.pos, m.cfg.HeadDim, inverse)
	}
}

// innerCols is U, the columns of the MLP's first product: gate | up, or one.
func (m *Model) innerCols() int {
	if m.cfg.Gated() {
		return 2 * m.cfg.MLP
	}
	return m.cfg.MLP
}

// activate: y [N, F] from the first product [N, U].
func (m *Model) activate(s device.Stream, y, inner device.Tensor) {
	if m.cfg.Gated() {
		m.dev.GLU(s, y, inner, device.SiLU)
	} else {
		m.dev.Activate(s, y, inner, m.gelu())
	}
}

// activateGrad: dInner, which may be inner, from dy.
func (m *Model) activateGrad(s device.Stream, dInner, dy, inner device.Tensor) {
	if m.cfg.Gated() {
		m.dev.GLUGrad(s, dInner, dy, inner, device.SiLU)
	} else {
		m.dev.ActivateGrad(s, dInner, dy, inner, m.gelu())
	}
}

func (m *Model) gelu() device.Act {
	if m.cfg.GELU == config.GELUErf {
		return device.GELU
	}
	return device.GELUTanh
}

// embed fills the first layer's input: the tokens' rows and, with a learned table, their
// positions' rows, added and rounded once.
func (m *Model) embed(s device.Stream, v batchView, hooks Hooks) error {
	first := 1
	if !m.cfg.Rotary() {
		first = m.layout.positions
	}
	if err := hooks.NeedWeights(0, first); err != nil {
		return err
	}
	x := m.input(0, v.n)
	m.dev.Embed(s, x, m.weights.embed, v.ids)
	if m.cfg.Rotary() {
		return nil
	}
	if err := hooks.NeedWeights(m.layout.positions, 1); err != nil {
		return err
	}
	at := m.scratch.c1.RowRange(0, v.n)
	m.dev.Embed(s, at, m.weights.positions, v.pos)
	m.dev.Add(s, x, x, at)
	return nil
}

// positionsBackward adds the gradient at the embedding's output to a learned table's. It is
// dense: every position up to a document's length is there in every sequence.
func (m *Model) positionsBackward(s device.Stream, v batchView, g *gradViews) {
	order, starts := m.byPosition(s, v.n)
	m.dev.EmbedGrad(s, g.positions.RowRange(0, m.opt.SeqLen), m.scratch.dh.RowRange(0, v.n), order, starts, m.opt.SeqLen, m.ws)
}
