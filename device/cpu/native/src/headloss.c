// Cross-entropy over rows of logits, forward and backward in one.
#include "table.h"
#include "lanes.h"

// CrossEntropy is kernel.CrossEntropy on rows [lo, hi). Three passes over a row, which
// stays in the L2 cache: largest logit, sum of exponentials, gradient. Computing
// exp twice costs less than keeping it.
struct cross_entropy {
  const void *args;  // kernel.CrossEntropy
  int64_t lo;
  int64_t hi;
  int64_t bf16;  // of the gradient
};

INLINE AVX512 float row_max(const float *x, i64 n) {
  const vec low = set1(-__builtin_inff());
  vec m0 = low, m1 = low, m2 = low, m3 = low;
  i64 j = 0;
  for (; j + 64 <= n; j += 64) {
    m0 = _mm512_max_ps(m0, _mm512_loadu_ps(x + j));
    m1 = _mm512_max_ps(m1, _mm512_loadu_ps(x + j + 16));
    m2 = _mm512_max_ps(m2, _mm512_loadu_ps(x + j + 32));
    m3 = _mm512_max_ps(m3, _mm512_loadu_ps(x + j + 48));
  }
  for (; j < n; j += 16) {
    __mmask16 m = first(n - j);
    m0 = _mm512_mask_max_ps(m0, m, m0, _mm512_maskz_loadu_ps(m, x + j));
  }
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(m0, m1), _mm512_max_ps(m2, m3)));
}

INLINE AVX512 float row_sum_exp(const float *x, i64 n, vec shift) {
  vec s0 = zero(), s1 = zero();
  i64 j = 0;
  for (; j + 32 <= n; j += 32) {
    s0 = _mm512_add_ps(s0, vexp(_mm512_sub_ps(_mm512_loadu_ps(x + j), shift)));
    s1 = _mm512_add_ps(s1, vexp(_mm512_sub_ps(_mm512_loadu_ps(x + j + 16), shift)));
  }
  for (; j < n; j += 16) {
    __mmask16 m = first(n - j);
    vec e = vexp(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + j), shift)), t = s0;
    s0 = s1, s1 = _mm512_mask_add_ps(t, m, t, e);
  }
  return sum(_mm512_add_ps(s0, s1));
}

// A NaN may get lost in the largest logit but not in the sum, and so reaches every output.
INLINE AVX512 void cross_entropy_row(const struct cross_entropy_args *a, i64 r, int bf16) {
  float *x = (float *)a->logits + r * a->ld;
  i64 target = ((const int32_t *)a->targets)[r], n = a->vocab;
  float largest = row_max(x, n), at_target = x[target];
  float total = row_sum_exp(x, n, set1(largest));
  float log_total = _mm512_cvtss_f32(vlog(set1(total)));
  if (a->nll) ((float *)a->nll)[r] = log_total + (largest - at_target);
  if (!a->grad) return;
  vec shift = set1(largest), inv = set1(1.0f / total), scale = set1(a->scale);
  for (i64 j = 0; j < n; j += 16) { // a BF16 result never overtakes what is still to be read
    __mmask16 m = first(n - j);
    vec prob = _mm512_mul_ps(vexp(_mm512_sub_ps(_mm512_maskz_loadu_ps(m, x + j), shift)), inv);
    if (target >= j && target < j + 16)
      prob = _mm512_mask_sub_ps(prob, (__mmask16)(1u << (target - j)), prob, set1(1));
    store(x, j, m, _mm512_mul_ps(prob, scale), bf16);
  }
}

KERNEL(BOTH, cross_entropy) {
  if (p->bf16)
    for (i64 r = p->lo; r < p->hi; r++) cross_entropy_row(p->args, r, 1);
  else
    for (i64 r = p->lo; r < p->hi; r++) cross_entropy_row(p->args, r, 0);
}
