/* Pipes, socket pairs, eventfds, epoll, timerfds and signalfds among threads, all of them usually with
 * something in them. Each pair of threads checks that nothing is lost, doubled, cut or reordered.
 * usage: descriptors ROUNDS; prints sums that do not depend on the schedule. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LARGEST 200000
#define MESSAGE 3000

static unsigned long rounds;

#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      printf("failed: line %d, errno %d\n", __LINE__, errno);                                                \
      exit(1);                                                                                               \
    }                                                                                                        \
  } while (0)

static uint64_t next(uint64_t *x) {
  *x ^= *x << 13;
  *x ^= *x >> 7;
  *x ^= *x << 17;
  return *x;
}

static uint64_t hash(uint64_t h, const unsigned char *p, size_t n) {
  while (n--)
    h = (h ^ *p++) * 1099511628211u;
  return h;
}

static void nap(void) {
  struct timespec t = {0, 1000000};
  nanosleep(&t, NULL);
}

static void start(pthread_t *t, void *(*run)(void *), void *with) {
  CHECK(pthread_create(t, NULL, run, with) == 0);
}

/* ---- a pipe: blocking writes larger than it, which must come back whole ---- */

static int tube[2];

static void *pipe_writer(void *unused) {
  unsigned char *data = malloc(LARGEST);
  uint64_t x = 7, h = 1469598103934665603u;
  for (unsigned long r = 0; r < rounds; r++) {
    size_t n = next(&x) % LARGEST + 1;
    for (size_t i = 0; i < n; i++)
      data[i] = (unsigned char)(i * 31 + r);
    h = hash(h, data, n);
    CHECK(write(tube[1], data, n) == (ssize_t)n);
    if (r % 8 == 0)
      nap();
  }
  close(tube[1]);
  free(data);
  (void)unused;
  return (void *)h;
}

static void *pipe_reader(void *unused) {
  unsigned char data[7001];
  uint64_t h = 1469598103934665603u, x = 9;
  for (;;) {
    ssize_t n = read(tube[0], data, next(&x) % sizeof data + 1);
    CHECK(n >= 0);
    if (n == 0)
      break;
    h = hash(h, data, (size_t)n);
  }
  (void)unused;
  return (void *)h;
}

/* ---- a stream: vectors there, whole answers back ---- */

static int stream[2];

static void *echo(void *unused) {
  unsigned char data[5000];
  for (;;) {
    ssize_t n = recv(stream[1], data, sizeof data, 0);
    CHECK(n >= 0);
    if (n == 0)
      return unused;
    for (ssize_t i = 0; i < n; i++)
      data[i] ^= 0x55;
    CHECK(send(stream[1], data, (size_t)n, MSG_NOSIGNAL) == n);
  }
}

static void *stream_back(void *unused) {
  unsigned char *data = malloc(60000);
  uint64_t h = 1;
  for (unsigned long r = 0; r < rounds; r++) {
    CHECK(recv(stream[0], data, 60000, MSG_WAITALL) == 60000);
    h = hash(h, data, 60000);
  }
  free(data);
  (void)unused;
  return (void *)h;
}

static void stream_out(void) {
  unsigned char *data = malloc(60000);
  for (unsigned long r = 0; r < rounds; r++) {
    for (int i = 0; i < 60000; i++)
      data[i] = (unsigned char)(i * 7 + r);
    struct iovec v[3] = {{data, 1000}, {data + 1000, 1}, {data + 1001, 58999}};
    CHECK(writev(stream[0], v, 3) == 60000);
  }
  free(data);
}

/* ---- messages: nothing merged, nothing cut; the receiver does not block, it polls or selects ---- */

static int letters[2];

static void *letter_writer(void *unused) {
  unsigned char data[MESSAGE];
  uint64_t x = 3;
  for (unsigned long r = 0; r < rounds * 4; r++) {
    size_t n = next(&x) % MESSAGE + 1;
    memset(data, (int)r, n);
    CHECK(send(letters[1], data, n, 0) == (ssize_t)n);
    if (r % 32 == 0)
      nap();
  }
  CHECK(shutdown(letters[1], SHUT_WR) == 0);
  return unused;
}

static void *letter_reader(void *unused) {
  unsigned char data[MESSAGE + 1];
  uint64_t x = 3, sum = 0;
  for (unsigned long r = 0; r < rounds * 4;) {
    ssize_t n = recv(letters[0], data, sizeof data, 0);
    if (n < 0) {
      CHECK(errno == EAGAIN);
      if (r % 2) {
        struct pollfd p = {letters[0], POLLIN, 0};
        struct timespec limit = {20, 0};
        sigset_t all;
        sigfillset(&all); /* a program may block every signal while it waits */
        CHECK(ppoll(&p, 1, &limit, &all) == 1);
      } else {
        fd_set set;
        struct timeval limit = {20, 0};
        FD_ZERO(&set);
        FD_SET(letters[0], &set);
        CHECK(select(letters[0] + 1, &set, NULL, NULL, &limit) == 1);
      }
      continue;
    }
    CHECK((size_t)n == next(&x) % MESSAGE + 1 && data[0] == (unsigned char)r &&
          data[n - 1] == (unsigned char)r);
    sum += (uint64_t)n;
    r++;
  }
  struct pollfd end = {letters[0], POLLIN, 0};
  CHECK(poll(&end, 1, 20000) == 1 && recv(letters[0], data, sizeof data, 0) == 0);
  (void)unused;
  return (void *)sum;
}

/* ---- a semaphore ---- */

static int semaphore;

static void *poster(void *unused) {
  for (unsigned long r = 0; r < rounds; r++) {
    uint64_t n = 1 + r % 5;
    CHECK(write(semaphore, &n, 8) == 8);
    if (r % 8 == 0)
      nap();
  }
  return unused;
}

static void *taker(void *unused) {
  unsigned long wanted = 0;
  for (unsigned long r = 0; r < rounds; r++)
    wanted += 1 + r % 5;
  for (unsigned long i = 0; i < wanted; i++) {
    uint64_t one;
    CHECK(read(semaphore, &one, 8) == 8 && one == 1);
  }
  (void)unused;
  return (void *)wanted;
}

/* ---- one epoll loop over everything else, and a second one nested in it ---- */

static int counter, timer, one_shot[2], edges[2], signals;

static void *feeder(void *unused) {
  for (unsigned long r = 0; r < rounds; r++) {
    uint64_t n = r + 1;
    unsigned char byte = (unsigned char)r;
    CHECK(write(counter, &n, 8) == 8);
    CHECK(write(one_shot[1], &byte, 1) == 1);
    CHECK(send(edges[1], &n, 8, 0) == 8);
    if (r % 16 == 0)
      CHECK(kill(getpid(), SIGUSR2) == 0);
    if (r % 2 == 0)
      nap();
  }
  return unused;
}

static void watch(int loop, int op, int fd, uint32_t events, uint64_t data) {
  struct epoll_event e = {events, {.u64 = data}};
  CHECK(epoll_ctl(loop, op, fd, &e) == 0);
}

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void loop_over(uint64_t *sums) {
  int loop = epoll_create1(EPOLL_CLOEXEC), inner = epoll_create1(0), kept = dup(edges[0]);
  CHECK(loop >= 0 && inner >= 0 && kept >= 0);
  watch(inner, EPOLL_CTL_ADD, counter, EPOLLIN, 0xfeedfacecafe0001u);
  watch(loop, EPOLL_CTL_ADD, inner, EPOLLIN, 2);
  watch(loop, EPOLL_CTL_ADD, timer, EPOLLIN, 3);
  watch(loop, EPOLL_CTL_ADD, one_shot[0], EPOLLIN | EPOLLONESHOT, 0xfeedfacecafe0004u);
  watch(loop, EPOLL_CTL_ADD, edges[0], EPOLLIN | EPOLLET, 5);
  watch(loop, EPOLL_CTL_ADD, signals, EPOLLIN, 6);
  close(edges[0]); /* its registration lives on with the duplicate */
  struct itimerspec every = {{0, 2000000}, {0, 2000000}};
  double began = now();
  CHECK(timerfd_settime(timer, 0, &every, NULL) == 0);
  uint64_t total = rounds * (rounds + 1) / 2, ticks = 0, heard = 0;
  clock_t used = 0;
  while (sums[0] < total || sums[1] < rounds || sums[2] < total || !heard) {
    struct epoll_event events[4], e;
    int n = epoll_wait(loop, events, 4, 20000);
    CHECK(n > 0);
    clock_t before = used;
    used = clock(); /* the process's, while other threads come back from a park */
    CHECK(used >= before);
    for (int i = 0; i < n; i++) {
      uint64_t value = 0;
      unsigned char byte;
      struct signalfd_siginfo info;
      switch (events[i].data.u64) {
      case 2:
        if (epoll_wait(inner, &e, 1, 0) == 1) {
          CHECK(e.data.u64 == 0xfeedfacecafe0001u);
          CHECK(read(counter, &value, 8) == 8);
          sums[0] += value;
        }
        break;
      case 3:
        CHECK(read(timer, &value, 8) == 8 && value > 0);
        ticks += value;
        break;
      case 0xfeedfacecafe0004u:
        CHECK(read(one_shot[0], &byte, 1) == 1 && byte == (unsigned char)sums[1]);
        sums[1]++;
        if (sums[1] % 7 == 0) { /* disabled: it must not be told of, however much comes */
          struct pollfd p = {loop, POLLIN, 0};
          poll(&p, 1, 1);
        }
        watch(loop, EPOLL_CTL_MOD, one_shot[0], EPOLLIN | EPOLLONESHOT, 0xfeedfacecafe0004u);
        break;
      case 5:
        while (recv(kept, &value, 8, MSG_DONTWAIT) == 8)
          sums[2] += value;
        CHECK(errno == EAGAIN);
        break;
      case 6:
        CHECK(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR2);
        heard++;
        break;
      default: CHECK(!"an event that nobody asked for");
      }
    }
  }
  double could = (now() - began) / 0.002;
  if ((double)ticks > could + 1 || (double)ticks < could - 50 - could / 10) {
    printf("failed: %lu expirations, %.1f intervals\n", (unsigned long)ticks, could);
    exit(1);
  }
  struct itimerspec absolute = {{0, 0}, {0, 0}};
  clock_gettime(CLOCK_MONOTONIC, &absolute.it_value);
  absolute.it_value.tv_sec++;
  CHECK(timerfd_settime(timer, TFD_TIMER_ABSTIME, &absolute, NULL) == 0);
  uint64_t once;
  double before = now();
  CHECK(read(timer, &once, 8) == 8 && once == 1 && now() - before > 0.8 && now() - before < 15);
}

int main(int argc, char **argv) {
  if (argc != 2)
    return 2;
  rounds = strtoul(argv[1], NULL, 10);
  sigset_t usr2;
  sigemptyset(&usr2);
  sigaddset(&usr2, SIGUSR2);
  CHECK(pthread_sigmask(SIG_BLOCK, &usr2, NULL) == 0);
  CHECK(pipe(tube) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, stream) == 0);
  CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, letters) == 0 && fcntl(letters[0], F_SETFL, O_NONBLOCK) == 0);
  CHECK(pipe2(one_shot, O_CLOEXEC) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, edges) == 0);
  semaphore = eventfd(0, EFD_SEMAPHORE);
  counter = eventfd(0, EFD_NONBLOCK);
  timer = timerfd_create(CLOCK_MONOTONIC, 0);
  signals = signalfd(-1, &usr2, 0);
  CHECK(semaphore >= 0 && counter >= 0 && timer >= 0 && signals >= 0);
  pthread_t writer, reader, echoer, back, sender, receiver, post, take, feed;
  start(&writer, pipe_writer, NULL);
  start(&reader, pipe_reader, NULL);
  start(&echoer, echo, NULL);
  start(&back, stream_back, NULL);
  start(&sender, letter_writer, NULL);
  start(&receiver, letter_reader, NULL);
  start(&post, poster, NULL);
  start(&take, taker, NULL);
  start(&feed, feeder, NULL);
  uint64_t sums[3] = {0, 0, 0};
  loop_over(sums);
  stream_out();
  CHECK(shutdown(stream[0], SHUT_WR) == 0);
  void *wrote, *read_back, *streamed, *lengths, *taken;
  pthread_join(writer, &wrote);
  pthread_join(reader, &read_back);
  pthread_join(back, &streamed);
  pthread_join(echoer, NULL);
  pthread_join(sender, NULL);
  pthread_join(receiver, &lengths);
  pthread_join(post, NULL);
  pthread_join(take, &taken);
  pthread_join(feed, NULL);
  CHECK(wrote == read_back);
  printf("answer pipe %lx stream %lx letters %lu taken %lu sums %lu %lu %lu\n", (unsigned long)read_back,
         (unsigned long)streamed, (unsigned long)lengths, (unsigned long)taken, sums[0], sums[1], sums[2]);
  return 0;
}
