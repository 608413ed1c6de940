// Rotary position embedding, in place.
#include "table.h"
#include "lanes.h"

// Rope is kernel.Rope on rows [lo, hi). Products round by themselves: the bits are
// those of the plain Go path.
struct rope {
  const void *args;  // kernel.Rope
  int64_t lo;
  int64_t hi;
  int64_t bf16;
};

INLINE AVX512 void rotate(void *head, const float *cos, i64 half, __m512i sign, int bf16) {
  for (i64 j = 0; j < half; j += 16) {
    __mmask16 m = first(half - j);
    vec c = _mm512_maskz_loadu_ps(m, cos + j), s = _mm512_maskz_loadu_ps(m, cos + half + j);
    s = _mm512_castsi512_ps(_mm512_xor_si512(_mm512_castps_si512(s), sign));
    vec a = load(head, j, m, bf16), b = load(head, j + half, m, bf16);
    store(head, j, m, _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, s)), bf16);
    store(head, j + half, m, _mm512_add_ps(_mm512_mul_ps(b, c), _mm512_mul_ps(a, s)), bf16);
  }
}

INLINE AVX512 void rope_rows(const struct rope_args *a, i64 lo, i64 hi, int bf16) {
  __m512i sign = _mm512_set1_epi32(a->inverse ? (int)0x80000000 : 0);
  i64 half = a->head_dim / 2;
  for (i64 r = lo; r < hi; r++) {
    const float *cos = (const float *)a->table + ((const int32_t *)a->pos)[r] * a->ld_table;
    for (i64 h = 0; h < a->heads; h++)
      rotate(at(a->q, r * a->ld_q + h * a->head_dim, bf16), cos, half, sign, bf16);
    if (!a->k) continue;
    for (i64 h = 0; h < a->kv_heads; h++)
      rotate(at(a->k, r * a->ld_k + h * a->head_dim, bf16), cos, half, sign, bf16);
  }
}

KERNEL(BOTH, rope) {
  if (p->bf16)
    rope_rows(p->args, p->lo, p->hi, 1);
  else
    rope_rows(p->args, p->lo, p->hi, 0);
}
