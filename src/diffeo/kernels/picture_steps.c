/* Linear maps of the channels of pictures and couplings, one after the other, as one operation without a gradient.

   Written before it: coupling.c and mix.c. A thread takes a few pictures at a time through all steps, so that they stay
   in its cache and threads wait for one another only once; the nets are packed once for all threads. */
#define NET 3 /* layers of a net */

/* a linear map, or, where there is no matrix, a coupling; all of them run in the same direction */
typedef struct {
  const real *matrix, *shift, *log_scale; /* z = matrix (x + shift); in the other direction, x = matrix z - shift */
  long a, b;                              /* channels from `a` on set those from `b` on */
  long widths[NET + 1];                   /* of the perceptron in between: see convolution.c */
  const real *weights[NET], *biases[NET];
  const real *given; /* added to what comes out of its first layer, for each picture, or null */
} Step;

/* numbers of a net as a perceptron, and of its panels, which are packed where they lie at `at` */
static long pack_net(const Step *step, Layer *layers, real *at) {
  const long *widths = step->widths;
  const real *weights[NET] = {0}, *biases[NET] = {0};
  long total = widths[NET];
  for (int l = 0; l < NET; l++) total += (widths[l] + 1) * widths[l + 1];
  total = round_up(total, W);
  if (at) as_perceptron(NET, widths, step->weights, step->biases, at, weights, biases);
  describe(layers, NET, widths, weights, biases, 0, 0, 0);
  return total + pack_layers(layers, NET, at ? at + total : 0);
}

/* where in the room of `run_steps` the nets begin; the end of it comes last */
static void place_nets(long count, const Step *steps, long *begin) {
  Layer layers[NET];
  begin[0] = 0;
  for (long k = 0; k < count; k++) begin[k + 1] = begin[k] + (steps[k].matrix ? 0 : pack_net(steps + k, layers, 0));
}

/* how many numbers `run_steps` wants room for */
long count_room(long count, const Step *steps) {
  long begin[count + 1];
  place_nets(count, steps, begin);
  return begin[count] + W;
}

/* numbers of the thread: of what goes in and comes out of nets, and beside pictures */
typedef struct {
  long inputs, outputs, line, slopes, params;
} Limits;

static Limits find_limits(long count, const Step *steps, long planes, long width, long places, long bordered) {
  Limits most = {0};
  for (long k = 0; k < count; k++) {
    if (steps[k].matrix) continue;
    const long seen = steps[k].widths[0] / 9, all = steps[k].widths[NET] / 9;
    most.inputs = max_of(most.inputs, bordered * seen);
    most.outputs = max_of(most.outputs, places * stride(9 * all));
    most.line = max_of(most.line, width * all);
    most.slopes = max_of(most.slopes, all / planes * places);
    most.params = max_of(most.params, all * places);
  }
  return most;
}

/* z, one picture after the other, and the log-det of all steps at x, the event; `back`: of the inverse, of which the
   last step comes first among `steps` */
int run_steps(long pictures, const Event *event, long count, const Step *steps, int back, real *room, real *z,
              real *logdet, int threads) {
  const Event e = *event;
  const long places = e.height * e.width, bordered = (e.height + 2) * (e.width + 2), whole = e.channels * places;
  const Strides plain = {whole, places, 0, e.width, 1};
  Layer layers[count][NET];
  long begin[count + 1], widest = 1;
  place_nets(count, steps, begin);
  for (long k = 0; k < count; k++)
    if (!steps[k].matrix) widest = max_of(widest, widest_input(NET, steps[k].widths));
  const Limits most = find_limits(count, steps, e.planes, e.width, places, bordered);
  const long group = max_of(1, min_of(group_size(block_limit(widest), places), pictures / (4 * threads)));
  int failed = 0;
  long packed = 0, taken = 0;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1)
#endif
  for (long k; (k = __atomic_fetch_add(&packed, 1, __ATOMIC_RELAXED)) < count;)
    if (!steps[k].matrix) pack_net(steps + k, layers[k], room + begin[k]);
#ifdef _OPENMP
#pragma omp parallel num_threads(threads) if (threads > 1) reduction(| : failed)
#endif
  {
    Room mine;
    const long own = set_room(&mine, widest, 0);
    const long beside = group * (2 * whole + most.inputs + most.outputs) + most.line + 2 * most.slopes + most.params;
    real *at = memory(own + beside);
    failed = !at;
    if (!at) at = room; /* for nothing but sums of addresses */
    if (!failed) set_room(&mine, widest, at);
    real *here = at + own, *next = here + group * whole, *around = next + group * whole;
    real *found = around + group * most.inputs, *sum = found + group * most.outputs, *before = sum + most.line;
    real *slopes = before + most.slopes, *set = slopes + most.slopes;
    double total[group];
    for (long p; !failed && (p = __atomic_fetch_add(&taken, group, __ATOMIC_RELAXED)) < pictures;) {
      const long some = min_of(group, pictures - p);
      for (long i = 0; i < some; i++) copy_channels(e, p + i, 0, e.channels, here + i * whole), total[i] = 0;
      for (long k = 0; k < count; k++) {
        const Step *step = steps + k;
        if (step->matrix) {
          real away[e.channels];
          for (long c = 0; c < e.channels; c++) away[c] = -step->shift[c];
          for (long i = 0; i < some; i++) {
            mix_one(e.channels, places, here + i * whole, places, step->matrix, 0, back ? 0 : step->shift,
                    back ? away : 0, next + i * whole);
            total[i] += (back ? -places : places) * (double)*step->log_scale;
          }
          real *swap = here;
          here = next, next = swap;
          continue;
        }
        const long all = step->widths[NET] / 9, n = all / e.planes * places, apart = stride(step->widths[NET]);
        const Strides by_plane = {all * places, places, n, e.width, 1};
        answer(0, some, e.height, e.width, NET, layers[k], &mine, here + step->a * places, plain,
               step->given ? step->given + p * step->widths[1] : 0, around, found, apart);
        for (long i = 0; i < some; i++) {
          real *to = here + i * whole + step->b * places;
          add_around(found + i * places * apart, apart, all, e.planes, e.height, e.width, 0, sum, set, by_plane);
          memcpy(before, to, n * sizeof(real));
          part(n, 0, n, before, set, to, slopes);
          for (long m = 0; m < n; m++) total[i] += slopes[m];
        }
      }
      for (long i = 0; i < some; i++) {
        memcpy(z + (p + i) * whole, here + i * whole, whole * sizeof(real));
        logdet[p + i] = total[i];
      }
    }
  }
  return failed;
}
