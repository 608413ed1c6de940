// What softmax takes off the gradient of each of its weights.
#include "table.h"
#include "tile.h"

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
