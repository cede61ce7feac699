/* Logistic regression trained by gradient descent, in floating point and in parallel (OpenMP).
 *
 * usage: logistic MEMORY_MIB EPOCHS
 * The samples are made so that a known set of weights explains them, which the training must find again.
 * Gradients are summed over a fixed number of blocks and these in order, so the answer does not depend on
 * the number of threads (OMP_NUM_THREADS). */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FEATURES = 62, BLOCKS = 256 };
#define RATE 2.0
#define MOMENTUM 0.9

struct sample {
  float x[FEATURES], label; /* 0 or 1 */
  float margin;             /* of the last epoch: every sample is written in each */
};

struct sums {
  double gradient[FEATURES + 1], loss, right;
};

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static double centred(uint64_t random) {
  return (double)(random >> 11) * 0x1p-52 - 1;
}

static double truth(int feature) {
  return centred(mix((uint64_t)feature ^ 0x77777777)) * 3;
}

static void make_samples(struct sample *samples, uint64_t count) {
#pragma omp parallel for schedule(static)
  for (uint64_t i = 0; i < count; i++) {
    struct sample *s = &samples[i];
    uint64_t random = mix(i);
    double margin = 0;
    for (int f = 0; f < FEATURES; f++) {
      random = mix(random);
      s->x[f] = (float)centred(random);
      margin += truth(f) * (double)s->x[f];
    }
    s->label = margin + centred(mix(random)) > 0; /* some noise */
    s->margin = 0;
  }
}

static void block(struct sample *samples, uint64_t from, uint64_t to, const double *weights,
                  struct sums *sums) {
  memset(sums, 0, sizeof *sums);
  for (uint64_t i = from; i < to; i++) {
    struct sample *s = &samples[i];
    double margin = weights[FEATURES];
    for (int f = 0; f < FEATURES; f++)
      margin += weights[f] * (double)s->x[f];
    double p = 1 / (1 + exp(-margin)), error = p - (double)s->label;
    for (int f = 0; f < FEATURES; f++)
      sums->gradient[f] += error * (double)s->x[f];
    sums->gradient[FEATURES] += error;
    sums->loss -= log(s->label > 0.5f ? p : 1 - p);
    sums->right += (margin > 0) == (s->label > 0.5f);
    s->margin = (float)margin;
  }
}

int main(int argc, char **argv) {
  uint64_t count = ((argc > 1 ? strtoull(argv[1], NULL, 0) : 256) << 20) / sizeof(struct sample);
  uint64_t epochs = argc > 2 ? strtoull(argv[2], NULL, 0) : 20;
  struct sample *samples = malloc(count * sizeof *samples);
  struct sums *sums = malloc(BLOCKS * sizeof *sums);
  if (!samples || !sums || count < BLOCKS) {
    fprintf(stderr, "logistic: no memory for %llu samples\n", (unsigned long long)count);
    return 1;
  }
  make_samples(samples, count);
  printf("made %llu samples of %d features\n", (unsigned long long)count, FEATURES);
  fflush(stdout);
  double weights[FEATURES + 1] = {0}, speed[FEATURES + 1] = {0}, loss = 0, right = 0;
  for (uint64_t epoch = 0; epoch < epochs; epoch++) {
#pragma omp parallel for schedule(dynamic)
    for (unsigned b = 0; b < BLOCKS; b++)
      block(samples, count * b / BLOCKS, count * (b + 1) / BLOCKS, weights, &sums[b]);
    loss = right = 0;
    for (int f = 0; f <= FEATURES; f++) {
      double gradient = 0;
      for (unsigned b = 0; b < BLOCKS; b++)
        gradient += sums[b].gradient[f];
      speed[f] = MOMENTUM * speed[f] - RATE * gradient / (double)count;
      weights[f] += speed[f];
    }
    for (unsigned b = 0; b < BLOCKS; b++) {
      loss += sums[b].loss;
      right += sums[b].right;
    }
    printf("epoch %llu of %llu: loss %.6f\n", (unsigned long long)epoch + 1, (unsigned long long)epochs,
           loss / (double)count);
    fflush(stdout);
  }
  uint64_t digest = 0, bits;
  for (int f = 0; f <= FEATURES; f++) {
    memcpy(&bits, &weights[f], sizeof bits);
    digest = digest * 31 + bits;
  }
  for (uint64_t i = 0; i < count; i++) {
    uint32_t margin;
    memcpy(&margin, &samples[i].margin, sizeof margin);
    digest = digest * 31 + margin;
  }
  int learnt = epochs < 5 || right > 0.85 * (double)count;
  printf("answer: loss %.12f, %.4f of the samples right, digest %016llx%s\n", loss / (double)count,
         right / (double)count, (unsigned long long)digest, learnt ? "" : ", NOTHING LEARNT");
  return learnt ? 0 : 3;
}
