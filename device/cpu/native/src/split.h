// Operands of bf16 products: bf16 as they are, or f32 as the two bf16 of precision high,
// x ≈ hi + lo, whose three larger products stand for one f32 product.
#ifndef SKEIN_SPLIT_H
#define SKEIN_SPLIT_H

#include "gemm.h"

enum part {
  WORDS,  // of bf16
  HIGH,   // of f32: the nearest bf16; the one towards zero where that is Inf
  LOW,    // of f32: what HIGH leaves, again rounded; 0 where HIGH is Inf or NaN
};

// FOR_PART calls f with p->part as a constant.
#define FOR_PART(f)             \
  switch (p->part) {            \
    case HIGH: f(HIGH); break;  \
    case LOW: f(LOW); break;    \
    default: f(WORDS);          \
  }

// By truncation HIGH would be cheaper, but LOW twice as large and of one sign, and so the product
// of two LOWs, which is left out, four times and a bias: up to 2⁻¹⁴ of a term, not 2⁻¹⁶.
AVX512 INLINE __m256i part_of(__m512 x, enum part part) {
  const __m512i exponent = _mm512_set1_epi32(0x7f800000), bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 inside = _mm512_cmpneq_epi32_mask(_mm512_and_si512(up, exponent), exponent);
  const __mmask16 finite = _mm512_cmpneq_epi32_mask(_mm512_and_si512(bits, exponent), exponent);
  // A NaN whose upper half is that of Inf has to stay a NaN.
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  __m512i high = _mm512_mask_mov_epi32(bits, inside & finite, up);
  high = _mm512_srli_epi32(_mm512_mask_or_epi32(high, nan, bits, _mm512_set1_epi32(0x400000)), 16);
  if (part == HIGH) return _mm512_cvtepi32_epi16(high);
  return narrow(_mm512_maskz_sub_ps(finite, x, _mm512_castsi512_ps(_mm512_slli_epi32(high, 16))));
}

// words16 and words load up to 16 or 32 elements from number at of src on, as bf16.
AVX512 INLINE __m256i words16(const void *src, int64_t at, __mmask16 m, enum part part) {
  if (part == WORDS) return _mm256_maskz_loadu_epi16(m, (const uint16_t *)src + at);
  return part_of(_mm512_maskz_loadu_ps(m, (const float *)src + at), part);
}

AVX512 INLINE __m512i words(const void *src, int64_t at, __mmask32 m, enum part part) {
  if (part == WORDS) return _mm512_maskz_loadu_epi16(m, (const uint16_t *)src + at);
  const __m256i low = words16(src, at, (__mmask16)m, part), high = words16(src, at + 16, (__mmask16)(m >> 16), part);
  return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

#endif
