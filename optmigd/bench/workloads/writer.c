/* The random writer: a working set of which it rewrites random pages at a given rate. It records the
 * longest pause between two batches as it saw it, and how many pages it wrote, so a migration's
 * downtime and what it costs are measured by the one who suffers them.
 *
 * usage: writer WORKING_SET_MIB RATE_MB_S SECONDS [uniform|zipfian [random|half-zero [RECORD]]]
 *   RATE_MB_S   10^6 bytes of pages written a second; 0 writes nothing. A rate that the machine cannot
 *               keep is as fast as it can.
 *   uniform     every page is as likely as any other (default); zipfian: theta 0.99, scrambled
 *   random      incompressible pages (default); half-zero: every second page is zero, and stays so
 *               though it is written
 *   RECORD      a file that gets a line for every 100 ms: seconds since the first write, pages written in
 *               the interval, longest pause in it in milliseconds
 * The number of writes is fixed by the arguments, so the answer does not depend on time. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "zipfian.h"

enum { PAGE = 4096, WORDS = PAGE / 8, BATCHES_PER_S = 1000, BATCHES_PER_LINE = BATCHES_PER_S / 10 };
#define BATCH_NS (1000000000 / BATCHES_PER_S)

struct interval {
  uint64_t pages;
  int64_t longest_ns;
};

static uint64_t state = 88172645463325252ULL;
static bool half_zero;

static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

static void write_page(uint64_t *memory, uint64_t number, uint64_t seed) {
  uint64_t *page = memory + number * WORDS;
  if (half_zero && number & 1) {
    memset(page, 0, PAGE);
    return;
  }
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

static void take_up(struct interval *all, const struct interval *part) {
  all->pages += part->pages;
  if (part->longest_ns > all->longest_ns)
    all->longest_ns = part->longest_ns;
}

/* One of two words, or the first where none is given. */
static bool is_second(int argc, char **argv, int at, const char *first, const char *second) {
  if (argc <= at || !strcmp(argv[at], first))
    return false;
  if (!strcmp(argv[at], second))
    return true;
  fprintf(stderr, "writer: %s: expected %s or %s\n", argv[at], first, second);
  exit(2);
}

int main(int argc, char **argv) {
  uint64_t pages = (argc > 1 ? strtoull(argv[1], NULL, 0) : 256) << 8;
  uint64_t rate = argc > 2 ? strtoull(argv[2], NULL, 0) : 200;
  uint64_t seconds = argc > 3 ? strtoull(argv[3], NULL, 0) : 10;
  bool popular = is_second(argc, argv, 4, "uniform", "zipfian");
  half_zero = is_second(argc, argv, 5, "random", "half-zero");
  FILE *record = argc > 6 ? fopen(argv[6], "w") : NULL;
  if (argc > 6 && !record) {
    perror(argv[6]);
    return 1;
  }
  uint64_t *memory = aligned_alloc(PAGE, pages * PAGE);
  if (!memory || !pages) {
    fprintf(stderr, "writer: no memory for %llu MiB\n", (unsigned long long)pages >> 8);
    return 1;
  }
  struct zipfian zipf = popular ? zipfian_new(pages) : (struct zipfian){0};
  for (uint64_t p = 0; p < pages; p++)
    write_page(memory, p, next());
  printf("filled %llu MiB\n", (unsigned long long)pages >> 8);
  fflush(stdout);
  uint64_t total = rate * 1000000 / PAGE * seconds, written = 0;
  struct interval second = {0}, line = {0}, run = {0};
  int64_t begin = now_ns(), last = begin;
  for (int64_t batch = 1; rate ? written < total : batch <= (int64_t)seconds * BATCHES_PER_S; batch++) {
    struct interval done = {0};
    uint64_t target = rate * 1000000 / BATCHES_PER_S * (uint64_t)batch / PAGE;
    for (; written < target && written < total; done.pages++, written++) {
      uint64_t at = popular ? zipfian_scrambled(&zipf, next()) : next() % pages;
      write_page(memory, at, memory[at * WORDS] + written);
    }
    int64_t due = begin + batch * BATCH_NS, now = now_ns();
    done.longest_ns = now - last;
    last = now;
    take_up(&line, &done);
    if (record && batch % BATCHES_PER_LINE == 0) {
      fprintf(record, "%.3f %llu %.3f\n", (double)(now - begin) * 1e-9, (unsigned long long)line.pages,
              (double)line.longest_ns * 1e-6);
      fflush(record);
      line = (struct interval){0};
    }
    take_up(&second, &done);
    if (batch % BATCHES_PER_S == 0) {
      printf("longest pause %.3f ms in the second up to %.1f s, %llu pages written\n",
             (double)second.longest_ns * 1e-6, (double)(now - begin) * 1e-9,
             (unsigned long long)second.pages);
      fflush(stdout);
      take_up(&run, &second);
      second = (struct interval){0};
    }
    if (due > now) {
      struct timespec until = {due / 1000000000, due % 1000000000};
      clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
    }
  }
  take_up(&run, &second);
  double took = (double)(now_ns() - begin) * 1e-9;
  uint64_t digest = 0;
  for (uint64_t i = 0; i < pages * WORDS; i++)
    digest = digest * 31 + memory[i];
  printf("wrote %llu pages in %.2f s, longest pause of all %.3f ms\n", (unsigned long long)written, took,
         (double)run.longest_ns * 1e-6);
  printf("answer: digest %016llx\n", (unsigned long long)digest);
  return 0;
}
