/* A linear map of the channels of pictures, the same at every place, and its gradient. Written before it: `real`. */
#include <string.h>

/* y = weight (x + shift) + bias, or with `flip` weight' x, for channels of so many numbers; those of x are `apart` */
static inline void mix_one(long C, long places, const real *x, long apart, const real *weight, int flip,
                           const real *shift, const real *bias, real *restrict y) {
  for (long o = 0; o < C; o++) {
    real *to = y + o * places;
    for (long m = 0; m < places; m++) to[m] = bias ? bias[o] : 0;
    for (long k = 0; k < C; k++) {
      const real w = flip ? weight[k * C + o] : weight[o * C + k], c = shift ? shift[k] : 0, *from = x + k * apart;
      for (long m = 0; m < places; m++) to[m] += w * (from[m] + c);
    }
  }
}

/* z = weight (x + shift) + bias at all `places` of pictures with C channels, `picture` and `channel` apart: a 1×1
   convolution. Shift and bias may be null, which are zeros. */
void mix(long pictures, long C, long places, const real *x, long picture, long channel, const real *weight,
         const real *shift, const real *bias, real *z, int threads) {
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  for (long p; (p = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < pictures;)
    mix_one(C, places, x + p * picture, channel, weight, 0, shift, bias, z + p * C * places);
}

static real product(long n, const real *x, const real *y, real shift) {
  real sum = 0;
#ifdef _OPENMP
#pragma omp simd reduction(+ : sum)
#endif
  for (long i = 0; i < n; i++) sum += x[i] * (y[i] + shift);
  return sum;
}

static real total_of(long n, const real *x) {
  real sum = 0;
#ifdef _OPENMP
#pragma omp simd reduction(+ : sum)
#endif
  for (long i = 0; i < n; i++) sum += x[i];
  return sum;
}

/* Gradients from that of z: `g_x`, and in `g_layers` those of weight and bias, with room for as many again for each
   share of the pictures but one, which are added up in their order. */
void mix_backward(long pictures, long C, long places, const real *x, long picture, long channel, const real *weight,
                  const real *shift, const real *g, long g_picture, long g_channel, real *g_x, real *g_layers,
                  long shares, int threads) {
  const long total = C * (C + 1), size = (pictures + shares - 1) / shares;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  for (long k; (k = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < shares;) {
    real *sums = g_layers + k * total;
    memset(sums, 0, total * sizeof(real));
    for (long p = k * size; p < pictures && p < (k + 1) * size; p++) {
      mix_one(C, places, g + p * g_picture, g_channel, weight, 1, 0, 0, g_x + p * C * places);
      for (long o = 0; o < C; o++) {
        const real *to = g + p * g_picture + o * g_channel;
        for (long i = 0; i < C; i++)
          sums[o * C + i] += product(places, to, x + p * picture + i * channel, shift ? shift[i] : 0);
        sums[C * C + o] += total_of(places, to);
      }
    }
  }
  for (long k = 1; k < shares; k++)
    for (long i = 0; i < total; i++) g_layers[i] += g_layers[k * total + i];
}
