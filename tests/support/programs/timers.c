/* Timers that must go on across a move, whichever instant it catches them at: due and not told yet,
 * told and not read yet, or with their signal blocked.
 *
 * They are armed on one processor and due together, so that its interrupt takes long, and the program
 * runs on another: it is often stopped while some of them are due and their interrupt is still to come.
 * usage: timers SECONDS; ends with how many of each still go. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define PERIODIC 200
#define ONCE 200
#define IDLE 3 /* spent, disarmed, and disarmed with an interval: none may ever come */
#define PERIOD_NS 5000000
#define ALL (PERIODIC + ONCE + IDLE)
#define CHECK(x)                                                                                             \
  do                                                                                                         \
    if (!(x)) {                                                                                              \
      printf("failed: %s, line %d\n", #x, __LINE__);                                                         \
      exit(1);                                                                                               \
    }                                                                                                        \
  while (0)

static int timers[ALL];
static volatile sig_atomic_t alarms;

static void on_alarm(int s) {
  (void)s;
  alarms++;
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double due; /* of all that are armed */

static void arm(int i, double at, long interval_ns) {
  struct itimerspec t = {{0, interval_ns}, {(time_t)at, (long)((at - (double)(time_t)at) * 1e9)}};
  CHECK(timerfd_settime(timers[i], TFD_TIMER_ABSTIME, &t, NULL) == 0);
}

static void run_on(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  sched_setaffinity(0, sizeof set, &set); /* where there is one alone, any will do */
}

static void start(int loop) {
  for (int i = 0; i < ALL; i++) {
    timers[i] = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event e = {EPOLLIN, {.u32 = (uint32_t)i}};
    CHECK(timers[i] >= 0 && epoll_ctl(loop, EPOLL_CTL_ADD, timers[i], &e) == 0);
  }
  due = now() + PERIOD_NS * 1e-9;
  for (int i = 0; i < PERIODIC + ONCE; i++)
    arm(i, due, i < PERIODIC ? PERIOD_NS : 0);
  int spent = PERIODIC + ONCE;
  uint64_t once;
  arm(spent, 1.0, 0);
  while (read(timers[spent], &once, 8) != 8)
    continue;
  arm(spent + 1, now() + 1000.0, 0);
  arm(spent + 1, 0.0, 0);
  arm(spent + 2, 0.0, PERIOD_NS);
}

static void turn(int loop, int *came) {
  struct epoll_event events[ALL];
  run_on(1);
  while (now() < due)
    continue;
  run_on(0);
  while (due < now())
    due += PERIOD_NS * 1e-9;
  int n = epoll_wait(loop, events, ALL, 1);
  for (int k = 0; k < n; k++) {
    int i = (int)events[k].data.u32;
    uint64_t value;
    CHECK(i < PERIODIC + ONCE);
    if (read(timers[i], &value, 8) != 8)
      continue;
    CHECK(i < PERIODIC || value == 1);
    came[i]++;
    if (i >= PERIODIC)
      arm(i, due, 0);
  }
}

int main(int argc, char **argv) {
  double seconds = argc > 1 ? strtod(argv[1], NULL) : 1.0;
  static int came[ALL], before[ALL];
  int loop = epoll_create1(0);
  CHECK(loop >= 0);
  start(loop);
  sigset_t block;
  sigemptyset(&block);
  sigaddset(&block, SIGALRM);
  signal(SIGALRM, on_alarm);
  struct itimerval often = {{0, 1000}, {0, 1000}};
  CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
  for (double end = now() + seconds; now() < end;) {
    sigprocmask(SIG_BLOCK, &block, NULL); /* nearly always pending */
    for (int i = 0; i < 5; i++)
      turn(loop, came);
    sigprocmask(SIG_UNBLOCK, &block, NULL);
  }
  sig_atomic_t alarms_before = alarms;
  for (int i = 0; i < ALL; i++)
    before[i] = came[i];
  for (double end = now() + 1.0; now() < end;)
    turn(loop, came);
  int periodic = 0, once = 0;
  for (int i = 0; i < PERIODIC + ONCE; i++)
    *(i < PERIODIC ? &periodic : &once) += came[i] - before[i] > 1;
  printf("answer periodic %d once %d alarms %s\n", periodic, once,
         alarms - alarms_before > 1 ? "go on" : "ended");
  return 0;
}
