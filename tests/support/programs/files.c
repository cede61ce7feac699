/* Files of its own directory and one outside: read in the middle, written, appended, seeked, renamed,
 * removed, listed; a duplicate descriptor shares its offset.
 * usage: files ROUNDS [READ_ONLY_FILE]; prints what it read and wrote as digests. */
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static unsigned long digest_of(const void *p, size_t n, unsigned long h) {
  const unsigned char *b = p;
  while (n--)
    h = (h ^ *b++) * 1099511628211UL;
  return h;
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? strtol(argv[1], NULL, 0) : 2000;
  const char *outside = argc > 2 ? argv[2] : NULL;
  char buffer[5000];
  unsigned long h = 14695981039346656037UL;
  FILE *log = fopen("log.txt", "a+");
  int table = open("table.bin", O_RDWR | O_CREAT | O_TRUNC, 0644);
  int twin = dup(table);
  int reader = outside ? open(outside, O_RDONLY) : -1;
  if (!log || table < 0 || twin < 0 || (outside && reader < 0)) {
    perror("open");
    return 2;
  }
  mkdir("sub", 0755);
  unsigned long x = 521288629;
  for (long i = 0; i < rounds; i++) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    for (size_t k = 0; k < sizeof buffer; k++)
      buffer[k] = (char)(x >> (k % 56));
    if (pwrite(table, buffer, 700, (off_t)(x % 3000000)) != 700)
      return 3;
    lseek(table, (off_t)(x >> 9) % 2000000, SEEK_SET);
    ssize_t got = read(twin, buffer, sizeof buffer);
    h = digest_of(buffer, got > 0 ? (size_t)got : 0, h);
    fprintf(log, "round %ld digest %lx at %ld\n", i, h, (long)lseek(twin, 0, SEEK_CUR));
    if (reader >= 0) {
      got = read(reader, buffer, 1 + x % 4096);
      if (got == 0)
        lseek(reader, 0, SEEK_SET);
      h = digest_of(buffer, got > 0 ? (size_t)got : 0, h);
    }
    if (i % 50 == 0) {
      char name[64], next[64];
      snprintf(name, sizeof name, "sub/part-%ld", i);
      snprintf(next, sizeof next, "sub/kept-%ld", i % 500);
      FILE *f = fopen(name, "w");
      if (!f || fprintf(f, "%lx\n", h) < 0 || fclose(f) || rename(name, next))
        return 4;
      if (i % 400 == 0 && unlink(next))
        return 5;
    }
  }
  struct stat st;
  fstat(table, &st);
  h = digest_of(&st.st_size, sizeof st.st_size, h);
  rewind(log);
  size_t n;
  while ((n = fread(buffer, 1, sizeof buffer, log)) > 0)
    h = digest_of(buffer, n, h);
  DIR *d = opendir("sub");
  long entries = 0;
  while (d && readdir(d))
    entries++;
  if (d)
    closedir(d);
  char line[100];
  while (fgets(line, sizeof line, stdin))
    h = digest_of(line, strlen(line), h);
  printf("answer %lx %ld\n", h, entries);
  return 0;
}
