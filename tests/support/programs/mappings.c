/* mmap, munmap, mremap, mprotect, madvise and brk in a random walk, every page's content checked.
 * usage: mappings ROUNDS */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOTS 160 /* more mappings than are worth protecting only at the end */
static struct {
  unsigned char *at;
  size_t pages;
  unsigned char tag;
} slots[SLOTS];
static unsigned long x = 2463534242UL;

static unsigned long next(void) {
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return x;
}

static void fill(int i, size_t from) {
  for (size_t p = from; p < slots[i].pages; p++)
    memset(slots[i].at + p * 4096, (int)(slots[i].tag + p), 4096);
}

static void check(int i, const char *what) {
  for (size_t p = 0; p < slots[i].pages; p++)
    for (size_t k = 0; k < 4096; k += 511)
      if (slots[i].at[p * 4096 + k] != (unsigned char)(slots[i].tag + p)) {
        printf("wrong byte after %s\n", what);
        exit(1);
      }
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? strtol(argv[1], NULL, 0) : 3000;
  unsigned long digest = 0;
  for (long r = 0; r < rounds; r++) {
    int i = (int)(next() % SLOTS);
    if (!slots[i].at) {
      slots[i].pages = next() % 200 + 1;
      slots[i].tag = (unsigned char)next();
      slots[i].at =
          mmap(NULL, slots[i].pages * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      if (slots[i].at == MAP_FAILED)
        return 2;
      for (size_t k = 0; k < slots[i].pages * 4096; k += 4096)
        if (slots[i].at[k])
          return 3;
      fill(i, 0);
      continue;
    }
    check(i, "a pause");
    switch (next() % 5) {
    case 0:
      munmap(slots[i].at, slots[i].pages * 4096);
      slots[i].at = NULL;
      break;
    case 1: {
      size_t pages = next() % 300 + 1, old = slots[i].pages;
      unsigned char *to = mremap(slots[i].at, old * 4096, pages * 4096, MREMAP_MAYMOVE);
      if (to == MAP_FAILED)
        return 4;
      slots[i].at = to;
      slots[i].pages = pages;
      if (pages > old)
        fill(i, old);
      check(i, "mremap");
      break;
    }
    case 2:
      if (mprotect(slots[i].at, slots[i].pages * 4096, PROT_READ))
        return 5;
      check(i, "mprotect");
      if (mprotect(slots[i].at, slots[i].pages * 4096, PROT_READ | PROT_WRITE))
        return 5;
      break;
    case 3:
      if (madvise(slots[i].at, slots[i].pages * 4096, MADV_DONTNEED))
        return 6;
      for (size_t k = 0; k < slots[i].pages * 4096; k += 1024)
        if (slots[i].at[k])
          return 7;
      fill(i, 0);
      break;
    default: {
      size_t cut = slots[i].pages / 2;
      if (cut && slots[i].pages - cut) {
        munmap(slots[i].at + cut * 4096, (slots[i].pages - cut) * 4096);
        slots[i].pages = cut;
      }
    }
    }
    digest = digest * 31 + slots[i].pages + slots[i].tag;
    if (r % 64 == 0) {
      unsigned char *top = sbrk(4096 * 3);
      if (top != (void *)-1)
        memset(top, (int)r, 4096 * 3);
    }
  }
  for (int i = 0; i < SLOTS; i++)
    if (slots[i].at)
      check(i, "the end");
  printf("answer %lx\n", digest);
  return 0;
}
