package devicetest

import (
	"math"

	"github.com/skein-ml/skein/device"
)

// The models are the operations once more, in F64 by nested loops, written from
// their definitions. Their own backward is held to finite differences of their forward.

// mat is a row-major matrix.
type mat struct {
	rows, cols int
	v          []float64
}

func newMat(rows, cols int) mat { return mat{rows, cols, make([]float64, rows*cols)} }

func (m mat) at(r, c int) float64     { return m.v[r*m.cols+c] }
func (m mat) add(r, c int, x float64) { m.v[r*m.cols+c] += x }
func (m mat) row(r int) []float64     { return m.v[r*m.cols : (r+1)*m.cols] }
func (m mat) slice(lo, hi int) mat    { return mat{hi - lo, m.cols, m.v[lo*m.cols : hi*m.cols]} }
func (m mat) clone() mat              { return mat{m.rows, m.cols, append([]float64(nil), m.v...)} }
func (m mat) plus(o mat) mat {
	sum := m.clone()
	for i, x := range o.v {
		sum.v[i] += x
	}
	return sum
}

// linear is x·wᵀ.
func linear(x, w mat) mat {
	y := newMat(x.rows, w.rows)
	for r := range x.rows {
		for o := range w.rows {
			var sum float64
			for i := range x.cols {
				sum += x.at(r, i) * w.at(o, i)
			}
			y.v[r*w.rows+o] = sum
		}
	}
	return y
}

// linearGrad is dx = dy·w and dw = dyᵀ·x.
func linearGrad(dy, x, w mat) (dx, dw mat) {
	dx, dw = newMat(x.rows, x.cols), newMat(w.rows, w.cols)
	for r := range x.rows {
		for o := range w.rows {
			g := dy.at(r, o)
			for i := range x.cols {
				dx.v[r*x.cols+i] += g * w.at(o, i)
				dw.v[o*x.cols+i] += g * x.at(r, i)
			}
		}
	}
	return dx, dw
}

// rmsNorm is w·x/√(mean(x²)+eps) with the factor of each row.
func rmsNorm(x, w mat, eps float64) (y, rstd mat) {
	y, rstd = newMat(x.rows, x.cols), newMat(x.rows, 1)
	for r := range x.rows {
		var sum float64
		for _, v := range x.row(r) {
			sum += v * v
		}
		rstd.v[r] = 1 / math.Sqrt(sum/float64(x.cols)+eps)
		for c, v := range x.row(r) {
			y.add(r, c, v*rstd.v[r]*w.v[c])
		}
	}
	return y, rstd
}

func rmsNormGrad(dy, x, w mat, eps float64) (dx, dw mat) {
	_, rstd := rmsNorm(x, w, eps)
	dx, dw = newMat(x.rows, x.cols), newMat(1, x.cols)
	for r := range x.rows {
		var dot float64
		for c, v := range x.row(r) {
			dot += dy.at(r, c) * w.v[c] * v
			dw.v[c] += dy.at(r, c) * v * rstd.v[r]
		}
		for c, v := range x.row(r) {
			k := rstd.v[r]
			dx.add(r, c, k*dy.at(r, c)*w.v[c]-k*k*k*v*dot/float64(x.cols))
		}
	}
	return dx, dw
}

// layerNorm is w·(x−mean)/√(var+eps)+b with the mean and the factor of each row.
func layerNorm(x, w, b mat, eps float64) (y, stats mat) {
	y, stats = newMat(x.rows, x.cols), newMat(x.rows, 2)
	for r := range x.rows {
		var mean, variance float64
		for _, v := range x.row(r) {
			mean += v / float64(x.cols)
		}
		for _, v := range x.row(r) {
			variance += (v - mean) * (v - mean) / float64(x.cols)
		}
		rstd := 1 / math.Sqrt(variance+eps)
		stats.v[2*r], stats.v[2*r+1] = mean, rstd
		for c, v := range x.row(r) {
			y.add(r, c, (v-mean)*rstd*w.v[c]+b.v[c])
		}
	}
	return y, stats
}

// layerNormGrad writes the Jacobian out: ∂x̂_c/∂x_j = rstd·(δ_cj − 1/n − x̂_c·x̂_j/n).
func layerNormGrad(dy, x, w mat, eps float64) (dx, dw, db mat) {
	_, stats := layerNorm(x, w, newMat(1, x.cols), eps)
	dx, dw, db = newMat(x.rows, x.cols), newMat(1, x.cols), newMat(1, x.cols)
	n := float64(x.cols)
	for r := range x.rows {
		mean, rstd := stats.at(r, 0), stats.at(r, 1)
		var sum, dot float64
		for c, v := range x.row(r) {
			hat, g := (v-mean)*rstd, dy.at(r, c)
			dw.v[c] += g * hat
			db.v[c] += g
			sum += g * w.v[c]
			dot += g * w.v[c] * hat
		}
		for j, v := range x.row(r) {
			dx.add(r, j, rstd*(dy.at(r, j)*w.v[j]-sum/n-(v-mean)*rstd*dot/n))
		}
	}
	return dx, dw, db
}

// rope turns pairs (j, j+dim/2) of every head of x by the row's angles.
func rope(x, table mat, pos []int32, dim int, inverse bool) mat {
	y := newMat(x.rows, x.cols)
	for r := range x.rows {
		for c := range x.cols {
			head, j := c/dim*dim, c%dim
			cos, sin := table.at(int(pos[r]), j%(dim/2)), table.at(int(pos[r]), dim/2+j%(dim/2))
			if inverse {
				sin = -sin
			}
			if j < dim/2 {
				y.add(r, c, x.at(r, c)*cos-x.at(r, head+j+dim/2)*sin)
			} else {
				y.add(r, c, x.at(r, c)*cos+x.at(r, head+j-dim/2)*sin)
			}
		}
	}
	return y
}

func silu(x float64) float64 { return x / (1 + math.Exp(-x)) }

func glu(gateUp mat) mat {
	f := gateUp.cols / 2
	y := newMat(gateUp.rows, f)
	for r := range y.rows {
		for c := range f {
			y.add(r, c, silu(gateUp.at(r, c))*gateUp.at(r, f+c))
		}
	}
	return y
}

func gluGrad(dy, gateUp mat) mat {
	f := gateUp.cols / 2
	d := newMat(gateUp.rows, 2*f)
	for r := range d.rows {
		for c := range f {
			g, up := gateUp.at(r, c), gateUp.at(r, f+c)
			sig := 1 / (1 + math.Exp(-g))
			d.add(r, c, dy.at(r, c)*up*(sig+g*sig*(1-sig)))
			d.add(r, f+c, dy.at(r, c)*silu(g))
		}
	}
	return d
}

// activation is an activation function as its definition says.
func activation(act device.Act) func(x float64) float64 {
	if act == device.GELU {
		return func(x float64) float64 { return x / 2 * (1 + math.Erf(x/math.Sqrt2)) }
	}
	return func(x float64) float64 { return x / 2 * (1 + math.Tanh(math.Sqrt(2/math.Pi)*(x+0.044715*x*x*x))) }
}

// activationSlope is the derivative.
func activationSlope(act device.Act) func(x float64) float64 {
	if act == device.GELU {
		return func(x float64) float64 {
			return (1+math.Erf(x/math.Sqrt2))/2 + x*math.Exp(-x*x/2)/math.Sqrt(2*math.Pi)
		}
	}
	return func(x float64) float64 {
		th := math.Tanh(math.Sqrt(2/math.Pi) * (x + 0.044715*x*x*x))
		return (1+th)/2 + x/2*(1-th*th)*math.Sqrt(2/math.Pi)*(1+3*0.044715*x*x)
	}
}

// apply is f of every element, times that of by where it has any.
func apply(f func(x float64) float64, x, by mat) mat {
	y := newMat(x.rows, x.cols)
	for i, v := range x.v {
		y.v[i] = f(v)
		if by.v != nil {
			y.v[i] *= by.v[i]
		}
	}
	return y
}

// geometry is what attention needs to know.
type geometry struct {
	heads, kvHeads, dim, window int
	scale                       float64
	docs                        []int32
}

func (g geometry) rows() int { return int(g.docs[len(g.docs)-1]) }

// probabilities is the softmax of one query's scores over the keys [first, i], and its lse.
func (g geometry) probabilities(q, k mat, i, head int) (first int, p []float64, lse float64) {
	for j := range len(g.docs) - 1 {
		if int(g.docs[j]) <= i && i < int(g.docs[j+1]) {
			first = int(g.docs[j])
		}
	}
	if g.window > 0 && i-g.window+1 > first {
		first = i - g.window + 1
	}
	kv := head * g.kvHeads / g.heads
	largest := math.Inf(-1)
	for j := first; j <= i; j++ {
		var s float64
		for c := range g.dim {
			s += q.at(i, head*g.dim+c) * k.at(j, kv*g.dim+c)
		}
		p = append(p, s*g.scale)
		largest = math.Max(largest, s*g.scale)
	}
	var sum float64
	for _, s := range p {
		sum += math.Exp(s - largest)
	}
	lse = largest + math.Log(sum)
	for j := range p {
		p[j] = math.Exp(p[j] - lse)
	}
	return first, p, lse
}

// attention is o and lse [heads, rows].
func attention(q, k, v mat, g geometry) (o, lse mat) {
	o, lse = newMat(q.rows, q.cols), newMat(g.heads, q.rows)
	for h := range g.heads {
		kv := h * g.kvHeads / g.heads
		for i := range q.rows {
			first, p, l := g.probabilities(q, k, i, h)
			lse.v[h*q.rows+i] = l
			for j, pj := range p {
				for c := range g.dim {
					o.add(i, h*g.dim+c, pj*v.at(first+j, kv*g.dim+c))
				}
			}
		}
	}
	return o, lse
}

// attentionGrad writes the softmax's Jacobian out: ds_j = p_j·(dp_j − Σ p·dp).
func attentionGrad(do, q, k, v mat, g geometry) (dq, dk, dv mat) {
	dq, dk, dv = newMat(q.rows, q.cols), newMat(k.rows, k.cols), newMat(v.rows, v.cols)
	for h := range g.heads {
		kv := h * g.kvHeads / g.heads
		for i := range q.rows {
			first, p, _ := g.probabilities(q, k, i, h)
			dp, mean := make([]float64, len(p)), 0.0
			for j := range p {
				for c := range g.dim {
					dp[j] += do.at(i, h*g.dim+c) * v.at(first+j, kv*g.dim+c)
					dv.add(first+j, kv*g.dim+c, p[j]*do.at(i, h*g.dim+c))
				}
				mean += p[j] * dp[j]
			}
			for j := range p {
				ds := g.scale * p[j] * (dp[j] - mean)
				for c := range g.dim {
					dq.add(i, h*g.dim+c, ds*k.at(first+j, kv*g.dim+c))
					dk.add(first+j, kv*g.dim+c, ds*q.at(i, h*g.dim+c))
				}
			}
		}
	}
	return dq, dk, dv
}

// headLoss is the loss of each row with a target, and the gradients of their sum·scale.
func headLoss(x, w mat, targets []int32, scale float64) (nll, dx, dw mat) {
	nll, dx, dw = newMat(1, x.rows), newMat(x.rows, x.cols), newMat(w.rows, w.cols)
	for r, target := range targets {
		if target < 0 {
			continue
		}
		logits := linear(x.slice(r, r+1), w).v
		largest := math.Inf(-1)
		for _, l := range logits {
			largest = math.Max(largest, l)
		}
		var sum float64
		for _, l := range logits {
			sum += math.Exp(l - largest)
		}
		nll.v[r] = largest + math.Log(sum) - logits[target]
		for o, l := range logits {
			g := math.Exp(l-largest) / sum * scale
			if o == int(target) {
				g -= scale
			}
			for c := range x.cols {
				dx.add(r, c, g*w.at(o, c))
				dw.add(o, c, g*x.at(r, c))
			}
		}
	}
	return nll, dx, dw
}
