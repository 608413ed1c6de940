// The argument structs of package kernel as C sees them: pointers, then 64-bit
// integers, then floats, in the order of ../../kernel/kernel.go.
#ifndef SKEIN_TABLE_H
#define SKEIN_TABLE_H

#include <stdint.h>

struct norm_args {
  void *y, *rstd, *x, *w;
  int64_t cols, ld_y, ld_x;
  float eps;
};

struct norm_grad_args {
  void *dx, *dy, *x, *rstd, *w, *add;
  int64_t cols, ld_dx, ld_dy, ld_x, ld_add;
};

struct layer_norm_args {
  void *y, *stats, *x, *w, *b;
  int64_t cols, ld_y, ld_x;
  float eps;
};

struct layer_norm_grad_args {
  void *dx, *dy, *x, *stats, *w, *add;
  int64_t cols, ld_dx, ld_dy, ld_x, ld_add;
};

struct rope_args {
  void *q, *k, *table, *pos;
  int64_t heads, kv_heads, head_dim, ld_q, ld_k, ld_table, inverse;
};

struct glu_args {
  void *y, *gate_up;
  int64_t f, ld_y, ld_g, act;
};

struct glu_grad_args {
  void *dgate_up, *dy, *gate_up;
  int64_t f, ld_dg, ld_dy, ld_g, act;
};

struct attention_args {
  void *o, *lse, *q, *k, *v;
  int64_t ld_o, ld_lse, ld_q, ld_k, ld_v, heads, kv_heads, head_dim, window;
  float scale;
};

struct attention_grad_args {
  void *dq, *dk, *dv, *d_o, *q, *k, *v, *o, *lse, *delta, *sums;
  int64_t ld_dq, ld_dk, ld_dv, ld_do, ld_q, ld_k, ld_v, ld_o, ld_lse, ld_delta;
  int64_t heads, kv_heads, head_dim, window;
  float scale;
};

struct decode_args {
  void *o, *q, *keys, *values;
  int64_t n, ld_k, ld_v, heads, kv_heads, head_dim, window;
  float scale;
};

struct cross_entropy_args {
  void *logits, *targets, *nll;
  int64_t vocab, ld, grad;
  float scale;
};

struct adamw_args {
  float *master, *m, *v, *grad;
  void *work;
  float grad_scale, decay_step, beta1_rest, beta2, beta2_rest, step, correction2, eps;
};

#endif
