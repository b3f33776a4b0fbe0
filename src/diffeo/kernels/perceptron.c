/* A multilayer perceptron and its gradient, for rows in blocks that stay in the cache of one core.

   Written before it: tiles.c, and `value(x)` and `slope(x)`, the activation and its derivative. Each thread takes its
   share of the rows through all layers, so that nothing crosses between cores but the sums of the weights' gradients.
   Weights have shape (out, in); `from` and `to` of each output, where given, bound the inputs whose weights may differ
   from zero. */
#define LINE 16
#define CACHE (1 << 15) /* numbers of one activation that a block of rows may have, */
#define FEWEST 48       /* but for blocks of so few rows that weights would come and go for little */

/* between rows; odd in lines of the cache, so that columns do not fall on one another */
static inline long stride(long n) { return round_up(n, W) + (round_up(n, W) / W % 2 ? 0 : W); }

typedef struct {
  long inputs, outputs;
  const real *weight, *bias;
  const int *from, *to;
  real *inner;  /* what comes out of it for all rows, `stride(outputs)` apart, where it is kept */
  real *packed; /* weights by panel, each from `low` to `high`; before a backward pass not transposed */
  long *low, *high;
  real *start; /* biases, then zeros */
} Layer;

/* what goes in: rows and columns of x, so far apart, of which `which` counts, in its order, or all */
typedef struct {
  const real *x;
  long row, column;
  const long *which;
  int enter; /* whether it goes through the activation first */
} Input;

static inline const real *column(Input in, long n) { return in.x + (in.which ? in.which[n] : n) * in.column; }

/* panels of weight' for the products that go forward, a panel for each W outputs */
static void pack_forward(Layer *l) {
  for (long n = 0; n < l->outputs; n += W) {
    const long last = min_of(l->outputs, n + W);
    long low = l->inputs, high = 0;
    for (long o = n; o < last; o++) {
      low = min_of(low, l->from ? l->from[o] : 0);
      high = max_of(high, l->to ? l->to[o] : l->inputs);
    }
    if (low > high) low = high;
    l->low[n / W] = low, l->high[n / W] = high;
    real *p = l->packed + n * l->inputs;
    for (long o = n; o < n + W; o++) {
      if (o < last)
        for (long k = low; k < high; k++) p[k * W + o - n] = l->weight[o * l->inputs + k];
      else
        for (long k = low; k < high; k++) p[k * W + o - n] = 0;
      l->start[o] = o < last ? l->bias[o] : 0;
    }
  }
}

/* panels of weight, for those that go backward, a panel for each W inputs */
static void pack_backward(Layer *l) {
  for (long n = 0; n < l->inputs; n += W) {
    const long width = min_of(W, l->inputs - n);
    long low = l->outputs, high = 0;
    for (long o = 0; o < l->outputs; o++)
      if (!l->from || (l->from[o] < n + width && l->to[o] > n)) low = min_of(low, o), high = o + 1;
    if (low > high) low = high;
    l->low[n / W] = low, l->high[n / W] = high;
    real *p = l->packed + n * l->outputs;
    for (long o = low; o < high; o++) {
      const real *row = l->weight + o * l->inputs + n;
      if (width == W)
        memcpy(p + o * W, row, W * sizeof(real));
      else
        for (long k = 0; k < W; k++) p[o * W + k] = k < width ? row[k] : 0;
    }
  }
}

static void activate(long M, long N, const real *x, real *y, long s) {
  for (long m = 0; m < M; m++) {
#ifdef _OPENMP
#pragma omp simd
#endif
    for (long n = 0; n < N; n++) y[m * s + n] = value(x[m * s + n]);
  }
}

/* the activation and its derivative at x in one go, since both come of the same exponential */
static void activate_both(long M, long N, const real *x, real *y, real *d, long s) {
  for (long m = 0; m < M; m++) {
#ifdef _OPENMP
#pragma omp simd
#endif
    for (long n = 0; n < N; n++) {
      const real at = x[m * s + n];
      y[m * s + n] = value(at);
      d[m * s + n] = slope(at);
    }
  }
}

/* g times d, in place */
static void scale(long M, long N, const real *d, real *g, long s) {
  for (long m = 0; m < M; m++)
    for (long n = 0; n < N; n++) g[m * s + n] *= d[m * s + n];
}

/* where all rows of output o lie: first those of output 0, `planes`, 2 `planes`, … */
static inline long place(long o, long outputs, long planes) { return o % planes * (outputs / planes) + o / planes; }

/* most rows of a block */
static long block_limit(long widest) { return round_up(max_of(FEWEST, CACHE / stride(widest)), T); }

/* rows of blocks of about equal size */
static long block_rows(long rows, long widest) {
  const long limit = block_limit(widest), count = (rows + limit - 1) / limit;
  return count ? round_up((rows + count - 1) / count, T) : T;
}

/* how many rows a thread takes next, from *row on: ever fewer, so that all end together, though a core be slower */
static long take(long *taken, long rows, long limit, long threads, long *row) {
  long M;
  *row = __atomic_load_n(taken, __ATOMIC_RELAXED);
  do {
    const long left = rows - *row, part = threads > 1 ? max_of(4 * T, round_up(2 * left / (3 * threads), T)) : limit;
    M = min_of(left, min_of(limit, part));
  } while (M > 0 && !__atomic_compare_exchange_n(taken, row, *row + M, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return M;
}

/* M rows of N numbers from `row` on, as they go into the first product; the rest of the last panel is zero */
static void copy_rows(long row, long M, long N, Input in, real *y) {
  const long s = stride(N);
  for (long m0 = 0; m0 < M; m0 += LINE) /* lines of the cache are read and written whole */
    for (long n = 0; n < N; n++) {
      const real *x = column(in, n) + row * in.row;
      for (long m = m0; m < min_of(M, m0 + LINE); m++) y[m * s + n] = x[m * in.row];
    }
  for (long m = 0; m < M; m++)
    for (long n = N; n < round_up(N, W); n++) y[m * s + n] = 0;
  if (in.enter) activate(M, N, y, y, s);
}

/* memory of the layers' panels, whose pointers it sets; `backward`: panels of inputs */
static long lay_out(Layer *layers, int L, int backward, real *at) {
  long n = 0;
  for (int l = 0; l < L; l++) {
    const long in = layers[l].inputs, out = layers[l].outputs;
    const long columns = round_up(backward ? in : out, W), depth = backward ? out : in;
    if (at) layers[l].packed = at + n;
    n += columns * depth;
    if (at) layers[l].start = at + n;
    n += columns;
    if (at) layers[l].low = (long *)(at + n), layers[l].high = layers[l].low + columns / W;
    n += round_up(2 * columns / W * (sizeof(long) / sizeof(real)), W);
  }
  return n;
}

static void describe(Layer *layers, int L, const long *widths, const real *const *weights, const real *const *biases,
                     const int *const *bounds, long rows, real *inner) {
  for (int l = 0; l < L; l++) {
    const int *b = bounds ? bounds[l] : 0;
    layers[l] = (Layer){.inputs = widths[l], .outputs = widths[l + 1], .weight = weights[l], .bias = biases[l],
                        .from = b, .to = b ? b + widths[l + 1] : 0, .inner = inner};
    if (inner) inner += rows * stride(widths[l + 1]);
  }
}

/* where a thread keeps what passes through the layers */
typedef struct {
  long block; /* rows that it has room for */
  real *h, *next, *strip;
} Room;

/* memory of the layers' panels, packed, and room for blocks of rows; `further` numbers for each of them, or null */
static real *make_room(Layer *layers, int L, long further, Room *room) {
  long widest = layers[0].inputs;
  for (int l = 1; l < L; l++) widest = max_of(widest, layers[l].inputs);
  const long block = block_limit(widest), s = stride(widest), packs = lay_out(layers, L, 0, 0);
  real *at = memory(packs + block * (2 * s + W + further));
  if (!at) return 0;
  lay_out(layers, L, 0, at);
  for (int l = 0; l < L; l++) pack_forward(layers + l);
  at += packs;
  *room = (Room){block, at, at + block * s, at + 2 * block * s};
  return room->strip + block * W;
}

/* M rows from `row` on through all layers; output o of row m goes to `place(o)` apart + m */
static void pass(long row, long M, int L, const Layer *layers, Room *room, Input in, real *out, long apart,
                 long planes) {
  const long outputs = layers[L - 1].outputs;
  real *h = room->h, *next = room->next;
  copy_rows(row, M, layers[0].inputs, in, h);
  for (int l = 0; l < L; l++) {
    const Layer *layer = layers + l;
    const long as = stride(layer->inputs), cs = stride(layer->outputs);
    real *c = layer->inner && l < L - 1 ? layer->inner + row * cs : next;
    for (long n = 0; n < layer->outputs; n += W) {
      const long N = min_of(W, layer->outputs - n), low = layer->low[n / W], K = layer->high[n / W] - low;
      const real *p = layer->packed + n * layer->inputs + low * W;
      if (l < L - 1) {
        panel(M, N, K, h + low, as, 0, p, layer->start + n, 0, c + n, cs);
        continue;
      }
      panel(M, N, K, h + low, as, 0, p, layer->start + n, 0, room->strip, W);
      for (long o = 0; o < N; o++) {
        real *to = out + place(n + o, outputs, planes) * apart;
        for (long m = 0; m < M; m++) to[m] = room->strip[m * W + o];
      }
    }
    if (l < L - 1) {
      activate(M, round_up(layer->outputs, V), c, next, cs);
      real *swap = h;
      h = next, next = swap;
    }
  }
}

/* what each of the threads does of `forward`; `taken`: rows that some thread does or did */
static int forward_part(long rows, long *taken, long threads, int L, Layer *layers, Input in, real *out, long planes) {
  Room room;
  if (!make_room(layers, L, 0, &room)) return 1;
  for (long row, M; (M = take(taken, rows, room.block, threads, &row)) > 0;)
    pass(row, M, L, layers, &room, in, out + row, rows, planes);
  return 0;
}

/* how far apart the rows of `inner` are */
long distance(long width) { return stride(width); }

/* out = the perceptron at x, whose rows are `xs` and columns `xk` apart; for `which` and `enter` see `Input`. `inner`,
   if given, receives what goes into the other activations, one layer after the other. Output o of row m lies at
   `place(o)` rows + m. Returns 0, or 1 where there is not enough memory. */
int forward(long rows, int L, const long *widths, const real *x, long xs, long xk, const long *which, int enter,
            const real *const *weights, const real *const *biases, const int *const *bounds, real *inner, real *out,
            long planes, int threads) {
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    long count = 1;
#ifdef _OPENMP
    count = omp_get_num_threads();
#endif
    Layer layers[L];
    describe(layers, L, widths, weights, biases, bounds, rows, inner);
    failed = forward_part(rows, &taken, count, L, layers, (Input){x, xs, xk, which, enter}, out, planes);
  }
  return failed;
}

/* memory of the layers' panels, packed, and room for blocks of as many rows as in a share of `rows` */
static real *make_backward_room(long rows, int L, Layer *layers, long *block, long *widest) {
  *widest = layers[L - 1].outputs;
  for (int l = 0; l < L; l++) *widest = max_of(*widest, layers[l].inputs);
  *block = block_rows(rows, *widest);
  const long packs = lay_out(layers, L, 1, 0);
  real *at = memory(packs + 4 * *block * stride(*widest) + (*block + T) * W);
  if (!at) return 0;
  lay_out(layers, L, 1, at);
  for (int l = 0; l < L; l++) pack_backward(layers + l);
  return at + packs;
}

/* gradients from rows [begin, end), added to those of the weights and biases; `g`: the room */
static void backward_part(long rows, long begin, long end, int L, const Layer *layers, Input in, const real *g_out,
                          long planes, real *g, long block, long widest, real *g_x, real *const *g_weights,
                          real *const *g_biases) {
  const long outputs = layers[L - 1].outputs, s = stride(widest);
  real *next = g + block * s, *h = next + block * s, *d = h + block * s, *strip = d + block * s;
  real *sums = strip + block * W;
  for (long row = begin; row < end; row += block) {
    const long M = min_of(block, end - row);
    for (long m0 = 0; m0 < M; m0 += LINE)
      for (long o = 0; o < outputs; o++) {
        const real *source = g_out + place(o, outputs, planes) * rows + row;
        for (long m = m0; m < min_of(M, m0 + LINE); m++) g[m * stride(outputs) + o] = source[m];
      }
    for (int l = L - 1; l >= 0; l--) {
      const Layer *layer = layers + l;
      const long as = stride(layer->outputs), hs = stride(layer->inputs);
      if (l)
        activate_both(M, round_up(layer->inputs, V), layers[l - 1].inner + row * hs, h, d, hs);
      else
        copy_rows(row, M, layer->inputs, in, h);
      for (long n = 0; n < layer->inputs; n += W) {
        const long N = min_of(W, layer->inputs - n), low = layer->low[n / W], count = layer->high[n / W] - low;
        panel(M, N, count, g + low, as, 0, layer->packed + n * layer->outputs + low * W, zeros, 0, next + n, hs);
        for (long m = 0; m < M; m++) memcpy(strip + m * W, h + m * hs + n, W * sizeof(real));
        real *to = g_weights[l] + n;
        if (N == W)
          panel(count, N, M, g + low, as, 1, strip, to + low * layer->inputs, layer->inputs,
                to + low * layer->inputs, layer->inputs);
        else
          for (long o = low; o < layer->high[n / W]; o += T) {
            const long tall = min_of(T, layer->high[n / W] - o);
            panel(tall, N, M, g + o, as, 1, strip, zeros, 0, sums, W);
            for (long i = 0; i < tall; i++)
              for (long j = 0; j < N; j++) to[(o + i) * layer->inputs + j] += sums[i * W + j];
          }
      }
      for (long m = 0; m < M; m++)
        for (long o = 0; o < layer->outputs; o++) g_biases[l][o] += g[m * as + o];
      if (l)
        scale(M, round_up(layer->inputs, V), d, next, hs);
      else
        for (long m0 = 0; m0 < M; m0 += LINE)
          for (long n = 0; n < layer->inputs; n++) {
            const real *x = column(in, n) + row * in.row;
            for (long m = m0; m < min_of(M, m0 + LINE); m++) {
              const real at_x = in.enter ? slope(x[m * in.row]) : 1;
              g_x[n * rows + row + m] = next[m * hs + n] * at_x;
            }
          }
      real *swap = g;
      g = next, next = swap;
    }
  }
}

/* Gradients from that of out: `g_x`, a column after the other, and in `g_layers` those of all weights, then of all
   biases, `total` numbers, for as many of which `sums` has room for each share of the rows but one. Shares go to
   whichever thread is free, and are added up in their order, so that the result does not hang on who did which. */
int backward(long rows, int L, const long *widths, const real *x, long xs, long xk, const long *which, int enter,
             const real *const *weights, const real *const *biases, const int *const *bounds, real *inner,
             const real *g_out, long planes, real *g_x, real *g_layers, real *sums, long total, long shares,
             int threads) {
  int failed = 0;
  long taken = 0;
  const long size = round_up((rows + shares - 1) / shares, W);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer layers[L];
    long block, widest;
    describe(layers, L, widths, weights, biases, bounds, rows, inner);
    real *room = make_backward_room(size, L, layers, &block, &widest);
    failed = !room;
    for (long k; room && (k = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < shares;) {
      real *g_weights[L], *g_biases[L], *at = k ? sums + (k - 1) * total : g_layers;
      memset(at, 0, total * sizeof(real));
      for (int l = 0; l < L; l++) g_weights[l] = at, at += widths[l] * widths[l + 1];
      for (int l = 0; l < L; l++) g_biases[l] = at, at += widths[l + 1];
      const long begin = min_of(rows, k * size);
      backward_part(rows, begin, min_of(rows, begin + size), L, layers, (Input){x, xs, xk, which, enter}, g_out, planes,
                    room, block, widest, g_x, g_weights, g_biases);
    }
  }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(dynamic, 64) if (threads > 1 && shares > 1 && total > 65536)
#endif
  for (long i = 0; i < total; i += 64)
    for (long k = 1; k < shares; k++)
      for (long j = i; j < min_of(total, i + 64); j++) g_layers[j] += sums[(k - 1) * total + j];
  return failed;
}
