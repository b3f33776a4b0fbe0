/* A multilayer perceptron and its gradient, for rows in blocks that stay in the cache of one core.

   Written before it: tiles.c, `value(x)` and `slope(x)`, the activation and its derivative, and SAME_SLOPE, which is 1
   where slope(value(x)) is slope(x). Each thread takes its share of the rows through all layers, so that nothing
   crosses between cores but the sums of the weights' gradients. Weights have shape (out, in); `from` and `to` of each
   output, where given, bound the inputs whose weights may differ from zero. */
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

/* pictures with a border of zeros, channels last, whose rows are the places one after the other, and whose columns are
   the numbers of the 3×3 places around each, from the last to the first of them where `turned` */
typedef struct {
  long height, width, channels;
  const real *bordered;
  long first; /* row that is the first place of the first picture */
  int turned;
} Pictures;

/* what goes in: rows and columns of x, so far apart */
typedef struct {
  const real *x;
  long row, column;
  const long *which;    /* columns that count, in this order, or null for all */
  int enter;            /* whether it goes through the activation first */
  long columns, planes; /* where not 0, columns lie by plane: see `place` */
  const Pictures *pictures; /* or null */
  long places;          /* of a picture */
  const real *shift;    /* added to what comes out of the first layer, for each picture, or null */
} Input;

/* where output o lies: first those of plane 0, outputs 0, `planes`, 2 `planes`, … */
static inline long place(long o, long outputs, long planes) { return o % planes * (outputs / planes) + o / planes; }

static inline const real *column(Input in, long n) {
  return in.x + (in.which ? in.which[n] : in.planes ? place(n, in.columns, in.planes) : n) * in.column;
}

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

/* the activation at x and, unless it follows from that, its derivative, in one go since both come of one exponential */
static void activate_both(long M, long N, const real *x, real *y, real *d, long s) {
  if (SAME_SLOPE) {
    activate(M, N, x, y, s);
    return;
  }
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

/* g times the derivative that `activate_both` left in y or d, in place */
static void scale(long M, long N, const real *y, const real *d, real *g, long s) {
  for (long m = 0; m < M; m++)
    for (long n = 0; n < N; n++) g[m * s + n] *= SAME_SLOPE ? slope(y[m * s + n]) : d[m * s + n];
}

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

/* the next of so many units of work that threads share, or −1 where none is left for this one */
static long take_unit(long *taken, long count) {
  const long n = __atomic_fetch_add(taken, 1, __ATOMIC_RELAXED);
  return n < count ? n : -1;
}

/* the numbers around M places from `row` on, a multiple of `unit` for each of the 3×3 */
static inline void copy_units(long row, long M, const Pictures *in, real *y, long s, const long C, const long unit) {
  const long across = in->width + 2, n = row - in->first;
  long line = n / in->width % in->height, at = n % in->width, taps[9];
  const real *x = in->bordered + (n / (in->height * in->width) * (in->height + 2) + line) * across * C;
  for (long tap = 0; tap < 9; tap++) {
    const long from = in->turned ? 8 - tap : tap;
    taps[tap] = (from / 3 * across + from % 3) * C;
  }
  for (long m = 0; m < M; m++, y += s) {
    for (long tap = 0; tap < 9; tap++)
      for (long i = 0; i < C; i += unit) memcpy(y + tap * C + i, x + at * C + taps[tap] + i, unit * sizeof(real));
    if (++at < in->width) continue;
    at = 0, x += across * C;
    if (++line == in->height) line = 0, x += 2 * across * C;
  }
}

/* compiled for the few channels of most couplings, so that a place is a few moves without a loop */
static void copy_around(long row, long M, const Pictures *in, real *y, long s) {
  const long C = in->channels;
  if (C == 2)
    copy_units(row, M, in, y, s, 2, 2);
  else if (C == 4)
    copy_units(row, M, in, y, s, 4, 4);
  else if (C % 4 == 0)
    copy_units(row, M, in, y, s, C, 4);
  else if (C % 2 == 0)
    copy_units(row, M, in, y, s, C, 2);
  else
    copy_units(row, M, in, y, s, C, 1);
}

/* M rows of N numbers from `row` on, as they go into the first product; the rest of the last panel is zero */
static void copy_rows(long row, long M, long N, Input in, real *y) {
  const long s = stride(N);
  if (in.pictures)
    copy_around(row, M, in.pictures, y, s);
  else
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

/* numbers of a room for blocks of rows, no layer having more inputs than `widest`, which lies at `at` if given */
static long set_room(Room *room, long widest, real *at) {
  const long block = block_limit(widest), s = stride(widest);
  *room = (Room){.block = block};
  if (at) room->h = at, room->next = room->h + block * s, room->strip = room->next + block * s;
  return block * (2 * s + W);
}

/* numbers of the layers' panels, which are packed where they lie at `at` */
static long pack_layers(Layer *layers, int L, real *at) {
  const long packs = lay_out(layers, L, 0, at);
  for (int l = 0; at && l < L; l++) pack_forward(layers + l);
  return packs;
}

/* numbers of the layers' panels and of a room for blocks of rows; where they lie at `at`, the panels are packed */
static long furnish(Layer *layers, int L, Room *room, real *at) {
  long widest = layers[0].inputs;
  for (int l = 1; l < L; l++) widest = max_of(widest, layers[l].inputs);
  const long packs = pack_layers(layers, L, at);
  return packs + set_room(room, widest, at ? at + packs : 0);
}

/* memory of the layers' panels, packed, and room for blocks of rows; where `further` numbers for each row lie, then
   `beside` ones, or null */
static real *make_room(Layer *layers, int L, long further, long beside, Room *room) {
  const long own = furnish(layers, L, room, 0);
  real *at = memory(own + room->block * further + beside);
  if (!at) return 0;
  furnish(layers, L, room, at);
  return at + own;
}

/* what comes out of a layer for M rows, from `row` on, before the activation; `shift`: see `Input` */
static void pass_layer(long row, long M, const Layer *layer, const real *h, real *c, const real *shift, long places) {
  const long as = stride(layer->inputs), cs = stride(layer->outputs), N = layer->outputs;
  for (long n = 0; n < N; n += W) {
    const long low = layer->low[n / W], K = layer->high[n / W] - low;
    panel(M, min_of(W, N - n), K, h + low, as, 0, layer->packed + n * layer->inputs + low * W, W, layer->start + n,
          0, c + n, cs);
  }
  for (long m = 0; shift && m < M; m++)
    for (long n = 0; n < N; n++) c[m * cs + n] += shift[(row + m) / places * N + n];
}

/* M rows from `row` on through all layers; output o of row m goes to `place(o)` apart + m, or, without `planes`, to
   m apart + o, with room for whole panels */
static void pass(long row, long M, int L, const Layer *layers, Room *room, Input in, real *out, long apart,
                 long planes) {
  real *h = room->h, *next = room->next;
  copy_rows(row, M, layers[0].inputs, in, h);
  for (int l = 0; l < L - 1; l++) {
    const long cs = stride(layers[l].outputs);
    real *c = layers[l].inner ? layers[l].inner + row * cs : next;
    pass_layer(row, M, layers + l, h, c, l ? 0 : in.shift, in.places);
    activate(M, round_up(layers[l].outputs, V), c, next, cs);
    real *swap = h;
    h = next, next = swap;
  }
  const Layer *layer = layers + L - 1;
  const long as = stride(layer->inputs), outputs = layer->outputs;
  for (long n = 0; n < outputs; n += W) {
    const long N = min_of(W, outputs - n), low = layer->low[n / W], K = layer->high[n / W] - low;
    const real *p = layer->packed + n * layer->inputs + low * W;
    real *c = planes ? room->strip : out + n;
    panel(M, N, K, h + low, as, 0, p, W, layer->start + n, 0, c, planes ? W : apart);
    for (long o = 0; planes && o < N; o++) {
      real *to = out + place(n + o, outputs, planes) * apart;
      for (long m = 0; m < M; m++) to[m] = room->strip[m * W + o];
    }
  }
}

/* what each of the threads does of `forward`; `taken`: rows that some thread does or did */
static int forward_part(long rows, long *taken, long threads, int L, Layer *layers, Input in, real *out, long planes) {
  Room room;
  if (!make_room(layers, L, 0, 0, &room)) return 1;
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
    Layer layers[L];
    describe(layers, L, widths, weights, biases, bounds, rows, inner);
    const Input in = {.x = x, .row = xs, .column = xk, .which = which, .enter = enter};
    failed = forward_part(rows, &taken, threads, L, layers, in, out, planes);
  }
  return failed;
}

/* where a thread keeps what passes back through the layers */
typedef struct {
  long block; /* rows that it has room for */
  real *g, *next, *h, *d, *sums;
  Layer again; /* the first layer, packed to go forward, where what comes out of it was not kept */
} BackwardRoom;

/* memory of the layers' panels, packed, and room for blocks of rows, so that `rows` make blocks of about equal size;
   where `beside` numbers lie, or null */
static real *make_backward_room(long rows, int L, Layer *layers, long beside, BackwardRoom *room) {
  Layer again = layers[0];
  const long extra = again.inner || L == 1 ? 0 : lay_out(&again, 1, 0, 0);
  long widest = layers[L - 1].outputs;
  for (int l = 0; l < L; l++) widest = max_of(widest, layers[l].inputs);
  const long block = block_rows(rows, widest), s = stride(widest), packs = lay_out(layers, L, 1, 0);
  real *at = memory(packs + extra + 4 * block * s + T * W + beside);
  if (!at) return 0;
  lay_out(layers, L, 1, at);
  for (int l = 0; l < L; l++) pack_backward(layers + l);
  at += packs;
  if (extra) {
    lay_out(&again, 1, 0, at);
    pack_forward(&again);
    at += extra;
  }
  *room = (BackwardRoom){block, at, at + block * s, at + 2 * block * s, at + 3 * block * s, at + 4 * block * s, again};
  return room->sums + T * W;
}

/* gradients from rows [begin, end), added to those of the weights and biases, and of the shifts, if any; `g_x`: of row
   `begin`, columns so far `apart`, or, where that is 0, rows as far as in a block */
static void backward_part(long begin, long end, int L, const Layer *layers, Input in, Input out, BackwardRoom room,
                          real *g_x, long apart, real *const *g_weights, real *const *g_biases, real *g_shift) {
  real *g = room.g, *next = room.next, *h = room.h, *d = room.d, *sums = room.sums;
  for (long row = begin; row < end; row += room.block) {
    const long M = min_of(room.block, end - row);
    copy_rows(row, M, layers[L - 1].outputs, out, g);
    for (int l = L - 1; l >= 0; l--) {
      const Layer *layer = layers + l;
      const long as = stride(layer->outputs), hs = stride(layer->inputs);
      if (l && layers[l - 1].inner)
        activate_both(M, round_up(layer->inputs, V), layers[l - 1].inner + row * hs, h, d, hs);
      else if (l) {
        copy_rows(row, M, layers[0].inputs, in, h);
        pass_layer(row, M, &room.again, h, d, in.shift, in.places);
        activate_both(M, round_up(layer->inputs, V), d, h, d, hs);
      } else
        copy_rows(row, M, layer->inputs, in, h);
      real *pulled = l || apart ? next : g_x + (row - begin) * hs;
      for (long n = 0; n < layer->inputs; n += W) {
        const long N = min_of(W, layer->inputs - n), low = layer->low[n / W], count = layer->high[n / W] - low;
        panel(M, N, count, g + low, as, 0, layer->packed + n * layer->outputs + low * W, W, zeros, 0, pulled + n, hs);
        real *to = g_weights[l] + n;
        if (N == W)
          panel(count, N, M, g + low, as, 1, h + n, hs, to + low * layer->inputs, layer->inputs,
                to + low * layer->inputs, layer->inputs);
        else
          for (long o = low; o < layer->high[n / W]; o += T) {
            const long tall = min_of(T, layer->high[n / W] - o);
            panel(tall, N, M, g + o, as, 1, h + n, hs, zeros, 0, sums, W);
            for (long i = 0; i < tall; i++)
              for (long j = 0; j < N; j++) to[(o + i) * layer->inputs + j] += sums[i * W + j];
          }
      }
      for (long m = 0; m < M; m++)
        for (long o = 0; o < layer->outputs; o++) g_biases[l][o] += g[m * as + o];
      if (l == 0 && g_shift) {
        const long N = layer->outputs;
        for (long m = 0; m < M; m++)
          for (long o = 0; o < N; o++) g_shift[(row + m) / in.places * N + o] += g[m * as + o];
      }
      if (l)
        scale(M, round_up(layer->inputs, V), h, d, next, hs);
      else if (apart)
        for (long m0 = 0; m0 < M; m0 += LINE)
          for (long n = 0; n < layer->inputs; n++) {
            const real *x = column(in, n) + row * in.row;
            for (long m = m0; m < min_of(M, m0 + LINE); m++) {
              const real at_x = in.enter ? slope(x[m * in.row]) : 1;
              g_x[n * apart + row - begin + m] = next[m * hs + n] * at_x;
            }
          }
      real *swap = g;
      g = next, next = swap;
    }
  }
}

/* the gradients of all weights, then of all biases, that a share of the rows adds to, as zeros */
static void start_share(int L, const long *widths, long total, real *at, real **g_weights, real **g_biases) {
  memset(at, 0, total * sizeof(real));
  for (int l = 0; l < L; l++) g_weights[l] = at, at += widths[l] * widths[l + 1];
  for (int l = 0; l < L; l++) g_biases[l] = at, at += widths[l + 1];
}

/* those of the other shares, in their order, added to those of the first */
static void add_shares(long shares, long total, real *g_layers, const real *sums, int threads) {
  long taken = 0;
  const long size = 4096;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1 && shares > 1 && total > 65536)
#endif
  for (long i; (i = __atomic_fetch_add(&taken, size, __ATOMIC_RELAXED)) < total;)
    for (long k = 1; k < shares; k++)
      for (long j = i; j < min_of(total, i + size); j++) g_layers[j] += sums[(k - 1) * total + j];
}

/* Gradients from that of out: `g_x`, a column after the other, and in `g_layers` those of all weights, then of all
   biases, `total` numbers, for as many of which `sums` has room for each share of the rows but one. Shares go to
   whichever thread is free, and are added up in their order: the result does not depend on which thread did what. */
int backward(long rows, int L, const long *widths, const real *x, long xs, long xk, const long *which, int enter,
             const real *const *weights, const real *const *biases, const int *const *bounds, real *inner,
             const real *g_out, long planes, real *g_x, real *g_layers, real *sums, long total, long shares,
             int threads) {
  int failed = 0;
  long taken = 0;
  const long size = round_up((rows + shares - 1) / shares, W);
  const Input in = {.x = x, .row = xs, .column = xk, .which = which, .enter = enter};
  const Input out = {.x = g_out, .row = 1, .column = rows, .columns = widths[L], .planes = planes};
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer layers[L];
    BackwardRoom room;
    describe(layers, L, widths, weights, biases, bounds, rows, inner);
    failed = !make_backward_room(size, L, layers, 0, &room);
    for (long k; !failed && (k = take_unit(&taken, shares)) >= 0;) {
      real *g_weights[L], *g_biases[L];
      start_share(L, widths, total, k ? sums + (k - 1) * total : g_layers, g_weights, g_biases);
      const long begin = min_of(rows, k * size), end = min_of(rows, begin + size);
      backward_part(begin, end, L, layers, in, out, room, g_x + begin, rows, g_weights, g_biases, 0);
    }
  }
  add_shares(shares, total, g_layers, sums, threads);
  return failed;
}
