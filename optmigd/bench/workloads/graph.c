/* PageRank and breadth-first search on a Kronecker graph, in parallel (OpenMP).
 *
 * usage: graph pagerank|bfs MEMORY_MIB ROUNDS
 *   MEMORY_MIB  the graph is the largest one of 2^n vertices that fits
 *   ROUNDS      iterations of PageRank, or searches from different roots
 * The graph is made anew from a hash of each edge's number and kept as compressed sparse rows, in order.
 * Sums of floating-point numbers are made in an order that does not depend on the number of threads
 * (OMP_NUM_THREADS), so the answer does not either.
 * Source: the Graph500 benchmark's generator (A 0.57, B 0.19, C 0.19; 16 edges a vertex) and checks. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { EDGES_PER_VERTEX = 16, BLOCKS = 1024, UNSEEN = -1 };

struct graph {
  uint64_t vertices, edges; /* each edge stands in both directions */
  uint64_t *first;          /* vertices + 1 */
  uint32_t *to;
};

static uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static void *take(uint64_t bytes) {
  void *memory = malloc(bytes);
  if (!memory) {
    fprintf(stderr, "graph: no memory for %llu bytes\n", (unsigned long long)bytes);
    exit(1);
  }
  return memory;
}

/* One edge: at every level of the adjacency matrix it falls into one of four quarters. */
static void edge(unsigned scale, uint64_t number, uint32_t *from, uint32_t *to) {
  uint64_t random = number, u = 0, v = 0;
  for (unsigned level = 0; level < scale; level++) {
    random = mix(random);
    unsigned r = (unsigned)(random % 100);
    unsigned row = r >= 76, column = (r >= 57 && r < 76) || r >= 95;
    u = u << 1 | row;
    v = v << 1 | column;
  }
  /* Numbers say nothing of a vertex's degree: a permutation of 2^scale numbers. */
  uint64_t mask = (1ULL << scale) - 1;
  *from = (uint32_t)((u * 0x9e3779b97f4a7c15ULL ^ 0x55555555) & mask);
  *to = (uint32_t)((v * 0x9e3779b97f4a7c15ULL ^ 0x55555555) & mask);
}

static int ascending(const void *a, const void *b) {
  uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
  return (x > y) - (x < y);
}

static struct graph generate(unsigned scale) {
  struct graph g = {1ULL << scale, EDGES_PER_VERTEX * (1ULL << scale), NULL, NULL};
  g.first = take((g.vertices + 1) * sizeof *g.first);
  g.to = take(2 * g.edges * sizeof *g.to);
  uint64_t *next = take(g.vertices * sizeof *next);
  memset(next, 0, g.vertices * sizeof *next);
#pragma omp parallel for schedule(static)
  for (uint64_t e = 0; e < g.edges; e++) {
    uint32_t u, v;
    edge(scale, e, &u, &v);
#pragma omp atomic
    next[u]++;
#pragma omp atomic
    next[v]++;
  }
  g.first[0] = 0;
  for (uint64_t v = 0; v < g.vertices; v++) {
    g.first[v + 1] = g.first[v] + next[v];
    next[v] = g.first[v];
  }
#pragma omp parallel for schedule(static)
  for (uint64_t e = 0; e < g.edges; e++) {
    uint32_t u, v;
    uint64_t at;
    edge(scale, e, &u, &v);
#pragma omp atomic capture
    at = next[u]++;
    g.to[at] = v;
#pragma omp atomic capture
    at = next[v]++;
    g.to[at] = u;
  }
  free(next);
#pragma omp parallel for schedule(dynamic, 256)
  for (uint64_t v = 0; v < g.vertices; v++)
    qsort(g.to + g.first[v], g.first[v + 1] - g.first[v], sizeof *g.to, ascending);
  return g;
}

/* The sum of `values`: blocks are summed in parallel, and then one after the other. */
static double ordered_sum(const double *values, uint64_t count) {
  static double partial[BLOCKS];
#pragma omp parallel for schedule(dynamic)
  for (unsigned b = 0; b < BLOCKS; b++) {
    double sum = 0;
    for (uint64_t i = count * b / BLOCKS; i < count * (b + 1) / BLOCKS; i++)
      sum += values[i];
    partial[b] = sum;
  }
  double sum = 0;
  for (unsigned b = 0; b < BLOCKS; b++)
    sum += partial[b];
  return sum;
}

static uint64_t bits_of(double number) {
  uint64_t bits;
  memcpy(&bits, &number, sizeof bits);
  return bits;
}

static int pagerank(const struct graph *g, uint64_t rounds) {
  const double damping = 0.85;
  double *rank = take(g->vertices * sizeof *rank), *share = take(g->vertices * sizeof *share),
         *lost = take(g->vertices * sizeof *lost);
  for (uint64_t v = 0; v < g->vertices; v++)
    rank[v] = 1.0 / (double)g->vertices;
  for (uint64_t round = 0; round < rounds; round++) {
#pragma omp parallel for schedule(static)
    for (uint64_t v = 0; v < g->vertices; v++) {
      uint64_t degree = g->first[v + 1] - g->first[v];
      share[v] = degree ? rank[v] / (double)degree : 0;
      lost[v] = degree ? 0 : rank[v];
    }
    double base = (1 - damping + damping * ordered_sum(lost, g->vertices)) / (double)g->vertices;
#pragma omp parallel for schedule(guided, 64)
    for (uint64_t v = 0; v < g->vertices; v++) {
      double sum = 0;
      for (uint64_t i = g->first[v]; i < g->first[v + 1]; i++)
        sum += share[g->to[i]];
      rank[v] = base + damping * sum;
    }
    printf("iteration %llu of %llu\n", (unsigned long long)round + 1, (unsigned long long)rounds);
    fflush(stdout);
  }
  double sum = ordered_sum(rank, g->vertices);
  uint64_t digest = 0, best = 0;
  for (uint64_t v = 0; v < g->vertices; v++) {
    digest = digest * 31 + bits_of(rank[v]);
    if (rank[v] > rank[best])
      best = v;
  }
  bool right = fabs(sum - 1) < 1e-9;
  printf("answer: ranks add up to %.12f, the highest is vertex %llu's, digest %016llx%s\n", sum,
         (unsigned long long)best, (unsigned long long)digest, right ? "" : ", WRONG");
  free(rank);
  free(share);
  free(lost);
  return right ? 0 : 3;
}

struct search {
  int32_t *level;
  uint32_t *parent, *frontier, *next;
};

/* Every vertex that is not reached looks for a neighbour on the frontier (direction "bottom-up"). */
static uint64_t pull(const struct graph *g, struct search *s, int32_t depth) {
  uint64_t reached = 0;
#pragma omp parallel for schedule(dynamic, 1024) reduction(+ : reached)
  for (uint64_t v = 0; v < g->vertices; v++) {
    if (s->level[v] != UNSEEN)
      continue;
    for (uint64_t i = g->first[v]; i < g->first[v + 1]; i++) {
      int32_t theirs;
#pragma omp atomic read
      theirs = s->level[g->to[i]];
      if (theirs != depth)
        continue;
      s->parent[v] = g->to[i];
#pragma omp atomic write
      s->level[v] = depth + 1;
      reached++;
      break;
    }
  }
  return reached;
}

/* The frontier claims its neighbours (direction "top-down"); the lowest parent wins, whoever comes first. */
static uint64_t push(const struct graph *g, struct search *s, uint64_t size, int32_t depth) {
  uint64_t reached = 0;
#pragma omp parallel for schedule(dynamic, 64)
  for (uint64_t f = 0; f < size; f++) {
    uint32_t u = s->frontier[f];
    for (uint64_t i = g->first[u]; i < g->first[u + 1]; i++) {
      uint32_t v = g->to[i];
      int32_t unseen = UNSEEN;
      if (__atomic_compare_exchange_n(&s->level[v], &unseen, depth + 1, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED)) {
        uint64_t at = __atomic_fetch_add(&reached, 1, __ATOMIC_RELAXED);
        s->next[at] = v;
      } else if (unseen != depth + 1) {
        continue;
      }
      uint32_t now = __atomic_load_n(&s->parent[v], __ATOMIC_RELAXED);
      while (u < now &&
             !__atomic_compare_exchange_n(&s->parent[v], &now, u, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      }
    }
  }
  return reached;
}

static uint64_t search_from(const struct graph *g, struct search *s, uint32_t root) {
  memset(s->level, 0xff, g->vertices * sizeof *s->level);
  memset(s->parent, 0xff, g->vertices * sizeof *s->parent);
  s->level[root] = 0;
  s->parent[root] = root;
  s->frontier[0] = root;
  uint64_t size = 1, total = 1;
  bool listed = true; /* whether `frontier` holds the frontier */
  for (int32_t depth = 0; size; depth++) {
    if (size > g->vertices / 64) {
      size = pull(g, s, depth);
      listed = false;
    } else {
      if (!listed) {
        uint64_t at = 0;
        for (uint64_t v = 0; v < g->vertices; v++)
          if (s->level[v] == depth)
            s->frontier[at++] = (uint32_t)v;
        listed = true;
      }
      size = push(g, s, size, depth);
      uint32_t *swap = s->frontier;
      s->frontier = s->next;
      s->next = swap;
    }
    total += size;
  }
  return total;
}

/* A tree of shortest paths: every level is one more than its parent's, and no edge spans more than one. */
static bool is_right(const struct graph *g, const struct search *s, uint32_t root) {
  uint64_t wrong = 0;
#pragma omp parallel for schedule(dynamic, 1024) reduction(+ : wrong)
  for (uint64_t v = 0; v < g->vertices; v++) {
    if (s->level[v] > 0)
      wrong += s->level[s->parent[v]] + 1 != s->level[v];
    for (uint64_t i = g->first[v]; i < g->first[v + 1]; i++) {
      int32_t a = s->level[v], b = s->level[g->to[i]];
      wrong += (a == UNSEEN) != (b == UNSEEN) || a - b > 1 || b - a > 1;
    }
  }
  return !wrong && s->level[root] == 0;
}

static int bfs(const struct graph *g, uint64_t rounds) {
  struct search s = {take(g->vertices * sizeof *s.level), take(g->vertices * sizeof *s.parent),
                     take(g->vertices * sizeof *s.frontier), take(g->vertices * sizeof *s.next)};
  uint64_t digest = 0, visited = 0;
  bool right = true;
  uint32_t root = 0;
  for (uint64_t round = 0; round < rounds; round++) {
    do
      root = (uint32_t)(mix(root + round) % g->vertices);
    while (g->first[root] == g->first[root + 1]);
    visited += search_from(g, &s, root);
    right = right && is_right(g, &s, root);
    for (uint64_t v = 0; v < g->vertices; v++)
      digest = digest * 31 + ((uint64_t)s.parent[v] << 8 ^ (uint64_t)(uint32_t)s.level[v]);
    printf("search %llu of %llu\n", (unsigned long long)round + 1, (unsigned long long)rounds);
    fflush(stdout);
  }
  printf("answer: %llu vertices reached, %s, digest %016llx\n", (unsigned long long)visited,
         right ? "all trees are right" : "WRONG", (unsigned long long)digest);
  free(s.level);
  free(s.parent);
  free(s.frontier);
  free(s.next);
  return right ? 0 : 3;
}

int main(int argc, char **argv) {
  bool ranks = argc > 1 && !strcmp(argv[1], "pagerank");
  if (!ranks && (argc < 2 || strcmp(argv[1], "bfs"))) {
    fprintf(stderr, "usage: graph pagerank|bfs MEMORY_MIB ROUNDS\n");
    return 2;
  }
  uint64_t bytes = (argc > 2 ? strtoull(argv[2], NULL, 0) : 256) << 20;
  uint64_t rounds = argc > 3 ? strtoull(argv[3], NULL, 0) : 10;
  /* rows, edges, and what the algorithm or the generator needs besides */
  uint64_t each = sizeof(uint64_t) + 2 * EDGES_PER_VERTEX * sizeof(uint32_t) + 3 * sizeof(double);
  unsigned scale = 10;
  while (scale < 31 && (each << (scale + 1)) <= bytes)
    scale++;
  struct graph g = generate(scale);
  printf("built: 2^%u vertices, %llu edges\n", scale, (unsigned long long)g.edges);
  fflush(stdout);
  int status = ranks ? pagerank(&g, rounds) : bfs(&g, rounds);
  free(g.first);
  free(g.to);
  return status;
}
