/* Small matrix products whose sums stay in registers, and memory of a thread. Written before it: `real`. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
/* rows of a tile: its 2 T sums, two vectors and one number stay in registers */
#if defined(__AVX512F__) || defined(__aarch64__)
#define T 12
#define EACH(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)
#else
#define T 6
#define EACH(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif
typedef real vector __attribute__((vector_size(BYTES), aligned(sizeof(real)), may_alias));
#define V ((long)(BYTES / sizeof(real)))
#define W (2 * V) /* columns of a tile */
#define PAGE (1L << 21) /* bytes of a large page, */
#define LARGE (PAGE / 8) /* and what is worth one: small ones lie anywhere, and fall on one another in a full cache */

static inline long min_of(long a, long b) { return a < b ? a : b; }
static inline long max_of(long a, long b) { return a > b ? a : b; }
static inline long round_up(long n, long unit) { return (n + unit - 1) / unit * unit; }

/* loops that stand for so many statements: else GCC keeps the sums in memory, sets them there, and waits for it */
#define REPEAT(i, count) _Pragma("GCC unroll 16") for (int i = 0; i < count; i++)

/* c[m][n] = base[m][n] + sum over k of a[m][k] b[k][n], for few rows and `columns` vectors; `flip`: of a[k][m] */
#define TILE(rows, columns, flip, name)                                                                               \
  static void name(long K, const real *a, long s, const real *b, long bk, const real *base, long bs, real *c,         \
                   long cs) {                                                                                         \
    vector sum[rows][columns];                                                                                        \
    REPEAT(i, rows) REPEAT(j, columns) sum[i][j] = (vector){0};                                                       \
    for (long k = 0; k < K; k++) {                                                                                    \
      vector right[columns];                                                                                          \
      REPEAT(j, columns) right[j] = *(const vector *)(b + k * bk + j * V);                                            \
      REPEAT(i, rows) {                                                                                               \
        const real left = flip ? a[k * s + i] : a[i * s + k];                                                         \
        REPEAT(j, columns) sum[i][j] += left * right[j];                                                              \
      }                                                                                                               \
    }                                                                                                                 \
    REPEAT(i, rows)                                                                                                   \
    REPEAT(j, columns) *(vector *)(c + i * cs + j * V) = *(const vector *)(base + i * bs + j * V) + sum[i][j];        \
  }
#define TILES(rows)                   \
  TILE(rows, 1, 0, one##rows)         \
  TILE(rows, 2, 0, two##rows)         \
  TILE(rows, 1, 1, one_flipped##rows) \
  TILE(rows, 2, 1, two_flipped##rows)
EACH(TILES)
typedef void (*Tile)(long, const real *, long, const real *, long, const real *, long, real *, long);
static const real zeros[W];
#define NAMES(rows) {{one##rows, one_flipped##rows}, {two##rows, two_flipped##rows}},
static const Tile tiles[T][2][2] = {EACH(NAMES)};

/* c = base + a b for one panel b of at most W columns: b[k][n] at b + k bk + n; `bs` is 0 for a base of one row */
static void panel(long M, long N, long K, const real *a, long as, int flip, const real *b, long bk, const real *base,
                  long bs, real *c, long cs) {
  for (long m = 0; m < M; m += T)
    tiles[min_of(T, M - m) - 1][N > V][flip](K, a + (flip ? m : m * as), as, b, bk, base + m * bs, bs, c + m * cs, cs);
}

static pthread_key_t kept;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int is_kept;
static void make_kept(void) { is_kept = !pthread_key_create(&kept, free); }

/* n numbers that the thread has to itself until it asks again, or 0 where there are not so many; it keeps what it had,
   since new pages cost more than small products */
static real *memory(long n) {
  const long asked = 64 + n * sizeof(real), large = asked > LARGE, bytes = large ? round_up(asked, PAGE) : asked;
  pthread_once(&once, make_kept);
  if (!is_kept) return 0; /* this process has no more keys */
  long *here = pthread_getspecific(kept);
  if (!here || here[0] < bytes) {
    free(here);
    if (posix_memalign((void **)&here, large ? PAGE : 64, bytes)) here = 0;
#ifdef MADV_HUGEPAGE
    if (here && large) madvise(here, bytes, MADV_HUGEPAGE); /* a system that has none goes on with small ones */
#endif
    if (here) here[0] = bytes;
    pthread_setspecific(kept, here);
  }
  return here ? (real *)((char *)here + 64) : 0;
}
