// The backward of attention, by tiles (see tile.h). With P = exp(S·scale − lse) and
// dP = dO·Vᵀ: dS = P ⊙ (dP − delta)·scale, dQ = dS·K, dK = dSᵀ·Q, dV = Pᵀ·dO.
#include "table.h"
#include "tile.h"
#include "window.h"

// AttentionDelta is kernel.AttentionDelta: the dot products of do and o of rows [lo, hi). They
// add up in the order in which tile_scores makes dP, with rows in lanes, so that a query
// that sees one key only, whose o is that key's v, has dP − delta = 0 and no gradient.
struct attention_delta {
  const void *args;  // kernel.AttentionGrad
  int64_t lo;
  int64_t hi;
  int64_t bf16;
};

HELPER AVX512 void load_square(vec x[16], const void *p, i64 ld, i64 rows, i64 cols, int bf16) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; i++) {
    x[i] = zero();
    if (i < rows) x[i] = bf16 ? load(p, i * ld, first(cols), 1) : load(p, i * ld, first(cols), 0);
  }
  transpose(x);
}

KERNEL(BOTH, attention_delta) {
  const struct attention_grad_args *a = p->args;
  const int bf16 = (int)p->bf16;
  for (i64 r = p->lo; r < p->hi; r += 16)
    for (i64 h = 0; h < a->heads; h++) {
      vec s = zero(), o[16], d_o[16];
      for (i64 j = 0; j < a->head_dim; j += 16) {
        i64 col = h * a->head_dim + j;
        load_square(o, at(a->o, r * a->ld_o + col, bf16), a->ld_o, p->hi - r, a->head_dim - j, bf16);
        load_square(d_o, at(a->d_o, r * a->ld_do + col, bf16), a->ld_do, p->hi - r, a->head_dim - j, bf16);
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) s = fma(o[i], d_o[i], s);
      }
      _mm512_mask_storeu_ps((float *)a->delta + h * a->ld_delta + r, first(p->hi - r), s);
    }
}

// AttentionTileDq is kernel.AttentionGradQ for rows queries from row query of one head,
// and keys [from, to), as for AttentionTile.
struct attention_tile_dq {
  const void *args;  // kernel.AttentionGrad
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

// score_grads_by_query: T [keys, queries] = dS from scores T and dP; lse and delta by lane.
INLINE AVX512 void by_query(float *t, const float *dp, const float *lse, const float *delta,
                                        float scale, i64 keys, struct bounds seen, int edge, int diagonal) {
  const vec by = set1(scale);
  for (i64 q = 0; q < TILE; q += 16) {
    i64 n = diagonal && q + 16 < keys ? q + 16 : keys;
    vec shift = _mm512_load_ps(lse + q), mean = _mm512_load_ps(delta + q);
    for (i64 k = 0; k < n; k++) {
      float *x = t + k * TILE + q;
      vec prob = vexp(_mm512_sub_ps(_mm512_mul_ps(_mm512_load_ps(x), by), shift));
      vec ds = _mm512_mul_ps(_mm512_mul_ps(prob, _mm512_sub_ps(_mm512_load_ps(dp + k * TILE + q), mean)), by);
      _mm512_store_ps(x, edge ? _mm512_maskz_mov_ps(inside(seen, k, q), ds) : ds);
    }
  }
}

HELPER AVX512 void score_grads_by_query(float *t, const float *dp, const float *lse, const float *delta,
                                        float scale, i64 keys, struct bounds seen, int edge, int diagonal) {
  if (edge)
    by_query(t, dp, lse, delta, scale, keys, seen, 1, diagonal);
  else
    by_query(t, dp, lse, delta, scale, keys, seen, 0, 0);
}

KERNEL(BOTH, attention_tile_dq) {
  const int bf16 = (int)p->bf16;
  const struct attention_grad_args *a = p->args;
  i64 d = a->head_dim, dp = (d + 15) & ~15, kv = p->head * a->kv_heads / a->heads;
  i64 window = window_of(a->window), size = TILE * dp + GAP;
  float *queries = p->scratch, *grads = queries + size, *keys = grads + size, *values = keys + size;
  float *dq = values + size, *t = dq + size, *u = t + TILE * TILE + GAP;
  float *lse = u + TILE * TILE + GAP, *delta = lse + TILE;
  if (p->begin) {
    tile_panel(queries, dp, at(a->q, p->query * a->ld_q + p->head * d, bf16), a->ld_q, p->rows, d, bf16);
    tile_panel(grads, dp, at(a->d_o, p->query * a->ld_do + p->head * d, bf16), a->ld_do, p->rows, d, bf16);
    for (i64 i = 0; i < TILE * dp; i += 16) _mm512_store_ps(dq + i, zero());
    for (i64 i = 0; i < TILE; i += 16) {
      __mmask16 m = first(p->rows - i);
      const float *from_lse = (const float *)a->lse + p->head * a->ld_lse + p->query;
      const float *from_delta = (const float *)a->delta + p->head * a->ld_delta + p->query;
      _mm512_store_ps(lse + i, _mm512_maskz_loadu_ps(m, from_lse + i));
      _mm512_store_ps(delta + i, _mm512_maskz_loadu_ps(m, from_delta + i));
    }
  }
  for (i64 k = p->from; k < p->to; k += TILE) {
    i64 n = p->to - k < TILE ? p->to - k : TILE, offset = p->query - k;
    tile_rows(keys, dp, at(a->k, k * a->ld_k + kv * d, bf16), a->ld_k, n, d, bf16);
    tile_rows(values, dp, at(a->v, k * a->ld_v + kv * d, bf16), a->ld_v, n, d, bf16);
    struct bounds seen = keys_seen(offset, window);
    enum triangle shape = offset == 0 ? KEY_ROWS : WHOLE;
    int edge = offset == 0 || offset + TILE > window;
    tile_scores(t, keys, queries, dp, n, shape);
    tile_scores(u, values, grads, dp, n, shape);
    score_grads_by_query(t, u, lse, delta, a->scale, n, seen, edge, offset == 0);
    tile_accumulate(dq, dp, p->rows, t, keys, n, 0, shape);
  }
  if (p->end)
    tile_put(at(a->dq, p->query * a->ld_dq + p->head * d, bf16), a->ld_dq, dq, dp, p->rows, d, bf16);
}

// AttentionTileDkv is kernel.AttentionGradKV for rows keys from row key of key head kv_head, and
// queries [from, to) of query head head, which start on a tile and not before the keys.
struct attention_tile_dkv {
  const void *args;  // kernel.AttentionGrad
  float *scratch;    // kept from the call that begins to the one that ends
  int64_t key;
  int64_t rows;
  int64_t kv_head;
  int64_t head;
  int64_t from;
  int64_t to;
  int64_t begin;  // 1: first call of the tile
  int64_t end;    // 1: last call
  int64_t bf16;
};

// score_grads_by_key: T [queries, keys] = P and U = dS from scores T and dP in U. Rows
// from queries up to a multiple of 8 become zero.
INLINE AVX512 void by_key(float *t, float *u, const float *lse, const float *delta, float scale,
                                      i64 queries, struct bounds seen, int edge, int diagonal) {
  const vec by = set1(scale);
  for (i64 q = 0; q < up8(queries); q++) {
    i64 lanes = diagonal ? (q & ~15) + 16 : TILE;
    vec shift = set1(q < queries ? lse[q] : 0), mean = set1(q < queries ? delta[q] : 0);
    for (i64 k = 0; k < lanes; k += 16) {
      float *x = t + q * TILE + k, *y = u + q * TILE + k;
      __mmask16 m = q >= queries ? 0 : edge ? inside(seen, q, k) : 0xffff;
      vec prob = vexp(_mm512_sub_ps(_mm512_mul_ps(_mm512_load_ps(x), by), shift));
      vec ds = _mm512_mul_ps(_mm512_mul_ps(prob, _mm512_sub_ps(_mm512_load_ps(y), mean)), by);
      _mm512_store_ps(x, _mm512_maskz_mov_ps(m, prob));
      _mm512_store_ps(y, _mm512_maskz_mov_ps(m, ds));
    }
  }
}

HELPER AVX512 void score_grads_by_key(float *t, float *u, const float *lse, const float *delta, float scale,
                                      i64 queries, struct bounds seen, int edge, int diagonal) {
  if (edge)
    by_key(t, u, lse, delta, scale, queries, seen, 1, diagonal);
  else
    by_key(t, u, lse, delta, scale, queries, seen, 0, 0);
}

KERNEL(BOTH, attention_tile_dkv) {
  const int bf16 = (int)p->bf16;
  const struct attention_grad_args *a = p->args;
  i64 d = a->head_dim, dp = (d + 15) & ~15;
  i64 window = window_of(a->window), size = TILE * dp + GAP;
  float *keys = p->scratch, *values = keys + size, *queries = values + size, *grads = queries + size;
  float *dk = grads + size, *dv = dk + size, *t = dv + size, *u = t + TILE * TILE + GAP;
  if (p->begin) {
    tile_panel(keys, dp, at(a->k, p->key * a->ld_k + p->kv_head * d, bf16), a->ld_k, p->rows, d, bf16);
    tile_panel(values, dp, at(a->v, p->key * a->ld_v + p->kv_head * d, bf16), a->ld_v, p->rows, d, bf16);
    for (i64 i = 0; i < TILE * dp; i += 16) {
      _mm512_store_ps(dk + i, zero());
      _mm512_store_ps(dv + i, zero());
    }
  }
  for (i64 q = p->from; q < p->to; q += TILE) {
    i64 n = p->to - q < TILE ? p->to - q : TILE, offset = q - p->key;
    tile_rows(queries, dp, at(a->q, q * a->ld_q + p->head * d, bf16), a->ld_q, n, d, bf16);
    tile_rows(grads, dp, at(a->d_o, q * a->ld_do + p->head * d, bf16), a->ld_do, n, d, bf16);
    const float *lse = (const float *)a->lse + p->head * a->ld_lse + q;
    const float *delta = (const float *)a->delta + p->head * a->ld_delta + q;
    struct bounds seeing = queries_seeing(offset, window);
    enum triangle shape = offset == 0 ? QUERY_ROWS : WHOLE;
    int edge = offset == 0 || offset + TILE > window;
    tile_scores(t, queries, keys, dp, n, shape);
    tile_scores(u, grads, values, dp, n, shape);
    score_grads_by_key(t, u, lse, delta, a->scale, n, seeing, edge, offset == 0);
    tile_accumulate(dv, dp, p->rows, t, grads, up8(n), 0, shape);
    tile_accumulate(dk, dp, p->rows, u, queries, up8(n), 0, shape);
  }
  if (p->end) {
    tile_put(at(a->dk, p->key * a->ld_dk + p->kv_head * d, bf16), a->ld_dk, dk, dp, p->rows, d, bf16);
    tile_put(at(a->dv, p->key * a->ld_dv + p->kv_head * d, bf16), a->ld_dv, dv, dp, p->rows, d, bf16);
  }
}
