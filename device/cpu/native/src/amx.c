// bf16 products on AMX tiles. A step is 32 of k. The left operand is packed as panels of
// 32 rows: per step two tiles of 16 rows × 32 k ("row form"). The right one as
// panels of 32 columns: per step two tiles whose row j holds, for 16 columns, the
// pairs k = 2j, 2j+1 ("pair form"). Edges of rows, columns and k are zero in both, for
// Inf·0 would be NaN. Sums go to a scratch panel [rows][32] of f32.
//
// For precision high the operands are f32, packed twice (see split.h): a step is then followed
// by that of the other half, and steps of one half are twice as far apart.
#include "split.h"

enum { STEP_BYTES = 2048 };

// tile_config is the memory operand of LDTILECFG.
struct tile_config {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
} __attribute__((aligned(64)));

// GemmAMX multiplies packed panels of 32 rows by one packed panel of 32 columns:
// s (+)= a·b. 32 × 32 takes 4 loads for 4 products, the best ratio with 8 tiles.
// The streamed operand is loaded with the hint that it will not be used again: 2.19
// instead of 1.75 TF/s with 8 panels of 16 steps. Prefetching it into L1 loses.
struct gemm_amx {
  const void *a;       // [panels][steps][2048 bytes]
  const void *b;       // [steps][2048 bytes]
  float *s;            // [panels·32][32], aligned to 64 bytes
  uint64_t next;       // address of what the next call will read, to be prefetched
  int64_t next_bytes;  // of it
  int64_t steps;
  int64_t panels;
  int64_t acc;   // 1: continue the sums in s, 0: start from zero
  int64_t step;  // bytes from step to step of a and b: 2048, or 4096 where there are two halves
};

KERNEL(AMX, gemm_amx) {
  struct tile_config cfg;
  _mm512_store_si512(&cfg, _mm512_setzero_si512());
  cfg.palette = 1;
  for (int i = 0; i < 8; i++) {
    cfg.bytes_per_row[i] = 64;
    cfg.rows[i] = 16;
  }
  __asm__ volatile("" ::: "memory");  // LDTILECFG reads what gcc may think unused
  _tile_loadconfig(&cfg);
  const char *a = p->a, *next = (const char *)p->next;
  float *s = p->s;
  const int64_t blocks = p->panels * p->steps, step = p->step;
  const int64_t lines = blocks > 0 ? (p->next_bytes / blocks + 63) / 64 : 0;
  for (int64_t n = p->panels; n > 0; n--) {
    if (p->acc) {
      _tile_loadd(0, s, 128);
      _tile_loadd(1, s + 16, 128);
      _tile_loadd(2, s + 16 * 32, 128);
      _tile_loadd(3, s + 16 * 32 + 16, 128);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const char *b = p->b;
    for (int64_t k = p->steps; k > 0; k--) {
      _tile_stream_loadd(4, a, 64);
      _tile_loadd(6, b, 64);
      _tile_loadd(7, b + 1024, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      _tile_stream_loadd(5, a + 1024, 64);
      for (int64_t i = 0; i < lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
      a += step;
      b += step;
    }
    _tile_stored(0, s, 128);
    _tile_stored(1, s + 16, 128);
    _tile_stored(2, s + 16 * 32, 128);
    _tile_stored(3, s + 16 * 32 + 16, 128);
    s += 32 * 32;
  }
  _tile_release();
}

// AmxPackLeft packs the left operand of GemmAMX into row form.
struct amx_pack_left {
  const void *src;  // bf16, or f32 of which a half is packed
  void *dst;        // [⌈rows/32⌉][⌈k/32⌉][2048 bytes], aligned to 64 bytes
  int64_t ld;       // of src, in elements
  int64_t rows;
  int64_t k;
  int64_t transposed;  // 0: src is [rows][k]; 1: src is [k][rows]
  int64_t part;        // enum part
  int64_t step;        // bytes from step to step of dst
};

AVX512 INLINE void left_rows(const struct amx_pack_left *p, enum part part) {
  char *dst = p->dst;
  for (int64_t r0 = 0; r0 < p->rows; r0 += 32) {
    for (int64_t kk = 0; kk < p->k; kk += 32, dst += p->step) {
      const __mmask32 m = head32(p->k - kk);
      for (int64_t r = 0; r < 32; r++) {
        const __m512i v = r0 + r < p->rows ? words(p->src, (r0 + r) * p->ld + kk, m, part) : _mm512_setzero_si512();
        _mm512_store_si512(dst + r * 64, v);
      }
    }
  }
}

// pairs loads rows k and k+1 of columns from at on of src [k][columns] and interleaves them; rows from
// k_end on are zero.
AVX512 INLINE void pairs(const void *src, int64_t ld, int64_t at, int64_t k, int64_t k_end, __mmask32 m, enum part part,
                         __m512i *lo, __m512i *hi) {
  const __m512i x = k < k_end ? words(src, k * ld + at, m, part) : _mm512_setzero_si512();
  const __m512i y = k + 1 < k_end ? words(src, (k + 1) * ld + at, m, part) : _mm512_setzero_si512();
  interleave(x, y, lo, hi);
}

AVX512 INLINE void left_cols(const struct amx_pack_left *p, enum part part) {
  char *dst = p->dst;
  for (int64_t r = 0; r < p->rows; r += 32) {
    const __mmask32 m = head32(p->rows - r);
    for (int64_t kk = 0; kk < p->k; kk += 32, dst += p->step) {
      __m512i lo[16], hi[16];
      for (int j = 0; j < 16; j++) pairs(p->src, p->ld, r, kk + 2 * j, p->k, m, part, &lo[j], &hi[j]);
      transpose16(lo);
      transpose16(hi);
      for (int i = 0; i < 16; i++) {
        _mm512_store_si512(dst + i * 64, lo[i]);
        _mm512_store_si512(dst + 1024 + i * 64, hi[i]);
      }
    }
  }
}

KERNEL(AVX512, amx_pack_left) {
#define LEFT(part) p->transposed ? left_cols(p, part) : left_rows(p, part)
  FOR_PART(LEFT)
}

// AmxPackRight packs src [k][cols], cols ≤ 32, into a panel in pair form.
struct amx_pack_right {
  const void *src;  // bf16, or f32 of which a half is packed
  void *dst;        // [⌈k/32⌉][2048 bytes], aligned to 64 bytes
  int64_t ld;
  int64_t cols;
  int64_t k;
  int64_t part;  // enum part
  int64_t step;  // bytes from step to step of dst
};

AVX512 INLINE void right(const struct amx_pack_right *p, enum part part) {
  const __mmask32 m = head32(p->cols);
  char *dst = p->dst;
  for (int64_t kk = 0; kk < p->k; kk += 32, dst += p->step) {
    for (int j = 0; j < 16; j++) {
      __m512i lo, hi;
      pairs(p->src, p->ld, 0, kk + 2 * j, p->k, m, part, &lo, &hi);
      _mm512_store_si512(dst + j * 64, lo);
      _mm512_store_si512(dst + 1024 + j * 64, hi);
    }
  }
}

KERNEL(AVX512, amx_pack_right) {
#define RIGHT(part) right(p, part)
  FOR_PART(RIGHT)
}

// AmxPackForward packs rows of a weight [out][in] into its forward form: panels of output
// columns in pair form over in. Columns of other rows stay as they are.
struct amx_pack_forward {
  const void *src;  // [rows][k] bf16, or f32 of which a half is packed
  void *dst;        // start of the form
  int64_t ld;
  int64_t rows;
  int64_t k;     // in
  int64_t col;   // output column of the first row
  int64_t part;  // enum part
  int64_t step;  // bytes from step to step of dst
};

AVX512 INLINE void forward(const struct amx_pack_forward *p, enum part part) {
  const int64_t k = p->k, panel = (k + 31) / 32 * p->step;
  for (int64_t c = p->col & ~15; c < p->col + p->rows; c += 16) {
    char *dst = (char *)p->dst + c / 32 * panel + c % 32 / 16 * 1024;
    const int64_t first = c - p->col;  // row of src in lane 0; may be negative
    const __mmask16 lanes = head16(p->rows - first) & ~head16(-first);
    for (int64_t kk = 0; kk < k; kk += 32, dst += p->step) {
      const __mmask32 m = head32(k - kk);
      __m512i r[16];
      for (int i = 0; i < 16; i++) {
        r[i] = lanes >> i & 1 ? words(p->src, (first + i) * p->ld + kk, m, part) : _mm512_setzero_si512();
      }
      transpose16(r);  // a dword is a pair already
      for (int i = 0; i < 16; i++) _mm512_mask_storeu_epi32(dst + i * 64, lanes, r[i]);
    }
  }
}

KERNEL(AVX512, amx_pack_forward) {
#define FORWARD(part) forward(p, part)
  FOR_PART(FORWARD)
}

// AmxPackBackward packs rows of a weight [out][in] into its dX form: panels of input columns
// in pair form over out. The other half of a pair cut by the range stays as it is.
struct amx_pack_backward {
  const void *src;  // [rows][cols] bf16, or f32 of which a half is packed
  void *dst;        // start of the form
  int64_t ld;
  int64_t rows;
  int64_t cols;  // in
  int64_t row;   // row of the weight
  int64_t out;   // rows of the weight
  int64_t part;  // enum part
  int64_t step;  // bytes from step to step of dst
};

AVX512 INLINE void backward(const struct amx_pack_backward *p, enum part part) {
  const int64_t panel = (p->out + 31) / 32 * p->step, end = p->row + p->rows;
  for (int64_t c = 0; c < p->cols; c += 32) {
    const __mmask32 m = head32(p->cols - c);
    for (int64_t k = p->row & ~1; k < end; k += 2) {
      const int64_t from = (k - p->row) * p->ld + c;
      const int low = k >= p->row, high = k + 1 < end;
      const __m512i x = low ? words(p->src, from, m, part) : _mm512_setzero_si512();
      const __m512i y = high ? words(p->src, from + p->ld, m, part) : _mm512_setzero_si512();
      __m512i lo, hi;
      interleave(x, y, &lo, &hi);
      const __mmask32 halves = (low ? 0x55555555u : 0) | (high ? 0xaaaaaaaau : 0);
      char *dst = (char *)p->dst + c / 32 * panel + k / 32 * p->step + k % 32 / 2 * 64;
      _mm512_mask_storeu_epi16(dst, halves, lo);
      _mm512_mask_storeu_epi16(dst + 1024, halves, hi);
    }
  }
}

KERNEL(AVX512, amx_pack_backward) {
#define BACKWARD(part) backward(p, part)
  FOR_PART(BACKWARD)
}
