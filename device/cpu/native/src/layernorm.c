// LayerNorm and its backward, row by row.
#include "table.h"
#include "lanes.h"

// LayerNorm is kernel.LayerNorm on rows [lo, hi).
struct layer_norm {
  const void *args;  // kernel.LayerNorm
  int64_t lo;
  int64_t hi;
  int64_t bf16;
};

#define X(j, m) load(x, j, m, bf16)
#define CENTERED(j, m) _mm512_maskz_sub_ps(m, X(j, m), mean)
#define ONE(j, m) set1(1)

// The squares are summed once the mean is known: a difference of two large sums would lose
// the variance of a row that is far from zero.
INLINE AVX512 void layer_norm_row(const struct layer_norm_args *a, i64 r, int bf16) {
  const void *x = at(a->x, r * a->ld_x, bf16);
  void *y = at(a->y, r * a->ld_y, bf16);
  float s, squares;
  ROW_SUM(s, a->cols, X, ONE);
  s = s / (float)a->cols;
  vec mean = set1(s);
  ROW_SUM(squares, a->cols, CENTERED, CENTERED);
  float rstd = 1.0f / root(squares / (float)a->cols + a->eps);
  if (a->stats) {
    float *stats = (float *)a->stats + 2 * r;
    stats[0] = s, stats[1] = rstd;
  }
  for (i64 j = 0; j < a->cols; j += 16) {
    __mmask16 m = first(a->cols - j);
    vec xhat = _mm512_mul_ps(CENTERED(j, m), set1(rstd));
    store(y, j, m, fma(xhat, load(a->w, j, m, bf16), load(a->b, j, m, bf16)), bf16);
  }
}

KERNEL(BOTH, layer_norm) {
  if (p->bf16)
    for (i64 r = p->lo; r < p->hi; r++) layer_norm_row(p->args, r, 1);
  else
    for (i64 r = p->lo; r < p->hi; r++) layer_norm_row(p->args, r, 0);
}

// LayerNormGrad is kernel.LayerNormGrad on rows [lo, hi). The rows' dy·x̂ and dy are added to
// the two halves of partial.
struct layer_norm_grad {
  const void *args;  // kernel.LayerNormGrad
  int64_t lo;
  int64_t hi;
  float *partial;  // [2, cols]
  int64_t bf16;
};

// With g = dy·w and x̂ = (x − mean)·rstd: dx = rstd·((g − mean(g)) − x̂·mean(g·x̂)) + add.
INLINE AVX512 void layer_norm_grad_row(const struct layer_norm_grad_args *a, i64 r, float *dw, int bf16) {
  const void *x = at(a->x, r * a->ld_x, bf16), *dy = at(a->dy, r * a->ld_dy, bf16);
  const void *add = a->add ? at(a->add, r * a->ld_add, bf16) : 0;
  void *dx = at(a->dx, r * a->ld_dx, bf16);
  const float *stats = (const float *)a->stats + 2 * r;
  float *db = dw + a->cols;
  vec mean = set1(stats[0]), rstd = set1(stats[1]);
  float s, dot;
#define XHAT(j, m) _mm512_mul_ps(CENTERED(j, m), rstd)
#define G(j, m) _mm512_mul_ps(load(dy, j, m, bf16), load(a->w, j, m, bf16))
  ROW_SUM(s, a->cols, G, ONE);
  ROW_SUM(dot, a->cols, G, XHAT);
  vec mean_g = set1(s / (float)a->cols), mean_gx = set1(dot / (float)a->cols);
  for (i64 j = 0; j < a->cols; j += 16) {
    __mmask16 m = first(a->cols - j);
    vec xhat = XHAT(j, m), grad = load(dy, j, m, bf16);
    vec w = fma(grad, xhat, _mm512_maskz_loadu_ps(m, dw + j));
    vec b = _mm512_add_ps(grad, _mm512_maskz_loadu_ps(m, db + j));
    vec d = _mm512_mul_ps(rstd, _mm512_fnmadd_ps(xhat, mean_gx, _mm512_sub_ps(G(j, m), mean_g)));
    if (add) d = _mm512_add_ps(d, load(add, j, m, bf16));
    _mm512_mask_storeu_ps(dw + j, m, w);
    _mm512_mask_storeu_ps(db + j, m, b);
    store(dx, j, m, d, bf16);
  }
}

KERNEL(BOTH, layer_norm_grad) {
  if (p->bf16)
    for (i64 r = p->lo; r < p->hi; r++) layer_norm_grad_row(p->args, r, p->partial, 1);
  else
    for (i64 r = p->lo; r < p->hi; r++) layer_norm_grad_row(p->args, r, p->partial, 0);
}
