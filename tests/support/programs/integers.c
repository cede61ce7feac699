/* Integer work over a table of its own: xorshift-driven updates, and a digest at the end.
 * usage: integers UPDATES [TABLE_MIB] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
  unsigned long updates = argc > 1 ? strtoul(argv[1], NULL, 0) : 20000000;
  size_t words = (argc > 2 ? strtoul(argv[2], NULL, 0) : 8) << 17;
  unsigned long *table = malloc(words * sizeof *table);
  if (!table)
    return 2;
  memset(table, 1, words * sizeof *table);
  unsigned long x = 88172645463325252UL;
  for (unsigned long i = 0; i < updates; i++) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    table[x % words] += x ^ table[(x >> 20) % words];
    if (i % (updates / 8 + 1) == 0)
      printf("at %lu\n", i);
  }
  unsigned long digest = 0;
  for (size_t i = 0; i < words; i++)
    digest = digest * 31 + table[i];
  printf("answer %lx\n", digest);
  return 7;
}
