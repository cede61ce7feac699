/* Threads that change files of their own in every way there is: in place, at their end, at a position, by
 * vectors, past the page cache; cut, punched, filled from each other, renamed and made anew.
 * usage: rewriter ROUNDS [PAUSE_US]; prints a digest of what all files hold in the end. Without a pause all
 * files are cut or made anew within any round of a move. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define THREADS 3
#define FILES 4
#define LARGEST (6L << 20)
#define BUFFER (4L << 20)
#define FALLOC_FL_KEEP_SIZE 1
#define FALLOC_FL_PUNCH_HOLE 2

#define MUST(condition)                                                                                      \
  do {                                                                                                       \
    if (!(condition)) {                                                                                      \
      perror(#condition);                                                                                    \
      exit(2);                                                                                               \
    }                                                                                                        \
  } while (0)

struct writer {
  unsigned long x, digest;
  int number, files[FILES];
  char *buffer;
};

static long rounds = 300;
static unsigned pause_us;

static unsigned long next(struct writer *w) {
  w->x ^= w->x << 13;
  w->x ^= w->x >> 7;
  w->x ^= w->x << 17;
  return w->x;
}

static const char *name_of(struct writer *w, int file, char *name) {
  sprintf(name, "%d-%d", w->number, file);
  return name;
}

static void make(struct writer *w, int file, int flags) {
  char name[32];
  if (w->files[file] >= 0)
    MUST(close(w->files[file]) == 0);
  w->files[file] = open(name_of(w, file, name), O_RDWR | O_CREAT | flags, 0644);
  MUST(w->files[file] >= 0);
}

/* New content for that much of the buffer: a word in every 512 bytes is enough. */
static void fill(struct writer *w, long bytes) {
  for (long at = 0; at + 8 <= bytes; at += 512)
    *(unsigned long *)(w->buffer + at) = next(w);
}

static void past_the_cache(struct writer *w, int file, long at, long bytes) {
  char name[32];
  int fd = open(name_of(w, file, name), O_WRONLY | O_DIRECT);
  MUST(fd >= 0);
  MUST(pwrite(fd, w->buffer, bytes, at) == bytes);
  close(fd);
}

static void append(struct writer *w, int file, long bytes) {
  char name[32];
  int fd = open(name_of(w, file, name), O_WRONLY | O_APPEND);
  MUST(fd >= 0);
  MUST(write(fd, w->buffer, bytes / 2) == bytes / 2);
  MUST(pwrite(fd, w->buffer + bytes / 2, bytes / 2, 0) == bytes / 2); /* at the end, too */
  close(fd);
}

static void change(struct writer *w) {
  char name[32], other[32];
  int one = (int)(next(w) % FILES), two = (one + 1) % FILES, fd = w->files[one];
  unsigned long what = next(w) % 200;
  long at = (long)(next(w) % LARGEST), bytes = 16 + (long)(next(w) % 100000);
  struct iovec halves[2] = {{w->buffer, bytes / 2}, {w->buffer + bytes / 2, bytes - bytes / 2}};
  struct stat status;
  fill(w, bytes);
  if (what < 70) {
    MUST(pwrite(fd, w->buffer, bytes, at) == bytes);
  } else if (what < 100) {
    MUST(lseek(fd, at, SEEK_SET) == at && write(fd, w->buffer, bytes) == bytes);
  } else if (what < 130) {
    MUST(fstat(fd, &status) == 0);
    if (status.st_size < 2 * LARGEST)
      append(w, one, bytes);
  } else if (what < 132) {
    MUST(ftruncate(fd, at) == 0);
  } else if (what < 134) {
    MUST(truncate(name_of(w, one, name), at) == 0);
  } else if (what < 136) {
    MUST(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, bytes) == 0);
  } else if (what < 138) { /* often with the inode of the one before */
    MUST(unlink(name_of(w, one, name)) == 0);
    make(w, one, O_EXCL);
    MUST(pwrite(w->files[one], w->buffer, bytes, at) == bytes);
  } else if (what < 150) {
    MUST(pwritev(fd, halves, 2, at) == bytes);
  } else if (what < 165) {
    MUST(lseek(fd, at, SEEK_SET) == at && writev(fd, halves, 2) == bytes);
  } else if (what < 167) {
    off_t from = at / 2, to = at;
    MUST(copy_file_range(w->files[two], &from, fd, &to, (size_t)bytes, 0) >= 0);
  } else if (what < 175) {
    fill(w, BUFFER);
    MUST(pwrite(fd, w->buffer, BUFFER, at) == BUFFER);
  } else if (what < 177) {
    MUST(close(w->files[two]) == 0);
    w->files[two] = -1;
    MUST(rename(name_of(w, one, name), name_of(w, two, other)) == 0);
    make(w, two, 0);
    make(w, one, 0);
  } else if (what < 179) {
    make(w, one, O_TRUNC);
    MUST(pwrite(w->files[one], w->buffer, bytes, at) == bytes);
  } else if (what < 185) {
    fill(w, BUFFER);
    past_the_cache(w, one, at & ~4095L, BUFFER);
  } else {
    long got = pread(fd, w->buffer, (size_t)bytes, at);
    for (long k = 0; k + 8 <= got; k += 8)
      w->digest = (w->digest ^ *(unsigned long *)(w->buffer + k)) * 1099511628211UL;
  }
}

static void *run(void *argument) {
  struct writer *w = argument;
  MUST(posix_memalign((void **)&w->buffer, 4096, BUFFER) == 0);
  memset(w->buffer, 0, BUFFER);
  for (int file = 0; file < FILES; file++) {
    w->files[file] = -1;
    make(w, file, 0);
  }
  for (long round = 0; round < rounds; round++) {
    change(w);
    usleep(pause_us);
  }
  for (int file = 0; file < FILES; file++) {
    long got;
    for (off_t at = 0; (got = pread(w->files[file], w->buffer, BUFFER, at)) > 0; at += got)
      for (long k = 0; k < got; k++)
        w->digest = (w->digest ^ (unsigned char)w->buffer[k]) * 1099511628211UL;
    w->digest = (w->digest ^ (unsigned long)file) * 1099511628211UL;
  }
  return NULL;
}

int main(int argc, char **argv) {
  pthread_t threads[THREADS];
  struct writer writers[THREADS];
  unsigned long digest = 0;
  if (argc > 1)
    rounds = strtol(argv[1], NULL, 0);
  if (argc > 2)
    pause_us = (unsigned)strtoul(argv[2], NULL, 0);
  for (int i = 0; i < THREADS; i++) {
    writers[i] = (struct writer){.x = 88172645463325252UL + (unsigned long)i, .number = i};
    MUST(pthread_create(&threads[i], NULL, run, &writers[i]) == 0);
  }
  for (int i = 0; i < THREADS; i++) {
    MUST(pthread_join(threads[i], NULL) == 0);
    digest = digest * 31 + writers[i].digest;
  }
  printf("answer %lx\n", digest);
  return 0;
}
