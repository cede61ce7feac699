/* So many threads, the first of them included, that all do the same: wait for a condition variable, or
 * compute without a system call. Goes on until it is stopped.
 * usage: crew THREADS waiting|computing; prints `ready` when all of them are at it. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STACK_BYTES = 256 << 10 }; /* small, so that an arena holds many */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t over = PTHREAD_COND_INITIALIZER;
static int is_over, computes;
static unsigned crew;
static atomic_uint at_it;

static void wait_for_the_end(void) {
  pthread_mutex_lock(&lock);
  if (atomic_fetch_add(&at_it, 1) + 1 == crew) {
    printf("ready\n");
    fflush(stdout);
  }
  while (!is_over) /* nobody says so */
    pthread_cond_wait(&over, &lock);
  pthread_mutex_unlock(&lock);
}

static void compute(uint64_t x) {
  if (atomic_fetch_add(&at_it, 1) + 1 == crew) {
    printf("ready\n");
    fflush(stdout);
  }
  volatile uint64_t kept; /* a loop without effects would be left out */
  for (;;) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    kept = x;
    (void)kept;
  }
}

static void *member(void *number) {
  if (computes)
    compute((uintptr_t)number + 1);
  else
    wait_for_the_end();
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 3 || (crew = (unsigned)atoi(argv[1])) < 1)
    return 2;
  computes = strcmp(argv[2], "computing") == 0;
  pthread_attr_t small;
  pthread_attr_init(&small);
  pthread_attr_setstacksize(&small, STACK_BYTES);
  for (unsigned i = 1; i < crew; i++) {
    pthread_t thread;
    if (pthread_create(&thread, &small, member, (void *)(uintptr_t)i))
      return 3;
  }
  member(NULL);
  return 0;
}
