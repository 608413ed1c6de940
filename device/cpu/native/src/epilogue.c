// From the sums of a product to its output.
#include "gemm.h"

// GemmStore writes out = s + bias + add, in this order, rounded once to the type of out.
struct gemm_store {
  const float *s;    // [rows][32], aligned to 64 bytes
  void *out;         // [rows][cols]
  const void *bias;  // [cols], or null
  const void *add;   // [rows][cols] of the type of out, or null; may be out
  int64_t ld_out;    // in elements
  int64_t ld_add;
  int64_t rows;
  int64_t cols;       // at most 32
  int64_t bf16;       // out and add are bf16, else f32
  int64_t bias_bf16;  // bias is bf16, else f32
};

AVX512 INLINE void store(const struct gemm_store *p, int bf, int with_bias, int with_add) {
  const __mmask16 m[2] = {head16(p->cols), head16(p->cols - 16)};
  __m512 bias0 = _mm512_setzero_ps(), bias1 = bias0;
  if (with_bias && p->bias_bf16) {
    bias0 = widen(_mm256_maskz_loadu_epi16(m[0], p->bias));
    bias1 = widen(_mm256_maskz_loadu_epi16(m[1], (const uint16_t *)p->bias + 16));
  } else if (with_bias) {
    bias0 = _mm512_maskz_loadu_ps(m[0], p->bias);
    bias1 = _mm512_maskz_loadu_ps(m[1], (const float *)p->bias + 16);
  }
  for (int64_t r = 0; r < p->rows; r++) {
    for (int h = 0; h < 2; h++) {
      __m512 v = _mm512_load_ps(p->s + r * 32 + h * 16);
      if (with_bias) v = _mm512_add_ps(v, h ? bias1 : bias0);
      if (bf) {
        const uint16_t *add = (const uint16_t *)p->add + r * p->ld_add + h * 16;
        uint16_t *out = (uint16_t *)p->out + r * p->ld_out + h * 16;
        if (with_add) v = _mm512_add_ps(v, widen(_mm256_maskz_loadu_epi16(m[h], add)));
        _mm256_mask_storeu_epi16(out, m[h], narrow(v));
      } else {
        const float *add = (const float *)p->add + r * p->ld_add + h * 16;
        float *out = (float *)p->out + r * p->ld_out + h * 16;
        if (with_add) v = _mm512_add_ps(v, _mm512_maskz_loadu_ps(m[h], add));
        _mm512_mask_storeu_ps(out, m[h], v);
      }
    }
  }
}

KERNEL(BOTH, gemm_store) {
  const int bias = p->bias != 0, add = p->add != 0;
  if (p->bf16) {
    if (bias) add ? store(p, 1, 1, 1) : store(p, 1, 1, 0);
    else add ? store(p, 1, 0, 1) : store(p, 1, 0, 0);
  } else {
    if (bias) add ? store(p, 0, 1, 1) : store(p, 0, 1, 0);
    else add ? store(p, 0, 0, 1) : store(p, 0, 0, 0);
  }
}
