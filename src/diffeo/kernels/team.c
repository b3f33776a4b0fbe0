/* Parallel regions while other programs want the cores: on every core there is a thread that may run now.

   The system stops a thread that has had its share of a core, for milliseconds, and lets one that has slept run as soon
   as it wakes. A caller that works alone never sleeps, and is stopped again and again. Here each core has two helpers,
   who sleep between regions, so that where one thread is stopped another goes on; and the caller sleeps while they do
   what takes long.

   A region of OpenMP ends when all of its threads have arrived, also those that had nothing left to do, and came late.
   Here it is over when its work is: helpers that come in time take blocks of it. So its body may share out work by a
   counter alone, without barriers and loops of OpenMP. */
#define _GNU_SOURCE
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

typedef void (*Body)(void *);
typedef void (*Region)(Body, void *, unsigned, unsigned);

enum { OPEN = 1 << 20, EACH = 2, MOST = 512, KINDS = 64 };
#define LONG 150000 /* nanoseconds of a region; to sleep and to wake takes tens of thousands */

static Region usual;        /* GNU's GOMP_parallel */
static const int *crowded;  /* whether other programs want the cores */
static int in_use, helpers; /* one region has the helpers at a time, others run on their own thread */
static int call, state;     /* counts regions; OPEN while a region takes helpers, and how many are in it */
static Body body;
static void *data;
static int64_t took[KINDS]; /* about how long a region takes if nothing stops it, by the address of its body */

static void sleep_at(int *word, int value) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, 0, 0, 0); }

static void wake(int *word, int count) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, 0, 0, 0); }

static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * (int64_t)1000000000 + t.tv_nsec;
}

static int enter(void) {
  int found = __atomic_load_n(&state, __ATOMIC_ACQUIRE);
  while (found & OPEN)
    if (__atomic_compare_exchange_n(&state, &found, found + 1, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) return 1;
  return 0;
}

static void *help(void *unused) {
  for (int seen = 0;;) {
    const int count = __atomic_load_n(&call, __ATOMIC_ACQUIRE);
    if (count == seen) {
      sleep_at(&call, count);
      continue;
    }
    seen = count;
    if (!enter()) continue;
    body(data);
    __atomic_and_fetch(&state, ~OPEN, __ATOMIC_ACQ_REL); /* nothing is left to begin with */
    if (__atomic_sub_fetch(&state, 1, __ATOMIC_ACQ_REL) == 0) wake(&state, 1);
  }
  return unused;
}

/* the attributes of the helper of this number: where there is a thread for each core, it keeps to its own, since the
   system would put it beside the thread that wakes it */
static void place(pthread_attr_t *attributes, int number, int threads) {
  cpu_set_t all, one;
  pthread_attr_init(attributes);
  if (sched_getaffinity(0, sizeof all, &all) || CPU_COUNT(&all) != threads) return;
  int core = 0;
  for (int left = number % threads; left || !CPU_ISSET(core, &all); core++) left -= CPU_ISSET(core, &all) != 0;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  pthread_attr_setaffinity_np(attributes, sizeof one, &one);
}

/* so many helpers for each of the threads, or as many as the system gives */
static void hire(int threads) {
  sigset_t all, before;
  if (helpers >= EACH * threads) return;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the threads of Python */
  for (int failed = 0; !failed && helpers < EACH * threads && helpers < MOST;) {
    pthread_t thread;
    pthread_attr_t attributes;
    place(&attributes, helpers, threads);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    failed = pthread_create(&thread, &attributes, help, 0);
    pthread_attr_destroy(&attributes);
    helpers += !failed;
  }
  pthread_sigmask(SIG_SETMASK, &before, 0);
}

/* what GOMP_parallel does: the body on so many threads, or on some of them */
void run_region(Body work, void *of, unsigned threads, unsigned flags) {
  if (threads > 1 && !__atomic_load_n(crowded, __ATOMIC_RELAXED)) {
    usual(work, of, threads, flags);
    return;
  }
  if (threads == 1 || __atomic_exchange_n(&in_use, 1, __ATOMIC_ACQUIRE)) {
    work(of);
    return;
  }
  hire(threads);
  const int64_t began = now();
  int64_t *typical = took + (uintptr_t)work / 16 % KINDS;
  body = work;
  data = of;
  __atomic_store_n(&state, OPEN, __ATOMIC_RELEASE);
  __atomic_add_fetch(&call, 1, __ATOMIC_RELEASE);
  wake(&call, EACH * threads);
  if (*typical < LONG || !helpers) {
    work(of);
    __atomic_and_fetch(&state, ~OPEN, __ATOMIC_ACQ_REL);
  }
  for (int inside; (inside = __atomic_load_n(&state, __ATOMIC_ACQUIRE));) sleep_at(&state, inside);
  /* falls at once and rises slowly, since a region that was stopped says little */
  const int64_t elapsed = now() - began, most = *typical + *typical / 8 + 1000;
  *typical = elapsed < most ? elapsed : most;
  __atomic_store_n(&in_use, 0, __ATOMIC_RELEASE);
}

/* in a process that was forked, which has none of the threads */
static void start_anew(void) { in_use = helpers = call = state = 0; }

void set_up(Region gnu, const int *flag) {
  usual = gnu;
  crowded = flag;
  pthread_atfork(0, 0, start_anew);
}
