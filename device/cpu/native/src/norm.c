// RMSNorm and its backward, row by row.
#include "table.h"
#include "lanes.h"

// RmsNorm is kernel.RMSNorm on rows [lo, hi).
struct rms_norm {
  const void *args;  // kernel.RMSNorm
  int64_t lo;
  int64_t hi;
  int64_t bf16;
};

INLINE AVX512 void norm_row(const struct norm_args *a, i64 r, int bf16) {
  const void *x = at(a->x, r * a->ld_x, bf16);
  void *y = at(a->y, r * a->ld_y, bf16);
  float ss;
#define X(j, m) load(x, j, m, bf16)
  ROW_SUM(ss, a->cols, X, X);
  float rstd = 1.0f / root(ss / (float)a->cols + a->eps);
  if (a->rstd) ((float *)a->rstd)[r] = rstd;
  for (i64 j = 0; j < a->cols; j += 16) {
    __mmask16 m = first(a->cols - j);
    vec xhat = rounded(_mm512_mul_ps(X(j, m), set1(rstd)), bf16);
    store(y, j, m, _mm512_mul_ps(xhat, load(a->w, j, m, bf16)), bf16);
  }
}

KERNEL(BOTH, rms_norm) {
  if (p->bf16)
    for (i64 r = p->lo; r < p->hi; r++) norm_row(p->args, r, 1);
  else
    for (i64 r = p->lo; r < p->hi; r++) norm_row(p->args, r, 0);
}

// RmsNormGrad is kernel.RMSNormGrad on rows [lo, hi). The rows' dy·x̂ is added to partial.
struct rms_norm_grad {
  const void *args;  // kernel.RMSNormGrad
  int64_t lo;
  int64_t hi;
  float *partial;  // [cols]
  int64_t bf16;
};

// With g = dy·w and x̂ = x·rstd: dx = rstd·(g − x̂·mean(g·x̂)) + add.
INLINE AVX512 void norm_grad_row(const struct norm_grad_args *a, i64 r, float *partial, int bf16) {
  const void *x = at(a->x, r * a->ld_x, bf16), *dy = at(a->dy, r * a->ld_dy, bf16);
  const void *add = a->add ? at(a->add, r * a->ld_add, bf16) : 0;
  void *dx = at(a->dx, r * a->ld_dx, bf16);
  vec rstd = set1(((const float *)a->rstd)[r]);
  float dot;
#define XHAT(j, m) _mm512_mul_ps(load(x, j, m, bf16), rstd)
#define G(j, m) _mm512_mul_ps(load(dy, j, m, bf16), load(a->w, j, m, bf16))
  ROW_SUM(dot, a->cols, G, XHAT);
  vec mean = set1(dot / (float)a->cols);
  for (i64 j = 0; j < a->cols; j += 16) {
    __mmask16 m = first(a->cols - j);
    vec xhat = XHAT(j, m), grad = load(dy, j, m, bf16);
    vec part = fma(grad, rounded(xhat, bf16), _mm512_maskz_loadu_ps(m, partial + j));
    vec d = _mm512_mul_ps(rstd, _mm512_fnmadd_ps(xhat, mean, G(j, m)));
    if (add) d = _mm512_add_ps(d, load(add, j, m, bf16));
    _mm512_mask_storeu_ps(partial + j, m, part);
    store(dx, j, m, d, bf16);
  }
}

KERNEL(BOTH, rms_norm_grad) {
  if (p->bf16)
    for (i64 r = p->lo; r < p->hi; r++) norm_grad_row(p->args, r, p->partial, 1);
  else
    for (i64 r = p->lo; r < p->hi; r++) norm_grad_row(p->args, r, p->partial, 0);
}
