// Sums of rows, of squares, and the optimizer.
#include "table.h"
#include "lanes.h"

// SumRows adds to dst the sum of n rows of src, taken from zero in their order:
// columns [from, to). Order, if there is one, says which rows.
struct sum_rows {
  float *dst;
  const void *src;
  const int32_t *order;  // [n], or null for rows 0 to n−1
  int64_t ld;            // of src
  int64_t n;
  int64_t from;
  int64_t to;
  int64_t bf16;  // src
};

INLINE AVX512 void sum_columns(const struct sum_rows *p, int bf16) {
  for (i64 j = p->from; j < p->to; j += 64) {
    vec s[4] = {zero(), zero(), zero(), zero()};
    __mmask16 m[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) m[c] = first(p->to - j - 16 * c);
    for (i64 i = 0; i < p->n; i++) {
      const void *row = at(p->src, (p->order ? p->order[i] : i) * p->ld + j, bf16);
#pragma GCC unroll 4
      for (int c = 0; c < 4; c++) s[c] = _mm512_add_ps(s[c], load(row, 16 * c, m[c], bf16));
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; c++) {
      float *dst = p->dst + j + 16 * c;
      _mm512_mask_storeu_ps(dst, m[c], _mm512_add_ps(_mm512_maskz_loadu_ps(m[c], dst), s[c]));
    }
  }
}

KERNEL(BOTH, sum_rows) {
  if (p->bf16)
    sum_columns(p, 1);
  else
    sum_columns(p, 0);
}

// SqNorm is the sum of squares of n F32 elements, in F64: lane l adds up elements l, l+8, …,
// then the lanes are added in order. Squares are exact, so fma rounds as a sum does.
struct sq_norm {
  const float *x;
  int64_t n;
  double *out;
};

KERNEL(BOTH, sq_norm) {
  __m512d s = _mm512_setzero_pd();
  for (i64 i = 0; i < p->n; i += 8) {
    __mmask8 m = (__mmask8)first(p->n - i);
    __m512d x = _mm512_cvtps_pd(_mm256_maskz_loadu_ps(m, p->x + i));
    s = _mm512_fmadd_pd(x, x, s);
  }
  double lanes[8] __attribute__((aligned(64))), sum = 0;
  _mm512_store_pd(lanes, s);
  for (int l = 0; l < 8; l++) sum += lanes[l];
  *p->out = sum;
}

// Adamw is kernel.AdamW on elements [lo, hi), every product rounded by itself.
struct adamw {
  const void *args;  // kernel.AdamW
  int64_t lo;
  int64_t hi;
  int64_t bf16;  // work
};

INLINE AVX512 void adamw_range(const struct adamw_args *a, i64 lo, i64 hi, int bf16) {
  const vec grad_scale = set1(a->grad_scale), decay_step = set1(a->decay_step), step = set1(a->step);
  const vec beta1_rest = set1(a->beta1_rest), beta2 = set1(a->beta2), beta2_rest = set1(a->beta2_rest);
  const vec correction2 = set1(a->correction2), eps = set1(a->eps);
  for (i64 i = lo; i < hi; i += 16) {
    __mmask16 mask = first(hi - i);
    vec p = _mm512_maskz_loadu_ps(mask, a->master + i), m = _mm512_maskz_loadu_ps(mask, a->m + i);
    vec v = _mm512_maskz_loadu_ps(mask, a->v + i), g = _mm512_maskz_loadu_ps(mask, a->grad + i);
    g = _mm512_mul_ps(g, grad_scale);
    p = _mm512_sub_ps(p, _mm512_mul_ps(p, decay_step));
    m = _mm512_add_ps(m, _mm512_mul_ps(_mm512_sub_ps(g, m), beta1_rest));
    v = _mm512_add_ps(_mm512_mul_ps(v, beta2), _mm512_mul_ps(_mm512_mul_ps(g, g), beta2_rest));
    vec denominator = _mm512_add_ps(_mm512_div_ps(_mm512_sqrt_ps(v), correction2), eps);
    p = _mm512_sub_ps(p, _mm512_mul_ps(step, _mm512_div_ps(m, denominator)));
    _mm512_mask_storeu_ps(a->master + i, mask, p);
    _mm512_mask_storeu_ps(a->m + i, mask, m);
    _mm512_mask_storeu_ps(a->v + i, mask, v);
    if (a->work) store(a->work, i, mask, p, bf16);
  }
}

KERNEL(BOTH, adamw) {
  if (p->bf16)
    adamw_range(p->args, p->lo, p->hi, 1);
  else
    adamw_range(p->args, p->lo, p->hi, 0);
}
