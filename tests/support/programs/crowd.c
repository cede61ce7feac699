/* A crowd of threads that use every way to wait: mutex, condition variable, barrier, read-write lock,
 * semaphore, a bare futex through them all, sleep, a pipe, a signal; and that begin and end all the time,
 * joined and detached, with thread-local storage, keys with destructors and pthread_once. Every wake-up
 * is counted: one that is lost stops the program for ever, one too many shows in the answer.
 * usage: crowd THREADS ROUNDS [busy]; ROUNDS 0: until there is a file named `stop`; busy: so many of
 * them compute at any time that no processor is free, and any of them may be stopped anywhere */
#define _GNU_SOURCE
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define MUST(condition)                                                                                      \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      printf("line %d: %s does not hold (%d)\n", __LINE__, #condition, errno);                               \
      exit(3);                                                                                               \
    }                                                                                                        \
  } while (0)

enum { GROUP = 8 }; /* threads that work together */

struct group {
  pthread_barrier_t meeting;
  pthread_mutex_t lock;
  pthread_cond_t turn;
  unsigned whose, passed;
  sem_t items, places;
  unsigned produced, consumed;
  pthread_rwlock_t guard;
  unsigned long first, second; /* always equal under the guard */
  int pipe[2];
  unsigned heard;
  atomic_uint rounds; /* after which it ends */
};

static unsigned threads, rounds, groups;
static int busy;
static atomic_uint gone;
static struct group *all;
static atomic_ulong total, destroyed, begun, once_runs, signals_heard;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Thread_local unsigned long own;

static void make_once(void) {
  atomic_fetch_add(&once_runs, 1);
}

static void destroy(void *value) {
  atomic_fetch_add(&destroyed, (unsigned long)value);
}

static unsigned long work(unsigned long x, int n) {
  while (n--) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
  }
  return x;
}

static void *brief(void *argument) {
  pthread_once(&once, make_once);
  MUST(pthread_setspecific(key, (void *)1) == 0);
  own = (unsigned long)argument;
  atomic_fetch_add(&total, work(own | 1, 500));
  atomic_fetch_add(&begun, 1);
  return (void *)own;
}

static void nap(long ns) {
  struct timespec left = {0, ns};
  MUST(nanosleep(&left, NULL) == 0);
}

/* Most of them sleep most of the time; if they are busy, one of each group computes at any time, which
 * leaves some processor to those who move them. */
static unsigned long pass_time(unsigned number, unsigned round) {
  if (busy && (number + round) % GROUP == 0)
    return work(number + round + 1, 2000000);
  nap(10000000);
  return 0;
}

/* Each in turn: a condition variable that is lost stops all of them. */
static void take_turns(struct group *g, unsigned me) {
  MUST(pthread_mutex_lock(&g->lock) == 0);
  while (g->whose != me)
    MUST(pthread_cond_wait(&g->turn, &g->lock) == 0);
  g->whose = (me + 1) % GROUP;
  g->passed++;
  pthread_cond_broadcast(&g->turn);
  pthread_mutex_unlock(&g->lock);
}

/* A full buffer of two between producers and consumers. */
static void trade(struct group *g, unsigned me) {
  for (int i = 0; i < 4; i++)
    if (me % 2) {
      MUST(sem_wait(&g->places) == 0);
      __atomic_fetch_add(&g->produced, 1, __ATOMIC_RELAXED);
      sem_post(&g->items);
    } else {
      MUST(sem_wait(&g->items) == 0);
      __atomic_fetch_add(&g->consumed, 1, __ATOMIC_RELAXED);
      sem_post(&g->places);
    }
}

static void read_and_write(struct group *g, unsigned me, unsigned round) {
  if ((me + round) % GROUP == 0) {
    MUST(pthread_rwlock_wrlock(&g->guard) == 0);
    g->first++;
    sched_yield();
    g->second++;
  } else {
    MUST(pthread_rwlock_rdlock(&g->guard) == 0);
    MUST(g->first == g->second);
  }
  pthread_rwlock_unlock(&g->guard);
}

/* Half of them wait in a read until the other half has written. */
static void talk(struct group *g, unsigned me) {
  char byte = 1;
  if (me % 2) {
    if (!busy)
      nap(200000);
    MUST(write(g->pipe[1], &byte, 1) == 1);
  } else {
    MUST(read(g->pipe[0], &byte, 1) == 1);
    __atomic_fetch_add(&g->heard, 1, __ATOMIC_RELAXED);
  }
}

static void lend(unsigned number, unsigned round) {
  pthread_t child;
  pthread_attr_t detached;
  void *result;
  unsigned long name = number * 100000ul + round;
  MUST(pthread_create(&child, NULL, brief, (void *)name) == 0);
  MUST(pthread_join(child, &result) == 0 && (unsigned long)result == name);
  pthread_attr_init(&detached);
  pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
  MUST(pthread_create(&child, &detached, brief, (void *)name) == 0);
  pthread_attr_destroy(&detached);
}

static void *member(void *argument) {
  unsigned number = (unsigned)(unsigned long)argument, me = number % GROUP;
  struct group *g = &all[number / GROUP];
  unsigned long sum = number;
  own = number;
  pthread_once(&once, make_once);
  for (unsigned round = 0; round < atomic_load(&g->rounds); round++) {
    if (me == 0 && !rounds && round % 16 == 0 && !access("stop", F_OK) && g->rounds == UINT_MAX)
      atomic_store(&g->rounds, round + 2); /* all see it after this round's barrier */
    sum += work(number * 31ul + round + 1, 3000);
    take_turns(g, me);
    trade(g, me);
    read_and_write(g, me, round);
    talk(g, me);
    if (round % 8 == me)
      lend(number, round);
    sum += pass_time(number, round);
    MUST(own == number);
    pthread_barrier_wait(&g->meeting);
  }
  atomic_fetch_add(&total, sum);
  atomic_fetch_add(&gone, 1);
  return NULL;
}

/* One thread that waits for signals, and one that sends them and waits for its answer. */
static void *listener(void *unused) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGUSR2);
  (void)unused;
  for (int sig = 0; sig != SIGUSR2;) {
    MUST(sigwait(&set, &sig) == 0);
    if (sig == SIGUSR1)
      atomic_fetch_add(&signals_heard, 1);
  }
  return NULL;
}

/* A signal to a thread that has hardly begun. */
static void greet(void) {
  pthread_t child;
  for (int i = 0; i < 300; i++) {
    MUST(pthread_create(&child, NULL, listener, NULL) == 0);
    MUST(pthread_kill(child, SIGUSR2) == 0);
    MUST(pthread_join(child, NULL) == 0);
  }
}

static void set_up(struct group *g) {
  pthread_barrier_init(&g->meeting, NULL, GROUP);
  pthread_mutex_init(&g->lock, NULL);
  pthread_cond_init(&g->turn, NULL);
  sem_init(&g->items, 0, 0);
  sem_init(&g->places, 0, 2);
  pthread_rwlock_init(&g->guard, NULL);
  atomic_store(&g->rounds, rounds ? rounds : UINT_MAX);
  MUST(pipe(g->pipe) == 0);
}

int main(int argc, char **argv) {
  groups = argc > 1 ? (unsigned)atoi(argv[1]) / GROUP : 8;
  rounds = argc > 2 ? (unsigned)atoi(argv[2]) : 100;
  busy = argc > 3;
  groups = groups ? groups : 1;
  threads = groups * GROUP;
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGUSR1);
  sigaddset(&set, SIGUSR2);
  pthread_sigmask(SIG_BLOCK, &set, NULL); /* inherited by all */
  MUST(pthread_key_create(&key, destroy) == 0);
  all = calloc(groups, sizeof *all);
  pthread_t *members = calloc(threads, sizeof *members), ear;
  MUST(all && members);
  for (unsigned i = 0; i < groups; i++)
    set_up(&all[i]);
  greet();
  MUST(pthread_create(&ear, NULL, listener, NULL) == 0);
  for (unsigned i = 0; i < threads; i++)
    MUST(pthread_create(&members[i], NULL, member, (void *)(unsigned long)i) == 0);
  printf("%u threads are at work\n", threads);
  fflush(stdout);
  unsigned long sent = 0;
  for (; rounds ? sent < rounds : atomic_load(&gone) < threads; sent++) {
    MUST(pthread_kill(ear, SIGUSR1) == 0);
    while (atomic_load(&signals_heard) <= sent)
      nap(1000000);
  }
  for (unsigned i = 0; i < threads; i++)
    MUST(pthread_join(members[i], NULL) == 0);
  MUST(pthread_kill(ear, SIGUSR2) == 0 && pthread_join(ear, NULL) == 0);
  unsigned long lent = 0, expected = 0;
  for (unsigned n = 0; n < threads; n++)
    for (unsigned r = 0; r < all[n / GROUP].rounds; r++)
      expected += r % 8 == n % GROUP ? 2 : 0;
  /* detached threads may still be about to end; their destructors run after their work */
  while ((lent = atomic_load(&begun)) < expected || atomic_load(&destroyed) < expected)
    nap(1000000);
  for (unsigned i = 0; i < groups; i++) {
    struct group *g = &all[i];
    unsigned r = g->rounds;
    MUST(g->passed == GROUP * r && g->produced == g->consumed && g->heard == GROUP / 2 * r);
    MUST(g->produced == GROUP / 2 * 4 * r && g->first == r && g->second == r);
  }
  MUST(atomic_load(&once_runs) == 1 && atomic_load(&signals_heard) == sent && lent == expected);
  if (rounds)
    printf("answer %lx: %u threads, %lu more lent, %lu signals\n", atomic_load(&total), threads, lent, sent);
  else
    printf("answer: every wait of %u threads was answered\n", threads);
  return 0;
}
