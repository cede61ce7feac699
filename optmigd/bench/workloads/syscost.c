/* What one system call costs, in nanoseconds, for a few that programs make often.
 * usage: syscost CALLS; prints one line a call. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

#define COST(name, code)                                                                                     \
  do {                                                                                                       \
    double begin = now();                                                                                    \
    for (long i = 0; i < calls; i++) {                                                                       \
      code;                                                                                                  \
    }                                                                                                        \
    printf("%s %.1f\n", name, (now() - begin) / (double)calls);                                              \
  } while (0)

int main(int argc, char **argv) {
  long calls = argc > 1 ? strtol(argv[1], NULL, 0) : 100000;
  struct timespec t;
  struct stat st;
  char byte[4096] = {0};
  int fd = open("syscost.tmp", O_RDWR | O_CREAT | O_TRUNC, 0600);
  if (fd < 0 || write(fd, byte, sizeof byte) != sizeof byte)
    return 1;
  COST("getppid", syscall(SYS_getppid));
  COST("clock_gettime", clock_gettime(CLOCK_MONOTONIC, &t));
  COST("pread64 1 B", if (pread(fd, byte, 1, 0) != 1) return 2);
  COST("pread64 4 KiB", if (pread(fd, byte, 4096, 0) != 4096) return 2);
  COST("pwrite64 4 KiB", if (pwrite(fd, byte, 4096, 0) != 4096) return 2);
  COST("fstat", if (fstat(fd, &st)) return 2);
  COST("stat", if (stat("syscost.tmp", &st)) return 2);
  COST("open+close", int f = open("syscost.tmp", O_RDONLY); if (f < 0 || close(f)) return 2);
  COST("mmap+munmap 64 KiB", void *p = mmap(NULL, 65536, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
       if (p == MAP_FAILED || munmap(p, 65536)) return 2);
  unlink("syscost.tmp");
  return 0;
}
