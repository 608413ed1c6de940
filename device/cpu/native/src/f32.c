// f32 products on AVX-512. The left operand is packed as panels of 12 rows, k-major
// ([k][12]); the right one as panels of 32 columns ([k][32]); sums go to a scratch
// panel [rows][32]. 12 × 32 takes 24 accumulators. 8 × 48 and 14 × 32 reach the same 99% of
// the multiply-add limit while 256 × 32 floats of the right operand stay in L1; 32 columns
// are also what the tile kernels use.
#include "gemm.h"

enum { MR = 12, NR = 32 };

#define ROWS(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11)

// GemmF32 multiplies packed panels of 12 rows by one packed panel of 32 columns:
// s (+)= a·b. An element is summed from zero over k, ascending, by fused
// multiply-adds, and then added to s or stored there.
struct gemm_f32 {
  const float *a;      // [panels][k][12]
  const float *b;      // [k][32], aligned to 64 bytes
  float *s;            // [panels·12][32], aligned to 64 bytes
  uint64_t next;       // address of what the next call will read, to be prefetched
  int64_t next_bytes;  // of it
  uint64_t out;        // address of the output's 32 columns if s is complete after this
  // call, else 0; prefetched
  int64_t out_stride;  // from row to row, in bytes
  int64_t k;
  int64_t panels;
  int64_t rows;  // that matter: of one panel with no more than four, the others are left out
  int64_t acc;   // 1: add to s, 0: overwrite it
};

#ifdef SKEIN_AVX2
#include "f32_avx2.h"
KERNEL(BOTH, gemm_f32) { gemm_avx2(p); }
#else
// few multiplies four rows of one panel. Generation takes one row at a time.
AVX512 INLINE void few(const struct gemm_f32 *p) {
  const float *a = p->a, *b = p->b;
  __m512 c[8];
  for (int i = 0; i < 8; i++) c[i] = _mm512_setzero_ps();
  for (int64_t kk = p->k; kk > 0; kk--, a += MR, b += NR) {
    const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
    for (int i = 0; i < 4; i++) {
      const __m512 t = _mm512_set1_ps(a[i]);
      c[2 * i] = _mm512_fmadd_ps(t, b0, c[2 * i]);
      c[2 * i + 1] = _mm512_fmadd_ps(t, b1, c[2 * i + 1]);
    }
  }
  for (int i = 0; i < 8; i++) {
    float *to = p->s + 16 * i;
    _mm512_store_ps(to, p->acc ? _mm512_add_ps(_mm512_load_ps(to), c[i]) : c[i]);
  }
}

KERNEL(BOTH, gemm_f32) {
  if (p->rows <= 4) {
    few(p);
    return;
  }
  const float *a = p->a;
  float *s = p->s;
  const char *next = (const char *)p->next;
  const char *out = (const char *)p->out;
  const int64_t k = p->k, acc = p->acc;
  const int64_t chunks = (k + 7) / 8;
  const int64_t lines = p->panels * chunks > 0 ? (p->next_bytes / 64 + p->panels * chunks - 1) / (p->panels * chunks) : 0;
  for (int64_t n = p->panels; n > 0; n--) {
    const float *b = p->b;
    const float *sums = s;
    int ahead = MR;  // rows of the sums and of the output that are to be fetched
#define ZERO(i) __m512 c##i##_0 = _mm512_setzero_ps(), c##i##_1 = c##i##_0;
    ROWS(ZERO)
#define STEP(i)                                    \
  {                                                \
    const __m512 t = _mm512_set1_ps(a[i]);         \
    c##i##_0 = _mm512_fmadd_ps(t, b0, c##i##_0);   \
    c##i##_1 = _mm512_fmadd_ps(t, b1, c##i##_1);   \
  }
    // What comes is fetched a little in every eight steps: many at once would fill the
    // queue of loads, and the multiply-adds would wait for memory.
    for (int64_t left = k; left > 0;) {
      for (int64_t i = 0; i < lines; i++, next += 64) _mm_prefetch(next, _MM_HINT_T1);
      if (ahead > 0) {
        ahead--;
        _mm_prefetch((const char *)sums, _MM_HINT_T0);
        _mm_prefetch((const char *)(sums + 16), _MM_HINT_T0);
        sums += NR;
        if (out) {
          __builtin_prefetch(out, 1, 2);
          __builtin_prefetch(out + 64, 1, 2);
          out += p->out_stride;
        }
      }
      int64_t kk = left < 8 ? left : 8;
      left -= kk;
      for (; kk > 0; kk--) {
        const __m512 b0 = _mm512_load_ps(b), b1 = _mm512_load_ps(b + 16);
        ROWS(STEP)
        a += MR;
        b += NR;
      }
    }
    if (out) out += ahead * p->out_stride;
    if (acc) {
#define ADD(i)                                                       \
  c##i##_0 = _mm512_add_ps(_mm512_load_ps(s + i * NR), c##i##_0);    \
  c##i##_1 = _mm512_add_ps(_mm512_load_ps(s + i * NR + 16), c##i##_1);
      ROWS(ADD)
    }
#define STORE(i)                            \
  _mm512_store_ps(s + i * NR, c##i##_0);    \
  _mm512_store_ps(s + i * NR + 16, c##i##_1);
    ROWS(STORE)
    s += MR * NR;
  }
}
#endif

// load reads up to 16 elements as f32; bf is a constant in every use.
AVX512 INLINE __m512 load(const void *src, int64_t at, __mmask16 m, int bf) {
  if (bf) return widen(_mm256_maskz_loadu_epi16(m, (const uint16_t *)src + at));
  return _mm512_maskz_loadu_ps(m, (const float *)src + at);
}

// pack_rows: src [rows][k] → panels [k][12]; rows beyond the last become zero.
AVX512 INLINE void pack_rows(const void *src, int64_t ld, int64_t rows, int64_t k, float *dst, int bf) {
  const __mmask16 lanes = head16(MR);
  for (; rows > 0; rows -= MR, src = (const char *)src + MR * ld * (bf ? 2 : 4), dst += k * MR) {
    for (int64_t kk = 0; kk < k; kk += 16) {
      const __mmask16 m = head16(k - kk);
      __m512i r[16];
      for (int i = 0; i < 16; i++) {
        r[i] = i < MR && i < rows ? _mm512_castps_si512(load(src, i * ld + kk, m, bf)) : _mm512_setzero_si512();
      }
      transpose16(r);
      for (int i = 0; i < 16; i++) {
        if (kk + i < k) _mm512_mask_storeu_epi32(dst + (kk + i) * MR, lanes, r[i]);
      }
    }
  }
}

// pack_cols: src [k][rows], that is to be transposed → panels [k][12]. Four panels at a
// time are three lines of src, each read once.
AVX512 INLINE void pack_cols(const void *src, int64_t ld, int64_t rows, int64_t k, float *dst, int bf) {
  const __mmask16 lanes = head16(MR);
  int64_t r = 0;
  for (; r + 4 * MR <= rows; r += 4 * MR, dst += 4 * k * MR) {
    float *to = dst;
    for (int64_t kk = 0; kk < k; kk++, to += MR) {
      for (int i = 0; i < 4; i++) {
        _mm512_mask_storeu_ps(to + i * k * MR, lanes, load(src, kk * ld + r + i * MR, lanes, bf));
      }
    }
  }
  for (; r < rows; r += MR) {
    const __mmask16 m = head16(rows - r) & lanes;
    for (int64_t kk = 0; kk < k; kk++, dst += MR) {
      _mm512_mask_storeu_ps(dst, lanes, load(src, kk * ld + r, m, bf));
    }
  }
}

// F32PackLeft packs the left operand of GemmF32.
struct f32_pack_left {
  const void *src;
  float *dst;         // [⌈rows/12⌉][k][12]
  int64_t ld;         // of src, in elements
  int64_t rows;       // of the product
  int64_t k;
  int64_t transposed; // 0: src is [rows][k]; 1: src is [k][rows]
  int64_t bf16;       // src is bf16, else f32
};

KERNEL(BOTH, f32_pack_left) {
  if (p->transposed) {
    if (p->bf16) pack_cols(p->src, p->ld, p->rows, p->k, p->dst, 1);
    else pack_cols(p->src, p->ld, p->rows, p->k, p->dst, 0);
  } else {
    if (p->bf16) pack_rows(p->src, p->ld, p->rows, p->k, p->dst, 1);
    else pack_rows(p->src, p->ld, p->rows, p->k, p->dst, 0);
  }
}

// F32PackRight packs src [k][cols], cols ≤ 32, as a panel [k][32] with zero columns behind.
struct f32_pack_right {
  const void *src;
  float *dst;  // aligned to 64 bytes
  int64_t ld;
  int64_t cols;
  int64_t k;
  int64_t transposed;  // 1: src is [cols][k], of bf16
  int64_t bf16;
};

AVX512 INLINE void pack_right(const void *src, int64_t ld, int64_t cols, int64_t k, float *dst, int bf) {
  const __mmask16 m0 = head16(cols), m1 = head16(cols - 16);
  for (int64_t kk = 0; kk < k; kk++, dst += NR) {
    _mm512_store_ps(dst, load(src, kk * ld, m0, bf));
    _mm512_store_ps(dst + 16, load(src, kk * ld + 16, m1, bf));
  }
}

// pack_right_rows transposes 16 rows of bf16 at a time, as dwords of two terms each: half the
// shuffles that single elements would take.
AVX512 INLINE void pack_right_rows(const uint16_t *src, int64_t ld, int64_t cols, int64_t k, float *dst) {
  const __m512i high = _mm512_set1_epi32((int)0xffff0000u);
  for (int64_t c = 0; c < NR; c += 16) {
    for (int64_t kk = 0; kk < k; kk += 32) {
      const __mmask32 m = head32(k - kk);
      __m512i r[16];
      for (int i = 0; i < 16; i++) {
        r[i] = c + i < cols ? _mm512_maskz_loadu_epi16(m, src + (c + i) * ld + kk) : _mm512_setzero_si512();
      }
      transpose16(r);
      float *to = dst + kk * NR + c;
      for (int i = 0; i < 16; i++, to += 2 * NR) {
        if (kk + 2 * i < k) _mm512_store_ps(to, _mm512_castsi512_ps(_mm512_slli_epi32(r[i], 16)));
        if (kk + 2 * i + 1 < k) _mm512_store_ps(to + NR, _mm512_castsi512_ps(_mm512_and_si512(r[i], high)));
      }
    }
  }
}

KERNEL(BOTH, f32_pack_right) {
  if (p->transposed) pack_right_rows(p->src, p->ld, p->cols, p->k, p->dst);
  else if (p->bf16) pack_right(p->src, p->ld, p->cols, p->k, p->dst, 1);
  else pack_right(p->src, p->ld, p->cols, p->k, p->dst, 0);
}

// weight_cols: src [rows][k] → columns col… of panels [k][32]; a lane is written iff its column
// is one of src's rows.
AVX512 INLINE void weight_cols(const float *src, int64_t ld, int64_t rows, int64_t k, float *dst, int64_t col) {
  for (int64_t c = col & ~15; c < col + rows; c += 16) {
    float *to = dst + c / NR * NR * k + c % NR;
    const int64_t first = c - col;  // row of src in lane 0; may be negative
    const __mmask16 lanes = head16(rows - first) & ~head16(-first);
    for (int64_t kk = 0; kk < k; kk += 16) {
      const __mmask16 m = head16(k - kk);
      __m512i r[16];
      for (int i = 0; i < 16; i++) {
        r[i] = lanes >> i & 1 ? _mm512_maskz_loadu_epi32(m, src + (first + i) * ld + kk) : _mm512_setzero_si512();
      }
      transpose16(r);
      for (int i = 0; i < 16; i++) {
        if (kk + i >= k) break;
        _mm512_mask_storeu_epi32(to + (kk + i) * NR, lanes, r[i]);
      }
    }
  }
}

// F32PackForward packs rows of a weight [out][in] into its forward form, panels
// [in][32] of output columns. Columns of other rows stay as they are.
struct f32_pack_forward {
  const float *src;  // [rows][k]
  float *dst;        // start of the form
  int64_t ld;
  int64_t rows;
  int64_t k;    // in
  int64_t col;  // output column of the first row
};

KERNEL(BOTH, f32_pack_forward) { weight_cols(p->src, p->ld, p->rows, p->k, p->dst, p->col); }

// F32PackBackward packs rows of a weight [out][in] into its dX form, panels
// [out][32] of input columns.
struct f32_pack_backward {
  const float *src;  // [rows][cols]
  float *dst;        // start of the form
  int64_t ld;
  int64_t rows;
  int64_t cols;  // in
  int64_t row;   // row of the weight
  int64_t out;   // rows of the weight
};

KERNEL(BOTH, f32_pack_backward) {
  for (int64_t c = 0; c < p->cols; c += NR) {
    const __mmask16 m0 = head16(p->cols - c), m1 = head16(p->cols - c - 16);
    for (int64_t r = 0; r < p->rows; r++) {
      const float *from = p->src + r * p->ld + c;
      float *to = p->dst + c * p->out + (p->row + r) * NR;
      _mm512_mask_storeu_ps(to, m0, _mm512_maskz_loadu_ps(m0, from));
      _mm512_mask_storeu_ps(to + 16, m1, _mm512_maskz_loadu_ps(m1, from + 16));
    }
  }
}
