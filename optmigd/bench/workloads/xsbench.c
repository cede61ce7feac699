/* Monte-Carlo neutron transport's hot loop: macroscopic cross sections looked up for random energies and
 * materials, on a grid that unites those of all nuclides, in parallel (OpenMP).
 *
 * usage: xsbench MEMORY_MIB LOOKUPS
 * A lookup's energy and material follow from its number, and the answer is a sum of whole numbers: it
 * does not depend on the number of threads (OMP_NUM_THREADS).
 * Source: the method of XSBench (J. Tramm et al., PHYSOR 2014), its "unionized grid". */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { NUCLIDES = 68, MATERIALS = 12, CHANNELS = 5 };

struct point {
  double energy, xs[CHANNELS];
};

static uint64_t points; /* of each nuclide */
static struct point *grid;
static double *united; /* all energies, in order */
static uint32_t *at;   /* for each of them, the point below it in each nuclide's grid */

/* how many nuclides each material has, and how often it is met, as in a reactor core */
static const unsigned parts[MATERIALS] = {34, 5, 4, 4, 27, 21, 21, 21, 21, 21, 9, 9};
static const double likely[MATERIALS] = {0.140, 0.052, 0.275, 0.134, 0.154, 0.064,
                                         0.066, 0.055, 0.008, 0.015, 0.025, 0.013};

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static double uniform(uint64_t random) {
  return (double)(random >> 11) * 0x1p-53;
}

static void *take(uint64_t bytes) {
  void *memory = malloc(bytes);
  if (!memory) {
    fprintf(stderr, "xsbench: no memory for %llu bytes\n", (unsigned long long)bytes);
    exit(1);
  }
  return memory;
}

/* Energies in order: each stands at random within its own n-th of the range. */
static void make_grids(void) {
#pragma omp parallel for schedule(static)
  for (uint64_t i = 0; i < NUCLIDES * points; i++) {
    uint64_t random = mix(i);
    struct point *p = &grid[i];
    p->energy = ((double)(i % points) + uniform(random)) / (double)points;
    for (int c = 0; c < CHANNELS; c++)
      p->xs[c] = uniform(random = mix(random));
  }
}

/* Merge all grids: the n-th energies of all nuclides are close to each other, so sort them n by n.
 * (Each lies in the n-th part of the range, so nothing crosses from one part into another.) */
static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void unite_grids(void) {
#pragma omp parallel for schedule(dynamic, 64)
  for (uint64_t part = 0; part < points; part++) {
    double *energies = united + part * NUCLIDES;
    for (unsigned n = 0; n < NUCLIDES; n++)
      energies[n] = grid[n * points + part].energy;
    qsort(energies, NUCLIDES, sizeof *energies, ascending);
    for (unsigned i = 0; i < NUCLIDES; i++)
      for (unsigned n = 0; n < NUCLIDES; n++) {
        uint64_t below = grid[n * points + part].energy <= energies[i] ? part : part ? part - 1 : 0;
        at[(part * NUCLIDES + i) * NUCLIDES + n] = (uint32_t)(below + 1 < points ? below : points - 2);
      }
  }
}

/* The last united energy that is not above this one, or the first of all. */
static uint64_t search(double energy) {
  uint64_t low = 0, high = points * NUCLIDES;
  while (high - low > 1) {
    uint64_t middle = (low + high) / 2;
    if (united[middle] > energy)
      high = middle;
    else
      low = middle;
  }
  return low;
}

static unsigned pick_material(double roll) {
  unsigned m = 0;
  while (m + 1 < MATERIALS && (roll -= likely[m]) > 0)
    m++;
  return m;
}

/* The channel of the largest macroscopic cross section, 1 to CHANNELS. */
static unsigned lookup(double energy, unsigned material) {
  double macro[CHANNELS] = {0};
  const uint32_t *index = at + search(energy) * NUCLIDES;
  for (unsigned i = 0; i < parts[material]; i++) {
    unsigned n = (material * 7 + i * 3) % NUCLIDES;
    double density = (double)(1 + (material + i) % 9);
    const struct point *low = &grid[n * points + index[n]], *high = low + 1;
    double f = (high->energy - energy) / (high->energy - low->energy);
    for (int c = 0; c < CHANNELS; c++)
      macro[c] += density * (high->xs[c] - f * (high->xs[c] - low->xs[c]));
  }
  unsigned largest = 0;
  for (unsigned c = 1; c < CHANNELS; c++)
    if (macro[c] > macro[largest])
      largest = c;
  return largest + 1;
}

int main(int argc, char **argv) {
  uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 0) : 256) << 20;
  uint64_t lookups = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000000;
  points = bytes / (NUCLIDES * (sizeof(struct point) + sizeof(double) + NUCLIDES * sizeof(uint32_t)));
  if (points < 2 || points >= UINT32_MAX) {
    fprintf(stderr, "xsbench: MEMORY_MIB is too small or too large\n");
    return 2;
  }
  grid = take(NUCLIDES * points * sizeof *grid);
  united = take(NUCLIDES * points * sizeof *united);
  at = take(NUCLIDES * NUCLIDES * points * sizeof *at);
  make_grids();
  unite_grids();
  printf("built: %llu energies\n", (unsigned long long)(points * NUCLIDES));
  fflush(stdout);
  uint64_t sum = 0, done = 0;
  while (done < lookups) {
    uint64_t end = done + lookups / 10 + 1;
    end = end < lookups ? end : lookups;
#pragma omp parallel for schedule(dynamic, 100) reduction(+ : sum)
    for (uint64_t i = done; i < end; i++) {
      uint64_t random = mix(i ^ 0x5851f42d4c957f2dULL);
      unsigned material = pick_material(uniform(random));
      sum += mix(i) * lookup(uniform(mix(random)), material);
    }
    done = end;
    printf("%llu of %llu lookups\n", (unsigned long long)done, (unsigned long long)lookups);
    fflush(stdout);
  }
  printf("answer: checksum %016llx\n", (unsigned long long)sum);
  return 0;
}
