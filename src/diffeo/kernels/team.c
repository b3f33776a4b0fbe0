/* Parallel regions while other programs want the cores: nobody waits for a thread that has not started.

   A region of OpenMP ends when all of its threads have arrived, also those that had nothing left to do. Where another
   program has a core, the thread that should wake up there comes milliseconds late, and is waited for. Here a region is
   over when its work is: who calls it does the work alone, if need be, and helpers that come in time take blocks of it.
   So its body may share out work by a counter alone, without barriers and loops of OpenMP. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef void (*Body)(void *);
typedef void (*Region)(Body, void *, unsigned, unsigned);
typedef void (*Help)(Body, void *);

enum { OPEN = 1 << 20, TURNS = 2000, MOST = 256, NOWHERE = -1 };

static Region usual;        /* GNU's GOMP_parallel */
static const int *crowded;  /* whether other programs want the cores */
static int in_use, helpers; /* one region has the helpers at a time, others run on their own thread */
static int call, state;     /* counts regions; OPEN while a region takes helpers, and how many are in it */
static Body body;
static void *data;
static Help way; /* in which helpers run the body */
static pid_t ids[MOST];    /* of the helpers */
static int away = NOWHERE; /* the core that they keep away from */

static void sleep_at(int *word, int value) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, 0, 0, 0); }

static void wake(int *word, int count) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, 0, 0, 0); }

static int enter(void) {
  int now = __atomic_load_n(&state, __ATOMIC_ACQUIRE);
  while (now & OPEN)
    if (__atomic_compare_exchange_n(&state, &now, now + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return 1;
  return 0;
}

static void *help(void *own) {
  __atomic_store_n((pid_t *)own, (pid_t)syscall(SYS_gettid), __ATOMIC_RELEASE);
  for (int seen = 0;;) {
    const int now = __atomic_load_n(&call, __ATOMIC_ACQUIRE);
    if (now == seen) {
      sleep_at(&call, now);
      continue;
    }
    seen = now;
    if (!enter()) continue;
    way(body, data);
    if (__atomic_sub_fetch(&state, 1, __ATOMIC_ACQ_REL) == 0) wake(&state, 1);
  }
  return own;
}

/* as many helpers as asked for, or as the system gives */
static void hire(int wanted) {
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of Python */
  for (pthread_t thread; helpers < wanted && helpers < MOST; helpers++) {
    if (pthread_create(&thread, 0, help, ids + helpers)) break;
    pthread_detach(thread);
  }
  pthread_sigmask(SIG_SETMASK, &before, 0);
}

/* Let helpers run on any core but this one: the system puts a thread beside the one that wakes it, whose core is busy,
   so that it would come too late. */
static void keep_away(void) {
  const int here = sched_getcpu();
  if (here < 0 || here == away) return;
  cpu_set_t cores;
  if (sched_getaffinity(0, sizeof cores, &cores)) return;
  if (CPU_COUNT(&cores) < 2) return;
  CPU_CLR(here, &cores);
  for (int i = 0; i < helpers; i++) {
    const pid_t id = __atomic_load_n(ids + i, __ATOMIC_ACQUIRE);
    if (!id || sched_setaffinity(id, sizeof cores, &cores)) return;
  }
  away = here;
}

/* what GOMP_parallel does: the body on so many threads, or on some of them */
void run_region(Body work, void *of, unsigned threads, unsigned flags, Help how) {
  if (threads == 1) {
    work(of);
    return;
  }
  if (!__atomic_load_n(crowded, __ATOMIC_RELAXED)) {
    usual(work, of, threads, flags);
    return;
  }
  if (__atomic_exchange_n(&in_use, 1, __ATOMIC_ACQUIRE)) {
    work(of);
    return;
  }
  if (helpers < (int)threads - 1) {
    const int before = helpers;
    hire(threads - 1);
    if (helpers > before) away = NOWHERE;
  }
  keep_away();
  body = work;
  data = of;
  way = how;
  __atomic_store_n(&state, OPEN, __ATOMIC_RELEASE);
  __atomic_add_fetch(&call, 1, __ATOMIC_RELEASE);
  wake(&call, threads - 1);
  work(of);
  int inside = __atomic_and_fetch(&state, ~OPEN, __ATOMIC_ACQ_REL);
  for (int turn = 0; inside && turn < TURNS; turn++) inside = __atomic_load_n(&state, __ATOMIC_ACQUIRE);
  while (inside) {
    sleep_at(&state, inside);
    inside = __atomic_load_n(&state, __ATOMIC_ACQUIRE);
  }
  __atomic_store_n(&in_use, 0, __ATOMIC_RELEASE);
}

/* in a process that was forked, which has none of the threads */
static void start_anew(void) {
  in_use = helpers = call = state = 0;
  away = NOWHERE;
  memset(ids, 0, sizeof ids);
}

void set_up(Region gnu, const int *flag) {
  usual = gnu;
  crowded = flag;
  pthread_atfork(0, 0, start_anew);
}
