/* An in-memory hash join, as a data warehouse runs it: a build relation goes into an open-addressing
 * hash table, a probe relation is streamed against it, matches are aggregated into groups and
 * materialised into an output buffer. Everything is generated, so the answer is known.
 *
 * usage: hashjoin TABLE_MIB PROBE_PASSES
 * Nothing in here knows of enclaves or migration. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct slot {
  uint64_t key, payload;
};

enum { GROUPS = 1 << 16, OUTPUT_ROWS = 1 << 20 };

static uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
  uint64_t table_mib = argc > 1 ? strtoull(argv[1], NULL, 0) : 1024;
  uint64_t passes = argc > 2 ? strtoull(argv[2], NULL, 0) : 5;
  uint64_t slots = 1;
  while (slots * 2 * sizeof(struct slot) <= table_mib << 20)
    slots *= 2;
  uint64_t rows = slots / 2, mask = slots - 1;
  struct slot *table = calloc(slots, sizeof *table);
  struct slot *output = calloc(OUTPUT_ROWS, sizeof *output);
  static uint64_t groups[GROUPS];
  if (!table || !output) {
    fprintf(stderr, "hashjoin: no memory for %llu MiB\n", (unsigned long long)table_mib);
    return 1;
  }
  double begin = seconds();
  printf("building: %llu rows\n", (unsigned long long)rows);
  fflush(stdout);
  for (uint64_t i = 1; i <= rows; i++) {
    uint64_t key = mix(i) | 1, at = mix(key) & mask;
    while (table[at].key)
      at = (at + 1) & mask;
    table[at].key = key;
    table[at].payload = mix(i ^ 0x5bd1e995);
  }
  printf("built after %.1f s\n", seconds() - begin);
  fflush(stdout);
  uint64_t matches = 0, digest = 0;
  for (uint64_t pass = 0; pass < passes; pass++) {
    for (uint64_t i = 0; i < rows; i++) {
      /* every second probe finds its partner */
      uint64_t key = i & 1 ? mix((i + pass * 977) % rows + 1) | 1 : mix(i + (pass << 40)) & ~1ULL;
      for (uint64_t at = mix(key) & mask; table[at].key; at = (at + 1) & mask)
        if (table[at].key == key) {
          groups[table[at].payload % GROUPS] += key;
          output[matches % OUTPUT_ROWS].key = key;
          output[matches % OUTPUT_ROWS].payload = table[at].payload;
          matches++;
          break;
        }
    }
    printf("probed %llu of %llu: %llu matches after %.1f s\n", (unsigned long long)pass + 1,
           (unsigned long long)passes, (unsigned long long)matches, seconds() - begin);
    fflush(stdout);
  }
  for (uint64_t i = 0; i < GROUPS; i++)
    digest = digest * 31 + groups[i];
  for (uint64_t i = 0; i < OUTPUT_ROWS; i++)
    digest = digest * 31 + output[i].key + output[i].payload;
  for (uint64_t i = 0; i < slots; i++)
    digest = digest * 31 + table[i].payload;
  printf("answer: %llu matches, digest %016llx\n", (unsigned long long)matches, (unsigned long long)digest);
  return 0;
}
