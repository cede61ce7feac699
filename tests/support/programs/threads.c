/* Threads: a mutex, a condition variable, a barrier, thread-local storage, threads that end and are
 * joined and made anew while others wait, sleep and compute.
 * usage: threads THREADS ROUNDS; prints what does not depend on the schedule. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static pthread_barrier_t meeting;
static unsigned long total, tickets, served, rounds;
static _Thread_local unsigned long mine;

static unsigned long work(unsigned long x, long n) {
  while (n--) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
  }
  return x;
}

static void *brief(void *argument) {
  mine = (unsigned long)argument;
  mine = work(mine | 1, 2000);
  return (void *)mine;
}

static void *worker(void *argument) {
  unsigned long number = (unsigned long)argument;
  mine = number + 1;
  for (unsigned long r = 0; r < rounds; r++) {
    mine = work(mine, 20000);
    pthread_mutex_lock(&lock);
    total += mine;
    tickets++;
    pthread_cond_signal(&changed);
    pthread_mutex_unlock(&lock);
    if (r % 16 == 0) {
      pthread_t child;
      void *result;
      if (pthread_create(&child, NULL, brief, (void *)(number * 1000 + r)) || pthread_join(child, &result))
        abort();
      pthread_mutex_lock(&lock);
      total += (unsigned long)result;
      pthread_mutex_unlock(&lock);
    }
    if (r % 32 == 0) {
      struct timespec nap = {0, 2000000};
      nanosleep(&nap, NULL);
    }
    pthread_barrier_wait(&meeting);
  }
  return (void *)mine;
}

static void *server(void *argument) {
  unsigned long expected = (unsigned long)argument;
  pthread_mutex_lock(&lock);
  while (served < expected) {
    while (served == tickets)
      pthread_cond_wait(&changed, &lock);
    served++;
  }
  pthread_mutex_unlock(&lock);
  return NULL;
}

int main(int argc, char **argv) {
  long count = argc > 1 ? strtol(argv[1], NULL, 0) : 4;
  rounds = argc > 2 ? strtoul(argv[2], NULL, 0) : 200;
  pthread_t threads[256], waiter;
  if (count < 1 || count > 250)
    return 2;
  pthread_barrier_init(&meeting, NULL, (unsigned)count);
  pthread_create(&waiter, NULL, server, (void *)((unsigned long)count * rounds));
  for (long i = 0; i < count; i++)
    if (pthread_create(&threads[i], NULL, worker, (void *)i))
      return 3;
  unsigned long digest = 0;
  for (long i = 0; i < count; i++) {
    void *result;
    pthread_join(threads[i], &result);
    digest = digest * 31 + (unsigned long)result;
  }
  pthread_join(waiter, NULL);
  printf("answer %lx %lx served %lu\n", total, digest, served);
  return 0;
}
