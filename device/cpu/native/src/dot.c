// bf16 products on AVX-512 by VDPBF16PS, for processors on which it is faster than f32
// multiply-adds. The right operand is in the pair form of the tiles (see amx.c), so weights are packed
// alike; the left one is packed as panels of 12 rows, dwords of two k ([k/2][12]). As for
// gemm_f32, 12 × 32 takes 24 accumulators. k is padded to steps of 32 with zeros in both.
#include "split.h"

enum { MR = 12, NR = 32, STEP_BYTES = 2048 };

#define ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

// GemmDot multiplies packed panels of 12 rows by one packed panel of 32 columns:
// s (+)= a·b. An element is summed from zero over the pairs of k, ascending, and then added
// to s or stored there. Of a pair, the second product is added first; each sum is
// rounded to nearest even, and what is subnormal is zero.
struct gemm_dot {
  const void *a;       // [panels][steps·16][12] pairs
  const void *b;       // [steps][2048 bytes], aligned to 64 bytes
  float *s;            // [panels·12][32], aligned to 64 bytes
  uint64_t next;       // address of what the next call will read, to be prefetched
  int64_t next_bytes;  // of it
  uint64_t out;        // address of the output's 32 columns if s is complete after this call, else 0; prefetched
  int64_t out_stride;  // from row to row, in bytes
  int64_t steps;
  int64_t panels;
  int64_t acc;     // 1: add to s, 0: overwrite it
  int64_t a_step;  // bytes from step to step of a: 768, or 1536 where there are two halves
  int64_t b_step;  // and of b: 2048 or 4096
};

KERNEL(AVX512BF16, gemm_dot) {
  const char *a = p->a;
  float *s = p->s;
  const char *next = (const char *)p->next;
  const char *out = (const char *)p->out;
  const int64_t steps = p->steps, acc = p->acc;
  const int64_t lines = p->panels > 0 ? (p->next_bytes / p->panels + 63) / 64 : 0;
  for (int64_t n = p->panels; n > 0; n--) {
    for (int64_t i = 0; i < lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
    if (out) {
      for (int i = 0; i < MR; i++, out += p->out_stride) {
        __builtin_prefetch(out, 1, 2);
        __builtin_prefetch(out + 64, 1, 2);
      }
    }
    if (acc) {
      for (int i = 0; i < MR * NR; i += 16) _mm_prefetch((const char *)(s + i), _MM_HINT_T0);
    }
    const char *b = p->b;
#define ZERO(i) __m512 c##i##_0 = _mm512_setzero_ps(), c##i##_1 = c##i##_0;
    ROWS(ZERO)
    for (int64_t k = steps; k > 0; k--, a += p->a_step - 16 * MR * 4, b += p->b_step - 16 * 64) {
      for (int j = 0; j < 16; j++, a += MR * 4, b += 64) {
        const __m512bh b0 = (__m512bh)_mm512_load_si512(b), b1 = (__m512bh)_mm512_load_si512(b + STEP_BYTES / 2);
#define PAIR(i)                                            \
  {                                                        \
    const __m512bh t = (__m512bh)_mm512_set1_epi32(((const int32_t *)a)[i]);  \
    c##i##_0 = _mm512_dpbf16_ps(c##i##_0, t, b0);          \
    c##i##_1 = _mm512_dpbf16_ps(c##i##_1, t, b1);          \
  }
        ROWS(PAIR)
      }
    }
    if (acc) {
#define ADD(i)                                                       \
  c##i##_0 = _mm512_add_ps(_mm512_load_ps(s + i * NR), c##i##_0);    \
  c##i##_1 = _mm512_add_ps(_mm512_load_ps(s + i * NR + 16), c##i##_1);
      ROWS(ADD)
    }
#define STORE(i)                            \
  _mm512_store_ps(s + i * NR, c##i##_0);    \
  _mm512_store_ps(s + i * NR + 16, c##i##_1);
    ROWS(STORE)
    s += MR * NR;
  }
}

// DotPackLeft packs the left operand of GemmDot.
struct dot_pack_left {
  const void *src;  // bf16, or f32 of which a half is packed
  void *dst;        // [⌈rows/12⌉][⌈k/32⌉·16][12] pairs
  int64_t ld;       // of src, in elements
  int64_t rows;
  int64_t k;
  int64_t transposed;  // 0: src is [rows][k]; 1: src is [k][rows]
  int64_t part;        // enum part
  int64_t step;        // bytes from step to step of dst: 768 or 1536
};

AVX512BF16 INLINE void dot_rows(const struct dot_pack_left *p, enum part part) {
  const __mmask16 lanes = head16(MR);
  char *dst = p->dst;
  for (int64_t r0 = 0; r0 < p->rows; r0 += MR) {
    for (int64_t kk = 0; kk < p->k; kk += 32, dst += p->step) {
      const __mmask32 m = head32(p->k - kk);
      __m512i r[16];
      for (int i = 0; i < 16; i++) {
        r[i] = i < MR && r0 + i < p->rows ? words(p->src, (r0 + i) * p->ld + kk, m, part) : _mm512_setzero_si512();
      }
      transpose16(r);  // a dword is a pair already
      for (int i = 0; i < 16; i++) _mm512_mask_storeu_epi32(dst + i * MR * 4, lanes, r[i]);
    }
  }
}

AVX512BF16 INLINE void dot_cols(const struct dot_pack_left *p, enum part part) {
  const __mmask16 lanes = head16(MR);
  char *dst = p->dst;
  for (int64_t r = 0; r < p->rows; r += MR) {
    const __mmask16 m = head16(p->rows - r) & lanes;
    for (int64_t kk = 0; kk < p->k; kk += 32, dst += p->step) {
      for (int64_t j = 0; j < 16; j++) {
        const int64_t k = kk + 2 * j;
        const __m256i low = k < p->k ? words16(p->src, k * p->ld + r, m, part) : _mm256_setzero_si256();
        const __m256i high = k + 1 < p->k ? words16(p->src, (k + 1) * p->ld + r, m, part) : _mm256_setzero_si256();
        const __m512i pair =
            _mm512_or_si512(_mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
        _mm512_mask_storeu_epi32(dst + j * MR * 4, lanes, pair);
      }
    }
  }
}

KERNEL(AVX512BF16, dot_pack_left) {
#define LEFT(part) p->transposed ? dot_cols(p, part) : dot_rows(p, part)
  FOR_PART(LEFT)
}
