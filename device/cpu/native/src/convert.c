// Elementwise sums and conversions.
#include "lanes.h"

// Add computes dst = a + b, rounded once; dst may be a or b.
struct add {
  void *dst;
  const void *a;
  const void *b;
  int64_t n;
  int64_t bf16;
};

INLINE AVX512 void add_range(const struct add *p, int bf16) {
  for (i64 i = 0; i < p->n; i += 16) {
    __mmask16 m = first(p->n - i);
    store(p->dst, i, m, _mm512_add_ps(load(p->a, i, m, bf16), load(p->b, i, m, bf16)), bf16);
  }
}

KERNEL(BOTH, add) {
  if (p->bf16)
    add_range(p, 1);
  else
    add_range(p, 0);
}

// Cast converts n elements to the other of the two types.
struct cast {
  void *dst;
  const void *src;
  int64_t n;
  int64_t bf16;  // src
};

KERNEL(BOTH, cast) {
  if (p->bf16)
    for (i64 i = 0; i < p->n; i += 16) store(p->dst, i, first(p->n - i), load(p->src, i, first(p->n - i), 1), 0);
  else
    for (i64 i = 0; i < p->n; i += 16) store(p->dst, i, first(p->n - i), load(p->src, i, first(p->n - i), 0), 1);
}

// FoldBf16 adds what a ring receives on a bf16 wire, BF16, to what a rank has, F32.
struct fold_bf16 {
  void *dst;             // BF16, rounded once, or F32 if last
  const void *received;  // BF16; may be dst
  const void *own;       // F32; may be dst if last
  int64_t n;
  int64_t last;
};

KERNEL(BOTH, fold_bf16) {
  for (i64 i = 0; i < p->n; i += 16) {
    __mmask16 m = first(p->n - i);
    vec s = _mm512_add_ps(load(p->received, i, m, 1), load(p->own, i, m, 0));
    if (p->last)
      store(p->dst, i, m, s, 0);
    else
      store(p->dst, i, m, s, 1);
  }
}
