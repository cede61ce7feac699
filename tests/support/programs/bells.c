/* One thread rings for all others, by a signal to each and one to the process, and waits until every one
 * was heard; then again. A signal that is lost stops the program for ever, one too many shows in the answer.
 * The ringer is the thread that began last, so that it is parked late: it rings for threads that are
 * parked already.
 * usage: bells LISTENERS; goes on until there is a file named `stop` */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { MOST = 200, TO_THREAD = SIGUSR1, TO_PROCESS = SIGUSR2, AT_THE_END = SIGTERM };

static long listeners;
static pthread_t listener[MOST + 1];
static atomic_ulong heard, heard_by_process;

static void nap(long ns) {
  struct timespec left = {0, ns};
  nanosleep(&left, NULL);
}

/* All signals are blocked in all threads; number 0 is the only one that takes those of the process. */
static void *listen(void *number) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, number ? TO_THREAD : TO_PROCESS);
  sigaddset(&set, AT_THE_END);
  for (int sig = 0; sig != AT_THE_END;) {
    if (sigwait(&set, &sig))
      abort();
    if (sig != AT_THE_END)
      atomic_fetch_add(number ? &heard : &heard_by_process, 1);
  }
  return NULL;
}

static void *ring(void *unused) {
  unsigned long rounds = 0;
  for (; rounds % 64 || access("stop", F_OK); rounds++) {
    for (long i = 1; i <= listeners; i++)
      pthread_kill(listener[i], TO_THREAD);
    kill(getpid(), TO_PROCESS);
    while (heard < (rounds + 1) * (unsigned long)listeners || heard_by_process < rounds + 1)
      nap(50000);
  }
  (void)unused;
  return (void *)rounds;
}

int main(int argc, char **argv) {
  listeners = argc > 1 ? strtol(argv[1], NULL, 0) : 16;
  if (listeners < 1 || listeners > MOST)
    return 2;
  sigset_t all;
  sigemptyset(&all);
  sigaddset(&all, TO_THREAD);
  sigaddset(&all, TO_PROCESS);
  sigaddset(&all, AT_THE_END);
  pthread_sigmask(SIG_BLOCK, &all, NULL);
  for (long i = 0; i <= listeners; i++)
    if (pthread_create(&listener[i], NULL, listen, (void *)i))
      return 3;
  pthread_t ringer;
  void *rounds;
  if (pthread_create(&ringer, NULL, ring, NULL) || pthread_join(ringer, &rounds))
    return 4;
  nap(20000000); /* one too many comes late */
  for (long i = 0; i <= listeners; i++) {
    pthread_kill(listener[i], AT_THE_END);
    pthread_join(listener[i], NULL);
  }
  long more = (long)(heard - (unsigned long)rounds * (unsigned long)listeners);
  long more_by_process = (long)(heard_by_process - (unsigned long)rounds);
  printf("answer: %ld and %ld bells too many\n", more, more_by_process);
  return 0;
}
