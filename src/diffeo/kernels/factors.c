/* A matrix as the product of triangular ones, and the gradient of that. Written before it: `real` and FN.

   Both factors are in one matrix: L, with ones on its diagonal, below its own, and U above it; the diagonal of U is
   exp(bound tanh(w / bound)). */
#include <string.h>

/* the diagonal of U, and its logarithm */
static void scales(long n, const real *weight, real bound, real *scale, real *log_scale) {
  for (long i = 0; i < n; i++) log_scale[i] = bound * FN(tanh)(weight[i * n + i] / bound);
  for (long i = 0; i < n; i++) scale[i] = FN(exp)(log_scale[i]);
}

/* product = L U, and its log-det */
void multiply_factors(long n, const real *weight, real bound, real *product, real *logdet) {
  real scale[n], log_scale[n];
  double total = 0;
  scales(n, weight, bound, scale, log_scale);
  for (long i = 0; i < n; i++) {
    real *to = product + i * n;
    total += log_scale[i];
    memset(to, 0, n * sizeof(real));
    for (long k = 0; k <= i; k++) {
      const real left = k < i ? weight[i * n + k] : 1;
      to[k] += left * scale[k];
      for (long j = k + 1; j < n; j++) to[j] += left * weight[k * n + j];
    }
  }
  *logdet = total;
}

/* the gradient of weight from those of product and log-det; it may lie where that of the product does */
void factors_backward(long n, const real *weight, real bound, const real *g, const real *g_logdet, real *g_weight) {
  real scale[n], log_scale[n], row[n];
  scales(n, weight, bound, scale, log_scale);
  for (long k = 0; k < n; k++) {
    memcpy(row, g + k * n, n * sizeof(real)); /* of row k of U: L' g */
    for (long i = k + 1; i < n; i++) {
      const real left = weight[i * n + k];
      real sum = g[i * n + k] * scale[k]; /* of L at (i, k): g U' */
      row[k] += left * g[i * n + k];
#ifdef _OPENMP
#pragma omp simd reduction(+ : sum)
#endif
      for (long j = k + 1; j < n; j++) {
        sum += g[i * n + j] * weight[k * n + j];
        row[j] += left * g[i * n + j];
      }
      g_weight[i * n + k] = sum;
    }
    const real at = log_scale[k] / bound;
    g_weight[k * n + k] = (row[k] * scale[k] + *g_logdet) * (1 - at * at);
    for (long j = k + 1; j < n; j++) g_weight[k * n + j] = row[j];
  }
}
