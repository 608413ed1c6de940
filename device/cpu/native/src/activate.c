// Activations of MLPs without a gate: GELU by the normal distribution, and by tanh.
#include "lanes.h"

// TANH is device.GELUTanh; device.GELU is the other one.
enum { TANH = 2 };

// Activate is y = act(x).
struct activate {
  const void *x;  // [n]
  void *y;
  int64_t n;
  int64_t act;  // device.Act
  int64_t bf16;
};

// sigmoid_2u is s = σ(2u), 2u = √(8/π)·(x + 0.044715·x³), which is (1 + tanh u)/2, and with it
// rest = s·(1 − s). With e = exp(−2u) of |x|, at most 1, no difference of near numbers is taken.
INLINE AVX512 vec sigmoid_2u(vec x, vec *rest) {
  vec a = _mm512_abs_ps(x);
  vec cube = _mm512_mul_ps(_mm512_mul_ps(a, a), a);
  vec e = vexp(_mm512_mul_ps(set1(-1.59576912f), fma(set1(0.044715f), cube, a)));
  vec s = _mm512_div_ps(set1(1), _mm512_add_ps(set1(1), e));
  vec less = _mm512_mul_ps(e, s);
  *rest = _mm512_mul_ps(less, s);
  __mmask16 right = _mm512_cmp_ps_mask(x, zero(), _CMP_GT_OQ);
  return _mm512_mask_mov_ps(less, right, s);
}

// The slope of x·s is s + x·s·(1 − s)·(2u)'.
INLINE AVX512 vec tanh_slope(vec x) {
  vec rest, s = sigmoid_2u(x, &rest);
  vec inner = _mm512_mul_ps(set1(1.59576912f), fma(set1(3 * 0.044715f), _mm512_mul_ps(x, x), set1(1)));
  return fma(_mm512_mul_ps(x, rest), inner, s);
}

// normal is Φ(x), and e = exp(−x²/2) with it. Φ(−a) = e·t·q(t), t = 1/(1 + a/4), with the q of
// package cpu.
INLINE AVX512 vec normal(vec x, vec *e) {
  vec a = _mm512_abs_ps(x);
  *e = vexp(_mm512_mul_ps(_mm512_mul_ps(a, a), set1(-0.5f)));
  vec t = _mm512_div_ps(set1(1), fma(a, set1(0.25f), set1(1)));
  vec q = fma(set1(-0.010699432639f), t, set1(0.058427636086f));
  q = fma(q, t, set1(-0.11752549607f));
  q = fma(q, t, set1(0.10076870592f));
  q = fma(q, t, set1(-0.052965693118f));
  q = fma(q, t, set1(0.045950918899f));
  q = fma(q, t, set1(0.037767623062f));
  q = fma(q, t, set1(0.064338567538f));
  q = fma(q, t, set1(0.08096057596f));
  q = fma(q, t, set1(0.093505514887f));
  q = fma(q, t, set1(0.099735509186f));
  q = fma(q, t, set1(0.099735570279f));
  vec tail = _mm512_mul_ps(_mm512_mul_ps(q, t), *e);
  __mmask16 right = _mm512_cmp_ps_mask(x, zero(), _CMP_GT_OQ);
  return _mm512_mask_sub_ps(tail, right, set1(1), tail);
}

INLINE AVX512 void activate_all(const struct activate *p, int tanh, int bf16) {
  for (i64 j = 0; j < p->n; j += 16) {
    __mmask16 m = first(p->n - j);
    vec x = load(p->x, j, m, bf16), unused;
    vec f = tanh ? sigmoid_2u(x, &unused) : normal(x, &unused);
    store(p->y, j, m, _mm512_mul_ps(x, f), bf16);
  }
}

KERNEL(BOTH, activate) {
  if (p->act == TANH) {
    if (p->bf16)
      activate_all(p, 1, 1);
    else
      activate_all(p, 1, 0);
  } else {
    if (p->bf16)
      activate_all(p, 0, 1);
    else
      activate_all(p, 0, 0);
  }
}

// ActivateGrad is dx = dy·act'(x); dx may be x or dy.
struct activate_grad {
  const void *x;   // [n]
  const void *dy;  // [n]
  void *dx;
  int64_t n;
  int64_t act;  // device.Act
  int64_t bf16;
};

// The slope of x·Φ(x) is Φ(x) + x·e/√(2π).
INLINE AVX512 vec erf_slope(vec x) {
  vec e, cdf = normal(x, &e);
  return fma(x, _mm512_mul_ps(e, set1(0.398942280f)), cdf);
}

INLINE AVX512 void activate_grad_all(const struct activate_grad *p, int tanh, int bf16) {
  for (i64 j = 0; j < p->n; j += 16) {
    __mmask16 m = first(p->n - j);
    vec x = load(p->x, j, m, bf16), dy = load(p->dy, j, m, bf16);
    store(p->dx, j, m, _mm512_mul_ps(dy, tanh ? tanh_slope(x) : erf_slope(x)), bf16);
  }
}

KERNEL(BOTH, activate_grad) {
  if (p->act == TANH) {
    if (p->bf16)
      activate_grad_all(p, 1, 1);
    else
      activate_grad_all(p, 1, 0);
  } else {
    if (p->bf16)
      activate_grad_all(p, 0, 1);
    else
      activate_grad_all(p, 0, 0);
  }
}
