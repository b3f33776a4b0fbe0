/* A coupling of pictures with a convolutional net, and its gradient, as one operation.

   Written before it: convolution.c; `part`, the scalar map for numbers [begin, end) of n: given x and n parameters
   after n others, the result and the log-slope; and `pull`, given the gradients of both too, those of x and the
   parameters, or NO_PULL. Channels from `a` on set those from `b` on. */
typedef struct {
  const real *x;
  Strides strides;
  long height, width, channels, a, b, planes;
} Event;

/* channels [first, first + count) of picture p, one place after the other */
static void copy_channels(Event e, long p, long first, long count, real *y) {
  for (long c = 0; c < count; c++)
    for (long line = 0; line < e.height; line++) {
      const real *from = e.x + p * e.strides.picture + (first + c) * e.strides.channel + line * e.strides.line;
      real *to = y + (c * e.height + line) * e.width;
      for (long i = 0; i < e.width; i++) to[i] = from[i * e.strides.place];
    }
}

/* z, one picture after the other, and the log-det; `params`, if given, receives the parameters as `convolve` does */
int couple(long pictures, const Event *event, int L, const long *widths, const real *shift, const real *const *weights,
           const real *const *biases, real *room, real *inner, real *params, real *z, real *logdet, int threads) {
  const Event e = *event;
  const long places = e.height * e.width, bordered = (e.height + 2) * (e.width + 2), whole = e.channels * places;
  const long seen = widths[0] / 9, all = widths[L] / 9, changed = all / e.planes, n = changed * places;
  const long apart = stride(widths[L]);
  const Strides by_plane = {all * places, places, n, e.width, 1};
  const real *as_weights[L], *as_biases[L];
  as_perceptron(L, widths, weights, biases, room, as_weights, as_biases);
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer layers[L];
    Room mine;
    const long group = group_size(block_limit(widest_input(L, widths)), places);
    const long outputs = group * places * apart, inputs = group * bordered * seen;
    describe(layers, L, widths, as_weights, as_biases, 0, 0, 0);
    layers[L - 2].inner = inner;
    real *found = make_room(layers, L, 0, outputs + inputs + e.width * all + (e.planes + 2) * n, &mine);
    real *around = found + outputs, *sum = around + inputs, *here = sum + e.width * all, *slopes = here + n;
    real *own = slopes + n;
    failed = !found;
    for (long p; found && (p = __atomic_fetch_add(&taken, group, __ATOMIC_RELAXED)) < pictures;) {
      const long count = min_of(group, pictures - p);
      answer(p, count, e.height, e.width, L, layers, &mine, e.x + e.a * e.strides.channel, e.strides, shift, around,
             found, apart);
      for (long i = 0; i < count; i++) {
        real *set = params ? params + (p + i) * all * places : own, *to = z + (p + i) * whole;
        double total = 0;
        add_around(found + i * places * apart, apart, all, e.planes, e.height, e.width, 0, sum, set, by_plane);
        copy_channels(e, p + i, e.a, seen, to + e.a * places);
        copy_channels(e, p + i, e.b, changed, here);
        part(n, 0, n, here, set, to + e.b * places, slopes);
        for (long m = 0; m < n; m++) total += slopes[m];
        logdet[p + i] = total;
      }
    }
  }
  return failed;
}

#ifndef NO_PULL
/* gradients of what changes in picture p, given x of it: to g_x, and, of its parameters, with borders, to `beyond` */
static void pull_picture(Event g, long p, const real *x, const real *params, real slope, real *g_here, real *slopes,
                         real *g_set, real *g_x, real *beyond, long changed) {
  const long places = g.height * g.width, n = changed * places, all = changed * g.planes;
  const Strides by_plane = {all * places, places, n, g.width, 1};
  copy_channels(g, p, g.b, changed, g_here);
  for (long m = 0; m < n; m++) slopes[m] = slope;
  pull(n, 0, n, x, params, g_here, slopes, g_x, g_set);
  border(g_set, by_plane, all, g.planes, g.height, g.width, beyond);
}

/* to += what comes straight from the channels that the net sees */
static void add_seen(Event g, long p, long seen, real *g_here, real *to) {
  copy_channels(g, p, g.a, seen, g_here);
  for (long m = 0; m < seen * g.height * g.width; m++) to[m] += g_here[m];
}

/* Gradients from those of z and the log-det: `g_x`, one picture after the other, and the others as in
   `convolve_backward`. */
int couple_backward(long pictures, const Event *event, int L, const long *widths, const real *shift,
                    const real *const *weights, const real *const *biases, real *room, real *inner, const real *params,
                    const Event *g_event, const real *g_logdet, long g_apart, real *g_x, real *g_shift, real *g_layers,
                    long total, long shares, int threads) {
  const Event e = *event, g = *g_event;
  const long places = e.height * e.width, bordered = (e.height + 2) * (e.width + 2), whole = e.channels * places;
  const long seen = widths[0] / 9, all = widths[L] / 9, changed = all / e.planes, n = changed * places;
  const long apart = stride(widths[0]), size = (pictures + shares - 1) / shares;
  const Strides plain = {whole, places, 0, e.width, 1};
  real *sums = room + total;
  const real *as_weights[L], *as_biases[L];
  as_perceptron(L, widths, weights, biases, room, as_weights, as_biases);
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer layers[L];
    BackwardRoom mine;
    const long limit = block_limit(max_of(widest_input(L, widths), widths[L]));
    const long group = min_of(size, group_size(limit, places)), found = group * places * apart;
    const long inputs = group * bordered * seen, outputs = group * bordered * all, one = max_of(seen, changed) * places;
    describe(layers, L, widths, as_weights, as_biases, 0, 0, 0);
    layers[L - 2].inner = inner;
    const long beside = found + inputs + outputs + e.width * seen + 2 * one + (1 + e.planes) * n;
    real *pulled = make_backward_room(group * places, L, layers, beside, &mine);
    real *around = pulled + found, *beyond = around + inputs, *sum = beyond + outputs, *here = sum + e.width * seen;
    real *g_here = here + one, *slopes = g_here + one, *g_set = slopes + n;
    failed = !pulled;
    for (long k; pulled && (k = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < shares;) {
      real *g_weights[L], *g_biases[L];
      start_share(L, widths, total, sums + k * total, g_weights, g_biases);
      const long end = min_of(pictures, (k + 1) * size);
      for (long p = k * size; p < end; p += group) {
        const long count = min_of(group, end - p);
        for (long i = 0; i < count; i++) {
          copy_channels(e, p + i, e.b, changed, here);
          pull_picture(g, p + i, here, params + (p + i) * all * places, g_logdet[(p + i) * g_apart], g_here, slopes,
                       g_set, g_x + (p + i) * whole + e.b * places, beyond + i * bordered * all, changed);
        }
        pull_answer(p, count, e.height, e.width, L, layers, mine, e.x + e.a * e.strides.channel, e.strides, shift,
                    around, beyond, pulled, sum, g_weights, g_biases, g_shift, g_x + e.a * places, plain);
        for (long i = 0; i < count; i++) add_seen(g, p + i, seen, g_here, g_x + (p + i) * whole + e.a * places);
      }
    }
  }
  add_shares(shares, total, sums, sums + total, threads);
  as_convolutions(L, widths, sums, g_layers);
  return failed;
}

/* x, of which the coupling makes z, the event, one picture after the other; and gradients as `couple_backward` gives
   them, while what the net found is in the cache. Here `part` is the inverse, and `pull` the gradient of the map. */
int uncouple_backward(long pictures, const Event *event, int L, const long *widths, const real *shift,
                      const real *const *weights, const real *const *biases, real *room, const Event *g_event,
                      const real *g_logdet, long g_apart, real *x, real *g_x, real *g_shift, real *g_layers, long total,
                      long shares, int threads) {
  const Event e = *event, g = *g_event;
  const long places = e.height * e.width, bordered = (e.height + 2) * (e.width + 2), whole = e.channels * places;
  const long seen = widths[0] / 9, all = widths[L] / 9, changed = all / e.planes, n = changed * places;
  const long in_apart = stride(widths[0]), apart = stride(widths[L]), size = (pictures + shares - 1) / shares;
  const Strides by_plane = {all * places, places, n, e.width, 1}, plain = {whole, places, 0, e.width, 1};
  real *sums = room + total;
  const real *as_weights[L], *as_biases[L];
  as_perceptron(L, widths, weights, biases, room, as_weights, as_biases);
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer forth[L], back[L];
    Room ahead;
    BackwardRoom behind;
    const long limit = block_limit(max_of(widest_input(L, widths), widths[L]));
    const long group = min_of(size, group_size(limit, places)), rows = group * places;
    const long one = max_of(seen, changed) * places, lines = e.width * max_of(seen, all);
    describe(forth, L, widths, as_weights, as_biases, 0, 0, 0);
    describe(back, L, widths, as_weights, as_biases, 0, 0, 0);
    const long own = furnish(forth, L, &ahead, 0), inner = rows * stride(widths[L - 1]);
    const long beside = own + inner + rows * (apart + in_apart) + group * bordered * (seen + all) + lines + 2 * one +
                        (1 + 2 * e.planes) * n;
    real *at = make_backward_room(rows, L, back, beside, &behind);
    failed = !at;
    if (!at) at = room; /* for nothing but sums of addresses */
    real *found = at + own + inner;
    if (!failed) furnish(forth, L, &ahead, at);
    forth[L - 2].inner = back[L - 2].inner = at + own;
    real *pulled = found + rows * apart, *around = pulled + rows * in_apart, *beyond = around + group * bordered * seen;
    real *sum = beyond + group * bordered * all, *here = sum + lines, *g_here = here + one, *slopes = g_here + one;
    real *set = slopes + n, *g_set = set + e.planes * n;
    for (long k; !failed && (k = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < shares;) {
      real *g_weights[L], *g_biases[L];
      start_share(L, widths, total, sums + k * total, g_weights, g_biases);
      const long end = min_of(pictures, (k + 1) * size);
      for (long p = k * size; p < end; p += group) {
        const long count = min_of(group, end - p);
        const real *z_a = e.x + p * e.strides.picture + e.a * e.strides.channel;
        const real *shift_p = shift ? shift + p * widths[1] : 0;
        answer(0, count, e.height, e.width, L, forth, &ahead, z_a, e.strides, shift_p, around, found, apart);
        for (long i = 0; i < count; i++) {
          real *x_i = x + (p + i) * whole, *x_b = x_i + e.b * places;
          add_around(found + i * places * apart, apart, all, e.planes, e.height, e.width, 0, sum, set, by_plane);
          copy_channels(e, p + i, e.a, seen, x_i + e.a * places);
          copy_channels(e, p + i, e.b, changed, here);
          part(n, 0, n, here, set, x_b, slopes);
          pull_picture(g, p + i, x_b, set, g_logdet[(p + i) * g_apart], g_here, slopes, g_set,
                       g_x + (p + i) * whole + e.b * places, beyond + i * bordered * all, changed);
        }
        pull_answer(0, count, e.height, e.width, L, back, behind, z_a, e.strides, shift_p, around, beyond, pulled, sum,
                    g_weights, g_biases, g_shift ? g_shift + p * widths[1] : 0, g_x + p * whole + e.a * places, plain);
        for (long i = 0; i < count; i++) add_seen(g, p + i, seen, g_here, g_x + (p + i) * whole + e.a * places);
      }
    }
  }
  add_shares(shares, total, sums, sums + total, threads);
  as_convolutions(L, widths, sums, g_layers);
  return failed;
}
#endif
