/* A stand-in for an enclave's process, for the tests of the tracker: it maps an arena and a second
 * range of it as the runtime does, hands over the tracker's descriptors, and then writes where its
 * standard input says. One command a line, answered with "ok":
 *   w FIRST COUNT VALUE   write a word into each page        d FIRST COUNT VALUE   through the data range
 *   r FIRST COUNT         read a word of each page           p FIRST COUNT         punch, then mark
 *   z FIRST COUNT         MADV_DONTNEED                      o FIRST COUNT         MADV_PAGEOUT
 *   m FIRST COUNT PROT    mprotect                           k FIRST COUNT         read(2) into the pages
 *   x SEED MS             write random pages for that long   f FIRST COUNT         map again with MAP_FIXED
 * Usage: tracked ARENA_FD ARENA_BYTES CTL_FD CTL_BYTES SOCKET_FD DATA_PAGE DATA_PAGES */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "../../enclave_shim/runtime/abi.h"

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#define DATA_AT ((char *)0x400000000ul)

static void check(int ok, const char *what) {
  if (!ok) {
    perror(what);
    exit(1);
  }
}

static void send_fds(int socket, int uffd, int pagemap, int error) {
  char control[CMSG_SPACE(2 * sizeof(int))] = {0};
  int payload = error, count = error ? 1 : 2;
  struct iovec iov = {&payload, sizeof payload};
  struct msghdr msg = {.msg_iov = &iov,
                       .msg_iovlen = 1,
                       .msg_control = control,
                       .msg_controllen = CMSG_SPACE(count * sizeof(int))};
  struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
  c->cmsg_level = SOL_SOCKET;
  c->cmsg_type = SCM_RIGHTS;
  c->cmsg_len = CMSG_LEN(count * sizeof(int));
  int fds[2] = {error ? pagemap : uffd, pagemap};
  memcpy(CMSG_DATA(c), fds, count * sizeof(int));
  check(sendmsg(socket, &msg, 0) == sizeof payload, "sendmsg");
}

static uint64_t now_ms(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000ul + t.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
  check(argc == 8, "usage");
  int arena_fd = atoi(argv[1]), ctl_fd = atoi(argv[3]), socket = atoi(argv[5]);
  size_t bytes = strtoull(argv[2], 0, 10), ctl_bytes = strtoull(argv[4], 0, 10);
  size_t data_page = strtoull(argv[6], 0, 10), data_bytes = strtoull(argv[7], 0, 10) * PAGE_BYTES;
  char *arena = (char *)ARENA_BASE;
  int flags = MAP_SHARED | MAP_FIXED, rw = PROT_READ | PROT_WRITE;
  check(mmap(arena, bytes, rw, flags, arena_fd, 0) == arena, "arena");
  madvise(arena, bytes, MADV_NOHUGEPAGE); /* as the runtime does */
  check(mmap((void *)CTL_BASE, ctl_bytes, rw, flags, ctl_fd, 0) != MAP_FAILED, "ctl");
  if (data_bytes)
    check(mmap(DATA_AT, data_bytes, rw, flags, arena_fd, data_page * PAGE_BYTES) == DATA_AT, "data");
  uint8_t *marks = (uint8_t *)MARKS_BASE;
  int error = 0, uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
  struct uffdio_api api = {.api = UFFD_API, .features = 1ul << 0 | 1ul << 12 | 1ul << 13 | 1ul << 15};
  if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
    error = errno;
  int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  check(pagemap >= 0, "pagemap");
  send_fds(socket, uffd, pagemap, error);

  char line[200];
  while (fgets(line, sizeof line, stdin)) {
    char command;
    unsigned long first, count, value = 0;
    check(sscanf(line, "%c %lu %lu %lu", &command, &first, &count, &value) >= 3, "command");
    char *at = arena + first * PAGE_BYTES;
    size_t length = count * PAGE_BYTES;
    volatile unsigned long sum = 0;
    switch (command) {
    case 'w':
      for (size_t i = 0; i < count; i++)
        *(volatile unsigned long *)(at + i * PAGE_BYTES) = value;
      break;
    case 'd':
      for (size_t i = 0; i < count; i++)
        *(volatile unsigned long *)(DATA_AT + (first + i) * PAGE_BYTES) = value;
      break;
    case 'r':
      for (size_t i = 0; i < count; i++)
        sum += *(volatile unsigned long *)(at + i * PAGE_BYTES);
      break;
    case 'p':
      check(!fallocate(arena_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first * PAGE_BYTES, length),
            "punch");
      memset(marks + first, 1, count);
      break;
    case 'z': check(!madvise(at, length, MADV_DONTNEED), "dontneed"); break;
    case 'o': check(!madvise(at, length, MADV_PAGEOUT), "pageout"); break;
    case 'm': check(!mprotect(at, length, (int)value), "mprotect"); break;
    case 'k': {
      int zero = open("/dev/urandom", O_RDONLY);
      check(read(zero, at, length) == (ssize_t)length, "read");
      close(zero);
      break;
    }
    case 'f': check(mmap(at, length, rw, flags, arena_fd, first * PAGE_BYTES) == at, "remap"); break;
    case 'x': {
      unsigned long state = first | 1, pages = bytes / PAGE_BYTES;
      for (uint64_t end = now_ms() + count; now_ms() < end;)
        for (int i = 0; i < 64; i++) {
          state = state * 6364136223846793005ul + 1442695040888963407ul;
          ((volatile unsigned long *)(arena + (state >> 33) % pages * PAGE_BYTES))[state >> 55] = state;
        }
      break;
    }
    default: check(0, "unknown command");
    }
    puts("ok");
    fflush(stdout);
  }
  return 0;
}
