/* Linear maps of vectors and scalar maps that perceptrons condition, one after the other, as one operation, and its
   gradient.

   Written before it: perceptron.c; factors.c; `part` and `pull`, as for coupling.c. A thread takes a block of rows
   through all steps while it is in its cache, so that threads wait for one another once each way and not at every
   layer. Blocks are the same each way and for any number of threads, since what is kept of one lies together. */
#define ROWS 64 /* of a block */

typedef struct {
  long layers;                 /* of its net; of a linear map one, whose outputs are the result */
  long scalars;                /* that the scalar map changes, or 0 for a linear map */
  const long *sees, *changes;  /* columns that the net reads, and that the scalar map changes */
  double bound;                /* of a linear map, whose weights are the factors of its matrix */
} Step;

typedef struct {
  long count, layers; /* steps, and layers of all of them */
  const Step *steps;
  const long *widths;
  const real *const *weights, *const *biases;
  const int *const *bounds;
} Steps;

/* rows of a block, and what is largest among all steps */
typedef struct {
  long block, inputs, outputs, scalars;
} Limits;

/* what is kept of a step: columns of the event before it, one after the other; parameters, block by block; and what
   goes into the activations */
typedef struct {
  real *event, *params, *inner;
} Kept;

/* `packed`: the steps, and then where weights, biases and bounds of all layers are */
static Steps unpack(long count, const Step *packed, const long *widths) {
  Steps s = {.count = count, .steps = packed, .widths = widths};
  for (long i = 0; i < count; i++) s.layers += packed[i].layers;
  s.weights = (const real *const *)(packed + count);
  s.biases = s.weights + s.layers;
  s.bounds = (const int *const *)(s.biases + s.layers);
  return s;
}

/* the matrices of linear maps, one after the other in `products`, and where the weights of all layers are now; returns
   the log-det */
static double multiply(Steps s, real *products, const real **weights) {
  double total = 0;
  memcpy(weights, s.weights, s.layers * sizeof *weights);
  const long *widths = s.widths;
  for (long i = 0, at = 0; i < s.count; i++) {
    const long n = widths[0];
    if (!s.steps[i].scalars) {
      real logdet;
      multiply_factors(n, weights[at], s.steps[i].bound, products, &logdet);
      weights[at] = products, products += n * n, total += logdet;
    }
    widths += s.steps[i].layers + 1, at += s.steps[i].layers;
  }
  return total;
}

/* gradients of linear maps' matrices, among those of all layers, to gradients of their factors, in place */
static void pull_factors(Steps s, real g_logdet, real *g_layers) {
  const long *widths = s.widths;
  for (long i = 0, at = 0; i < s.count; i++) {
    const long n = widths[0];
    if (!s.steps[i].scalars) factors_backward(n, s.weights[at], s.steps[i].bound, g_layers, &g_logdet, g_layers);
    for (long l = 0; l < s.steps[i].layers; l++) g_layers += widths[l] * widths[l + 1];
    widths += s.steps[i].layers + 1, at += s.steps[i].layers;
  }
}

static Limits describe_steps(Steps s, Layer *layers) {
  Limits most = {0};
  const long *widths = s.widths;
  for (long i = 0, at = 0; i < s.count; i++) {
    const Step step = s.steps[i];
    describe(layers + at, step.layers, widths, s.weights + at, s.biases + at, s.bounds + at, 0, 0);
    for (long l = 0; l < step.layers; l++) {
      most.inputs = max_of(most.inputs, widths[l]);
      most.outputs = max_of(most.outputs, widths[l + 1]);
    }
    most.scalars = max_of(most.scalars, step.scalars);
    widths += step.layers + 1, at += step.layers;
  }
  most.block = min_of(ROWS, block_limit(most.inputs));
  return most;
}

static void find_kept(Steps s, const Layer *layers, long D, long rows, real *at, Kept *saved) {
  for (long i = 0; i < s.count; i++) {
    const Step step = s.steps[i];
    saved[i] = (Kept){0};
    if (!at) continue;
    saved[i].event = at, at += D * rows;
    if (step.scalars) saved[i].params = at, at += layers[step.layers - 1].outputs * rows;
    saved[i].inner = at;
    for (long l = 0; l < step.layers - 1; l++) at += stride(layers[l].outputs) * rows;
    layers += step.layers;
  }
}

/* the layers of a net at a block of rows that begins at `row` */
static void place_inner(long layers, Layer *net, long rows, long row, real *inner) {
  for (long l = 0; l < layers - 1; l++) {
    const long apart = stride(net[l].outputs);
    net[l].inner = inner ? inner + row * apart : 0;
    if (inner) inner += rows * apart;
  }
}

static void gather(long count, const long *which, long M, const real *x, long apart, real *y) {
  for (long k = 0; k < count; k++) memcpy(y + k * M, x + which[k] * apart, M * sizeof(real));
}

/* M rows of the event at `x` through a step, to `z`; columns so far apart */
static void run_step(long M, Step step, long D, const Layer *net, Room *room, const real *x, long xs, real *z, long zs,
                     real *set, real *beside, real *logdet) {
  const Input in = {.x = x, .row = 1, .column = xs, .which = step.sees};
  if (!step.scalars) {
    pass(0, M, 1, net, room, in, z, zs, 1);
    return;
  }
  const long n = step.scalars * M, outputs = net[step.layers - 1].outputs;
  real *here = beside, *found = here + n, *slopes = found + n;
  pass(0, M, step.layers, net, room, in, set, M, outputs / step.scalars);
  gather(step.scalars, step.changes, M, x, xs, here);
  part(n, 0, n, here, set, found, slopes);
  for (long d = 0; d < D; d++) memcpy(z + d * zs, x + d * xs, M * sizeof(real));
  for (long k = 0; k < step.scalars; k++) {
    memcpy(z + step.changes[k] * zs, found + k * M, M * sizeof(real));
    for (long m = 0; m < M; m++) logdet[m] += slopes[k * M + m];
  }
}

/* z, a column after the other, and the log-det from x, whose rows are `xs` and columns `xk` apart; `products` has room
   for the matrices of linear maps, and `at`, if given, receives what the gradient needs. Returns 0, or 1 where there is
   not enough memory. */
int run_steps(long rows, long D, long count, const Step *packed, const long *widths, const real *x, long xs, long xk,
              real *products, real *at, real *z, real *logdet, int threads) {
  Steps s = unpack(count, packed, widths);
  const real *weights[s.layers];
  const real constant = multiply(s, products, weights);
  s.weights = weights;
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer layers[s.layers];
    Kept saved[count];
    Room room;
    const Limits most = describe_steps(s, layers);
    const long B = most.block, blocks = (rows + B - 1) / B;
    find_kept(s, layers, D, rows, at, saved);
    real *event = make_room(layers, s.layers, 0, B * (2 * D + most.outputs + 3 * most.scalars), &room);
    real *other = event + B * D, *params = other + B * D, *beside = params + B * most.outputs;
    failed = !event;
    for (long n, row; !failed && (n = take_unit(&taken, blocks)) >= 0;) {
      row = n * B;
      const long M = min_of(B, rows - row), far = at ? rows : B;
      real *here = at ? saved[0].event + row : event;
      for (long d = 0; d < D; d++)
        for (long m = 0; m < M; m++) here[d * far + m] = x[(row + m) * xs + d * xk];
      for (long m = 0; m < M; m++) logdet[row + m] = constant;
      Layer *net = layers;
      for (long i = 0; i < count; i++) {
        const Step step = s.steps[i];
        const int last = i == count - 1;
        real *next = last ? z + row : at ? saved[i + 1].event + row : here == event ? other : event;
        real *set = at ? saved[i].params + row * net[step.layers - 1].outputs : params;
        place_inner(step.layers, net, rows, row, saved[i].inner);
        run_step(M, step, D, net, &room, here, far, next, last ? rows : far, set, beside, logdet + row);
        here = next, net += step.layers;
      }
    }
  }
  return failed;
}

/* g, gradients of M rows after a step, to those before it, where `x` is the event before it, so far `apart`; columns of
   gradients are `far` apart. Returns where they are: in g, or for linear maps in `other`. */
static real *pull_step(long M, Step step, const Layer *net, BackwardRoom room, const real *x, long apart, real *set,
                       const real *g_logdet, long g_apart, real *g, real *other, long far, real *beside,
                       real *const *g_weights, real *const *g_biases) {
  const Input in = {.x = x, .row = 1, .column = apart, .which = step.sees};
  if (!step.scalars) {
    const Input out = {.x = g, .row = 1, .column = far};
    backward_part(0, M, 1, net, in, out, room, other, far, g_weights, g_biases, 0);
    return other;
  }
  const long n = step.scalars * M, outputs = net[step.layers - 1].outputs;
  real *here = beside, *g_here = here + n, *slopes = g_here + n, *g_found = slopes + n, *g_set = g_found + n;
  gather(step.scalars, step.changes, M, x, apart, here);
  gather(step.scalars, step.changes, M, g, far, g_here);
  for (long k = 0; k < step.scalars; k++)
    for (long m = 0; m < M; m++) slopes[k * M + m] = g_logdet[m * g_apart];
  pull(n, 0, n, here, set, g_here, slopes, g_found, g_set);
  const Input out = {.x = g_set, .row = 1, .column = M, .columns = outputs, .planes = outputs / step.scalars};
  backward_part(0, M, step.layers, net, in, out, room, other, far, g_weights, g_biases, 0);
  for (long k = 0; k < step.scalars; k++) memcpy(g + step.changes[k] * far, g_found + k * M, M * sizeof(real));
  for (long i = 0; i < net[0].inputs; i++)
    for (long m = 0; m < M; m++) g[step.sees[i] * far + m] += other[i * far + m];
  return g;
}

/* Gradients from those of z, whose rows are `gs` and columns `gk` apart, and of the log-det: `g_x`, a column after the
   other, and in `g_layers` those of all weights, then of all biases, `total` numbers; see `backward` of perceptron.c.
   `at` is what `run_steps` kept. */
int run_steps_backward(long rows, long D, long count, const Step *packed, const long *widths, real *products, real *at,
                       const real *g_z, long gs, long gk, const real *g_logdet, long g_apart, real *g_x,
                       real *g_layers, real *sums, long total, long shares, int threads) {
  const Steps given = unpack(count, packed, widths);
  Steps s = given;
  const real *weights[s.layers];
  multiply(s, products, weights);
  s.weights = weights;
  double g_constant = 0;
  for (long m = 0; m < rows; m++) g_constant += g_logdet[m * g_apart];
  int failed = 0;
  long taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Layer layers[s.layers];
    Kept saved[count];
    const Limits most = describe_steps(s, layers);
    const long B = most.block, packs = lay_out(layers, s.layers, 1, 0), far = max_of(D, most.inputs) * B;
    const long one = B * stride(max_of(most.inputs, most.outputs));
    const long blocks = (rows + B - 1) / B, size = (blocks + shares - 1) / shares * B;
    find_kept(s, layers, D, rows, at, saved);
    real *panels = memory(packs + 4 * one + T * W + 2 * far + B * (4 * most.scalars + most.outputs));
    failed = !panels;
    if (!failed) lay_out(layers, s.layers, 1, panels);
    for (long l = 0; !failed && l < s.layers; l++) pack_backward(layers + l);
    real *room_at = panels + packs;
    const BackwardRoom room = {B, room_at, room_at + one, room_at + 2 * one, room_at + 3 * one, room_at + 4 * one};
    real *first = room.sums + T * W, *second = first + far, *beside = second + far;
    for (long k; !failed && (k = take_unit(&taken, shares)) >= 0;) {
      real *g_weights[s.layers], *g_biases[s.layers], *to = k ? sums + (k - 1) * total : g_layers;
      memset(to, 0, total * sizeof(real));
      for (long l = 0; l < s.layers; l++) g_weights[l] = to, to += layers[l].inputs * layers[l].outputs;
      for (long l = 0; l < s.layers; l++) g_biases[l] = to, to += layers[l].outputs;
      for (long row = k * size; row < min_of(rows, (k + 1) * size); row += B) {
        const long M = min_of(B, rows - row);
        real *g = first;
        for (long d = 0; d < D; d++)
          for (long m = 0; m < M; m++) g[d * B + m] = g_z[(row + m) * gs + d * gk];
        for (long i = count - 1, net = s.layers; i >= 0; i--) {
          const Step step = s.steps[i];
          net -= step.layers;
          place_inner(step.layers, layers + net, rows, row, saved[i].inner);
          real *set = step.scalars ? saved[i].params + row * layers[net + step.layers - 1].outputs : 0;
          g = pull_step(M, step, layers + net, room, saved[i].event + row, rows, set, g_logdet + row * g_apart, g_apart,
                        g, g == first ? second : first, B, beside, g_weights + net, g_biases + net);
        }
        for (long d = 0; d < D; d++) memcpy(g_x + d * rows + row, g + d * B, M * sizeof(real));
      }
    }
  }
  add_shares(shares, total, g_layers, sums, 1); /* so few that another thread would be waited for */
  pull_factors(given, g_constant, g_layers);
  return failed;
}
