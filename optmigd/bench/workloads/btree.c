/* An in-memory B+ tree, as the index of a database: it is filled with random keys until the memory is
 * used up, then inserts, lookups, updates and range scans come mixed. At the end the tree is checked
 * from root to leaves.
 *
 * usage: btree MEMORY_MIB OPERATIONS
 * One thread. Keys come from a hash of a counter, so every lookup knows what it must find. */
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FANOUT = 62, LEAF_KEYS = 62, SCAN_ROWS = 100 };

/* Both kinds of node are about a kibibyte. */
struct node {
  uint32_t count; /* keys in use */
  bool leaf;
  uint64_t keys[FANOUT];
  union {
    struct node *children[FANOUT + 1];
    struct {
      uint64_t values[LEAF_KEYS];
      struct node *next;
    };
  };
};

static struct node *root;
static uint64_t nodes, rows;

static uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9ULL;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

static struct node *new_node(bool leaf) {
  struct node *n = calloc(1, sizeof *n);
  if (!n) {
    fprintf(stderr, "btree: no memory after %llu nodes\n", (unsigned long long)nodes);
    exit(1);
  }
  n->leaf = leaf;
  nodes++;
  return n;
}

/* The first key that is not below the one looked for. */
static uint32_t lower_bound(const struct node *n, uint64_t key) {
  uint32_t low = 0, high = n->count;
  while (low < high) {
    uint32_t middle = (low + high) / 2;
    if (n->keys[middle] < key)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* The child that a key belongs to: a separator is the lowest key to its right. */
static uint32_t child_of(const struct node *n, uint64_t key) {
  uint32_t at = lower_bound(n, key);
  return at < n->count && n->keys[at] == key ? at + 1 : at;
}

/* Split the full child `at` of a node that has room. */
static void split_child(struct node *parent, uint32_t at) {
  struct node *left = parent->children[at], *right = new_node(left->leaf);
  uint32_t half = left->count / 2;
  uint64_t separator = left->keys[half];
  if (left->leaf) {
    right->count = left->count - half;
    memcpy(right->keys, left->keys + half, right->count * sizeof *right->keys);
    memcpy(right->values, left->values + half, right->count * sizeof *right->values);
    right->next = left->next;
    left->next = right;
  } else {
    right->count = left->count - half - 1;
    memcpy(right->keys, left->keys + half + 1, right->count * sizeof *right->keys);
    memcpy(right->children, left->children + half + 1, (right->count + 1) * sizeof *right->children);
  }
  left->count = half;
  memmove(parent->keys + at + 1, parent->keys + at, (parent->count - at) * sizeof *parent->keys);
  memmove(parent->children + at + 2, parent->children + at + 1,
          (parent->count - at) * sizeof *parent->children);
  parent->keys[at] = separator;
  parent->children[at + 1] = right;
  parent->count++;
}

static void insert(uint64_t key, uint64_t value) {
  if (root->count == FANOUT) {
    struct node *above = new_node(false);
    above->children[0] = root;
    root = above;
    split_child(root, 0);
  }
  struct node *n = root;
  while (!n->leaf) {
    uint32_t at = child_of(n, key);
    if (n->children[at]->count == FANOUT) {
      split_child(n, at);
      at = child_of(n, key);
    }
    n = n->children[at];
  }
  uint32_t at = lower_bound(n, key);
  memmove(n->keys + at + 1, n->keys + at, (n->count - at) * sizeof *n->keys);
  memmove(n->values + at + 1, n->values + at, (n->count - at) * sizeof *n->values);
  n->keys[at] = key;
  n->values[at] = value;
  n->count++;
  rows++;
}

static struct node *leaf_of(uint64_t key) {
  struct node *n = root;
  while (!n->leaf)
    n = n->children[child_of(n, key)];
  return n;
}

static uint64_t *find(uint64_t key) {
  struct node *n = leaf_of(key);
  uint32_t at = lower_bound(n, key);
  return at < n->count && n->keys[at] == key ? &n->values[at] : NULL;
}

/* A sum over the rows from a key on. */
static uint64_t scan(uint64_t key, unsigned count) {
  struct node *n = leaf_of(key);
  uint64_t sum = 0;
  for (uint32_t at = lower_bound(n, key); n && count; n = n->next, at = 0)
    for (; at < n->count && count; at++, count--)
      sum += n->keys[at] ^ n->values[at];
  return sum;
}

/* Whether all keys of a subtree stand in order within [low, high); counts its rows. */
static bool in_order(const struct node *n, uint64_t low, uint64_t high, uint64_t *found) {
  for (uint32_t i = 0; i < n->count; i++)
    if (n->keys[i] < low || n->keys[i] > high || (i && n->keys[i] <= n->keys[i - 1]))
      return false;
  if (n->leaf) {
    *found += n->count;
    return true;
  }
  for (uint32_t i = 0; i <= n->count; i++)
    if (!in_order(n->children[i], i ? n->keys[i - 1] : low, i < n->count ? n->keys[i] : high, found))
      return false;
  return true;
}

int main(int argc, char **argv) {
  uint64_t most_nodes = ((argc > 1 ? strtoull(argv[1], NULL, 0) : 256) << 20) / sizeof(struct node);
  uint64_t operations = argc > 2 ? strtoull(argv[2], NULL, 0) : 1000000;
  uint64_t digest = 0, missed = 0;
  root = new_node(true);
  while (nodes < most_nodes)
    insert(mix(rows + 1), rows);
  printf("filled: %llu rows in %llu nodes\n", (unsigned long long)rows, (unsigned long long)nodes);
  fflush(stdout);
  for (uint64_t i = 0; i < operations; i++) {
    uint64_t random = mix(i ^ 0x5851f42d4c957f2dULL), number = mix(random) % rows;
    uint64_t key = mix(number + 1), *value;
    switch (random % 20) {
    case 0: insert(mix(rows + 1), i); break;
    case 1: digest = digest * 31 + scan(random, SCAN_ROWS); break;
    case 2:
    case 3:
    case 4:
    case 5:
    case 6:
      value = find(key);
      if (value)
        *value += random;
      else
        missed++;
      break;
    case 7: missed += find(key ^ 1) != NULL; break; /* is not there */
    default:
      value = find(key);
      if (value)
        digest = digest * 31 + *value;
      else
        missed++;
      break;
    }
    if ((i + 1) % (operations / 10 + 1) == 0) {
      printf("%llu of %llu operations\n", (unsigned long long)i + 1, (unsigned long long)operations);
      fflush(stdout);
    }
  }
  uint64_t found = 0;
  bool right = in_order(root, 0, UINT64_MAX, &found) && found == rows && !missed;
  digest = digest * 31 + scan(0, UINT32_MAX);
  printf("answer: %llu rows, %s, digest %016llx\n", (unsigned long long)rows, right ? "in order" : "BROKEN",
         (unsigned long long)digest);
  return right ? 0 : 3;
}
