/* Writes a line of evidence into a shared file at every step, until the file STOP exists. Two running
 * instances would write a step twice, a lost or rolled back state would leave a gap or a repetition.
 * usage: ledger LEDGER STOP [NAP_US] to run; ledger STEPS to compute the answer after so many steps. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { WORDS = 2 << 17, UPDATES = 100 };

struct line {
  uint64_t step, digest, monotonic_ns;
};

static uint64_t advance(uint64_t *table, uint64_t *x) {
  uint64_t digest = *x;
  for (int i = 0; i < UPDATES; i++) {
    *x ^= *x << 13;
    *x ^= *x >> 7;
    *x ^= *x << 17;
    table[*x % WORDS] += *x ^ table[(*x >> 20) % WORDS];
    digest = digest * 31 + table[(*x >> 5) % WORDS];
  }
  return digest;
}

int main(int argc, char **argv) {
  uint64_t *table = malloc(WORDS * sizeof *table), x = 88172645463325252UL, steps = 0, digest = 0;
  if (!table)
    return 2;
  for (int i = 0; i < WORDS; i++)
    table[i] = (uint64_t)i;
  if (argc == 2) {
    for (uint64_t last = strtoull(argv[1], NULL, 0); steps < last; steps++)
      digest = advance(table, &x);
  } else {
    int ledger = open(argv[1], O_WRONLY | O_CREAT | O_APPEND, 0600);
    struct timespec nap = {0, (argc > 3 ? atol(argv[3]) : 1000) * 1000}, now;
    if (ledger < 0)
      return 2;
    for (; access(argv[2], F_OK); steps++) {
      digest = advance(table, &x);
      clock_gettime(CLOCK_MONOTONIC, &now);
      struct line line = {steps + 1, digest, (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec};
      if (write(ledger, &line, sizeof line) != sizeof line)
        return 3;
      nanosleep(&nap, NULL);
    }
  }
  for (int i = 0; i < WORDS; i++)
    digest = digest * 31 + table[i];
  printf("answer %llu %llx\n", (unsigned long long)steps, (unsigned long long)digest);
  return 7;
}
