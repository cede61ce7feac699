/* Reads a file past the page cache (O_DIRECT): the disk writes straight into the program's memory, some
 * time after the call has begun. Every buffer is looked at before it is read into again.
 * usage: uncached [UNTIL_FILE]; reads twenty times, or until that file exists; prints `reading` when
 * it begins, and how many pages were not as they were read. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define PAGE 4096UL
#define BLOCK (16UL << 20)
#define BLOCKS 2
#define BUFFERS 8
#define NOTHING BLOCKS

static unsigned long word_of(unsigned long block, unsigned long page) {
  return (block * BLOCK + page + 1) * 0x9e3779b97f4a7c15UL;
}

static unsigned long differing(const char *buffer, unsigned long block) {
  unsigned long found = 0;
  for (unsigned long page = 0; block != NOTHING && page < BLOCK; page += PAGE)
    found += *(const unsigned long *)(buffer + page) != word_of(block, page);
  return found;
}

static int read_block(int fd, char *to, unsigned long block, int way) {
  off_t at = (off_t)(block * BLOCK);
  struct iovec halves[2] = {{to, BLOCK / 2}, {to + BLOCK / 2, BLOCK / 2}};
  switch (way) {
  case 0: return mmap(to, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, fd, at) == to;
  case 1: return lseek(fd, at, SEEK_SET) == at && read(fd, to, BLOCK) == BLOCK;
  case 2: return preadv(fd, halves, 2, at) == BLOCK;
  default: return pread(fd, to, BLOCK, at) == BLOCK;
  }
}

int main(int argc, char **argv) {
  unsigned long held[BUFFERS], different = 0, x = 521288629;
  char *buffers;
  int fd = open("blocks.bin", O_RDWR | O_CREAT | O_TRUNC, 0644);
  if (fd < 0 || posix_memalign((void **)&buffers, PAGE, BUFFERS * BLOCK))
    return 2;
  for (unsigned long block = 0; block < BLOCKS; block++) {
    for (unsigned long page = 0; page < BLOCK; page += PAGE)
      *(unsigned long *)(buffers + page) = word_of(block, page);
    if (write(fd, buffers, BLOCK) != BLOCK)
      return 3;
  }
  if (fsync(fd) || fcntl(fd, F_SETFL, O_DIRECT))
    return 4;
  int direct = open("blocks.bin", O_RDONLY | O_DIRECT);
  if (direct < 0)
    return 4;
  for (int i = 0; i < BUFFERS; i++)
    held[i] = NOTHING;
  puts("reading");
  fflush(stdout);
  for (long i = 0; i < 20 || (argc > 1 && access(argv[1], F_OK)); i++) {
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    unsigned long one = x % BUFFERS, block = (x >> 20) % BLOCKS;
    char *buffer = buffers + one * BLOCK;
    different += differing(buffer, held[one]);
    if (!read_block(i % 6 ? direct : fd, buffer, block, (int)(i % 10)))
      return 5;
    held[one] = block;
  }
  for (int i = 0; i < BUFFERS; i++)
    different += differing(buffers + (unsigned long)i * BLOCK, held[i]);
  printf("answer %lu pages are not as they were read\n", different);
  return 0;
}
