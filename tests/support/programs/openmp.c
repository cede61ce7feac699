/* OpenMP as compilers know it: every schedule, reductions, single, critical, ordered, tasks, nested
 * regions, locks, threadprivate. Each round checks itself and adds to an answer that does not depend
 * on the order of threads.
 * usage: openmp THREADS ROUNDS */
#include <omp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                     \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      printf("line %d: %s does not hold\n", __LINE__, #condition);                                           \
      exit(3);                                                                                               \
    }                                                                                                        \
  } while (0)

enum { N = 1000 };
static int seen[N];
static uint64_t answer;
static int own;
#pragma omp threadprivate(own)

static void clear(void) {
  for (int i = 0; i < N; i++)
    seen[i] = 0;
}

static void each_once(void) {
  for (int i = 0; i < N; i++)
    CHECK(seen[i] == 1);
  clear();
}

static void schedules(int threads) {
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static) nowait
    for (int i = 0; i < N; i++)
      __atomic_fetch_add(&seen[i], 1, __ATOMIC_RELAXED);
#pragma omp barrier
#pragma omp single
    each_once();
#pragma omp for schedule(static, 7)
    for (unsigned i = 0; i < N; i++)
      __atomic_fetch_add(&seen[i], 1, __ATOMIC_RELAXED);
#pragma omp single
    each_once();
#pragma omp for schedule(dynamic)
    for (int64_t i = N - 1; i >= 0; i--)
      __atomic_fetch_add(&seen[i], 1, __ATOMIC_RELAXED);
#pragma omp single
    each_once();
#pragma omp for schedule(guided, 3)
    for (uint64_t i = 0; i < 2 * N; i += 2)
      __atomic_fetch_add(&seen[i / 2], 1, __ATOMIC_RELAXED);
#pragma omp single
    each_once();
#pragma omp for schedule(runtime)
    for (int i = 0; i < N; i++)
      __atomic_fetch_add(&seen[i], 1, __ATOMIC_RELAXED);
#pragma omp single
    each_once();
    /* more loops without a barrier than there are buffers for them */
    for (int k = 0; k < 20; k++) {
#pragma omp for schedule(dynamic, 5) nowait
      for (int i = k * 50; i < (k + 1) * 50; i++)
        __atomic_fetch_add(&seen[i], 1, __ATOMIC_RELAXED);
    }
#pragma omp barrier
#pragma omp single
    each_once();
#pragma omp for collapse(2)
    for (int i = 0; i < 10; i++)
      for (int j = 0; j < N / 10; j++)
        __atomic_fetch_add(&seen[i * (N / 10) + j], 1, __ATOMIC_RELAXED);
#pragma omp single
    each_once();
#pragma omp for schedule(dynamic)
    for (int i = 5; i < 5; i++)
      abort();
  }
}

static void reductions(int threads, uint64_t round) {
  double sum = 0;
  uint64_t bits = 0;
  int64_t largest = -1;
  int final = -1;
#pragma omp parallel for num_threads(threads) reduction(+ : sum) reduction(^ : bits)                         \
    reduction(max : largest) lastprivate(final)
  for (int i = 0; i < N; i++) {
    sum += 1.0 / (double)(i + 1 + (int)(round % 7));
    bits ^= (uint64_t)i * 0x9e3779b97f4a7c15u;
    if (i * 37 % N > largest)
      largest = i * 37 % N;
    final = i;
  }
  CHECK(largest == N - 1 && final == N - 1);
  union {
    double number;
    uint64_t bits;
  } exact = {sum};
  answer = answer * 31 + exact.bits + bits;
  uint64_t sections = 0;
#pragma omp parallel num_threads(threads) reduction(+ : sections)
  {
#pragma omp sections
    {
#pragma omp section
      sections += 1;
#pragma omp section
      sections += 10;
#pragma omp section
      sections += 100;
    }
  }
  CHECK(sections == 111);
}

static void together(int threads) {
  int in_critical = 0, locked = 0, twice = 0, given = 0, order = 0, masters = 0, team = 0;
  omp_lock_t lock;
  omp_nest_lock_t nested;
  omp_init_lock(&lock);
  omp_init_nest_lock(&nested);
#pragma omp parallel num_threads(threads)
  {
    int mine = -1;
    own = omp_get_thread_num();
    for (int i = 0; i < 20; i++) {
#pragma omp critical(first)
      in_critical++;
      omp_set_lock(&lock);
      locked++;
      omp_unset_lock(&lock);
      omp_set_nest_lock(&nested);
      omp_set_nest_lock(&nested);
      twice++;
      omp_unset_nest_lock(&nested);
      omp_unset_nest_lock(&nested);
#pragma omp atomic
      given++;
    }
#pragma omp single copyprivate(mine)
    mine = 4711;
    CHECK(mine == 4711 && own == omp_get_thread_num());
#pragma omp masked
    {
      masters++;
      team = omp_get_num_threads();
    }
#pragma omp for ordered schedule(dynamic, 2)
    for (int i = 0; i < 60; i++) {
      if (i % 3 == 0)
        continue;
#pragma omp ordered
      {
        CHECK(order < i);
        order = i;
      }
    }
  }
  CHECK(order == 59 && masters == 1);
  CHECK(in_critical == 20 * team && locked == 20 * team && twice == 20 * team && given == 20 * team);
}

static uint64_t fibonacci(int n) {
  uint64_t a, b;
  if (n < 2)
    return (uint64_t)n;
  if (n < 8)
    return fibonacci(n - 1) + fibonacci(n - 2);
#pragma omp task shared(a)
  a = fibonacci(n - 1);
#pragma omp task shared(b) if (n > 10)
  b = fibonacci(n - 2);
#pragma omp taskwait
  return a + b;
}

static void tasks(int threads) {
  uint64_t result = 0, loop = 0, chain = 1;
#pragma omp parallel num_threads(threads)
#pragma omp single
  {
    result = fibonacci(16);
#pragma omp taskgroup
    for (int i = 0; i < 50; i++) {
#pragma omp task firstprivate(i)
      {
#pragma omp task
        {
#pragma omp atomic
          loop += (uint64_t)i;
        }
      }
    }
    CHECK(loop == 1225);
#pragma omp taskloop grainsize(7)
    for (int i = 0; i < N; i++)
      __atomic_fetch_add(&seen[i], 1, __ATOMIC_RELAXED);
    for (int i = 0; i < 10; i++) {
#pragma omp task depend(inout : chain)
      chain = chain * 3 + (uint64_t)i;
    }
#pragma omp taskwait
  }
  each_once();
  CHECK(result == 987);
  answer = answer * 31 + chain;
}

static void nested(int threads) {
  int inner = 0, many = 2 + threads / 2;
  omp_set_max_active_levels(2);
#pragma omp parallel num_threads(2) reduction(+ : inner)
  {
    int outer = omp_get_thread_num();
#pragma omp parallel num_threads(many) reduction(+ : inner)
    {
      inner++;
      CHECK(omp_get_level() == 2 && omp_get_ancestor_thread_num(1) == outer);
#pragma omp parallel
      CHECK(omp_get_num_threads() == 1);
    }
  }
  omp_set_max_active_levels(1);
  CHECK(inner == 2 * many);
}

/* More variables than registers can pass. */
static void many_arguments(int threads) {
  int a = 1, b = 2, c = 3, d = 4, e = 5, f = 6, g = 7, sum = 0;
#pragma omp parallel num_threads(threads) shared(a, b, c, d, e, f, g) reduction(+ : sum)
  sum += a + b * 2 + c * 3 + d * 4 + e * 5 + f * 6 + g * 7;
  CHECK(sum % 140 == 0);
}

int main(int argc, char **argv) {
  int threads = argc > 1 ? atoi(argv[1]) : 4;
  uint64_t rounds = argc > 2 ? strtoull(argv[2], NULL, 0) : 10;
  for (uint64_t round = 0; round < rounds; round++) {
    schedules(threads);
    reductions(threads, round);
    together(threads);
    tasks(threads);
    nested(threads);
    many_arguments(threads);
  }
  printf("answer %llx\n", (unsigned long long)answer);
  return 0;
}
