/* Pointer work: a binary tree that grows, shrinks and is walked, with all nodes from malloc, beside
 * buffers that are reallocated all the time.
 * usage: pointers ROUNDS */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct node {
  struct node *left, *right;
  unsigned long key, count;
  char text[40];
};

static struct node *insert(struct node *n, unsigned long key) {
  if (!n) {
    n = calloc(1, sizeof *n);
    if (!n)
      abort();
    n->key = key;
    snprintf(n->text, sizeof n->text, "key %lx", key);
  } else if (key < n->key) {
    n->left = insert(n->left, key);
  } else if (key > n->key) {
    n->right = insert(n->right, key);
  }
  n->count++;
  return n;
}

static struct node *drop_smallest(struct node *n) {
  if (n->left) {
    n->left = drop_smallest(n->left);
    return n;
  }
  struct node *right = n->right;
  free(n);
  return right;
}

static unsigned long walk(const struct node *n, unsigned long h) {
  if (!n)
    return h;
  h = walk(n->left, h);
  for (const char *p = n->text; *p; p++)
    h = h * 131 + (unsigned char)*p;
  return walk(n->right, h * 31 + n->key + n->count);
}

int main(int argc, char **argv) {
  unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 0) : 200000;
  unsigned long x = 362436069, digest = 0;
  struct node *root = NULL;
  char *buffers[64] = {0};
  size_t sizes[64] = {0};
  for (unsigned long i = 0; i < rounds; i++) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    root = insert(root, x % 1000003);
    if (i % 3 == 0)
      root = drop_smallest(root);
    unsigned slot = x % 64;
    size_t size = (x >> 8) % (i % 100 == 0 ? 3000000 : 20000) + 1;
    buffers[slot] = realloc(buffers[slot], size);
    if (!buffers[slot])
      return 2;
    if (size > sizes[slot])
      memset(buffers[slot] + sizes[slot], (int)(x >> 40), size - sizes[slot]);
    sizes[slot] = size;
    digest = digest * 31 + (unsigned char)buffers[slot][size / 2];
    if (i % 20000 == 0)
      digest ^= walk(root, digest);
  }
  printf("answer %lx %lx\n", digest, walk(root, 7));
  return 0;
}
