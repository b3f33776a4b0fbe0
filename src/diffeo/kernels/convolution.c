/* A 3×3 convolution, layers at every place, and a 3×3 convolution, and their gradient, as one operation.

   Written before it: perceptron.c. The first convolution is a product with the numbers around each place; the last is
   one, too, whose results belong to the places around: so in between lies a perceptron, for all places of all pictures
   as rows. Its results stay in the cache of the core until they are added up, a few pictures at a time. */

/* a picture, by the strides of its channels, planes of them, lines and places: channel c is in plane c % planes */
typedef struct {
  long picture, channel, plane, line, place;
} Strides;

static inline long channel_at(Strides s, long planes, long c) { return c % planes * s.plane + c / planes * s.channel; }

/* channels last, with a border of zeros */
static void border(const real *x, Strides s, long channels, long planes, long height, long width, real *y) {
  const long across = (width + 2) * channels;
  memset(y, 0, (height + 2) * across * sizeof(real));
  for (long c = 0; c < channels; c++)
    for (long line = 0; line < height; line++) {
      const real *from = x + channel_at(s, planes, c) + line * s.line;
      real *to = y + (line + 1) * across + channels + c;
      for (long i = 0; i < width; i++) to[i * channels] = from[i * s.place];
    }
}

/* Weights and biases of the perceptron in between, in `room` for as many numbers. It sees what is around a place,
   channels last; nine outputs belong to each of the last convolution, of which the one in the middle has the
   bias. */
static void as_perceptron(int L, const long *widths, const real *const *weights, const real *const *biases, real *room,
                          const real **as_weights, const real **as_biases) {
  const long seen = widths[0] / 9, inner = widths[L - 1], out = widths[L] / 9;
  real *enter = room, *leave = enter + widths[0] * widths[1], *bias = leave + inner * widths[L];
  for (long o = 0; o < widths[1]; o++)
    for (long c = 0; c < seen; c++)
      for (long tap = 0; tap < 9; tap++) enter[(o * 9 + tap) * seen + c] = weights[0][(o * seen + c) * 9 + tap];
  for (long o = 0; o < out; o++)
    for (long k = 0; k < inner; k++)
      for (long tap = 0; tap < 9; tap++)
        leave[(tap * out + o) * inner + k] = weights[L - 1][(o * inner + k) * 9 + tap];
  memset(bias, 0, 9 * out * sizeof(real));
  memcpy(bias + 4 * out, biases[L - 1], out * sizeof(real));
  for (int l = 0; l < L; l++) as_weights[l] = weights[l], as_biases[l] = biases[l];
  as_weights[0] = enter, as_weights[L - 1] = leave, as_biases[L - 1] = bias;
}

/* gradients of all weights, then of all biases, of the convolutions from those of the perceptron */
static void as_convolutions(int L, const long *widths, const real *from, real *to) {
  const long seen = widths[0] / 9, inner = widths[L - 1], out = widths[L] / 9;
  for (long o = 0; o < widths[1]; o++)
    for (long c = 0; c < seen; c++)
      for (long tap = 0; tap < 9; tap++) to[(o * seen + c) * 9 + tap] = from[(o * 9 + tap) * seen + c];
  from += widths[0] * widths[1], to += widths[0] * widths[1];
  long between = 0, shifts = 0;
  for (int l = 1; l < L; l++) between += l < L - 1 ? widths[l] * widths[l + 1] : 0, shifts += widths[l];
  memcpy(to, from, between * sizeof(real));
  from += between, to += between;
  for (long o = 0; o < out; o++)
    for (long k = 0; k < inner; k++)
      for (long tap = 0; tap < 9; tap++) to[(o * inner + k) * 9 + tap] = from[(tap * out + o) * inner + k];
  from += inner * widths[L], to += inner * widths[L];
  memcpy(to, from, shifts * sizeof(real));
  memcpy(to + shifts, from + shifts + 4 * out, out * sizeof(real));
}

typedef real pair __attribute__((vector_size(2 * sizeof(real)), aligned(sizeof(real)), may_alias));
typedef real four __attribute__((vector_size(4 * sizeof(real)), aligned(sizeof(real)), may_alias));

/* line += what is there for `count` places, n numbers for each, a multiple of `unit` */
static inline void add_units(const real *there, long apart, long count, long n, real *line, const long unit) {
  for (long x = 0; x < count; x++)
    for (long i = 0; i < n; i += unit) {
      const real *from = there + x * apart + i;
      real *to = line + x * n + i;
      if (unit == 4)
        *(four *)to += *(const four *)from;
      else if (unit == 2)
        *(pair *)to += *(const pair *)from;
      else
        *to += *from;
    }
}

/* to = at each place, the sum of what the places around have for it, as PyTorch's `fold`: each has 9 times all
   channels, in rows so far `apart`; turned: what those at the same distance on the other side have. `sum`: room for a
   line */
static void add_around(const real *all, long apart, long channels, long planes, long height, long width, int turned,
                       real *sum, real *to, Strides s) {
  for (long y = 0; y < height; y++) {
    memset(sum, 0, width * channels * sizeof(real));
    for (long tap = 0; tap < 9; tap++) {
      const long from = turned ? 8 - tap : tap, down = from / 3 - 1, right = from % 3 - 1, low = max_of(0, -right);
      if (y + down < 0 || y + down >= height) continue;
      const long count = min_of(width, width - right) - low;
      const real *there = all + ((y + down) * width + right + low) * apart + tap * channels;
      real *line = sum + low * channels;
      if (channels == 2)
        add_units(there, apart, count, 2, line, 2);
      else if (channels == 4)
        add_units(there, apart, count, 4, line, 4);
      else if (channels % 4 == 0)
        add_units(there, apart, count, channels, line, 4);
      else if (channels % 2 == 0)
        add_units(there, apart, count, channels, line, 2);
      else
        add_units(there, apart, count, channels, line, 1);
    }
    for (long c = 0; c < channels; c++) {
      real *line = to + channel_at(s, planes, c) + y * s.line;
      for (long x = 0; x < width; x++) line[x * s.place] = sum[x * channels + c];
    }
  }
}

/* pictures that a thread takes at once: as many as a block of rows holds, at least one */
static long group_size(long block, long places) { return max_of(1, block / places); }

static long widest_input(int L, const long *widths) {
  long widest = 1;
  for (int l = 0; l < L; l++) widest = max_of(widest, widths[l]);
  return widest;
}

/* what comes out of the last layer for `count` pictures from p on, in rows so far `apart`; `around`: room for what goes
   in, with borders */
static void answer(long p, long count, long height, long width, int L, const Layer *layers, Room *room, const real *x,
                   Strides xs, const real *shift, real *around, real *all, long apart) {
  const long places = height * width, channels = layers[0].inputs / 9, bordered = (height + 2) * (width + 2) * channels;
  for (long i = 0; i < count; i++)
    border(x + (p + i) * xs.picture, xs, channels, 1, height, width, around + i * bordered);
  const Pictures at = {height, width, channels, around, p * places, 0};
  const Input in = {.pictures = &at, .places = places, .shift = shift};
  for (long row = 0; row < count * places; row += room->block)
    pass(p * places + row, min_of(room->block, count * places - row), L, layers, room, in, all + row * apart, apart, 0);
}

/* gradients from those of what `answer` found, in `beyond`, with borders; that of x goes to `to`. `pulled`: room for
   rows; `sum`: for a line */
static void pull_answer(long p, long count, long height, long width, int L, const Layer *layers, BackwardRoom room,
                        const real *x, Strides xs, const real *shift, real *around, const real *beyond, real *pulled,
                        real *sum, real *const *g_weights, real *const *g_biases, real *g_shift, real *to, Strides ts) {
  const long places = height * width, channels = layers[0].inputs / 9, bordered = (height + 2) * (width + 2) * channels;
  const long apart = stride(layers[0].inputs);
  for (long i = 0; i < count; i++)
    border(x + (p + i) * xs.picture, xs, channels, 1, height, width, around + i * bordered);
  const Pictures at = {height, width, channels, around, p * places, 0};
  const Pictures back = {height, width, layers[L - 1].outputs / 9, beyond, p * places, 1};
  const Input in = {.pictures = &at, .places = places, .shift = shift}, out = {.pictures = &back};
  backward_part(p * places, (p + count) * places, L, layers, in, out, room, pulled, 0, g_weights, g_biases, g_shift);
  for (long i = 0; i < count; i++)
    add_around(pulled + i * places * apart, apart, channels, 1, height, width, 1, sum, to + (p + i) * ts.picture, ts);
}

/* out = the net at `pictures` x, of (channels, height, width) numbers, by its strides. `widths` are those of the
   perceptron in between, of which the first and last are 9 times the channels; `weights` and `biases` are those of the
   convolutions; `shift`, if given, is added to what comes out of the first, a row for each picture; `inner`, if given,
   receives what goes into the last activation; `room` is for as many numbers as the perceptron has. Returns 0, or 1
   where there is not enough memory. */
int convolve(long pictures, long height, long width, int L, const long *widths, const real *x, const Strides *xs,
             const real *shift, const real *const *weights, const real *const *biases, real *room, real *inner,
             real *out, const Strides *os, long planes, int threads) {
  const long places = height * width, bordered = (height + 2) * (width + 2);
  const long in_channels = widths[0] / 9, out_channels = widths[L] / 9, apart = stride(widths[L]);
  const real *as_weights[L], *as_biases[L];
  as_perceptron(L, widths, weights, biases, room, as_weights, as_biases);
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer layers[L];
    Room own;
    const long group = group_size(block_limit(widest_input(L, widths)), places);
    const long outputs = group * places * apart, inputs = group * bordered * in_channels;
    describe(layers, L, widths, as_weights, as_biases, 0, 0, 0);
    layers[L - 2].inner = inner; /* the first layer is computed again */
    real *all = make_room(layers, L, 0, outputs + inputs + width * out_channels, &own);
    real *around = all + outputs, *sum = around + inputs;
    failed = !all;
    for (long p; all && (p = __atomic_fetch_add(&taken, group, __ATOMIC_RELAXED)) < pictures;) {
      const long count = min_of(group, pictures - p);
      answer(p, count, height, width, L, layers, &own, x, *xs, shift, around, all, apart);
      for (long i = 0; i < count; i++)
        add_around(all + i * places * apart, apart, out_channels, planes, height, width, 0, sum,
               out + (p + i) * os->picture, *os);
    }
  }
  return failed;
}

/* Gradients from that of out, by its strides: `g_x`; `g_shift`, zeros before, if given; and in `g_layers` those of all
   weights, then of all biases. `room` is for as many numbers as the perceptron has, `total`, once, and for each share
   of the pictures. */
int convolve_backward(long pictures, long height, long width, int L, const long *widths, const real *x,
                      const Strides *xs, const real *shift, const real *const *weights, const real *const *biases,
                      real *room, real *inner, const real *g_out, const Strides *gs, long planes, real *g_x,
                      real *g_shift, real *g_layers, long total, long shares, int threads) {
  const long places = height * width, bordered = (height + 2) * (width + 2), size = (pictures + shares - 1) / shares;
  const long in_channels = widths[0] / 9, out_channels = widths[L] / 9, apart = stride(widths[0]);
  const Strides plain = {in_channels * places, places, 0, width, 1};
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
    BackwardRoom own;
    const long limit = block_limit(max_of(widest_input(L, widths), widths[L]));
    const long group = min_of(size, group_size(limit, places)), all = group * places * apart;
    const long inputs = group * bordered * in_channels, outputs = group * bordered * out_channels;
    describe(layers, L, widths, as_weights, as_biases, 0, 0, 0);
    layers[L - 2].inner = inner; /* the first layer is computed again */
    real *pulled = make_backward_room(group * places, L, layers, all + inputs + outputs + width * in_channels, &own);
    real *around = pulled + all, *beyond = around + inputs, *sum = beyond + outputs;
    failed = !pulled;
    for (long k; pulled && (k = __atomic_fetch_add(&taken, 1, __ATOMIC_RELAXED)) < shares;) {
      real *g_weights[L], *g_biases[L];
      start_share(L, widths, total, sums + k * total, g_weights, g_biases);
      const long end = min_of(pictures, (k + 1) * size);
      for (long p = k * size; p < end; p += group) {
        const long count = min_of(group, end - p);
        for (long i = 0; i < count; i++)
          border(g_out + (p + i) * gs->picture, *gs, out_channels, planes, height, width,
                 beyond + i * bordered * out_channels);
        pull_answer(p, count, height, width, L, layers, own, x, *xs, shift, around, beyond, pulled, sum, g_weights,
                    g_biases, g_shift, g_x, plain);
      }
    }
  }
  add_shares(shares, total, sums, sums + total, threads);
  as_convolutions(L, widths, sums, g_layers);
  return failed;
}
