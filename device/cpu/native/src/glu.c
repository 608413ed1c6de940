// Gated activations: y = silu(gate) ⊙ up, silu(g) = g / (1 + exp(−g)).
#include "table.h"
#include "lanes.h"

// Glu is kernel.GLU with SiLU on rows [lo, hi).
struct glu {
  const void *args;  // kernel.GLU
  int64_t lo;
  int64_t hi;
  int64_t bf16;
};

INLINE AVX512 vec one_plus_exp_neg(vec g) {
  vec minus = _mm512_xor_ps(g, set1(-0.0f));
  return _mm512_add_ps(set1(1), vexp(minus));
}

INLINE AVX512 void glu_rows(const struct glu *p, int bf16) {
  const struct glu_args *a = p->args;
  for (i64 r = p->lo; r < p->hi; r++) {
    const void *gate = at(a->gate_up, r * a->ld_g, bf16), *up = at(gate, a->f, bf16);
    void *y = at(a->y, r * a->ld_y, bf16);
    for (i64 j = 0; j < a->f; j += 16) {
      __mmask16 m = first(a->f - j);
      vec g = load(gate, j, m, bf16);
      vec silu = _mm512_div_ps(g, one_plus_exp_neg(g));
      store(y, j, m, _mm512_mul_ps(silu, load(up, j, m, bf16)), bf16);
    }
  }
}

KERNEL(BOTH, glu) {
  if (p->bf16)
    glu_rows(p, 1);
  else
    glu_rows(p, 0);
}

// GluGrad is kernel.GLUGrad with SiLU on rows [lo, hi).
struct glu_grad {
  const void *args;  // kernel.GLUGrad
  int64_t lo;
  int64_t hi;
  int64_t bf16;
};

// With s = 1/(1 + exp(−g)): silu' = s·(1 + g·(1 − s)).
INLINE AVX512 void glu_grad_rows(const struct glu_grad *p, int bf16) {
  const struct glu_grad_args *a = p->args;
  for (i64 r = p->lo; r < p->hi; r++) {
    const void *gate = at(a->gate_up, r * a->ld_g, bf16), *up = at(gate, a->f, bf16);
    const void *dy = at(a->dy, r * a->ld_dy, bf16);
    void *dgate = at(a->dgate_up, r * a->ld_dg, bf16), *dup = at(dgate, a->f, bf16);
    for (i64 j = 0; j < a->f; j += 16) {
      __mmask16 m = first(a->f - j);
      vec g = load(gate, j, m, bf16), u = load(up, j, m, bf16), d = load(dy, j, m, bf16);
      vec s = _mm512_div_ps(set1(1), one_plus_exp_neg(g));
      vec slope = _mm512_mul_ps(s, fma(g, _mm512_sub_ps(set1(1), s), set1(1)));
      store(dgate, j, m, _mm512_mul_ps(_mm512_mul_ps(d, u), slope), bf16);
      store(dup, j, m, _mm512_mul_ps(d, _mm512_mul_ps(g, s)), bf16);
    }
  }
}

KERNEL(BOTH, glu_grad) {
  if (p->bf16)
    glu_grad_rows(p, 1);
  else
    glu_grad_rows(p, 0);
}
