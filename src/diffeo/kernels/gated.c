/* A WaveNet over frames, and its gradient, as one operation.

   Written before it: tiles.c. Frames lie one after the other, each with all its channels, so that the numbers which a
   convolution sees are one run of memory, and the product reads them where they are. Threads take blocks of frames, and
   wait for one another after each layer. */
#define BLOCK 64 /* frames that a thread takes at once, about */

typedef struct {
  long sequences, frames, inputs, hidden, layers, taps, outputs, planes;
  const long *apart;            /* frames between two taps, of each layer */
  const real *const *weights;   /* (hidden, inputs), layers of (2 hidden, hidden, taps), layers of (2 hidden, hidden),
                                   of which the last has one half, and (outputs, hidden) */
  const real *const *biases;
  const real *x;
  long x_sequence, x_frame, x_channel;
  const real *given;   /* (sequences, slower, layers, 2 hidden), added to what convolutions give, or null */
  const real *counts;  /* (sequences, frames), 0 for padding, or null */
  const real *dropped; /* (layers, sequences, frames, hidden), factors, or null */
  const real *panels;  /* of the weights, from `gated_pack`, or null */
  long slower;         /* how many slower frames are given; 1 if what is given is the same at all */
  double positions, first; /* from one slower frame to the next, 0 if there is one for all; the place of the first */
} Stack;

/* widths of rows and how many numbers there are, for what follows from the sizes */
typedef struct {
  long in, hidden, both, out; /* rounded up to whole vectors; `both` is twice `hidden` */
  long border, padded;        /* frames of zeros at either end; frames of a sequence with these */
  long count, rows;           /* blocks of a sequence, and their frames */
} Shape;

static Shape shape_of(const Stack *s) {
  Shape f = {.in = round_up(s->inputs, V), .hidden = round_up(s->hidden, V), .out = round_up(s->outputs, V)};
  f.both = 2 * f.hidden;
  for (long i = 0; i < s->layers; i++) f.border = max_of(f.border, s->apart[i] * (s->taps / 2));
  f.padded = s->frames + 2 * f.border;
  f.count = (s->frames + BLOCK - 1) / BLOCK;
  f.rows = round_up((s->frames + f.count - 1) / f.count, T);
  f.count = (s->frames + f.rows - 1) / f.rows;
  return f;
}

/* panels of W columns: p[k W + j] for column n + j; the numbers of weight (outputs, inputs, taps) with `halves` of
   `half` outputs at `wide` columns each; rows are taps of inputs, `deep` for each; turned: rows are taps, from the last
   to the first, of outputs, and columns inputs */
static void pack(const real *w, long halves, long half, long wide, long inputs, long deep, long taps, int turned,
                 long n, real *p) {
  const long across = turned ? halves * wide : deep, columns = min_of(W, (turned ? inputs : halves * wide) - n);
  memset(p, 0, taps * across * W * sizeof(real));
  for (long part = 0; turned && part < halves; part++)
    for (long o = 0; o < half; o++) {
      const real *from = w + (part * half + o) * inputs * taps;
      for (long j = 0; j < columns; j++)
        for (long tap = 0; tap < taps; tap++)
          p[((taps - 1 - tap) * across + part * wide + o) * W + j] = from[(n + j) * taps + tap];
    }
  if (turned) return;
  int from[W], whole = 1; /* rows of weights, of which the columns are written together */
  for (long j = 0; j < W; j++) {
    const long part = (n + j) / wide, o = (n + j) % wide;
    from[j] = j < columns && o < half ? (part * half + o) * inputs * taps : -1;
    whole &= from[j] >= 0;
  }
  for (long k = 0; k < inputs; k++)
    for (long tap = 0; tap < taps; tap++) {
      real *to = p + (tap * across + k) * W;
      const real *at = w + k * taps + tap;
      if (whole)
        for (long j = 0; j < W; j++) to[j] = at[from[j]];
      else
        for (long j = 0; j < W; j++) to[j] = from[j] < 0 ? 0 : at[from[j]];
    }
}

/* all columns of rows times panels, from a base of one row, or of rows as far apart as those of the result */
static void multiply(long rows, long columns, long K, const real *a, long as, const real *panels, const real *base,
                     long bs, real *c, long cs) {
  for (long n = 0; n < columns; n += W)
    panel(rows, min_of(W, columns - n), K, a, as, 0, panels + n * K, W, base ? base + n : zeros, bs, c + n, cs);
}

/* what a convolution gives at rows from a on, whose taps are `apart` rows from one another: one run of memory if 1 */
static void convolve_rows(long rows, long columns, long wide, long taps, long apart, const real *a, const real *panels,
                          const real *base, long bs, real *c, long cs) {
  for (long n = 0; n < columns; n += W) {
    const real *p = panels + n * taps * wide;
    const long N = min_of(W, columns - n);
    if (apart == 1) {
      panel(rows, N, taps * wide, a, wide, 0, p, W, base ? base + n : zeros, bs, c + n, cs);
      continue;
    }
    for (long tap = 0; tap < taps; tap++)
      panel(rows, N, wide, a + tap * apart * wide, wide, 0, p + tap * wide * W, W,
            tap ? c + n : base ? base + n : zeros, tap ? cs : bs, c + n, cs);
  }
}

/* whether a frame is no padding */
static inline int is_there(const Stack *s, long b, long t) { return !s->counts || s->counts[b * s->frames + t] != 0; }

/* the slower frame before frame t, and how far it is on the way to the next one */
static inline long slow_frame(const Stack *s, long t, real *share) {
  const double time = (t - s->first) / s->positions, last = s->slower - 1;
  const double at = time < 0 ? 0 : time > last ? last : time;
  const long before = (long)at;
  *share = (real)(at - before);
  return before;
}

/* what is added to layer l at slower frame i of sequence b */
static inline const real *given_at(const Stack *s, long b, long i, long l) {
  return s->given + ((b * s->slower + i) * s->layers + l) * 2 * s->hidden;
}

/* bases of the convolution of layer l for M frames of sequence b from t on: the bias, and what is given between slower
   frames; nothing of these at padding, where they may be no number */
static void read_given(const Stack *s, Shape f, long l, long b, long t, long M, const real *bias, real *to) {
  for (long m = 0; m < M; m++) {
    real share, *row = to + m * f.both;
    const long before = slow_frame(s, t + m, &share), after = min_of(before + 1, s->slower - 1);
    const real *low = given_at(s, b, before, l), *high = given_at(s, b, after, l);
    memcpy(row, bias, f.both * sizeof(real));
    if (!is_there(s, b, t + m)) continue;
    for (long half = 0; half < 2; half++, low += s->hidden, high += s->hidden, row += f.hidden)
      for (long j = 0; j < s->hidden; j++) row[j] += low[j] + share * (high[j] - low[j]);
  }
}

/* its gradient, from that of convolutions, one row of which is `both` numbers; padding gives none */
static void pull_given(const Stack *s, Shape f, long l, long b, const real *g_both, real *g_given) {
  const long width = s->layers * 2 * s->hidden;
  real *start = g_given + b * s->slower * width + l * 2 * s->hidden;
  for (long i = 0; i < s->slower; i++) memset(start + i * width, 0, 2 * s->hidden * sizeof(real));
  for (long t = 0; t < s->frames; t++) {
    real share;
    const long before = slow_frame(s, t, &share), after = min_of(before + 1, s->slower - 1);
    if (!is_there(s, b, t)) continue;
    for (long half = 0; half < 2; half++) {
      const real *g = g_both + t * f.both + half * f.hidden;
      real *low = start + before * width + half * s->hidden, *high = start + after * width + half * s->hidden;
      for (long j = 0; j < s->hidden; j++) {
        low[j] += (1 - share) * g[j];
        high[j] += share * g[j];
      }
    }
  }
}

/* what units of a layer are multiplied by, or null */
static inline const real *dropped(const Stack *s, long l, long row) {
  return s->dropped ? s->dropped + (l * s->sequences * s->frames + row) * s->hidden : 0;
}

/* M frames of sequence b from t on; padding may hold anything, even no number, and counts as zero */
static void read_frames(const Stack *s, Shape f, long b, long t, long M, real *to) {
  for (long m = 0; m < M; m++) {
    const real *from = s->x + b * s->x_sequence + (t + m) * s->x_frame;
    const long count = is_there(s, b, t + m) ? s->inputs : 0;
    for (long c = 0; c < f.in; c++) to[m * f.in + c] = c < count ? from[c * s->x_channel] : 0;
  }
}

/* tanh and the logistic function; exponentials that overflow or vanish would be computed one by one */
static inline real squash(real x) {
  const real y = x < 0 ? -x : x, e = FN(exp)(y > 20 ? -40 : -2 * y), t = (1 - e) / (1 + e);
  return x < 0 ? -t : t;
}
static inline real sigmoid(real x) { return 1 / (1 + FN(exp)(x < -80 ? 80 : x > 80 ? -80 : -x)); }

/* the next n numbers of a room; only counted where there is none */
static real *next(real *room, long *used, long n) {
  real *here = room ? room + *used : 0;
  *used += n;
  return here;
}

/* what is kept for the backward pass: what goes into each layer, with borders; what its convolution gives; and the sum
   of all shares. Without a backward pass, two layers take turns, and nothing of convolutions is kept. */
typedef struct {
  real *h, *both, *total;
  long h_size, both_size;
} Kept;

static long furnish_kept(const Stack *s, Shape f, int keep, real *room, Kept *k) {
  long used = 0;
  k->h_size = s->sequences * f.padded * f.hidden, k->both_size = s->sequences * s->frames * f.both;
  k->h = next(room, &used, (keep ? s->layers : 2) * k->h_size);
  k->both = keep ? next(room, &used, s->layers * k->both_size) : 0;
  k->total = next(room, &used, s->sequences * s->frames * f.hidden);
  return used;
}

/* panels of all weights */
typedef struct {
  real *enter, *near, *mix, *leave;
  long near_size, mix_size;
} Panels;

static long furnish_panels(const Stack *s, Shape f, real *room, Panels *p) {
  const long wide = round_up(f.both, W);
  long used = 0;
  p->near_size = s->taps * f.hidden * wide, p->mix_size = f.hidden * wide;
  p->enter = next(room, &used, f.in * round_up(f.hidden, W));
  p->near = next(room, &used, s->layers * p->near_size);
  p->mix = next(room, &used, s->layers * p->mix_size);
  p->leave = next(room, &used, f.hidden * round_up(f.out, W));
  return used;
}

/* panels, unless they are there already; biases as bases: of convolutions for each sequence, of mixes, of the ends;
   and, for each thread, room for a block */
typedef struct {
  Panels panels;
  real *shifts, *of_mix, *of_enter, *of_leave, *own;
  long own_size;
} Ahead;

static long furnish_ahead(const Stack *s, Shape f, int threads, real *room, Ahead *r) {
  const long L = s->layers;
  long used = s->panels ? 0 : furnish_panels(s, f, room, &r->panels);
  if (s->panels) furnish_panels(s, f, (real *)s->panels, &r->panels);
  r->own_size = f.rows * (f.in + 2 * f.both + f.hidden + f.out);
  r->shifts = next(room, &used, L * s->sequences * f.both);
  r->of_mix = next(room, &used, L * f.both);
  r->of_enter = next(room, &used, f.hidden);
  r->of_leave = next(room, &used, f.out);
  r->own = next(room, &used, threads * r->own_size);
  return used;
}

/* panels turned; what goes back through the layers, one row for each frame, but `g_both`, which has borders; and
   gradients as products leave them */
typedef struct {
  real *enter, *near, *mix, *leave, *g_both, *act, *g_total, *g_kept, *g_h, *outs, *ins;
  real *g_enter, *g_near, *g_mix, *g_leave, *g_shift, *of_mix, *of_enter, *of_leave, *own;
  long near_size, mix_size, own_size;
} Behind;

static long furnish_behind(const Stack *s, Shape f, int threads, real *room, Behind *r) {
  const long L = s->layers, tall = round_up(f.hidden, W), rows = s->sequences * s->frames;
  long used = 0;
  r->near_size = s->taps * f.both * tall, r->mix_size = f.both * tall, r->own_size = f.rows * max_of(f.hidden, f.in);
  r->enter = next(room, &used, f.hidden * round_up(f.in, W));
  r->near = next(room, &used, L * r->near_size);
  r->mix = next(room, &used, L * r->mix_size);
  r->leave = next(room, &used, f.out * tall);
  r->g_both = next(room, &used, s->sequences * f.padded * f.both);
  r->act = next(room, &used, rows * f.hidden);
  r->g_total = next(room, &used, rows * f.hidden);
  r->g_kept = next(room, &used, rows * f.hidden);
  r->g_h = next(room, &used, rows * f.hidden);
  r->outs = next(room, &used, rows * f.out);
  r->ins = next(room, &used, rows * f.in);
  r->g_enter = next(room, &used, f.hidden * f.in);
  r->g_near = next(room, &used, L * s->taps * f.hidden * f.both);
  r->g_mix = next(room, &used, L * f.both * f.hidden);
  r->g_leave = next(room, &used, f.out * f.hidden);
  r->g_shift = next(room, &used, L * s->sequences * f.both);
  r->of_mix = next(room, &used, L * f.both);
  r->of_enter = next(room, &used, f.hidden);
  r->of_leave = next(room, &used, f.out);
  r->own = next(room, &used, threads * r->own_size);
  return used;
}

/* numbers of a vector, of which rows have a multiple */
long vector_size(void) { return V; }

/* how many numbers are kept, or held by two layers in turn; and how much room either pass needs */
long kept_size(const Stack *s, int keep) {
  Kept k;
  return furnish_kept(s, shape_of(s), keep, 0, &k);
}
long forward_size(const Stack *s, int threads) {
  Ahead r;
  return furnish_ahead(s, shape_of(s), threads, 0, &r);
}
long backward_size(const Stack *s, int threads) {
  Behind r;
  return furnish_behind(s, shape_of(s), threads, 0, &r);
}

/* The panels of W columns of all weights, one of `panel_count` at a time */
static long panel_count(const Stack *s, Shape f) {
  return s->layers * (round_up(f.both, W) / W) + round_up(f.hidden, W) / W + round_up(f.out, W) / W;
}
static void pack_one(const Stack *s, Shape f, long i, const Panels *p) {
  const long L = s->layers, H = f.hidden, wide = round_up(f.both, W) / W, ends = round_up(H, W) / W;
  if (i < L * wide) {
    const long l = i / wide, n = i % wide * W, halves = l < L - 1 ? 2 : 1;
    pack(s->weights[1 + l], 2, s->hidden, H, s->hidden, H, s->taps, 0, n, p->near + l * p->near_size + n * s->taps * H);
    pack(s->weights[1 + L + l], halves, s->hidden, H, s->hidden, H, 1, 0, n, p->mix + l * p->mix_size + n * H);
  } else if (i < L * wide + ends) {
    const long n = (i - L * wide) * W;
    pack(s->weights[0], 1, s->hidden, H, s->inputs, f.in, 1, 0, n, p->enter + n * f.in);
  } else {
    const long n = (i - L * wide - ends) * W;
    pack(s->weights[1 + 2 * L], 1, s->outputs, f.out, s->hidden, H, 1, 0, n, p->leave + n * H);
  }
}

/* how many numbers the panels have; and these, for many forward passes */
long panels_size(const Stack *s) {
  Panels p;
  return furnish_panels(s, shape_of(s), 0, &p);
}
void gated_pack(const Stack *s, real *panels) {
  const Shape f = shape_of(s);
  Panels p;
  furnish_panels(s, f, panels, &p);
  for (long i = 0; i < panel_count(s, f); i++) pack_one(s, f, i, &p);
}

/* out = the parameters, by plane, of each of which frames lie one after the other; `keep`: for a backward pass */
void gated_forward(const Stack *s, int keep, real *kept, real *room, real *out, int threads) {
  const Shape f = shape_of(s);
  const long L = s->layers, H = f.hidden, tasks = s->sequences * f.count, per = s->outputs / s->planes;
  const long unpacked = s->panels ? 0 : panel_count(s, f);
  Kept k;
  Ahead r;
  furnish_kept(s, f, keep, kept, &k), furnish_ahead(s, f, threads, room, &r);
  const Panels *p = &r.panels;
  memset(r.of_mix, 0, (L * f.both + H + f.out) * sizeof(real));
  for (long l = 0; l < L; l++)
    for (long half = 0; half < (l < L - 1 ? 2 : 1); half++)
      memcpy(r.of_mix + l * f.both + half * H, s->biases[1 + L + l] + half * s->hidden, s->hidden * sizeof(real));
  memcpy(r.of_enter, s->biases[0], s->hidden * sizeof(real));
  memcpy(r.of_leave, s->biases[1 + 2 * L], s->outputs * sizeof(real));
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    long me = 0;
#ifdef _OPENMP
    me = omp_get_thread_num();
#endif
    real *here = r.own + me * r.own_size, *pair = here + f.rows * f.in, *act = pair + f.rows * f.both;
    real *found = act + f.rows * H, *params = found + f.rows * f.both;
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
    for (long i = 0; i < unpacked; i++) pack_one(s, f, i, p);
#ifdef _OPENMP
#pragma omp for
#endif
    for (long b = 0; b < s->sequences; b++) {
      for (long l = 0; l < L; l++) {
        const real *given = s->given && !s->positions ? given_at(s, b, 0, l) : 0, *bias = s->biases[1 + l];
        real *to = r.shifts + (l * s->sequences + b) * f.both;
        memset(to, 0, f.both * sizeof(real));
        for (long o = 0; o < 2 * s->hidden; o++)
          to[o % s->hidden + o / s->hidden * H] = bias[o] + (given ? given[o] : 0);
      }
      for (long l = 0; l < (keep ? L : 2); l++) {
        real *start = k.h + l * k.h_size + b * f.padded * H;
        memset(start, 0, f.border * H * sizeof(real));
        memset(start + (f.border + s->frames) * H, 0, f.border * H * sizeof(real));
      }
    }
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
    for (long task = 0; task < tasks; task++) {
      const long b = task / f.count, t = task % f.count * f.rows, M = min_of(f.rows, s->frames - t);
      real *to = k.h + (b * f.padded + f.border + t) * H;
      read_frames(s, f, b, t, M, here);
      multiply(M, H, f.in, here, f.in, p->enter, r.of_enter, 0, to, H);
      for (long m = 0; m < M; m++)
        if (!is_there(s, b, t + m)) memset(to + m * H, 0, H * sizeof(real));
    }
    for (long l = 0; l < L; l++) {
      const real *from = k.h + (keep ? l : l % 2) * k.h_size;
      real *to = k.h + (keep ? l + 1 : (l + 1) % 2) * k.h_size;
      const long share = l < L - 1 ? H : 0, reach = s->apart[l] * (s->taps / 2); /* the last layer has no next one */
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
      for (long task = 0; task < tasks; task++) {
        const long b = task / f.count, t = task % f.count * f.rows, M = min_of(f.rows, s->frames - t);
        const long row = b * s->frames + t, at = (b * f.padded + f.border + t) * H;
        real *c = keep ? k.both + l * k.both_size + row * f.both : pair, *sum = k.total + row * H;
        const real *shift = r.shifts + (l * s->sequences + b) * f.both;
        if (s->positions) read_given(s, f, l, b, t, M, shift, c);
        convolve_rows(M, f.both, H, s->taps, s->apart[l], from + at - reach * H, p->near + l * p->near_size,
                      s->positions ? c : shift, s->positions ? f.both : 0, c, f.both);
        for (long m = 0; m < M; m++) {
          const real *factor = dropped(s, l, row + m);
#ifdef _OPENMP
#pragma omp simd
#endif
          for (long j = 0; j < H; j++) act[m * H + j] = squash(c[m * f.both + j]) * sigmoid(c[m * f.both + H + j]);
          for (long j = 0; factor && j < s->hidden; j++) act[m * H + j] *= factor[j];
        }
        multiply(M, H + share, H, act, H, p->mix + l * p->mix_size, r.of_mix + l * f.both, 0, found, f.both);
        for (long m = 0; m < M; m++) {
          const real *old = from + at + m * H, *more = found + m * f.both;
          const real there = is_there(s, b, t + m);
          for (long j = 0; share && j < H; j++) to[at + m * H + j] = (old[j] + more[j]) * there;
          for (long j = 0; j < H; j++) sum[m * H + j] = l ? sum[m * H + j] + more[share + j] : more[share + j];
        }
        if (l < L - 1) continue;
        for (long i = 0; i < M * H; i++) act[i] = sum[i] < 0 ? 0 : sum[i];
        multiply(M, f.out, H, act, H, p->leave, r.of_leave, 0, params, f.out);
        for (long q = 0; q < s->planes; q++)
          for (long m = 0; m < M; m++)
            for (long i = 0; i < per; i++)
              out[((q * s->sequences + b) * s->frames + t + m) * per + i] = params[m * f.out + i * s->planes + q];
      }
    }
  }
}

/* c[m][n] = sum over rows of a[row][m] b[row][n] for M and N columns of rows so far apart */
static void correlate(long rows, long M, long N, const real *a, long as, const real *b, long bs, real *c, long cs) {
  for (long row = 0; row < rows; row += 128)
    panel(M, N, min_of(128, rows - row), a + row * as, as, 1, b + row * bs, bs, row ? c : zeros, row ? cs : 0, c, cs);
}

static void add_rows(long rows, long n, const real *a, long as, real *to) {
  memset(to, 0, n * sizeof(real));
  for (long m = 0; m < rows; m++)
    for (long j = 0; j < n; j++) to[j] += a[m * as + j];
}

/* Gradients from that of out, by its strides: of x; of all weights, then of all biases; of what was given, if it was */
void gated_backward(const Stack *s, real *kept, real *room, const real *g_out, long g_plane, long g_sequence,
                    long g_frame, long g_channel, real *g_x, real *g_layers, real *g_given, int threads) {
  const Shape f = shape_of(s);
  const long L = s->layers, H = f.hidden, D = s->hidden, taps = s->taps, all = s->sequences * s->frames;
  const long tall = round_up(H, W) / W, wide = round_up(f.both, W) / W, ins = round_up(f.in, W) / W;
  const long tasks = s->sequences * f.count;
  Kept k;
  Behind r;
  furnish_kept(s, f, 1, kept, &k), furnish_behind(s, f, threads, room, &r);
  real *to_near = g_layers + D * s->inputs, *to_mix = to_near + L * 2 * D * D * taps;
  real *to_leave = to_mix + (2 * L - 1) * D * D, *b_enter = to_leave + s->outputs * D, *b_near = b_enter + D;
  real *b_mix = b_near + L * 2 * D, *b_leave = b_mix + (2 * L - 1) * D;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  {
    long me = 0;
#ifdef _OPENMP
    me = omp_get_thread_num();
#endif
    real *own = r.own + me * r.own_size;
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
    for (long i = 0; i < L * tall; i++) {
      const long l = i / tall, n = i % tall * W, halves = l < L - 1 ? 2 : 1;
      pack(s->weights[1 + l], 2, D, H, D, H, taps, 1, n, r.near + l * r.near_size + n * taps * f.both);
      pack(s->weights[1 + L + l], halves, D, H, D, H, 1, 1, n, r.mix + l * r.mix_size + n * halves * H);
    }
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
    for (long i = 0; i < tall + ins; i++) {
      const long n = (i < tall ? i : i - tall) * W;
      if (i < tall)
        pack(s->weights[1 + 2 * L], 1, s->outputs, f.out, D, H, 1, 1, n, r.leave + n * f.out);
      else
        pack(s->weights[0], 1, D, H, s->inputs, f.in, 1, 1, n, r.enter + n * H);
    }
#ifdef _OPENMP
#pragma omp for
#endif
    for (long b = 0; b < s->sequences; b++) {
      real *start = r.g_both + b * f.padded * f.both;
      memset(start, 0, f.border * f.both * sizeof(real));
      memset(start + (f.border + s->frames) * f.both, 0, f.border * f.both * sizeof(real));
    }
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
    for (long task = 0; task < tasks; task++) {
      const long b = task / f.count, t = task % f.count * f.rows, M = min_of(f.rows, s->frames - t);
      const long row = b * s->frames + t;
      for (long m = 0; m < M; m++) {
        const real *from = g_out + b * g_sequence + (t + m) * g_frame;
        real *to = r.outs + (row + m) * f.out;
        for (long o = 0; o < f.out; o++)
          to[o] = o < s->outputs ? from[o % s->planes * g_plane + o / s->planes * g_channel] : 0;
      }
      multiply(M, H, f.out, r.outs + row * f.out, f.out, r.leave, 0, 0, r.g_total + row * H, H);
      for (long i = row * H; i < (row + M) * H; i++) {
        r.act[i] = k.total[i] < 0 ? 0 : k.total[i];
        if (!(k.total[i] > 0)) r.g_total[i] = 0;
      }
    }
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
    for (long i = 0; i < tall; i++)
      correlate(all, f.out, min_of(W, H - i * W), r.outs, f.out, r.act + i * W, H, r.g_leave + i * W, H);
#ifdef _OPENMP
#pragma omp single
#endif
    {
      add_rows(all, f.out, r.outs, f.out, r.of_leave);
      add_rows(all, H, r.g_total, H, r.of_mix + (L - 1) * f.both);
    }
    for (long l = L - 1; l >= 0; l--) {
      const long share = l < L - 1 ? H : 0, apart = s->apart[l], reach = apart * (taps / 2);
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
      for (long task = 0; task < tasks; task++) {
        const long b = task / f.count, t = task % f.count * f.rows, M = min_of(f.rows, s->frames - t);
        const long row = b * s->frames + t;
        for (long m = 0; share && m < M; m++) {
          const real there = is_there(s, b, t + m);
          for (long i = (row + m) * H; i < (row + m + 1) * H; i++) r.g_kept[i] = r.g_h[i] * there;
        }
        for (long n = 0; n < H; n += W) {
          const real *p = r.mix + l * r.mix_size + n * (H + share);
          const long N = min_of(W, H - n);
          panel(M, N, H, r.g_total + row * H, H, 0, p + share * W, W, zeros, 0, own + n, H);
          if (share) panel(M, N, H, r.g_kept + row * H, H, 0, p, W, own + n, H, own + n, H);
        }
        for (long m = 0; m < M; m++) {
          const real *c = k.both + l * k.both_size + (row + m) * f.both, *factor = dropped(s, l, row + m);
          real *to = r.g_both + (b * f.padded + f.border + t + m) * f.both, *act = r.act + (row + m) * H;
          real *g = own + m * H;
          for (long j = 0; factor && j < D; j++) g[j] *= factor[j];
#ifdef _OPENMP
#pragma omp simd
#endif
          for (long j = 0; j < H; j++) {
            const real value = squash(c[j]), gate = sigmoid(c[H + j]);
            act[j] = value * gate;
            to[j] = g[j] * gate * (1 - value * value);
            to[H + j] = g[j] * value * gate * (1 - gate);
          }
          for (long j = 0; factor && j < D; j++) act[j] *= factor[j];
        }
      }
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
      for (long i = 0; i < taps * wide; i++) { /* borders of g_both are zero, so that sequences don't touch */
        const long tap = i / wide, n = i % wide * W;
        const real *seen = k.h + l * k.h_size + (f.border - reach + tap * apart) * H;
        correlate(s->sequences * f.padded - 2 * f.border, H, min_of(W, f.both - n), seen, H,
                  r.g_both + f.border * f.both + n, f.both, r.g_near + (l * taps + tap) * H * f.both + n, f.both);
      }
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
      for (long i = 0; i < tall; i++) {
        const long n = i * W, N = min_of(W, H - n);
        real *to = r.g_mix + l * f.both * H + n;
        if (share) correlate(all, H, N, r.g_kept, H, r.act + n, H, to, H);
        correlate(all, H, N, r.g_total, H, r.act + n, H, to + share * H, H);
      }
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
      for (long b = 0; b < s->sequences; b++) {
        const real *of_b = r.g_both + (b * f.padded + f.border) * f.both;
        add_rows(s->frames, f.both, of_b, f.both, r.g_shift + (l * s->sequences + b) * f.both);
        if (s->positions) pull_given(s, f, l, b, of_b, g_given);
      }
#ifdef _OPENMP
#pragma omp single nowait
#endif
      if (share) {
        add_rows(all, H, r.g_kept, H, r.of_mix + l * f.both);
        memcpy(r.of_mix + l * f.both + H, r.of_mix + (L - 1) * f.both, H * sizeof(real));
      }
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
      for (long task = 0; task < tasks; task++) {
        const long b = task / f.count, t = task % f.count * f.rows, M = min_of(f.rows, s->frames - t);
        const long row = b * s->frames + t;
        convolve_rows(M, H, f.both, taps, apart, r.g_both + (b * f.padded + f.border + t - reach) * f.both,
                      r.near + l * r.near_size, share ? r.g_kept + row * H : 0, share ? H : 0, r.g_h + row * H, H);
      }
    }
#ifdef _OPENMP
#pragma omp for schedule(dynamic)
#endif
    for (long task = 0; task < tasks; task++) {
      const long b = task / f.count, t = task % f.count * f.rows, M = min_of(f.rows, s->frames - t);
      const long row = b * s->frames + t;
      read_frames(s, f, b, t, M, r.ins + row * f.in);
      for (long m = 0; m < M; m++)
        if (!is_there(s, b, t + m)) memset(r.g_h + (row + m) * H, 0, H * sizeof(real));
      multiply(M, f.in, H, r.g_h + row * H, H, r.enter, 0, 0, own, f.in);
      for (long m = 0; m < M; m++) memcpy(g_x + (row + m) * s->inputs, own + m * f.in, s->inputs * sizeof(real));
    }
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
    for (long i = 0; i < ins; i++)
      correlate(all, H, min_of(W, f.in - i * W), r.g_h, H, r.ins + i * W, f.in, r.g_enter + i * W, f.in);
#ifdef _OPENMP
#pragma omp single
#endif
    add_rows(all, H, r.g_h, H, r.of_enter);
#ifdef _OPENMP
#pragma omp for schedule(dynamic) nowait
#endif
    for (long i = 0; i < L * wide; i++) { /* as the weights lie, some outputs at once, whose gradients are neighbours */
      const long l = i / wide, n = i % wide * W, end = min_of(n + W, f.both);
      for (long c = 0; c < D * taps; c++) {
        const real *from = r.g_near + ((l * taps + c % taps) * H + c / taps) * f.both;
        for (long column = n; column < end; column++) {
          const long o = column / H * D + column % H;
          if (column % H < D) to_near[((l * 2 * D + o) * D) * taps + c] = from[column];
        }
      }
    }
#ifdef _OPENMP
#pragma omp for schedule(dynamic, 16) nowait
#endif
    for (long i = 0; i < L * 2 * D; i++) {
      const long l = i / (2 * D), o = i % (2 * D), column = o % D + o / D * H;
      real sum = 0;
      for (long b = 0; b < s->sequences; b++) {
        const real one = r.g_shift[(l * s->sequences + b) * f.both + column];
        sum += one;
        if (g_given && !s->positions) g_given[(b * L + l) * 2 * D + o] = one;
      }
      b_near[i] = sum;
      if (l == L - 1 && o >= D) continue;
      memcpy(to_mix + i * D, r.g_mix + (l * f.both + column) * H, D * sizeof(real));
      b_mix[i] = r.of_mix[l * f.both + column];
    }
#ifdef _OPENMP
#pragma omp single
#endif
    {
      for (long o = 0; o < D; o++) memcpy(g_layers + o * s->inputs, r.g_enter + o * f.in, s->inputs * sizeof(real));
      for (long o = 0; o < s->outputs; o++) memcpy(to_leave + o * D, r.g_leave + o * H, D * sizeof(real));
      memcpy(b_enter, r.of_enter, D * sizeof(real));
      memcpy(b_leave, r.of_leave, s->outputs * sizeof(real));
    }
  }
}
