// Products of attention tiles, all in F32. A tile is up to 64 queries or keys of one head. Some
// tiles stay while others stream by:
//
//   pass       stay                   stream           scores T [64 streamed, 64 staying]
//   forward    queries, up to 4 tiles  keys, values     exp(q·k), queries in lanes: their maxima
//                                                       and sums need no work across lanes
//   backward   keys, up to 2 tiles     queries, grads   [queries, keys]
//
// The staying side is packed once as a panel [dp, 64], the streaming side as rows [64, dp]; dp
// is the head dimension rounded up to 16, padding is zero. Then every product is one of three:
//
//   tile_scores:     T = rows · panel
//   tile_accumulate: C [64 staying, dp] += Tᵀ · rows
//   tile_apply:      C [64 streamed, dp] += T · rows of the staying side
//
// A path with a matrix unit replaces these and the packing; the passes around
// them stay. Sums run over ascending rows, so bits depend on places in a document only, never on
// which tiles stay together.
//
// What is not finite never travels against causality: products on the diagonal skip
// what is masked. At the far edge of a window they do not, so NaN or Inf in a key or value
// may reach queries up to a tile behind the window.
//
// docs/adr/0016 has the variants that were tried, with figures.
#ifndef SKEIN_TILE_H
#define SKEIN_TILE_H

#include "lanes.h"

#define TILE 64

// HELPER marks functions that stay calls: inlined for every case they would make
// megabytes of code, and each does thousands of products.
#define HELPER static __attribute__((noinline, unused))

// Which scores of a tile on the diagonal matter: keys up to the query's own.
enum triangle {
  WHOLE,       // not on the diagonal
  KEY_ROWS,    // T [keys, queries]: column ≥ row
  QUERY_ROWS,  // T [queries, keys]: column ≤ row
};

INLINE AVX512 i64 up8(i64 n) { return (n + 7) & ~7; }

INLINE AVX512 void copy_rows(float *dst, i64 dp, const void *src, i64 ld, i64 n, i64 d, int bf16) {
  for (i64 r = 0; r < n; r++)
    for (i64 j = 0; j < dp; j += 16)
      _mm512_store_ps(dst + r * dp + j, load(src, r * ld + j, first(d - j), bf16));
  for (i64 i = n * dp; i < up8(n) * dp; i += 16) _mm512_store_ps(dst + i, zero());
}

// tile_rows copies n rows of d elements to F32 and pads them to a multiple of 8 rows.
HELPER AVX512 void tile_rows(float *dst, i64 dp, const void *src, i64 ld, i64 n, i64 d, int bf16) {
  if (bf16)
    copy_rows(dst, dp, src, ld, n, d, 1);
  else
    copy_rows(dst, dp, src, ld, n, d, 0);
}

// transpose swaps rows and lanes of a 16×16 block.
INLINE AVX512 void transpose(vec x[16]) {
  vec t[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    x[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    x[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    x[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    x[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    x[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// tile_panel packs n rows of d elements as a panel [dp, 64]; missing rows are zero.
HELPER AVX512 void tile_panel(float *dst, i64 dp, const void *src, i64 ld, i64 n, i64 d, int bf16) {
  for (i64 r = 0; r < TILE; r += 16)
    for (i64 j = 0; j < dp; j += 16) {
      vec x[16];
      __mmask16 m = first(d - j);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) {
        x[i] = zero();
        if (r + i < n) x[i] = bf16 ? load(src, (r + i) * ld + j, m, 1) : load(src, (r + i) * ld + j, m, 0);
      }
      transpose(x);
#pragma GCC unroll 16
      for (int i = 0; i < 16; i++) _mm512_store_ps(dst + (j + i) * TILE + r, x[i]);
    }
}

// A block of products is 8 rows by 32 columns: 16 sums, 2 vectors and a broadcast.
#define BLOCK(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)

// tile_scores: T [n up to a multiple of 8, 64] = rows · panel. Blocks without a score
// that matters are left out.
HELPER AVX512 void tile_scores(float *t, const float *rows, const float *panel, i64 dp, i64 n,
                               enum triangle shape) {
  for (i64 c = 0; c < TILE; c += 32)
    for (i64 r = 0; r < n; r += 8) {
      if (shape == KEY_ROWS && c + 32 <= r) continue;
      if (shape == QUERY_ROWS && c > r + 7) continue;
      const float *a = rows + r * dp, *b = panel + c;
#define DECLARE(i) vec x##i = zero(), y##i = zero();
      BLOCK(DECLARE)
      for (i64 k = 0; k < dp; k++, a++, b += TILE) {
        vec b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
#define STEP(i)                    \
  {                                \
    vec s = set1(a[i * dp]);       \
    x##i = fma(s, b0, x##i);       \
    y##i = fma(s, b1, y##i);       \
  }
        BLOCK(STEP)
      }
      float *out = t + r * TILE + c;
#define PUT(i)                               \
  _mm512_store_ps(out + i * TILE, x##i);     \
  _mm512_store_ps(out + i * TILE + 16, y##i);
      BLOCK(PUT)
#undef DECLARE
#undef STEP
#undef PUT
    }
}

// accumulate_block: 8 staying rows by 32 columns (16 if not wide) of tile_accumulate.
INLINE AVX512 void accumulate_block(float *c, i64 dp, const float *t, const float *rows, i64 s, i64 n,
                                    const float *decay, enum triangle shape, int wide) {
#define GET(i)                                               \
  vec x##i = _mm512_load_ps(c + i * dp), y##i = zero();      \
  if (wide) y##i = _mm512_load_ps(c + i * dp + 16);
  BLOCK(GET)
#define DECAY(i)                              \
  x##i = _mm512_mul_ps(x##i, set1(decay[i])); \
  y##i = _mm512_mul_ps(y##i, set1(decay[i]));
  if (decay) { BLOCK(DECAY) }
#define STEP(i)                                 \
  {                                             \
    vec f = set1(a[i]);                         \
    x##i = fma(f, b0, x##i);                    \
    if (wide) y##i = fma(f, b1, y##i);          \
  }
#define LOAD_ROW                                               \
  const float *a = t + k * TILE, *b = rows + k * dp;           \
  vec b0 = _mm512_load_ps(b), b1 = zero();                     \
  if (wide) b1 = _mm512_load_ps(b + 16);
  // On the diagonal, row k meets staying rows from its own on, or up to its own: a
  // NaN or Inf further on must not meet their zeros.
  i64 from = shape == QUERY_ROWS ? s + 8 : 0, to = shape == KEY_ROWS ? s : n;
#define CORNER(q)                              \
  {                                            \
    i64 k = s + q;                             \
    LOAD_ROW                                   \
    if (shape == KEY_ROWS) {                   \
      AFTER_##q                                \
    } else {                                   \
      BEFORE_##q                               \
    }                                          \
  }
#define AFTER_0 STEP(0) AFTER_1
#define AFTER_1 STEP(1) AFTER_2
#define AFTER_2 STEP(2) AFTER_3
#define AFTER_3 STEP(3) AFTER_4
#define AFTER_4 STEP(4) AFTER_5
#define AFTER_5 STEP(5) AFTER_6
#define AFTER_6 STEP(6) AFTER_7
#define AFTER_7 STEP(7)
#define BEFORE_0 STEP(0)
#define BEFORE_1 BEFORE_0 STEP(1)
#define BEFORE_2 BEFORE_1 STEP(2)
#define BEFORE_3 BEFORE_2 STEP(3)
#define BEFORE_4 BEFORE_3 STEP(4)
#define BEFORE_5 BEFORE_4 STEP(5)
#define BEFORE_6 BEFORE_5 STEP(6)
#define BEFORE_7 BEFORE_6 STEP(7)
  if (shape == QUERY_ROWS) { BLOCK(CORNER) }
  for (i64 k = from; k < to; k++) {
    LOAD_ROW
    BLOCK(STEP)
  }
  if (shape == KEY_ROWS) { BLOCK(CORNER) }
#define PUT(i)                       \
  _mm512_store_ps(c + i * dp, x##i); \
  if (wide) _mm512_store_ps(c + i * dp + 16, y##i);
  BLOCK(PUT)
#undef GET
#undef DECAY
#undef STEP
#undef LOAD_ROW
#undef CORNER
#undef PUT
}

// tile_accumulate: C [staying, dp] = C·decay + Tᵀ·rows over n streamed rows; decay [64] may be
// null for 1. Scores that do not matter (see triangle) are not read; the others,
// and rows, must be finite or meant up to n rounded up to 8.
HELPER AVX512 void tile_accumulate(float *c, i64 dp, i64 staying, const float *t, const float *rows,
                                   i64 n, const float *decay, enum triangle shape) {
  i64 j = 0;
  for (; j + 32 <= dp; j += 32)
    for (i64 s = 0; s < staying; s += 8)
      accumulate_block(c + s * dp + j, dp, t + s, rows + j, s, n, decay ? decay + s : 0, shape, 1);
  if (j < dp)
    for (i64 s = 0; s < staying; s += 8)
      accumulate_block(c + s * dp + j, dp, t + s, rows + j, s, n, decay ? decay + s : 0, shape, 0);
}

// apply_block: 8 streamed rows by 32 columns (16 if not wide) of tile_apply. Of them, n exist.
INLINE AVX512 void apply_block(float *c, i64 dp, const float *t, const float *rows, i64 r, i64 n, i64 keys,
                               int start, enum triangle shape, int wide) {
#define GET(i)                                                  \
  vec x##i = zero(), y##i = zero();                             \
  if (!start && i < n) {                                        \
    x##i = _mm512_load_ps(c + i * dp);                          \
    if (wide) y##i = _mm512_load_ps(c + i * dp + 16);           \
  }
  BLOCK(GET)
#define STEP(i)                                 \
  {                                             \
    vec f = set1(a[i * TILE]);                  \
    x##i = fma(f, b0, x##i);                    \
    if (wide) y##i = fma(f, b1, y##i);          \
  }
#define LOAD_ROW                                               \
  const float *a = t + k, *b = rows + k * dp;                  \
  vec b0 = _mm512_load_ps(b), b1 = zero();                     \
  if (wide) b1 = _mm512_load_ps(b + 16);
  // On the diagonal, row k is seen by streamed rows from its own on.
  i64 to = shape == QUERY_ROWS ? r : keys;
  for (i64 k = 0; k < to; k++) {
    LOAD_ROW
    BLOCK(STEP)
  }
#define CORNER(q) \
  {               \
    i64 k = r + q; \
    LOAD_ROW      \
    AFTER_##q     \
  }
  if (shape == QUERY_ROWS) { BLOCK(CORNER) }
#define PUT(i)                                             \
  if (i < n) {                                             \
    _mm512_store_ps(c + i * dp, x##i);                     \
    if (wide) _mm512_store_ps(c + i * dp + 16, y##i);      \
  }
  BLOCK(PUT)
#undef GET
#undef STEP
#undef LOAD_ROW
#undef CORNER
#undef PUT
}

// tile_apply: C [n, dp] += T [n, 64]·rows [keys, dp], with C zero before if start; no row beyond n is
// touched. With QUERY_ROWS, T is [queries, keys] on the diagonal.
HELPER AVX512 void tile_apply(float *c, i64 dp, const float *t, const float *rows, i64 n, i64 keys,
                              int start, enum triangle shape) {
  for (i64 j = 0; j < dp; j += 32)
    for (i64 r = 0; r < n; r += 8) {
      if (j + 32 <= dp)
        apply_block(c + r * dp + j, dp, t + r * TILE, rows + j, r, n - r, keys, start, shape, 1);
      else
        apply_block(c + r * dp + j, dp, t + r * TILE, rows + j, r, n - r, keys, start, shape, 0);
    }
}

#endif
