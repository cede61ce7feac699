/* The random writer: a working set of incompressible pages, of which it rewrites random ones at a
 * given rate. Every second it reports the longest pause between two batches as it saw it, so a
 * migration's downtime is measured by the one who suffers it.
 *
 * usage: writer WORKING_SET_MIB RATE_MB_S SECONDS
 * The number of writes is fixed by the arguments, so the answer does not depend on time. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { PAGE = 4096, WORDS = PAGE / 8, BATCHES_PER_S = 1000 };

static uint64_t state = 88172645463325252ULL;

static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

static void write_page(uint64_t *page, uint64_t seed) {
  uint64_t x = seed | 1;
  for (int i = 0; i < WORDS; i++) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    page[i] = x;
  }
}

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int main(int argc, char **argv) {
  uint64_t pages = (argc > 1 ? strtoull(argv[1], NULL, 0) : 256) << 8;
  uint64_t rate = argc > 2 ? strtoull(argv[2], NULL, 0) : 200;
  uint64_t seconds = argc > 3 ? strtoull(argv[3], NULL, 0) : 10;
  uint64_t *memory = malloc(pages * PAGE);
  if (!memory)
    return 1;
  for (uint64_t p = 0; p < pages; p++)
    write_page(memory + p * WORDS, next());
  printf("filled %llu MiB\n", (unsigned long long)pages >> 8);
  fflush(stdout);
  uint64_t total = rate * 1000000 / PAGE * seconds, written = 0;
  uint64_t per_batch = rate * 1000000 / PAGE / BATCHES_PER_S;
  if (rate && !per_batch)
    per_batch = 1;
  int64_t begin = now_ns(), last = begin, longest = 0;
  for (int64_t batch = 0; rate ? written < total : batch < (int64_t)seconds * BATCHES_PER_S; batch++) {
    for (uint64_t i = 0; i < per_batch && written < total; i++, written++) {
      uint64_t at = next() % pages;
      write_page(memory + at * WORDS, memory[at * WORDS] + written);
    }
    int64_t due = begin + (batch + 1) * (1000000000 / BATCHES_PER_S), now = now_ns();
    if (now - last > longest)
      longest = now - last;
    last = now;
    if ((batch + 1) % BATCHES_PER_S == 0) {
      printf("longest pause %.3f ms in the second up to %.1f s\n", (double)longest * 1e-6,
             (double)(now - begin) * 1e-9);
      fflush(stdout);
      longest = 0;
    }
    if (due > now) {
      struct timespec until = {due / 1000000000, due % 1000000000};
      clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
  }
  double took = (double)(now_ns() - begin) * 1e-9;
  uint64_t digest = 0;
  for (uint64_t i = 0; i < pages * WORDS; i++)
    digest = digest * 31 + memory[i];
  printf("wrote %llu pages in %.2f s\n", (unsigned long long)written, took);
  printf("answer: digest %016llx\n", (unsigned long long)digest);
  return 0;
}
