/* The inverse of an autoregressive layer with a masked perceptron: coordinate after coordinate, each unit once.

   Written before it: tiles.c, `value(x)`, the activation, and `part`, the inverse of the scalar map for numbers
   [begin, end) of n: given z and n parameters after n others, x and the log-slope. A thread takes as many rows through
   all steps as its cache has room for the units of; W rows lie side by side. */
#define CACHE (1 << 15) /* numbers of all units that a block of rows may have */

static int invert_part(long rows, long *taken, long threads, long D, int L, const long *widths, const long *ready,
                       const real *const *weights, const real *const *biases, const real *context, const real *z,
                       long zs, long zk, const long *order, real *x, real *logdet) {
  const long count = widths[L] / D;
  long units = 0, all = 0; /* of the coordinates and hidden layers; of the hidden layers and outputs */
  for (int l = 0; l < L; l++) units += widths[l], all += widths[l + 1];
  const long share = round_up(rows, W) / W, turns = threads > 1 ? 3 * threads : 1;
  const long panels = max_of(1, min_of((share + turns - 1) / turns, CACHE / (units * W))), B = panels * W;
  real *at = memory(all * W + (units + count + 4) * B);
  if (!at) return 1;
  real *base[L], *inner[L]; /* biases, for W rows; what goes into each layer */
  for (int l = 0; l < L; l++) {
    base[l] = at, at += widths[l + 1] * W;
    for (long o = 0; o < widths[l + 1]; o++)
      for (long i = 0; i < W; i++) base[l][o * W + i] = biases[l][o];
  }
  for (int l = 0; l < L; l++) inner[l] = at, at += widths[l] * B;
  real *params = at, *here = params + count * B, *found = here + B, *slopes = found + B, *sum = slopes + B;
  /* blocks go to whichever thread is free, since a core may be busy with something else */
  for (long row; (row = __atomic_fetch_add(taken, B, __ATOMIC_RELAXED)) < rows;) {
    const long M = min_of(B, rows - row), used = round_up(M, W) / W;
    for (long i = 0; i < B; i++) sum[i] = here[i] = 0;
    for (long d = 0; d < D; d++) {
      for (int l = 0; l < L; l++) {
        const long from = ready[l * (D + 1) + d], to = ready[l * (D + 1) + d + 1];
        const long K = l ? ready[(l - 1) * (D + 1) + d + 1] : d;
        for (long p = 0; p < used; p++) {
          const real *in = inner[l] + p * widths[l] * W;
          if (l == L - 1) {
            panel(to - from, W, K, weights[l] + from * widths[l], widths[l], 0, in, W, base[l] + from * W, W,
                  params + p * W, B);
            continue;
          }
          real *out = inner[l + 1] + (p * widths[l + 1] + from) * W;
          panel(to - from, W, K, weights[l] + from * widths[l], widths[l], 0, in, W, base[l] + from * W, W, out, W);
          if (l == 0 && context)
            for (long o = from; o < to; o++)
              for (long i = 0; i < min_of(W, M - p * W); i++)
                out[(o - from) * W + i] += context[o * rows + row + p * W + i];
#ifdef _OPENMP
#pragma omp simd
#endif
          for (long i = 0; i < (to - from) * W; i++) out[i] = value(out[i]);
        }
      }
      for (long i = 0; i < M; i++) here[i] = z[(row + i) * zs + order[d] * zk];
      part(B, 0, used * W, here, params, found, slopes);
      for (long p = 0; p < used; p++)
        for (long i = 0; i < W; i++) inner[0][(p * widths[0] + d) * W + i] = found[p * W + i];
      for (long i = 0; i < M; i++) x[order[d] * rows + row + i] = found[i], sum[i] += slopes[i];
    }
    for (long i = 0; i < M; i++) logdet[row + i] = sum[i];
  }
  return 0;
}

/* x, a coordinate after the other, and the log-det of the inverse, from z, whose rows are `zs` and coordinates `zk`
   apart.

   `widths` holds D, those of the hidden layers, and that of the output. `ready` holds, for each layer, how many of its
   units can be computed before step 0, 1, … and after the last. `context`, if given, is added to the first layer, a
   unit after the other. `order[d]` is the coordinate of step d. Returns 0, or 1 where there is not enough memory. */
int invert(long rows, long D, int L, const long *widths, const long *ready, const real *const *weights,
           const real *const *biases, const real *context, const real *z, long zs, long zk, const long *order, real *x,
           real *logdet, int threads) {
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  failed = invert_part(rows, &taken, threads, D, L, widths, ready, weights, biases, context, z, zs, zk, order, x,
                       logdet);
  return failed;
}
