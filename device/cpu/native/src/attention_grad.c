// The backward of attention, by tiles (see tile.h). With P = exp(S·scale − lse) and
// dP = dO·Vᵀ: dS = P ⊙ (dP − delta)·scale, dQ = dS·K, dK = dSᵀ·Q, dV = Pᵀ·dO. Each pair of tiles is met
// once, for all five products: dK and dV stay in scratch, dQ is summed in F32 memory.
#include "table.h"
#include "tile.h"
#include "window.h"

// AttentionTileGrad is one step of kernel.AttentionGrad's Pair: what query tile [query, query + queries)
// of head head and key tile [key, key + keys) of key head kv_head give each other.
struct attention_tile_grad {
  const void *args;  // kernel.AttentionGrad
  float *scratch;    // kept from the calls that begin to those that end
  int64_t key;
  int64_t keys;
  int64_t kv_head;
  int64_t slot;  // 0 or 1: which of the staying tiles the keys are
  int64_t query;
  int64_t queries;
  int64_t head;
  int64_t load;   // 1: the queries are other ones than in the call before
  int64_t begin;  // 1: first call with these keys
  int64_t end;    // 1: last call with these keys
  int64_t first;  // 1: no earlier keys have added to these queries' dq
  int64_t last;   // 1: no later ones will
  int64_t bf16;
};

// score_grads: T [queries, keys] = P and U = dS / scale from scores T and dP in U. Rows
// from queries up to a multiple of 8 become zero.
INLINE AVX512 void grads_of(float *t, float *u, const float *lse, const float *delta, float scale,
                            i64 queries, struct bounds seen, int edge, int diagonal) {
  const vec by = set1(scale * LOG2E);
  for (i64 q = 0; q < queries; q++) {
    i64 lanes = diagonal ? (q & ~15) + 16 : TILE;
    vec shift = set1(-lse[q] * LOG2E), mean = set1(delta[q]);
#pragma GCC unroll 4
    for (i64 k = 0; k < TILE; k += 16) {
      if (edge && k >= lanes) break;
      float *x = t + q * TILE + k, *y = u + q * TILE + k;
      vec prob = vexp2(fma(_mm512_load_ps(x), by, shift));
      vec ds = _mm512_mul_ps(prob, _mm512_sub_ps(_mm512_load_ps(y), mean));
      if (edge) {
        __mmask16 m = inside(seen, q, k);
        prob = _mm512_maskz_mov_ps(m, prob);
        ds = _mm512_maskz_mov_ps(m, ds);
      }
      _mm512_store_ps(x, prob);
      _mm512_store_ps(y, ds);
    }
  }
  for (i64 i = queries * TILE; i < up8(queries) * TILE; i += 16) {
    _mm512_store_ps(t + i, zero());
    _mm512_store_ps(u + i, zero());
  }
}

HELPER AVX512 void score_grads(float *t, float *u, const float *lse, const float *delta, float scale,
                               i64 queries, struct bounds seen, int edge, int diagonal) {
  if (edge)
    grads_of(t, u, lse, delta, scale, queries, seen, 1, diagonal);
  else
    grads_of(t, u, lse, delta, scale, queries, seen, 0, 0);
}

// put_scaled stores n rows of d elements, times scale.
HELPER AVX512 void put_scaled(void *dst, i64 ld, float *c, i64 dp, i64 n, i64 d, float scale, int bf16) {
  for (i64 i = 0; i < n * dp; i += 16) _mm512_store_ps(c + i, _mm512_mul_ps(_mm512_load_ps(c + i), set1(scale)));
  tile_put(dst, ld, c, dp, n, d, bf16);
}

KERNEL(BOTH, attention_tile_grad) {
  const int bf16 = (int)p->bf16;
  const struct attention_grad_args *a = p->args;
  i64 d = a->head_dim, dp = (d + 15) & ~15;
  i64 window = window_of(a->window), size = TILE * dp + GAP, offset = p->query - p->key;
  float *queries = p->scratch, *grads = queries + size, *t = grads + size, *u = t + TILE * TILE + GAP;
  float *keys = u + TILE * TILE + GAP + p->slot * 5 * size, *values = keys + size, *rows = values + size;
  float *dk = rows + size, *dv = dk + size;
  float *dq = (float *)a->sums + (p->head * a->ld_delta + p->query) * dp;
  if (p->begin) {
    const void *from = at(a->k, p->key * a->ld_k + p->kv_head * d, bf16);
    tile_panel(keys, dp, from, a->ld_k, p->keys, d, bf16);
    tile_rows(rows, dp, from, a->ld_k, p->keys, d, bf16);
    tile_panel(values, dp, at(a->v, p->key * a->ld_v + p->kv_head * d, bf16), a->ld_v, p->keys, d, bf16);
    for (i64 i = 0; i < TILE * dp; i += 16) {
      _mm512_store_ps(dk + i, zero());
      _mm512_store_ps(dv + i, zero());
    }
  }
  if (p->load) {
    tile_rows(queries, dp, at(a->q, p->query * a->ld_q + p->head * d, bf16), a->ld_q, p->queries, d, bf16);
    tile_rows(grads, dp, at(a->d_o, p->query * a->ld_do + p->head * d, bf16), a->ld_do, p->queries, d, bf16);
  }
  const float *lse = (const float *)a->lse + p->head * a->ld_lse + p->query;
  const float *delta = (const float *)a->delta + p->head * a->ld_delta + p->query;
  enum triangle shape = offset == 0 ? QUERY_ROWS : WHOLE;
  int edge = offset == 0 || offset + TILE > window;
  tile_scores(t, queries, keys, dp, p->queries, shape);
  tile_scores(u, grads, values, dp, p->queries, shape);
  score_grads(t, u, lse, delta, a->scale, p->queries, queries_seeing(offset, window), edge, offset == 0);
  tile_accumulate(dv, dp, p->keys, t, grads, up8(p->queries), 0, shape);
  tile_accumulate(dk, dp, p->keys, u, queries, up8(p->queries), 0, shape);
  tile_apply(dq, dp, u, rows, p->queries, p->keys, (int)p->first, shape);
  if (p->last)
    put_scaled(at(a->dq, p->query * a->ld_dq + p->head * d, bf16), a->ld_dq, dq, dp, p->queries, d, a->scale, bf16);
  if (p->end) {
    put_scaled(at(a->dk, p->key * a->ld_dk + p->kv_head * d, bf16), a->ld_dk, dk, dp, p->keys, d, a->scale, bf16);
    tile_put(at(a->dv, p->key * a->ld_dv + p->kv_head * d, bf16), a->ld_dv, dv, dp, p->keys, d, bf16);
  }
}
