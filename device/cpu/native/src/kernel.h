// What every kernel source includes. A kernel is a function of one pointer to a
// struct of its own name; the generator turns both into Go. See ../README.md.
#ifndef SKEIN_KERNEL_H
#define SKEIN_KERNEL_H

#include <immintrin.h>
#include <stdint.h>

// Instruction sets, one of which every function must name. A kernel may name BOTH: it is then
// compiled for AVX-512 and, with SKEIN_AVX2 defined, for AVX2, from the same intrinsics.
#define AVX2 __attribute__((target("avx2,fma,f16c,bmi2")))
#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,bmi2")))
#define AVX512BF16 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,bmi2")))
#define AMX                                                                          \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,amx-tile,amx-" \
                        "bf16,avx2,fma,bmi2")))

#ifdef SKEIN_AVX2
#include "avx2.h"
#undef AVX512
#define AVX512 AVX2
#endif
#define BOTH AVX512

// KERNEL opens the definition of kernel `name`, whose arguments are p->...
#define KERNEL(isa, name) \
  isa __attribute__((visibility("hidden"), noinline, used)) void name(const struct name *p)

// INLINE marks helpers, which must vanish into their kernels.
#define INLINE static inline __attribute__((always_inline))

#endif
