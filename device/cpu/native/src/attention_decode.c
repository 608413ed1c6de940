// Attention of one query over a cache.
#include "table.h"
#include "lanes.h"

// AttentionDecode is kernel.AttentionDecode for one query head and keys [from, to), at most
// 1,024 of them.
struct attention_decode {
  const void *args;  // kernel.AttentionDecode
  float *scratch;    // [1024 + 16 + 256], kept from the call that begins to the one that ends
  int64_t head;
  int64_t from;
  int64_t to;
  int64_t begin;  // 1: first call
  int64_t end;    // 1: last call
  int64_t bf16;
};

INLINE AVX512 void decode(const struct attention_decode *p, int bf16) {
  const struct decode_args *a = p->args;
  i64 d = a->head_dim, kv = p->head * a->kv_heads / a->heads * d, n = p->to - p->from;
  float *t = p->scratch, *state = t + 1024, *o = state + 16;
  const void *q = at(a->q, p->head * d, bf16);
  if (p->begin) {
    state[0] = -__builtin_inff(), state[1] = 0;
    for (i64 j = 0; j < d; j += 16) _mm512_storeu_ps(o + j, zero());
  }
  for (i64 k = 0; k < n; k++) {
    vec s = zero();
    for (i64 j = 0; j < d; j += 16) {
      __mmask16 m = first(d - j);
      s = fma(load(q, j, m, bf16), load(a->keys, (p->from + k) * a->ld_k + kv + j, m, bf16), s);
    }
    t[k] = sum(s) * a->scale;
  }
  vec most = set1(state[0]), added = zero();
  for (i64 k = 0; k < n; k += 16) most = _mm512_mask_max_ps(most, first(n - k), most, _mm512_loadu_ps(t + k));
  float largest = _mm512_reduce_max_ps(most);
  for (i64 k = 0; k < n; k += 16) {
    vec e = _mm512_maskz_mov_ps(first(n - k), vexp(_mm512_sub_ps(_mm512_loadu_ps(t + k), set1(largest))));
    _mm512_storeu_ps(t + k, e);
    added = _mm512_add_ps(added, e);
  }
  vec decay = vexp(set1(state[0] - largest));
  state[0] = largest;
  state[1] = state[1] * _mm512_cvtss_f32(decay) + sum(added);
  for (i64 j = 0; j < d; j += 16) {
    __mmask16 m = first(d - j);
    vec s = _mm512_mul_ps(_mm512_loadu_ps(o + j), decay);
    for (i64 k = 0; k < n; k++)
      s = fma(set1(t[k]), load(a->values, (p->from + k) * a->ld_v + kv + j, m, bf16), s);
    _mm512_storeu_ps(o + j, s);
    if (p->end) store(a->o, p->head * d + j, m, _mm512_mul_ps(s, set1(1.0f / state[1])), bf16);
  }
}

KERNEL(BOTH, attention_decode) {
  if (p->bf16)
    decode(p, 1);
  else
    decode(p, 0);
}
