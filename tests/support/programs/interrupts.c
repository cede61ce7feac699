/* Which waits a signal may cut short, and which it may not. The first thread has handlers; the other
 * ones block every signal, so none of their calls may ever return early.
 * usage: interrupts ROUNDS */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define CHECK(x)                                                                                             \
  do                                                                                                         \
    if (!(x)) {                                                                                              \
      printf("failed: line %d, errno %d\n", __LINE__, errno);                                                \
      exit(1);                                                                                               \
    }                                                                                                        \
  while (0)

static volatile sig_atomic_t ticks, knocks;
static volatile int over;
static pthread_t first;
static int slow[2], often[2], deaf[2];

static void on_tick(int s) {
  (void)s;
  ticks++;
}

static void on_knock(int s) {
  (void)s;
  knocks++;
}

static void nap(long us) {
  struct timespec t = {0, us * 1000}, left;
  CHECK(nanosleep(&t, &left) == 0);
}

/* What the first thread reads, whose handler has SA_RESTART. */
static void *feed(void *unused) {
  while (!over) {
    CHECK(write(slow[1], "x", 1) == 1);
    nap(4000);
  }
  return unused;
}

/* A signal whose handler has no SA_RESTART, and later what the first thread waits for. */
static void *knock(void *unused) {
  while (!over) {
    nap(3000);
    CHECK(pthread_kill(first, SIGUSR1) == 0);
    nap(3000);
    CHECK(write(often[1], "y", 1) == 1);
  }
  return unused;
}

static void *wait_deaf(void *unused) {
  int loop = epoll_create1(0);
  struct epoll_event e = {EPOLLIN, {.u32 = 0}};
  CHECK(loop >= 0 && epoll_ctl(loop, EPOLL_CTL_ADD, deaf[0], &e) == 0);
  char byte;
  for (unsigned turn = 0;; turn++) {
    struct pollfd p = {deaf[0], POLLIN, 0};
    if (turn % 3 == 0)
      CHECK(poll(&p, 1, 20000) == 1);
    else if (turn % 3 == 1)
      CHECK(epoll_wait(loop, &e, 1, 20000) == 1);
    ssize_t n = read(deaf[0], &byte, 1);
    CHECK(n >= 0);
    if (n == 0)
      return unused;
  }
}

static void *feed_deaf(void *unused) {
  while (!over) {
    CHECK(write(deaf[1], "z", 1) == 1);
    nap(2000);
  }
  close(deaf[1]);
  return unused;
}

/* Nothing comes: the time that it waits for is all that passes, however often it is cut short. */
static void *wait_in_vain(void *unused) {
  sigset_t never;
  sigemptyset(&never);
  sigaddset(&never, SIGUSR2);
  while (!over) {
    struct timespec limit = {0, 100000000}, begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    CHECK(sigtimedwait(&never, NULL, &limit) < 0 && errno == EAGAIN);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double took = (double)(end.tv_sec - begin.tv_sec) + (double)(end.tv_nsec - begin.tv_nsec) * 1e-9;
    CHECK(took > 0.0999 && took < 1.5);
  }
  return unused;
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? strtol(argv[1], NULL, 0) : 100;
  first = pthread_self();
  CHECK(pipe(slow) == 0 && pipe(often) == 0 && pipe(deaf) == 0);
  struct sigaction tick = {.sa_handler = on_tick, .sa_flags = SA_RESTART}, knocked = {.sa_handler = on_knock};
  sigaction(SIGALRM, &tick, NULL);
  sigaction(SIGUSR1, &knocked, NULL);
  sigset_t all, old, no_knock;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &old);
  void *(*const bodies[])(void *) = {feed, knock, wait_deaf, feed_deaf, wait_in_vain};
  pthread_t threads[5];
  for (int i = 0; i < 5; i++)
    CHECK(pthread_create(&threads[i], NULL, bodies[i], NULL) == 0);
  pthread_sigmask(SIG_SETMASK, &old, NULL);
  sigemptyset(&no_knock);
  sigaddset(&no_knock, SIGUSR1);
  struct itimerval every = {{0, 1000}, {0, 1000}};
  CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
  long cut = 0, polls_cut = 0;
  for (long r = 0; r < rounds; r++) {
    char byte;
    pthread_sigmask(SIG_BLOCK, &no_knock, NULL);
    CHECK(read(slow[0], &byte, 1) == 1); /* whatever ticks come */
    struct pollfd p = {slow[0], POLLIN, 0};
    if (poll(&p, 1, 20000) < 0) { /* which SA_RESTART is not for */
      CHECK(errno == EINTR);
      polls_cut++;
    }
    pthread_sigmask(SIG_UNBLOCK, &no_knock, NULL);
    sig_atomic_t before = knocks;
    ssize_t n = read(often[0], &byte, 1);
    if (n < 0) {
      CHECK(errno == EINTR && knocks > before);
      cut++;
    }
  }
  over = 1;
  for (int i = 0; i < 5; i++)
    CHECK(pthread_join(threads[i], NULL) == 0);
  printf("answer ticks %d polls cut %d reads cut %d\n", ticks > rounds, polls_cut > rounds / 4,
         cut > rounds / 8);
  return 0;
}
