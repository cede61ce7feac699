/* Maps much memory, touches little of it, gives it back, and again, until it is stopped.
 * usage: untouched MIB */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static char held[16 << 20];

int main(int argc, char **argv) {
  size_t bytes = (size_t)(argc > 1 ? atoi(argv[1]) : 64) << 20;
  memset(held, argc, sizeof held);
  puts("filled");
  fflush(stdout);
  for (size_t i = 0;; i++) {
    char *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED)
      return 1;
    at[bytes / 2] = at[bytes - 1] = held[i % sizeof held];
    munmap(at, bytes);
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
  }
}
