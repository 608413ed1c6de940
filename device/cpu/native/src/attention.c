// Causal attention over packed documents, forward and backward, by tiles (see tile.h).
#include "table.h"
#include "tile.h"
#include "window.h"

// softmax_lanes turns scores into exponentials and moves largest, total (of each
// query) on; decay is what earlier sums must be multiplied by.
INLINE AVX512 void softmax_lanes(float *t, float *largest, float *total, float *decay, float scale,
                                 i64 keys, struct bounds seen, int edge, int diagonal) {
  const vec by = set1(scale), none = set1(-__builtin_inff());
  for (i64 q = 0; q < TILE; q += 16) {
    i64 n = diagonal && q + 16 < keys ? q + 16 : keys;
    vec before = _mm512_load_ps(largest + q), most = none, added = zero();
    for (i64 k = 0; k < n; k++) {
      vec x = _mm512_mul_ps(_mm512_load_ps(t + k * TILE + q), by);
      most = _mm512_mask_max_ps(most, edge ? inside(seen, k, q) : 0xffff, most, x);
    }
    most = _mm512_max_ps(before, most);
    // A query that has seen nothing yet keeps −Inf; subtracting that would give NaN.
    vec shift = _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(most, none, _CMP_NEQ_UQ), most);
    for (i64 k = 0; k < n; k++) {
      vec x = _mm512_mul_ps(_mm512_load_ps(t + k * TILE + q), by);
      __mmask16 m = edge ? inside(seen, k, q) : 0xffff;
      vec e = _mm512_maskz_mov_ps(m, vexp(_mm512_sub_ps(x, shift)));
      _mm512_store_ps(t + k * TILE + q, e);
      added = _mm512_add_ps(added, e);
    }
    vec fade = vexp(_mm512_sub_ps(before, shift));
    _mm512_store_ps(largest + q, most);
    _mm512_store_ps(decay + q, fade);
    _mm512_store_ps(total + q, fma(_mm512_load_ps(total + q), fade, added));
  }
}

HELPER AVX512 void online_softmax(float *t, float *largest, float *total, float *decay, float scale,
                                  i64 keys, struct bounds seen, int edge, int diagonal) {
  if (edge)
    softmax_lanes(t, largest, total, decay, scale, keys, seen, 1, diagonal);
  else
    softmax_lanes(t, largest, total, decay, scale, keys, seen, 0, 0);
}

// AttentionTile is kernel.Attention for rows queries from row query of one head, and
// keys [from, to), which start on a tile of the same document and end at most with the queries.
struct attention_tile {
  const void *args;  // kernel.Attention
  float *scratch;    // kept from the call that begins to the one that ends
  int64_t query;
  int64_t rows;
  int64_t head;
  int64_t from;
  int64_t to;
  int64_t begin;  // 1: first call of the tile
  int64_t end;    // 1: last call
  int64_t bf16;
};

INLINE AVX512 void finish_tile(const struct attention_tile *p, const struct attention_args *a, float *o,
                               i64 dp, const float *largest, const float *total) {
  float *lse = (float *)a->lse + p->head * a->ld_lse + p->query;
  for (i64 q = 0; q < p->rows; q += 16) {
    vec sums = vlog(_mm512_load_ps(total + q));
    _mm512_mask_storeu_ps(lse + q, first(p->rows - q), _mm512_add_ps(_mm512_load_ps(largest + q), sums));
  }
  for (i64 q = 0; q < p->rows; q++) {
    vec inv = set1(1.0f / total[q]);
    for (i64 j = q * dp; j < q * dp + dp; j += 16)
      _mm512_store_ps(o + j, _mm512_mul_ps(_mm512_load_ps(o + j), inv));
  }
  void *out = at(a->o, p->query * a->ld_o + p->head * a->head_dim, (int)p->bf16);
  tile_put(out, a->ld_o, o, dp, p->rows, a->head_dim, (int)p->bf16);
}

KERNEL(BOTH, attention_tile) {
  const int bf16 = (int)p->bf16;
  const struct attention_args *a = p->args;
  i64 d = a->head_dim, dp = (d + 15) & ~15, kv = p->head * a->kv_heads / a->heads;
  i64 window = window_of(a->window), size = TILE * dp + GAP;
  float *panel = p->scratch, *keys = panel + size, *values = keys + size, *o = values + size;
  float *t = o + size, *largest = t + TILE * TILE + GAP, *total = largest + TILE, *decay = total + TILE;
  if (p->begin) {
    tile_panel(panel, dp, at(a->q, p->query * a->ld_q + p->head * d, bf16), a->ld_q, p->rows, d, bf16);
    for (i64 i = 0; i < TILE * dp; i += 16) _mm512_store_ps(o + i, zero());
    for (i64 i = 0; i < TILE; i += 16) {
      _mm512_store_ps(largest + i, set1(-__builtin_inff()));
      _mm512_store_ps(total + i, zero());
    }
  }
  for (i64 k = p->from; k < p->to; k += TILE) {
    i64 n = p->to - k < TILE ? p->to - k : TILE, offset = p->query - k;
    tile_rows(keys, dp, at(a->k, k * a->ld_k + kv * d, bf16), a->ld_k, n, d, bf16);
    tile_rows(values, dp, at(a->v, k * a->ld_v + kv * d, bf16), a->ld_v, n, d, bf16);
    struct bounds seen = keys_seen(offset, window);
    enum triangle shape = offset == 0 ? KEY_ROWS : WHOLE;
    int edge = offset == 0 || offset + TILE > window;
    tile_scores(t, keys, panel, dp, n, shape);
    online_softmax(t, largest, total, decay, a->scale, n, seen, edge, offset == 0);
    tile_accumulate(o, dp, p->rows, t, values, n, decay, shape);
  }
  if (p->end) finish_tile(p, a, o, dp, largest, total);
}
