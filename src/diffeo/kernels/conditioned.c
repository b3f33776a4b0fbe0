/* Coordinates that scalar maps change, with parameters that a perceptron gives, and the log-det, for rows in blocks
   that stay in the cache of one core.

   Written before it: perceptron.c, and `part`, the scalar map for numbers [begin, end) of n: given x and n parameters
   after n others, the result and the log-slope. */

static int map_part(long rows, long *taken, long threads, int L, Layer *layers, Input in, long D, const real *x,
                    long xs, long xk, long scalars, const long *changed, real *out, real *logdet) {
  const long outputs = layers[L - 1].outputs;
  Room room;
  real *params = make_room(layers, L, outputs + 3 * scalars, 0, &room);
  if (!params) return 1;
  real *here = params + room.block * outputs, *found = here + room.block * scalars;
  real *slopes = found + room.block * scalars;
  for (long row, M; (M = take(taken, rows, room.block, threads, &row)) > 0;) {
    pass(row, M, L, layers, &room, in, params, M, outputs / scalars);
    for (long k = 0; k < scalars; k++)
      for (long m = 0; m < M; m++) here[k * M + m] = x[(row + m) * xs + changed[k] * xk];
    part(scalars * M, 0, scalars * M, here, params, found, slopes);
    for (long d = 0; d < D; d++) /* also of those that change, which costs less than to tell them apart */
      for (long m = 0; m < M; m++) out[d * rows + row + m] = x[(row + m) * xs + d * xk];
    for (long m = 0; m < M; m++) logdet[row + m] = 0;
    for (long k = 0; k < scalars; k++) {
      memcpy(out + changed[k] * rows + row, found + k * M, M * sizeof(real));
      for (long m = 0; m < M; m++) logdet[row + m] += slopes[k * M + m];
    }
  }
  return 0;
}

/* out, a coordinate after the other, and the log-det, from x with D of them in each row, `xs` and `xk` apart, of which
   the scalar map changes those in `changed`; the perceptron, which sees `h`, as in `forward`. Returns 0, or 1 where
   there is not enough memory. */
int map(long rows, int L, const long *widths, const real *h, long hs, long hk, const long *which, int enter,
        const real *const *weights, const real *const *biases, const int *const *bounds, long D, const real *x, long xs,
        long xk, long scalars, const long *changed, real *out, real *logdet, int threads) {
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer layers[L];
    describe(layers, L, widths, weights, biases, bounds, rows, 0);
    const Input in = {.x = h, .row = hs, .column = hk, .which = which, .enter = enter};
    failed = map_part(rows, &taken, threads, L, layers, in, D, x, xs, xk, scalars, changed, out, logdet);
  }
  return failed;
}
