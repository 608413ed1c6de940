// The inner loop of GemmF32 for AVX2. Its 16 registers hold the sums of 6 rows by 16 columns, of
// the same panels and in the same order. The loop for AVX-512, on pairs of vectors, spills: whole
// products then did 54 GF/s on one core where these do 63 to 78, of 95 that multiply-adds alone do.
#ifndef SKEIN_F32_AVX2_H
#define SKEIN_F32_AVX2_H

_Static_assert(MR % 6 == 0 && NR == 32, "panels are cut into blocks of 6 x 16");

#define SIX(X) X(0) X(1) X(2) X(3) X(4) X(5)

// block6: s [6][16 of NR] (+)= a [k][6 of MR] · b [k][16 of NR].
AVX2 INLINE void block6(const float *a, const float *b, float *s, int64_t k, int64_t acc) {
#define ZERO6(i) __m256 c##i##_0 = _mm256_setzero_ps(), c##i##_1 = c##i##_0;
  SIX(ZERO6)
  for (; k > 0; k--, a += MR, b += NR) {
    const __m256 b0 = _mm256_load_ps(b), b1 = _mm256_load_ps(b + 8);
#define STEP6(i)                                  \
  {                                               \
    const __m256 t = _mm256_broadcast_ss(a + i);  \
    c##i##_0 = _mm256_fmadd_ps(t, b0, c##i##_0);  \
    c##i##_1 = _mm256_fmadd_ps(t, b1, c##i##_1);  \
  }
    SIX(STEP6)
  }
  if (acc) {
#define ADD6(i)                                                     \
  c##i##_0 = _mm256_add_ps(_mm256_load_ps(s + i * NR), c##i##_0);   \
  c##i##_1 = _mm256_add_ps(_mm256_load_ps(s + i * NR + 8), c##i##_1);
    SIX(ADD6)
  }
#define STORE6(i)                           \
  _mm256_store_ps(s + i * NR, c##i##_0);    \
  _mm256_store_ps(s + i * NR + 8, c##i##_1);
  SIX(STORE6)
}

// gemm_avx2 takes one half of the columns for all rows, then the other: half a panel of b stays
// in 16 KB of L1.
AVX2 INLINE void gemm_avx2(const struct gemm_f32 *p) {
  const char *next = (const char *)p->next, *out = (const char *)p->out;
  const int64_t lines = p->panels > 0 ? (p->next_bytes / p->panels + 63) / 64 : 0;
  for (int half = 0; half < NR; half += 16) {
    const float *a = p->a;
    float *s = p->s + half;
    for (int64_t n = p->panels; n > 0; n--, a += p->k * MR, s += MR * NR) {
      if (half == 0) {
        for (int64_t i = 0; i < lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
      } else if (out) {
        for (int i = 0; i < MR; i++, out += p->out_stride) {
          __builtin_prefetch(out, 1, 2);
          __builtin_prefetch(out + 64, 1, 2);
        }
      }
      for (int r = 0; r < MR; r += 6) block6(a + r, p->b + half, s + r * NR, p->k, p->acc);
    }
  }
}

#endif
