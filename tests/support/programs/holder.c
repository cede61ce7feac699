/* Holds a resource, says "holding", and computes until it is told to end by the file "stop".
 * usage: holder WHAT [PATH]; WHAT: nothing, socket, pipe, inotify, message-queue (which it
 * can do without), deleted, outside, read, locked */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static __attribute__((noinline)) int take_a_socket(void) {
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  return fd < 0 ? -1 : fd; /* so that the call is no jump */
}

static __attribute__((noinline)) void try_a_message_queue(void) {
  if (syscall(SYS_mq_open, "/queue", O_RDWR, 0, 0) < 0)
    printf("there are no message queues\n");
}

int main(int argc, char **argv) {
  const char *what = argc > 1 ? argv[1] : "nothing", *path = argc > 2 ? argv[2] : "held";
  int pair[2], fd = 0;
  if (!strcmp(what, "socket"))
    fd = take_a_socket();
  else if (!strcmp(what, "pipe"))
    fd = pipe(pair);
  else if (!strcmp(what, "inotify"))
    fd = inotify_init1(0);
  else if (!strcmp(what, "message-queue"))
    try_a_message_queue();
  else if (!strcmp(what, "deleted")) {
    fd = open(path, O_RDWR | O_CREAT, 0600);
    close(open("other", O_RDWR | O_CREAT, 0600));
    rename("other", path);
  } else if (!strcmp(what, "outside"))
    fd = open(path, O_RDWR | O_CREAT, 0600);
  else if (!strcmp(what, "read"))
    fd = open(path, O_RDONLY);
  else if (!strcmp(what, "locked")) {
    fd = open(path, O_RDWR | O_CREAT, 0600);
    if (flock(fd, LOCK_EX))
      fd = -1;
  }
  if (fd < 0) {
    perror(what);
    return 2;
  }
  printf("holding %s\n", what);
  fflush(stdout);
  for (int i = 0; access("stop", F_OK) && i < 20000; i++) {
    struct timespec nap = {0, 5000000};
    nanosleep(&nap, NULL);
  }
  printf("answer held %s\n", what);
  return 0;
}
