/* Keeps many copies of a file's content in memory, says "ready", and counts them after a while.
 * usage: keeper FILE [SECONDS] */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { COPIES = 1000, STRIDE = 4096 };

int main(int argc, char **argv) {
  char first[256] = {0};
  FILE *f = fopen(argc > 1 ? argv[1] : "secret", "r");
  if (!f || !fread(first, 1, sizeof first - 1, f))
    return 2;
  fclose(f);
  char *copies = malloc((size_t)COPIES * STRIDE);
  if (!copies)
    return 2;
  unsigned x = 1;
  for (long i = 0; i < (long)COPIES * STRIDE; i++)
    copies[i] = (char)((x = x * 1664525 + 1013904223) >> 24);
  for (long i = 0; i < COPIES; i++)
    strcpy(copies + i * STRIDE, first);
  printf("ready\n");
  fflush(stdout);
  struct timespec nap = {argc > 2 ? atol(argv[2]) : 4, 0};
  nanosleep(&nap, NULL);
  int found = 0;
  for (long i = 0; i < COPIES; i++)
    found += strcmp(copies + i * STRIDE, first) == 0;
  printf("copies of the marker: %d\n", found);
  return 0;
}
