/* Zipfian numbers as the YCSB generator draws them: item 0 is the most popular, and so on.
 *
 * Source: J. Gray et al., "Quickly Generating Billion-Record Synthetic Databases", SIGMOD 1994;
 * theta 0.99 is YCSB's constant (B. Cooper et al., SoCC 2010). The scrambled form spreads the popular
 * items over the whole range, so that popularity says nothing of the place in memory. */
#ifndef ZIPFIAN_H
#define ZIPFIAN_H

#include <math.h>
#include <stdint.h>

#define ZIPFIAN_THETA 0.99

struct zipfian {
  uint64_t items;
  double zeta, alpha, eta;
};

/* A hash of 64 bits (the finaliser of splitmix64): also the source of all randomness here. */
static inline uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static inline double uniform01(uint64_t random) {
  return (double)(random >> 11) * 0x1p-53;
}

static inline struct zipfian zipfian_new(uint64_t items) {
  double zeta = 0;
  for (uint64_t i = 1; i <= items; i++)
    zeta += pow((double)i, -ZIPFIAN_THETA);
  double zeta2 = 1 + pow(2, -ZIPFIAN_THETA);
  double eta = (1 - pow(2.0 / (double)items, 1 - ZIPFIAN_THETA)) / (1 - zeta2 / zeta);
  return (struct zipfian){items, zeta, 1 / (1 - ZIPFIAN_THETA), eta};
}

/* The popularity rank that this random number stands for, 0 to items - 1. */
static inline uint64_t zipfian_rank(const struct zipfian *z, uint64_t random) {
  double u = uniform01(random), uz = u * z->zeta;
  if (uz < 1 || z->items < 2)
    return 0;
  if (uz < 1 + pow(0.5, ZIPFIAN_THETA))
    return 1;
  uint64_t rank = (uint64_t)((double)z->items * pow(z->eta * u - z->eta + 1, z->alpha));
  return rank < z->items ? rank : z->items - 1;
}

static inline uint64_t zipfian_scrambled(const struct zipfian *z, uint64_t random) {
  return mix64(zipfian_rank(z, random)) % z->items;
}

#endif
