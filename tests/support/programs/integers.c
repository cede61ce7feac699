/* Integer work over a table of its own: xorshift-driven updates, and a digest at the end. With FILE
 * it goes on until there is one of that name, with pairs of updates that leave all as it was.
 * usage: integers UPDATES [TABLE_MIB [FILE]] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAIRS 100000

static unsigned long next(unsigned long x) {
  x ^= x << 13;
  x ^= x >> 7;
  return x ^ x << 17;
}

int main(int argc, char **argv) {
  unsigned long updates = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000000;
  size_t words = (argc > 2 ? strtoul(argv[2], NULL, 0) : 8) << 17;
  unsigned long *table = malloc(words * sizeof *table);
  if (!table)
    return 2;
  memset(table, 1, words * sizeof *table);
  unsigned long x = 88172645463325252UL;
  for (unsigned long i = 0; i < updates; i++) {
    x = next(x);
    table[x % words] += x ^ table[(x >> 20) % words];
    if (i % (updates / 8 + 1) == 0)
      printf("at %lu\n", i);
  }
  while (argc > 3 && access(argv[3], F_OK)) {
    unsigned long begin = x;
    for (int again = 0; again < 2; again++) {
      x = begin;
      for (int i = 0; i < PAIRS; i++) {
        x = next(x);
        table[x % words] ^= x;
      }
    }
  }
  unsigned long digest = 0;
  for (size_t i = 0; i < words; i++)
    digest = digest * 31 + table[i];
  printf("answer %lx\n", digest);
  return 7;
}
