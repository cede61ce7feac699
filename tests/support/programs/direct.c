/* Functions of libc that an enclave image answers without a trap: results, errno, cancellation, clocks,
 * and a program's own function of such a name.
 * usage: direct ROUNDS */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      printf("failed: line %d, errno %d\n", __LINE__, errno);                                                \
      exit(1);                                                                                               \
    }                                                                                                        \
  } while (0)

static int file, tube[2];
static volatile sig_atomic_t alarms;

int sched_yield(void) { /* the program's own */
  return 77;
}

static long ns_now(int raw) {
  struct timespec t;
  CHECK((raw ? syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &t) : clock_gettime(CLOCK_MONOTONIC, &t)) == 0);
  CHECK(t.tv_nsec >= 0 && t.tv_nsec < 1000000000);
  return t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Interrupts a clock's reading wherever it is, and reads clocks itself. */
static void on_alarm(int sig) {
  (void)sig;
  ns_now(0);
  alarms++;
}

static void *reads_for_ever(void *unused) {
  char byte;
  for (;;)
    CHECK(pread(file, &byte, 1, 0) == 1); /* where it can be cancelled */
  return unused;
}

static void *waits_for_ever(void *unused) {
  char byte;
  CHECK(read(tube[0], &byte, 1) == 1);
  return unused;
}

static void cancel(void *(*run)(void *)) {
  pthread_t thread;
  void *result;
  CHECK(pthread_create(&thread, NULL, run, NULL) == 0);
  struct timespec nap = {0, 1000000};
  nanosleep(&nap, NULL);
  CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? strtol(argv[1], NULL, 10) : 1;
  char text[16] = {0};
  struct stat st;
  file = open("direct.tmp", O_RDWR | O_CREAT | O_TRUNC, 0600);
  CHECK(file >= 0 && pipe(tube) == 0 && sched_yield() == 77 && getpid() > 1);
  struct sigaction action = {.sa_handler = on_alarm};
  struct itimerval often = {{0, 1500}, {0, 1500}};
  CHECK(sigaction(SIGALRM, &action, NULL) == 0);
  long last = 0;
  for (long r = 0; r < rounds; r++) {
    CHECK(write(file, "0123456789", 10) == 10 && lseek(file, 0, SEEK_CUR) == 10 * (r + 1));
    CHECK(pwrite(file, "x", 1, 10 * r) == 1 && pread(file, text, 10, 10 * r) == 10);
    CHECK(!strcmp(text, "x123456789") && fstat(file, &st) == 0 && st.st_size == 10 * (r + 1));
    CHECK(pread(-1, text, 1, 0) == -1 && errno == EBADF && write(999, text, 1) == -1 && errno == EBADF);
    CHECK(lseek(tube[0], 0, SEEK_CUR) == -1 && errno == ESPIPE && fstat(2000, &st) == -1 && errno == EBADF);
    CHECK(read(file, NULL, 0) == 0 && pread(file, (void *)8, 1, 0) == -1 && errno == EFAULT);
    CHECK(clock_gettime(99, &(struct timespec){0}) == -1 && errno == EINVAL);
    if (r % 20 == 0) {
      cancel(reads_for_ever);
      cancel(waits_for_ever);
    }
    int before = alarms;
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (int i = 0; i < 5000 || alarms == before; i++) { /* a fast machine reads clocks faster than that */
      long now = ns_now(i % 50 == 0);
      CHECK(now >= last);
      last = now;
    }
    CHECK(setitimer(ITIMER_REAL, &(struct itimerval){0}, NULL) == 0);
  }
  printf("answer size %ld\n", (long)st.st_size);
  return alarms ? 0 : 3;
}
