// The forward of causal attention over packed documents, by tiles (see tile.h).
#include "table.h"
#include "tile.h"
#include "window.h"

// A score's weight is 2^((score − largest)·by), by being scale·log2(e): 1 exactly for the largest, so that a
// query of one key gets exactly its value.

// softmax_rest turns scores of 16 queries, those of lanes q to q+15, into exponentials where some are masked.
INLINE AVX512 void softmax_rest(float *t, float *largest, float *total, float *decay, vec by, i64 keys,
                                struct bounds seen, int diagonal, i64 q) {
  const vec none = set1(-__builtin_inff());
  i64 n = diagonal && q + 16 < keys ? q + 16 : keys;
  vec before = _mm512_load_ps(largest + q), most = none, added = zero();
  for (i64 k = 0; k < n; k++) {
    most = _mm512_mask_max_ps(most, inside(seen, k, q), most, _mm512_load_ps(t + k * TILE + q));
  }
  most = _mm512_max_ps(before, most);
  // A query that has seen nothing yet keeps −Inf; subtracting that would give NaN.
  vec shift = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(most, none, _CMP_NEQ_UQ), most);
  for (i64 k = 0; k < n; k++) {
    vec x = _mm512_sub_ps(_mm512_load_ps(t + k * TILE + q), shift);
    vec e = _mm512_maskz_mov_ps(inside(seen, k, q), vexp2(_mm512_mul_ps(x, by)));
    _mm512_store_ps(t + k * TILE + q, e);
    added = _mm512_add_ps(added, e);
  }
  vec fade = vexp2(_mm512_mul_ps(_mm512_sub_ps(before, shift), by));
  _mm512_store_ps(largest + q, most);
  _mm512_store_ps(decay + q, fade);
  _mm512_store_ps(total + q, fma(_mm512_load_ps(total + q), fade, added));
}

// softmax_whole is softmax_rest where nothing is masked, for all queries together: four chains of
// additions instead of one that waits for itself.
INLINE AVX512 void softmax_whole(float *t, float *largest, float *total, float *decay, vec by) {
  const vec none = set1(-__builtin_inff());
#define QUADS(X) X(0) X(1) X(2) X(3)
#define DECLARE(i) vec most##i = none, added##i = zero();
  QUADS(DECLARE)
  for (i64 k = 0; k < TILE; k++) {
    const float *row = t + k * TILE;
#define MOST(i) most##i = _mm512_max_ps(most##i, _mm512_load_ps(row + 16 * i));
    QUADS(MOST)
  }
#define SHIFT(i)                                                                                   \
  vec before##i = _mm512_load_ps(largest + 16 * i);                                                \
  most##i = _mm512_max_ps(before##i, most##i);                                                     \
  vec shift##i = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(most##i, none, _CMP_NEQ_UQ), most##i);
  QUADS(SHIFT)
  for (i64 k = 0; k < TILE; k++) {
    float *row = t + k * TILE;
#define EXP(i)                                                                           \
  {                                                                                      \
    vec e = vexp2(_mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(row + 16 * i), shift##i), by)); \
    _mm512_store_ps(row + 16 * i, e);                                                    \
    added##i = _mm512_add_ps(added##i, e);                                               \
  }
    QUADS(EXP)
  }
#define PUT(i)                                                                                  \
  {                                                                                             \
    vec fade = vexp2(_mm512_mul_ps(_mm512_sub_ps(before##i, shift##i), by));                    \
    _mm512_store_ps(largest + 16 * i, most##i);                                                 \
    _mm512_store_ps(decay + 16 * i, fade);                                                      \
    _mm512_store_ps(total + 16 * i, fma(_mm512_load_ps(total + 16 * i), fade, added##i));       \
  }
  QUADS(PUT)
#undef DECLARE
#undef MOST
#undef SHIFT
#undef EXP
#undef PUT
}

// online_softmax turns scores into exponentials and moves largest and total of each query
// on; decay is what earlier sums must be multiplied by.
HELPER AVX512 void online_softmax(float *t, float *largest, float *total, float *decay, float scale,
                                  i64 keys, struct bounds seen, int edge, int diagonal) {
  const vec by = set1(scale * LOG2E);
  if (!edge) {
    softmax_whole(t, largest, total, decay, by);
    return;
  }
  for (i64 q = 0; q < TILE; q += 16) softmax_rest(t, largest, total, decay, by, keys, seen, diagonal, q);
}

// AttentionTile is kernel.Attention for rows queries from row query of heads query heads that read one key
// head, up to 4 tiles in all, and keys [from, to), which start on a tile of the same document and end at
// most with the queries.
struct attention_tile {
  const void *args;  // kernel.Attention
  float *scratch;    // kept from the call that begins to the one that ends
  int64_t query;
  int64_t rows;
  int64_t head;
  int64_t heads;
  int64_t from;
  int64_t to;
  int64_t begin;  // 1: first call of the tile
  int64_t end;    // 1: last call
  int64_t bf16;
};

// staying is one tile of queries and its sums.
struct staying {
  float *panel, *o, *largest, *total, *decay;
  i64 query, rows, head;
};

INLINE AVX512 struct staying staying_at(const struct attention_tile *p, i64 i, float *scratch, i64 dp) {
  const i64 size = TILE * dp + GAP, tiles = (p->rows + TILE - 1) / TILE, row = i % tiles * TILE;
  struct staying s;
  s.panel = scratch + i * (2 * size + 4 * TILE);
  s.o = s.panel + size;
  s.largest = s.o + size;
  s.total = s.largest + TILE;
  s.decay = s.total + TILE;
  s.query = p->query + row;
  s.rows = p->rows - row < TILE ? p->rows - row : TILE;
  s.head = p->head + i / tiles;
  return s;
}

HELPER AVX512 void begin_tile(const struct attention_args *a, const struct staying *s, i64 dp, int bf16) {
  const i64 d = a->head_dim;
  tile_panel(s->panel, dp, at(a->q, s->query * a->ld_q + s->head * d, bf16), a->ld_q, s->rows, d, bf16);
  for (i64 i = 0; i < TILE * dp; i += 16) _mm512_store_ps(s->o + i, zero());
  for (i64 i = 0; i < TILE; i += 16) {
    _mm512_store_ps(s->largest + i, set1(-__builtin_inff()));
    _mm512_store_ps(s->total + i, zero());
  }
}

HELPER AVX512 void finish_tile(const struct attention_args *a, const struct staying *s, i64 dp, int bf16) {
  float *lse = (float *)a->lse + s->head * a->ld_lse + s->query;
  for (i64 q = 0; q < s->rows; q += 16) {
    vec sums = vlog(_mm512_load_ps(s->total + q));
    _mm512_mask_storeu_ps(lse + q, first(s->rows - q), fma(_mm512_load_ps(s->largest + q), set1(a->scale), sums));
  }
  for (i64 q = 0; q < s->rows; q++) {
    vec inv = set1(1.0f / s->total[q]);
    for (i64 j = q * dp; j < q * dp + dp; j += 16)
      _mm512_store_ps(s->o + j, _mm512_mul_ps(_mm512_load_ps(s->o + j), inv));
  }
  tile_put(at(a->o, s->query * a->ld_o + s->head * a->head_dim, bf16), a->ld_o, s->o, dp, s->rows, a->head_dim, bf16);
}

KERNEL(BOTH, attention_tile) {
  const int bf16 = (int)p->bf16;
  const struct attention_args *a = p->args;
  i64 d = a->head_dim, dp = (d + 15) & ~15, kv = p->head * a->kv_heads / a->heads;
  i64 window = window_of(a->window), size = TILE * dp + GAP, tiles = (p->rows + TILE - 1) / TILE * p->heads;
  float *keys = p->scratch, *values = keys + size, *t = values + size, *rest = t + TILE * TILE + GAP;
  if (p->begin)
    for (i64 i = 0; i < tiles; i++) {
      struct staying s = staying_at(p, i, rest, dp);
      begin_tile(a, &s, dp, bf16);
    }
  for (i64 k = p->from; k < p->to; k += TILE) {
    i64 n = p->to - k < TILE ? p->to - k : TILE;
    tile_rows(keys, dp, at(a->k, k * a->ld_k + kv * d, bf16), a->ld_k, n, d, bf16);
    tile_rows(values, dp, at(a->v, k * a->ld_v + kv * d, bf16), a->ld_v, n, d, bf16);
    for (i64 i = 0; i < tiles; i++) {
      struct staying s = staying_at(p, i, rest, dp);
      i64 offset = s.query - k;
      if (offset < 0 || offset >= window + TILE - 1) continue; // none of its queries sees any of the keys
      struct bounds seen = keys_seen(offset, window);
      enum triangle shape = offset == 0 ? KEY_ROWS : WHOLE;
      int edge = offset == 0 || offset + TILE > window;
      tile_scores(t, keys, s.panel, dp, n, shape);
      online_softmax(t, s.largest, s.total, s.decay, a->scale, n, seen, edge, offset == 0);
      tile_accumulate(s.o, dp, s.rows, t, values, n, s.decay, shape);
    }
  }
  if (p->end)
    for (i64 i = 0; i < tiles; i++) {
      struct staying s = staying_at(p, i, rest, dp);
      finish_tile(a, &s, dp, bf16);
    }
}
