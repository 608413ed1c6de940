// Vectors of 16 floats for kernels that read and write F32 or BF16: loads, stores,
// exp and log. Lanes never influence each other, so an element's bits do not
// depend on where in a vector, or in which call, it was computed.
#ifndef SKEIN_LANES_H
#define SKEIN_LANES_H

#include "kernel.h"

typedef __m512 vec;
typedef int64_t i64;

// first(n) is the mask of the first n lanes, all of them from 16 on.
INLINE AVX512 __mmask16 first(i64 n) {
  return n >= 16 ? 0xffff : n <= 0 ? 0 : (__mmask16)((1u << n) - 1);
}

INLINE AVX512 vec zero(void) { return _mm512_setzero_ps(); }
INLINE AVX512 vec set1(float x) { return _mm512_set1_ps(x); }
INLINE AVX512 vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }

// at is the address of element i of a tensor.
INLINE AVX512 void *at(const void *p, i64 i, int bf16) {
  return (char *)p + i * (bf16 ? 2 : 4);
}

INLINE AVX512 vec widen(__m256i x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}

// load reads the lanes of m from element i of p; the others are zero and not touched.
INLINE AVX512 vec load(const void *p, i64 i, __mmask16 m, int bf16) {
  if (bf16) return widen(_mm256_maskz_loadu_epi16(m, (const uint16_t *)p + i));
  return _mm512_maskz_loadu_ps(m, (const float *)p + i);
}

// narrow rounds to BF16, to nearest even, in integers: subnormals survive, which
// VCVTNEPS2BF16 would flush, and no BF16 instruction set is needed. A NaN stays one.
INLINE AVX512 __m256i narrow(vec x) {
#ifdef SKEIN_AVX2
  return w_narrow(x);
#else
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
#endif
}

// store writes the lanes of m from element i of p, rounded once.
INLINE AVX512 void store(void *p, i64 i, __mmask16 m, vec x, int bf16) {
  if (bf16)
    _mm256_mask_storeu_epi16((uint16_t *)p + i, m, narrow(x));
  else
    _mm512_mask_storeu_ps((float *)p + i, m, x);
}

// rounded is what a store and a load would make of x.
INLINE AVX512 vec rounded(vec x, int bf16) { return bf16 ? widen(narrow(x)) : x; }

// vexp is e^x within 1 ulp: x = n·ln2 + r in two parts, |r| ≤ ln2/2, then
// 1 + r + r²·q(r) with q of degree 4 through the Chebyshev nodes (relative error 1.1e-8).
// Results may be subnormal; Inf and NaN pass.
INLINE AVX512 vec vexp(vec x) {
  // The second operand is what max and min return for NaN.
  x = _mm512_min_ps(set1(128), _mm512_max_ps(set1(-150), x));
  vec n = _mm512_roundscale_ps(_mm512_mul_ps(x, set1(1.44269504f)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  vec r = _mm512_fnmadd_ps(n, set1(0x1.62e430p-1f), x);
  r = _mm512_fnmadd_ps(n, set1(-0x1.05c610p-29f), r);
  vec q = fma(set1(0x1.6d1380p-10f), r, set1(0x1.120de4p-7f));
  q = fma(q, r, set1(0x1.555518p-5f));
  q = fma(q, r, set1(0x1.5554dap-3f));
  q = fma(q, r, set1(0.5f));
  q = fma(q, r, set1(1));
  q = fma(q, r, set1(1));
  return _mm512_scalef_ps(q, n);
}

// vexp2 is 2^x within 1 ulp of the value at x as given: x = n + f with |f| ≤ 1/2, then 1 + f·q(f) with q
// of degree 5 (relative error 2e-9). −Inf gives 0, NaN stays NaN; x must not be +Inf.
INLINE AVX512 vec vexp2(vec x) {
  x = _mm512_max_ps(set1(-200), x);  // the second operand is what max returns for NaN
  vec n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  vec f = _mm512_sub_ps(x, n);
  vec q = fma(set1(0x1.41fbbap-13f), f, set1(0x1.5f3e54p-10f));
  q = fma(q, f, set1(0x1.3b2d4cp-7f));
  q = fma(q, f, set1(0x1.c6aee8p-5f));
  q = fma(q, f, set1(0x1.ebfbdcp-3f));
  q = fma(q, f, set1(0x1.62e430p-1f));
  return _mm512_scalef_ps(fma(q, f, set1(1)), n);
}

// logd is log(x) for positive normal x, +Inf and NaN, in F64: x = 2^e·m with m in [0.75, 1.5) and
// log(m) = 2·artanh((m−1)/(m+1)) by its series; relative error about 1e-12.
INLINE AVX512 __m512d logd(__m512d x) {
  __m512d e = _mm512_getexp_pd(_mm512_mul_pd(x, _mm512_set1_pd(4.0 / 3)));
  __m512d m = _mm512_scalef_pd(x, _mm512_sub_pd(_mm512_setzero_pd(), e));
  __m512d one = _mm512_set1_pd(1);
  __m512d s = _mm512_div_pd(_mm512_sub_pd(m, one), _mm512_add_pd(m, one));
  __m512d s2 = _mm512_mul_pd(s, s);
  __m512d q = _mm512_set1_pd(1.0 / 15);
#pragma GCC unroll 8
  for (int k = 13; k > 0; k -= 2) q = _mm512_fmadd_pd(q, s2, _mm512_set1_pd(1.0 / k));
  q = _mm512_mul_pd(_mm512_add_pd(s, s), q);
  q = _mm512_fmadd_pd(e, _mm512_set1_pd(0x1.62e42fefa39efp-1), q);
  __mmask8 inf = _mm512_cmp_pd_mask(x, _mm512_set1_pd(__builtin_inf()), _CMP_EQ_OQ);
  return _mm512_mask_mov_pd(q, inf, x);
}

// vlog is log(x) rounded once; x as for logd.
INLINE AVX512 vec vlog(vec x) {
  __m256 lo = _mm512_cvtpd_ps(logd(_mm512_cvtps_pd(_mm512_castps512_ps256(x))));
  __m256 hi = _mm512_cvtpd_ps(logd(_mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))));
  return _mm512_insertf32x8(_mm512_castps256_ps512(lo), hi, 1);
}

// sum adds the lanes: halves, quarters, pairs.
INLINE AVX512 float sum(vec x) {
  __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  b = _mm_add_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_add_ss(b, _mm_movehdup_ps(b)));
}

// ROW_SUM is the sum of a(j, m)·b(j, m) over the vectors of a row, m the lanes of the one at
// element j, in an order that only its length decides: four vectors in turn, added pairwise, then their lanes.
#define ROW_SUM(result, cols, a, b)                                        \
  do {                                                                     \
    vec s0 = zero(), s1 = zero(), s2 = zero(), s3 = zero();                \
    i64 j = 0;                                                             \
    for (; j + 64 <= (cols); j += 64) {                                    \
      s0 = fma(a(j, 0xffff), b(j, 0xffff), s0);                            \
      s1 = fma(a(j + 16, 0xffff), b(j + 16, 0xffff), s1);                  \
      s2 = fma(a(j + 32, 0xffff), b(j + 32, 0xffff), s2);                  \
      s3 = fma(a(j + 48, 0xffff), b(j + 48, 0xffff), s3);                  \
    }                                                                      \
    for (; j < (cols); j += 16) {                                          \
      __mmask16 m_ = first((cols)-j);                                      \
      vec t = s0;                                                          \
      s0 = s1, s1 = s2, s2 = s3, s3 = fma(a(j, m_), b(j, m_), t);          \
    }                                                                      \
    result = sum(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3))); \
  } while (0)

INLINE AVX512 float root(float x) { return _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

#endif
