/* What a program sees of the world around it, again and again: a directory in mid-listing, a file that
 * was removed while open, /proc and /sys, processors, clocks, randomness, names, mapped files.
 * usage: world ROUNDS; prints what does not depend on the host. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/times.h>
#include <time.h>
#include <unistd.h>

#define FILES 700
#define DRAWS 100000

#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      printf("failed: line %d, errno %d\n", __LINE__, errno);                                                \
      exit(1);                                                                                               \
    }                                                                                                        \
  } while (0)

static void nap(long ns) {
  struct timespec t = {0, ns};
  nanosleep(&t, NULL);
}

/* Every name once, however often it moves in between; relative opens by the directory's descriptor. */
static unsigned long list(DIR *dir) {
  unsigned char seen[FILES] = {0};
  unsigned long sum = 0;
  struct dirent *e;
  rewinddir(dir);
  for (int n = 0; (e = readdir(dir)); n++) {
    if (e->d_name[0] == '.') {
      CHECK(!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")); /* no hidden names */
      continue;
    }
    int number = atoi(e->d_name + 1);
    CHECK(number >= 0 && number < FILES && !seen[number]++);
    if (n % 50 == 0) {
      int fd = openat(dirfd(dir), e->d_name, O_RDONLY);
      char byte = 0;
      CHECK(fd >= 0 && read(fd, &byte, 1) == 1 && byte == (char)number);
      close(fd);
      nap(1000000);
    }
    sum += (unsigned long)number + 1;
  }
  return sum;
}

static void read_whole(const char *path, char *to, size_t bytes) {
  int fd = open(path, O_RDONLY);
  CHECK(fd >= 0);
  size_t n = 0;
  ssize_t r;
  while ((r = read(fd, to + n, bytes - 1 - n)) > 0)
    n += (size_t)r;
  CHECK(r == 0 && n > 0);
  to[n] = 0;
  close(fd);
}

static void look_around(void *inside) {
  static char text[1 << 20];
  read_whole("/proc/self/maps", text, sizeof text);
  int found = 0;
  for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
    unsigned long start, end;
    CHECK(sscanf(line, "%lx-%lx ", &start, &end) == 2);
    found += (unsigned long)inside >= start && (unsigned long)inside < end;
  }
  CHECK(found == 1);
  read_whole("/proc/cpuinfo", text, sizeof text);
  CHECK(strstr(text, "processor"));
  read_whole("/proc/meminfo", text, sizeof text);
  CHECK(strstr(text, "MemTotal"));
  read_whole("/sys/devices/system/cpu/online", text, sizeof text);
  read_whole("/proc/self/status", text, sizeof text);
  read_whole("/proc/self/cmdline", text, sizeof text);
  char exe[256];
  CHECK(readlink("/proc/self/exe", exe, sizeof exe) > 0 && exe[0] == '/');
  CHECK(open("/proc/self/mem", O_RDWR) < 0 || getpid() != 2);
  close(0); /* the lowest number is as good as any */
  CHECK(open("/proc/meminfo", O_RDONLY) == 0 && read(0, text, 8) == 8 && !memcmp(text, "MemTotal", 8));
}

static uint64_t us_of(const struct timeval *t) {
  return (uint64_t)t->tv_sec * 1000000 + (uint64_t)t->tv_usec;
}

static uint64_t ns_of(clockid_t id) {
  struct timespec t;
  CHECK(clock_gettime(id, &t) == 0);
  return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/* No clock of processor time, and no count of ticks, steps back. */
static void look_at_clocks(void) {
  static uint64_t last[6];
  struct rusage usage;
  struct tms tms;
  clockid_t mine;
  CHECK(getrusage(RUSAGE_SELF, &usage) == 0 && pthread_getcpuclockid(pthread_self(), &mine) == 0);
  clock_t ticks = times(&tms);
  uint64_t now[6] = {us_of(&usage.ru_utime),         (uint64_t)ticks,
                     (uint64_t)tms.tms_utime,        ns_of(CLOCK_PROCESS_CPUTIME_ID),
                     ns_of(CLOCK_THREAD_CPUTIME_ID), ns_of(mine)};
  for (int i = 0; i < 6; i++) {
    if (now[i] < last[i])
      printf("failed: clock %d stepped back from %lu to %lu\n", i, (unsigned long)last[i],
             (unsigned long)now[i]);
    CHECK(now[i] >= last[i]);
    last[i] = now[i];
  }
}

static int by_value(const void *a, const void *b) {
  return memcmp(a, b, 16);
}

static void *named(void *dir) {
  char name[16];
  CHECK(prctl(PR_SET_NAME, "world-thread") == 0);
  while (access("done", F_OK)) {
    CHECK(prctl(PR_GET_NAME, name) == 0 && !strcmp(name, "world-thread"));
    uint64_t before = ns_of(CLOCK_MONOTONIC), began = before;
    for (int i = 0; i < 20000; i++) { /* at whatever instruction it is moved */
      uint64_t now = ns_of(CLOCK_MONOTONIC);
      CHECK(now >= before && now - began < 60000000000u);
      before = now;
    }
    nap(3000000);
  }
  return dir;
}

int main(int argc, char **argv) {
  if (argc != 2)
    return 2;
  unsigned long rounds = strtoul(argv[1], NULL, 10), draws = 0, listed = 0;
  CHECK(mkdir("many", 0700) == 0);
  for (int i = 0; i < FILES; i++) {
    char path[64];
    snprintf(path, sizeof path, "many/f%d", i);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL, 0600);
    char byte = (char)i;
    CHECK(fd >= 0 && write(fd, &byte, 1) == 1 && close(fd) == 0);
  }
  int removed = open("removed", O_RDWR | O_CREAT, 0600), twice = dup(removed);
  CHECK(removed >= 0 && write(removed, "still here", 10) == 10 && unlink("removed") == 0);
  CHECK(access("removed", F_OK) < 0);
  int data = open("data", O_RDWR | O_CREAT, 0600);
  CHECK(data >= 0 && ftruncate(data, 5000) == 0 && pwrite(data, "mapped", 6, 4994) == 6);
  unsigned char *private = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_POPULATE, data, 0);
  unsigned char *shared = mmap(NULL, 904, PROT_READ, MAP_SHARED, data, 4096);
  CHECK(private != MAP_FAILED && shared != MAP_FAILED);
  CHECK(!memcmp(private + 4994, "mapped", 6) && !memcmp(shared + 898, "mapped", 6));
  CHECK(private[5000] == 0 && private[8191] == 0 && shared[904] == 0);
  CHECK(mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, data, 100) == MAP_FAILED && errno == EINVAL);
  cpu_set_t wanted, seen;
  CHECK(sched_getaffinity(0, sizeof wanted, &wanted) == 0);
  int first = 0;
  while (!CPU_ISSET(first, &wanted))
    first++;
  CPU_ZERO(&wanted);
  CPU_SET(first, &wanted);
  CHECK(sched_setaffinity(0, sizeof wanted, &wanted) == 0);
  int held = open("/proc/cpuinfo", O_RDONLY);
  char before[64], again[64];
  CHECK(held >= 0 && read(held, before, sizeof before) == sizeof before);
  pthread_t other;
  CHECK(pthread_create(&other, NULL, named, NULL) == 0);
  unsigned char *random = malloc(16ul * DRAWS);
  DIR *dir = opendir("many");
  CHECK(dir && random);
  for (unsigned long r = 0; r < rounds; r++) {
    listed = list(dir);
    look_around(random);
    look_at_clocks();
    for (int i = 0; i < 50 && draws < DRAWS; i++, draws++)
      CHECK(getrandom(random + 16 * draws, 16, 0) == 16);
    CHECK(sched_getaffinity(0, sizeof seen, &seen) == 0 && CPU_EQUAL(&seen, &wanted));
    CHECK(lseek(held, 0, SEEK_SET) == 0 && read(held, again, sizeof again) == sizeof again);
    CHECK(!memcmp(before, again, sizeof again));
    CHECK(!memcmp(private + 4994, "mapped", 6) && !memcmp(shared + 898, "mapped", 6));
  }
  close(open("done", O_CREAT | O_WRONLY, 0600));
  pthread_join(other, NULL);
  qsort(random, draws, 16, by_value);
  for (unsigned long i = 1; i < draws; i++)
    CHECK(memcmp(random + 16 * i, random + 16 * (i - 1), 16));
  char kept[11] = {0};
  CHECK(pread(twice, kept, 10, 0) == 10);
  printf("answer listed %lu draws %lu kept %s\n", listed, draws, kept);
  return 0;
}
