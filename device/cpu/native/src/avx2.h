// The intrinsics of AVX-512 that our sources use, on pairs of AVX2 vectors. A kernel compiled with
// SKEIN_AVX2 gives, lane for lane, the bits that it gives with AVX-512: there are as many
// lanes, each operation rounds once as its namesake does, and masks are the same integers.
// What is missing here, a source may not use outside of #ifndef SKEIN_AVX2.
#ifndef SKEIN_AVX2_H
#define SKEIN_AVX2_H

#include <immintrin.h>
#include <stdint.h>

typedef struct { __m256 lo, hi; } wide_ps;
typedef struct { __m256d lo, hi; } wide_pd;
typedef struct { __m256i lo, hi; } wide_si;

#define OP static inline __attribute__((always_inline, target("avx2,fma,f16c,bmi2")))
#define CALLED static __attribute__((noinline, unused, target("avx2,fma,f16c,bmi2")))

// lanes8 and lanes4 make vectors of whole lanes from mask bits.
OP __m256i lanes8(unsigned m) {
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32((int)m), bit), bit);
}
OP __m256i lanes4(unsigned m) {
  const __m256i bit = _mm256_setr_epi64x(1, 2, 4, 8);
  return _mm256_cmpeq_epi64(_mm256_and_si256(_mm256_set1_epi64x((int)m), bit), bit);
}

// Memory. Most masks are full, and a test is cheaper than making vectors of them.
OP wide_ps w_loadu_ps(const void *p) {
  return (wide_ps){_mm256_loadu_ps(p), _mm256_loadu_ps((const float *)p + 8)};
}
OP void w_storeu_ps(void *p, wide_ps x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps((float *)p + 8, x.hi);
}
OP wide_ps w_maskz_loadu_ps(unsigned m, const void *p) {
  if (m == 0xffff) return w_loadu_ps(p);
  return (wide_ps){_mm256_maskload_ps(p, lanes8(m)), _mm256_maskload_ps((const float *)p + 8, lanes8(m >> 8))};
}
OP void w_mask_storeu_ps(void *p, unsigned m, wide_ps x) {
  if (m == 0xffff) {
    w_storeu_ps(p, x);
    return;
  }
  _mm256_maskstore_ps(p, lanes8(m), x.lo);
  _mm256_maskstore_ps((float *)p + 8, lanes8(m >> 8), x.hi);
}
OP wide_si w_maskz_loadu_epi32(unsigned m, const void *p) {
  const wide_ps x = w_maskz_loadu_ps(m, p);
  return (wide_si){_mm256_castps_si256(x.lo), _mm256_castps_si256(x.hi)};
}
OP void w_mask_storeu_epi32(void *p, unsigned m, wide_si x) {
  w_mask_storeu_ps(p, m, (wide_ps){_mm256_castsi256_ps(x.lo), _mm256_castsi256_ps(x.hi)});
}
OP __m256 h_maskz_loadu_ps(unsigned m, const void *p) {
  return m == 0xff ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, lanes8(m));
}
OP void w_store_si(void *p, wide_si x) {
  _mm256_store_si256(p, x.lo);
  _mm256_store_si256((__m256i *)p + 1, x.hi);
}

// Words have no masked loads and stores; tails go one by one.
CALLED __m256i words_load(unsigned m, const uint16_t *p) {
  uint16_t x[16] __attribute__((aligned(32)));
  for (int i = 0; i < 16; i++) x[i] = m >> i & 1 ? p[i] : 0;
  return _mm256_load_si256((const __m256i *)x);
}
CALLED void words_store(uint16_t *p, unsigned m, __m256i v) {
  uint16_t x[16] __attribute__((aligned(32)));
  _mm256_store_si256((__m256i *)x, v);
  for (int i = 0; i < 16; i++)
    if (m >> i & 1) p[i] = x[i];
}
OP __m256i h_maskz_loadu_epi16(unsigned m, const void *p) {
  return m == 0xffff ? _mm256_loadu_si256(p) : words_load(m, p);
}
OP void h_mask_storeu_epi16(void *p, unsigned m, __m256i x) {
  if (m == 0xffff)
    _mm256_storeu_si256(p, x);
  else
    words_store(p, m, x);
}
OP wide_si w_maskz_loadu_epi16(unsigned m, const void *p) {
  return (wide_si){h_maskz_loadu_epi16(m & 0xffff, p), h_maskz_loadu_epi16(m >> 16, (const uint16_t *)p + 16)};
}
OP void w_mask_storeu_epi16(void *p, unsigned m, wide_si x) {
  h_mask_storeu_epi16(p, m & 0xffff, x.lo);
  h_mask_storeu_epi16((uint16_t *)p + 16, m >> 16, x.hi);
}

// Lane by lane.
#define UNARY(type, name, op) \
  OP type w_##name(type a) { return (type){_mm256_##op(a.lo), _mm256_##op(a.hi)}; }
#define BINARY(type, name) \
  OP type w_##name(type a, type b) { return (type){_mm256_##name(a.lo, b.lo), _mm256_##name(a.hi, b.hi)}; }
#define TERNARY(type, name)                     \
  OP type w_##name(type a, type b, type c) {    \
    return (type){_mm256_##name(a.lo, b.lo, c.lo), _mm256_##name(a.hi, b.hi, c.hi)}; \
  }
UNARY(wide_ps, sqrt_ps, sqrt_ps)
BINARY(wide_ps, add_ps)
BINARY(wide_ps, sub_ps)
BINARY(wide_ps, mul_ps)
BINARY(wide_ps, div_ps)
BINARY(wide_ps, min_ps)
BINARY(wide_ps, max_ps)
BINARY(wide_ps, xor_ps)
BINARY(wide_ps, unpacklo_ps)
BINARY(wide_ps, unpackhi_ps)
TERNARY(wide_ps, fmadd_ps)
TERNARY(wide_ps, fnmadd_ps)
BINARY(wide_pd, add_pd)
BINARY(wide_pd, sub_pd)
BINARY(wide_pd, mul_pd)
BINARY(wide_pd, div_pd)
TERNARY(wide_pd, fmadd_pd)
BINARY(wide_si, add_epi32)
BINARY(wide_si, unpacklo_epi32)
BINARY(wide_si, unpackhi_epi32)
BINARY(wide_si, unpacklo_epi64)
BINARY(wide_si, unpackhi_epi64)
OP wide_si w_and_si(wide_si a, wide_si b) {
  return (wide_si){_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)};
}
OP wide_si w_or_si(wide_si a, wide_si b) {
  return (wide_si){_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)};
}
OP wide_si w_xor_si(wide_si a, wide_si b) {
  return (wide_si){_mm256_xor_si256(a.lo, b.lo), _mm256_xor_si256(a.hi, b.hi)};
}
OP wide_si w_srli_epi32(wide_si a, int n) { return (wide_si){_mm256_srli_epi32(a.lo, n), _mm256_srli_epi32(a.hi, n)}; }
OP wide_si w_slli_epi32(wide_si a, int n) { return (wide_si){_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)}; }
OP wide_ps w_abs_ps(wide_ps a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return (wide_ps){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
OP wide_ps w_nearest_ps(wide_ps a) {
  enum { MODE = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC };
  return (wide_ps){_mm256_round_ps(a.lo, MODE), _mm256_round_ps(a.hi, MODE)};
}

// Constants and changes of type.
OP wide_ps w_set1_ps(float x) { return (wide_ps){_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
OP wide_pd w_set1_pd(double x) { return (wide_pd){_mm256_set1_pd(x), _mm256_set1_pd(x)}; }
OP wide_si w_set1_epi32(int x) { return (wide_si){_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
#define w_setr_epi32(a, b, c, d, e, f, g, h, ...) \
  ((wide_si){_mm256_setr_epi32(a, b, c, d, e, f, g, h), _mm256_setr_epi32(__VA_ARGS__)})
OP wide_si w_castps_si(wide_ps a) { return (wide_si){_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
OP wide_ps w_castsi_ps(wide_si a) { return (wide_ps){_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
OP __m256 w_low(wide_ps a) { return a.lo; }
OP wide_ps w_from_low(__m256 a) { return (wide_ps){a, a}; }
OP __m256 w_half(wide_ps a, int i) { return i ? a.hi : a.lo; }
OP wide_ps w_insert_half(wide_ps a, __m256 x, int i) {
  if (i) a.hi = x;
  else a.lo = x;
  return a;
}
OP wide_si w_cvtepu16_epi32(__m256i x) {
  return (wide_si){_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)), _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1))};
}
OP __m256i w_cvtepi32_epi16(wide_si a) {  // truncates
  const __m256i word = _mm256_set1_epi32(0xffff);
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(a.lo, word), _mm256_and_si256(a.hi, word));
  return _mm256_permute4x64_epi64(packed, 0xd8);
}
OP void w_mask_cvtepi32_storeu_epi16(void *p, unsigned m, wide_si a) { h_mask_storeu_epi16(p, m, w_cvtepi32_epi16(a)); }
OP wide_pd w_cvtps_pd(__m256 x) {
  return (wide_pd){_mm256_cvtps_pd(_mm256_castps256_ps128(x)), _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1))};
}
OP __m256 w_cvtpd_ps(wide_pd x) { return _mm256_set_m128(_mm256_cvtpd_ps(x.hi), _mm256_cvtpd_ps(x.lo)); }

// Blocks of four lanes: 0x88 takes the even ones of both operands, 0xdd the odd ones.
OP wide_si w_shuffle_i32x4(wide_si a, wide_si b, int which) {
  if (which == 0x88)
    return (wide_si){_mm256_permute2x128_si256(a.lo, a.hi, 0x20), _mm256_permute2x128_si256(b.lo, b.hi, 0x20)};
  return (wide_si){_mm256_permute2x128_si256(a.lo, a.hi, 0x31), _mm256_permute2x128_si256(b.lo, b.hi, 0x31)};
}
OP wide_ps w_shuffle_f32x4(wide_ps a, wide_ps b, int which) {
  return w_castsi_ps(w_shuffle_i32x4(w_castps_si(a), w_castps_si(b), which));
}
#define w_shuffle_ps(a, b, which) \
  ((wide_ps){_mm256_shuffle_ps((a).lo, (b).lo, which), _mm256_shuffle_ps((a).hi, (b).hi, which)})

// Masks.
#define w_cmp_ps_mask(a, b, how)                                                   \
  ((__mmask16)(_mm256_movemask_ps(_mm256_cmp_ps((a).lo, (b).lo, how)) |            \
               _mm256_movemask_ps(_mm256_cmp_ps((a).hi, (b).hi, how)) << 8))
#define w_cmp_pd_mask(a, b, how)                                                   \
  ((__mmask8)(_mm256_movemask_pd(_mm256_cmp_pd((a).lo, (b).lo, how)) |             \
              _mm256_movemask_pd(_mm256_cmp_pd((a).hi, (b).hi, how)) << 4))
OP unsigned w_greater_epi32(wide_si a, wide_si b) {
  return (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.lo, b.lo))) |
         (unsigned)_mm256_movemask_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(a.hi, b.hi))) << 8;
}
OP __mmask16 w_cmpge_epi32_mask(wide_si a, wide_si b) { return (__mmask16)~w_greater_epi32(b, a); }
OP __mmask16 w_mask_cmplt_epi32_mask(unsigned m, wide_si a, wide_si b) { return (__mmask16)(m & w_greater_epi32(b, a)); }
OP wide_ps w_mask_mov_ps(wide_ps a, unsigned m, wide_ps b) {
  if (__builtin_constant_p(m) && m == 0xffff) return b;
  return (wide_ps){_mm256_blendv_ps(a.lo, b.lo, _mm256_castsi256_ps(lanes8(m))),
                   _mm256_blendv_ps(a.hi, b.hi, _mm256_castsi256_ps(lanes8(m >> 8)))};
}
OP wide_pd w_mask_mov_pd(wide_pd a, unsigned m, wide_pd b) {
  return (wide_pd){_mm256_blendv_pd(a.lo, b.lo, _mm256_castsi256_pd(lanes4(m))),
                   _mm256_blendv_pd(a.hi, b.hi, _mm256_castsi256_pd(lanes4(m >> 4)))};
}
OP wide_ps w_maskz_mov_ps(unsigned m, wide_ps a) { return w_mask_mov_ps(w_set1_ps(0), m, a); }
OP wide_ps w_mask_add_ps(wide_ps s, unsigned m, wide_ps a, wide_ps b) { return w_mask_mov_ps(s, m, w_add_ps(a, b)); }
OP wide_ps w_mask_sub_ps(wide_ps s, unsigned m, wide_ps a, wide_ps b) { return w_mask_mov_ps(s, m, w_sub_ps(a, b)); }
OP wide_ps w_mask_max_ps(wide_ps s, unsigned m, wide_ps a, wide_ps b) { return w_mask_mov_ps(s, m, w_max_ps(a, b)); }
OP wide_ps w_maskz_sub_ps(unsigned m, wide_ps a, wide_ps b) {
  return m == 0xffff ? w_sub_ps(a, b) : w_maskz_mov_ps(m, w_sub_ps(a, b));
}

// scalef_ps is x·2^n, rounded once, for |x| in [2⁻¹⁷, 2³⁰) or NaN and integers n within ±217:
// the first of two factors can not leave the range of normal numbers.
OP wide_ps w_scalef_ps(wide_ps x, wide_ps n) {
  const __m256i bias = _mm256_set1_epi32(127);
  const __m256i lo = _mm256_cvtps_epi32(n.lo), hi = _mm256_cvtps_epi32(n.hi);
  const __m256i lo1 = _mm256_srai_epi32(lo, 1), hi1 = _mm256_srai_epi32(hi, 1);
#define POWER(n) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, bias), 23))
  x.lo = _mm256_mul_ps(_mm256_mul_ps(x.lo, POWER(lo1)), POWER(_mm256_sub_epi32(lo, lo1)));
  x.hi = _mm256_mul_ps(_mm256_mul_ps(x.hi, POWER(hi1)), POWER(_mm256_sub_epi32(hi, hi1)));
#undef POWER
  return x;
}

// getexp_pd is ⌊log2 x⌋ of positive normal x; 1024 of Inf and NaN.
OP __m256d exponents(__m256d x) {
  const __m256i e = _mm256_and_si256(_mm256_srli_epi64(_mm256_castpd_si256(x), 52), _mm256_set1_epi64x(0x7ff));
  const __m256d shifted = _mm256_castsi256_pd(_mm256_or_si256(e, _mm256_set1_epi64x(0x4330000000000000)));
  return _mm256_sub_pd(shifted, _mm256_set1_pd(0x1p52 + 1023));
}
OP wide_pd w_getexp_pd(wide_pd x) { return (wide_pd){exponents(x.lo), exponents(x.hi)}; }

// scalef_pd is x·2^n for integers n within ±1,022.
OP __m256d power_pd(__m256d n) {
  const __m256i e = _mm256_castpd_si256(_mm256_add_pd(n, _mm256_set1_pd(0x1.8p52 + 1023)));
  return _mm256_castsi256_pd(_mm256_slli_epi64(e, 52));
}
OP wide_pd w_scalef_pd(wide_pd x, wide_pd n) {
  return (wide_pd){_mm256_mul_pd(x.lo, power_pd(n.lo)), _mm256_mul_pd(x.hi, power_pd(n.hi))};
}

// Across lanes.
OP float w_reduce_max_ps(wide_ps x) {
  const __m256 a = _mm256_max_ps(x.hi, x.lo);
  const __m128 b = _mm_max_ps(_mm256_extractf128_ps(a, 1), _mm256_castps256_ps128(a));
  const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
  return _mm_cvtss_f32(_mm_max_ss(c, _mm_movehdup_ps(c)));
}

// w_narrow is narrow of lanes.h and gemm.h without going through a mask.
OP __m256i w_narrow(wide_ps x) {
  const __m256i one = _mm256_set1_epi32(1), half = _mm256_set1_epi32(0x7fff), quiet = _mm256_set1_epi32(0x400000);
#define ROUND(x)                                                                                           \
  ({                                                                                                       \
    const __m256i u = _mm256_castps_si256(x);                                                              \
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), one);                                   \
    const __m256i up = _mm256_add_epi32(u, _mm256_add_epi32(odd, half));                                   \
    const __m256 nan = _mm256_cmp_ps(x, x, _CMP_UNORD_Q);                                                  \
    const __m256 kept = _mm256_castsi256_ps(_mm256_or_si256(u, quiet));                                    \
    _mm256_srli_epi32(_mm256_castps_si256(_mm256_blendv_ps(_mm256_castsi256_ps(up), kept, nan)), 16);      \
  })
  return _mm256_permute4x64_epi64(_mm256_packus_epi32(ROUND(x.lo), ROUND(x.hi)), 0xd8);
#undef ROUND
}

#define __m512 wide_ps
#define __m512d wide_pd
#define __m512i wide_si
#define _mm512_load_ps w_loadu_ps
#define _mm512_loadu_ps w_loadu_ps
#define _mm512_store_ps w_storeu_ps
#define _mm512_storeu_ps w_storeu_ps
#define _mm512_maskz_loadu_ps w_maskz_loadu_ps
#define _mm512_mask_storeu_ps w_mask_storeu_ps
#define _mm512_maskz_loadu_epi32 w_maskz_loadu_epi32
#define _mm512_mask_storeu_epi32 w_mask_storeu_epi32
#define _mm512_maskz_loadu_epi16 w_maskz_loadu_epi16
#define _mm512_mask_storeu_epi16 w_mask_storeu_epi16
#define _mm256_maskz_loadu_epi16 h_maskz_loadu_epi16
#define _mm256_mask_storeu_epi16 h_mask_storeu_epi16
#define _mm256_maskz_loadu_ps h_maskz_loadu_ps
#define _mm512_store_si512 w_store_si
#define _mm512_add_ps w_add_ps
#define _mm512_sub_ps w_sub_ps
#define _mm512_mul_ps w_mul_ps
#define _mm512_div_ps w_div_ps
#define _mm512_min_ps w_min_ps
#define _mm512_max_ps w_max_ps
#define _mm512_xor_ps w_xor_ps
#define _mm512_abs_ps w_abs_ps
#define _mm512_sqrt_ps w_sqrt_ps
#define _mm512_fmadd_ps w_fmadd_ps
#define _mm512_fnmadd_ps w_fnmadd_ps
#define _mm512_roundscale_ps(x, nearest) w_nearest_ps(x)
#define _mm512_scalef_ps w_scalef_ps
#define _mm512_unpacklo_ps w_unpacklo_ps
#define _mm512_unpackhi_ps w_unpackhi_ps
#define _mm512_shuffle_ps w_shuffle_ps
#define _mm512_shuffle_f32x4 w_shuffle_f32x4
#define _mm512_set1_ps w_set1_ps
#define _mm512_setzero_ps() w_set1_ps(0)
#define _mm512_cvtss_f32(x) _mm256_cvtss_f32((x).lo)
#define _mm512_reduce_max_ps w_reduce_max_ps
#define _mm512_castps_si512 w_castps_si
#define _mm512_castsi512_ps w_castsi_ps
#define _mm512_castps512_ps256 w_low
#define _mm512_castps256_ps512 w_from_low
#define _mm512_extractf32x8_ps w_half
#define _mm512_insertf32x8 w_insert_half
#define _mm512_add_pd w_add_pd
#define _mm512_sub_pd w_sub_pd
#define _mm512_mul_pd w_mul_pd
#define _mm512_div_pd w_div_pd
#define _mm512_fmadd_pd w_fmadd_pd
#define _mm512_set1_pd w_set1_pd
#define _mm512_setzero_pd() w_set1_pd(0)
#define _mm512_getexp_pd w_getexp_pd
#define _mm512_scalef_pd w_scalef_pd
#define _mm512_cvtps_pd w_cvtps_pd
#define _mm512_cvtpd_ps w_cvtpd_ps
#define _mm512_store_pd(p, x) (_mm256_store_pd(p, (x).lo), _mm256_store_pd((p) + 4, (x).hi))
#define _mm512_add_epi32 w_add_epi32
#define _mm512_and_si512 w_and_si
#define _mm512_or_si512 w_or_si
#define _mm512_xor_si512 w_xor_si
#define _mm512_srli_epi32 w_srli_epi32
#define _mm512_slli_epi32 w_slli_epi32
#define _mm512_set1_epi32 w_set1_epi32
#undef _mm512_setr_epi32  // a macro of gcc's own
#define _mm512_setr_epi32 w_setr_epi32
#define _mm512_setzero_si512() w_set1_epi32(0)
#define _mm512_unpacklo_epi32 w_unpacklo_epi32
#define _mm512_unpackhi_epi32 w_unpackhi_epi32
#define _mm512_unpacklo_epi64 w_unpacklo_epi64
#define _mm512_unpackhi_epi64 w_unpackhi_epi64
#define _mm512_shuffle_i32x4 w_shuffle_i32x4
#define _mm512_cvtepu16_epi32 w_cvtepu16_epi32
#define _mm512_cvtepi32_epi16 w_cvtepi32_epi16
#define _mm512_mask_cvtepi32_storeu_epi16 w_mask_cvtepi32_storeu_epi16
#define _mm512_cmp_ps_mask w_cmp_ps_mask
#define _mm512_cmp_pd_mask w_cmp_pd_mask
#define _mm512_cmpge_epi32_mask w_cmpge_epi32_mask
#define _mm512_mask_cmplt_epi32_mask w_mask_cmplt_epi32_mask
#define _mm512_mask_mov_ps w_mask_mov_ps
#define _mm512_mask_mov_pd w_mask_mov_pd
#define _mm512_maskz_mov_ps w_maskz_mov_ps
#define _mm512_mask_add_ps w_mask_add_ps
#define _mm512_mask_sub_ps w_mask_sub_ps
#define _mm512_maskz_sub_ps w_maskz_sub_ps
#define _mm512_mask_max_ps w_mask_max_ps

#endif
