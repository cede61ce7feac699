/* Signals a program sends itself, timers, sleeps, non-local jumps, and clocks that must not step back.
 * usage: signals ROUNDS; prints only what does not depend on time. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t alarms, users;
static sigjmp_buf back;

static void on_alarm(int s) {
  (void)s;
  alarms++;
}
static void on_user(int s, siginfo_t *info, void *context) {
  (void)context;
  if (info->si_signo == s)
    users++;
}
static void on_jump(int s) {
  (void)s;
  siglongjmp(back, 1);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? strtol(argv[1], NULL, 0) : 20;
  signal(SIGALRM, on_alarm);
  signal(SIGUSR2, on_jump);
  struct sigaction act = {.sa_sigaction = on_user, .sa_flags = SA_SIGINFO};
  sigaction(SIGUSR1, &act, NULL);
  long jumps = 0, early = 0, backwards = 0, interrupted = 0;
  double last = now();
  for (long i = 0; i < rounds; i++) {
    struct itimerval in = {{0, 0}, {0, 30000}};
    double begin = now();
    sigset_t block, old;
    sigemptyset(&block);
    sigaddset(&block, SIGALRM);
    sigprocmask(SIG_BLOCK, &block, &old);
    long before = alarms;
    setitimer(ITIMER_REAL, &in, NULL);
    sigdelset(&old, SIGALRM);
    while (alarms == before)
      sigsuspend(&old);
    sigprocmask(SIG_SETMASK, &old, NULL);
    if (now() - begin < 0.0299)
      early++;
    begin = now();
    struct timespec nap = {0, 20000000}, left;
    while (nanosleep(&nap, &left) && errno == EINTR) {
      interrupted++;
      nap = left;
    }
    if (now() - begin < 0.02)
      early++;
    raise(SIGUSR1);
    if (!sigsetjmp(back, 1))
      raise(SIGUSR2);
    else
      jumps++;
    for (int k = 0; k < 200; k++) {
      double t = now();
      if (t < last)
        backwards++;
      last = t;
    }
    sigprocmask(SIG_BLOCK, &block, NULL);
    raise(SIGALRM); /* stays pending over the sleep */
    nap = (struct timespec){0, 5000000};
    nanosleep(&nap, NULL);
    sigset_t pending;
    sigpending(&pending);
    if (!sigismember(&pending, SIGALRM))
      early += 1000;
    sigprocmask(SIG_UNBLOCK, &block, NULL);
  }
  printf("answer alarms %d users %d jumps %ld early %ld backwards %ld interrupted %ld\n", (int)alarms,
         (int)users, jumps, early, backwards, interrupted);
  fflush(stdout);
  if (argc > 2 && strcmp(argv[2], "abort") == 0)
    abort();
  return 3;
}
