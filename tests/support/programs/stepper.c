/* Updates a table for ever, at no great speed, and at the end says how far it came and what it has.
 * usage: stepper STEPS; 0: until there is a file "stop". Each line of the answer depends on the number
 * of steps alone. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define WORDS (1ul << 19) /* 4 MiB */
#define STEPS_BETWEEN_NAPS 400

int main(int argc, char **argv) {
  unsigned long wanted = argc > 1 ? strtoul(argv[1], NULL, 0) : 0, steps = 0, x = 88172645463325252UL;
  unsigned long *table = calloc(WORDS, sizeof *table), digest = 0;
  if (!table)
    return 2;
  for (size_t i = 0; i < WORDS; i++)
    table[i] = i;
  printf("begun\n");
  fflush(stdout);
  do {
    for (int i = 0; i < STEPS_BETWEEN_NAPS; i++, steps++) {
      x ^= x << 13;
      x ^= x >> 7;
      x ^= x << 17;
      table[x % WORDS] += x ^ table[(x >> 20) % WORDS];
    }
    struct timespec nap = {0, 1000000};
    if (!wanted)
      nanosleep(&nap, NULL);
  } while (wanted ? steps < wanted : access("stop", F_OK) != 0);
  for (size_t i = 0; i < WORDS; i++)
    digest = digest * 31 + table[i];
  printf("steps %lu\nanswer %lx\n", steps, digest);
  return 0;
}
