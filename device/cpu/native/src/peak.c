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

// PeakFMA256 runs rounds of 12 independent 8-wide f32 multiply-adds: 192 flop a round.
struct peak_fma_256 {
  int64_t rounds;
  float *out;  // [8], keeps the result alive
};

#define TWELVE(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

KERNEL(AVX2, peak_fma_256) {
  const __m256 x = _mm256_set1_ps(0.9999f), y = _mm256_set1_ps(1e-6f);
#define START256(i) __m256 c##i = _mm256_set1_ps((float)i);
  TWELVE(START256)
  for (int64_t n = p->rounds; n > 0; n--) {
#define STEP256(i) c##i = _mm256_fmadd_ps(c##i, x, y);
    TWELVE(STEP256)
    __asm__ volatile("" : "+x"(c0));
  }
  __m256 sum = _mm256_setzero_ps();
#define SUM256(i) sum = _mm256_add_ps(sum, c##i);
  TWELVE(SUM256)
  _mm256_storeu_ps(p->out, sum);
}

// PeakDot runs rounds of 16 independent products of 16 bf16 pairs: 1,024 flop a round.
struct peak_dot {
  int64_t rounds;
  float *out;  // [16], keeps the result alive
};

KERNEL(AVX512BF16, peak_dot) {
  const __m512bh x = (__m512bh)_mm512_set1_epi32(0x3f7f3c12), y = (__m512bh)_mm512_set1_epi32(0x3dcc3e99);
#define START_DOT(i) __m512 c##i = _mm512_set1_ps((float)i);
  EACH(START_DOT)
  for (int64_t n = p->rounds; n > 0; n--) {
#define DOT(i) c##i = _mm512_dpbf16_ps(c##i, x, y);
    EACH(DOT)
    __asm__ volatile("" : "+v"(c0));
  }
  __m512 sum = _mm512_setzero_ps();
#define SUM_DOT(i) sum = _mm512_add_ps(sum, c##i);
  EACH(SUM_DOT)
  _mm512_storeu_ps(p->out, sum);
}

// PairSums is one VDPBF16PS in each of 16 lanes, to see how this processor rounds: out =
// sums + a·b by pairs.
struct pair_sums {
  const float *sums;  // [16]
  const void *a;      // bf16 [32]
  const void *b;      // bf16 [32]
  float *out;         // [16]
};

KERNEL(AVX512BF16, pair_sums) {
  const __m512bh a = (__m512bh)_mm512_loadu_si512(p->a), b = (__m512bh)_mm512_loadu_si512(p->b);
  _mm512_storeu_ps(p->out, _mm512_dpbf16_ps(_mm512_loadu_ps(p->sums), a, b));
}

// PeakTiles multiplies tiles as GemmAMX does, 4 loads for 4 products, from memory that fits
// into L1: 65,536 flop a step. Zeros would flatter it by a fifth.
struct peak_tiles {
  const void *data;  // bf16 [8 steps][4096 bytes]
  float *out;        // [1024], keeps the result alive
  int64_t rounds;    // passes over data, of 8 steps
};

KERNEL(AMX, peak_tiles) {
  struct {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes_per_row[16];
    uint8_t rows[16];
  } __attribute__((aligned(64))) cfg;
  _mm512_store_si512(&cfg, _mm512_setzero_si512());
  cfg.palette = 1;
  for (int i = 0; i < 8; i++) cfg.bytes_per_row[i] = 64, cfg.rows[i] = 16;
  __asm__ volatile("" ::: "memory");  // LDTILECFG reads what gcc may think unused
  _tile_loadconfig(&cfg);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t n = p->rounds; n > 0; n--) {
    const char *a = p->data;
    for (int step = 0; step < 8; step++, a += 4096) {
      _tile_loadd(4, a, 64);
      _tile_loadd(6, a + 2048, 64);
      _tile_loadd(7, a + 3072, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_loadd(5, a + 1024, 64);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, p->out, 64);
  _tile_stored(1, p->out + 256, 64);
  _tile_stored(2, p->out + 512, 64);
  _tile_stored(3, p->out + 768, 64);
  _tile_release();
}
