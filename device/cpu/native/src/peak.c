// Loops that do nothing but arithmetic: the limit beside which benchmarks are printed.
#include "kernel.h"

// PeakFMA runs rounds of 16 independent 16-wide f32 multiply-adds: 512 flop a round.
struct peak_fma {
  int64_t rounds;
  float *out;  // [16], keeps the result alive
};

#define EACH(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

KERNEL(AVX512, peak_fma) {
  const __m512 x = _mm512_set1_ps(0.9999f), y = _mm512_set1_ps(1e-6f);
#define START(i) __m512 c##i = _mm512_set1_ps((float)i);
  EACH(START)
  for (int64_t n = p->rounds; n > 0; n--) {
#define STEP(i) c##i = _mm512_fmadd_ps(c##i, x, y);
    EACH(STEP)
    __asm__ volatile("" : "+v"(c0));  // or gcc may prove the loop pure
  }
  __m512 sum = _mm512_setzero_ps();
#define SUM(i) sum = _mm512_add_ps(sum, c##i);
  EACH(SUM)
  _mm512_storeu_ps(p->out, sum);
}
