// What forward and backward of attention share beside the products: which scores
// count, and where results go.
#ifndef SKEIN_WINDOW_H
#define SKEIN_WINDOW_H

#include "tile.h"

// Arrays in scratch memory are [64, dp] or [64, 64] floats. Odd gaps keep them off each other's
// cache sets.
#define GAP 80
#define LOG2E 0x1.715476p+0f

struct bounds {  // what a score of row r, lane c must satisfy: lane in [r + low, r + high)
  i64 low, high;
};

// no_window stands for a window without limit.
#define NO_WINDOW ((i64)1 << 30)

INLINE AVX512 i64 window_of(i64 window) { return window ? window : NO_WINDOW; }

INLINE AVX512 __mmask16 inside(struct bounds v, i64 r, i64 lane) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __mmask16 above = _mm512_cmpge_epi32_mask(lanes, _mm512_set1_epi32((int)(r + v.low - lane)));
  return _mm512_mask_cmplt_epi32_mask(above, lanes, _mm512_set1_epi32((int)(r + v.high - lane)));
}

// keys_seen: T [keys, queries], queries offset rows after the keys in their document:
// key r is seen by query c iff 0 ≤ c + offset − r < window.
INLINE AVX512 struct bounds keys_seen(i64 offset, i64 window) {
  return (struct bounds){-offset, window - offset};
}

// queries_seeing: T [queries, keys]: 0 ≤ r + offset − c < window.
INLINE AVX512 struct bounds queries_seeing(i64 offset, i64 window) {
  return (struct bounds){offset - window + 1, offset + 1};
}

INLINE AVX512 void put(void *dst, i64 i, __mmask16 m, vec x, int bf16) {
  if (bf16)
    store(dst, i, m, x, 1);
  else
    store(dst, i, m, x, 0);
}

// tile_put stores n rows of d elements.
HELPER AVX512 void tile_put(void *dst, i64 ld, const float *c, i64 dp, i64 n, i64 d, int bf16) {
  for (i64 r = 0; r < n; r++)
    for (i64 j = 0; j < dp; j += 16)
      put(dst, r * ld + j, first(d - j), _mm512_load_ps(c + r * dp + j), bf16);
}

#endif
