/* Holds one of everything that a restore puts back: threads, files of every kind, a duplicate, a
 * handler, mappings, pipes and their kin; says "ready", and waits for the file "stop".
 * usage: parker EXTERNAL SHARED */
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static void nap(void) {
  struct timespec t = {0, 5000000};
  nanosleep(&t, NULL);
}

static void *waiter(void *argument) {
  while (access("stop", F_OK))
    nap();
  return argument;
}

static void on_usr1(int sig) {
  (void)sig;
}

int main(int argc, char **argv) {
  if (argc != 3)
    return 2;
  int own = open("own.txt", O_RDWR | O_CREAT, 0600), external = open(argv[1], O_RDONLY),
      shared = open(argv[2], O_RDWR), device = open("/dev/null", O_WRONLY), twice = dup(own);
  if (own < 0 || external < 0 || shared < 0 || device < 0 || twice < 0)
    return 3;
  if (write(own, "0123456789", 10) != 10 || lseek(external, 3, SEEK_SET) != 3)
    return 4;
  if (mmap(NULL, 1 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED)
    return 5;
  int tube[2], pair[2], counter = eventfd(5, 0), loop = epoll_create1(0),
                        timer = timerfd_create(CLOCK_MONOTONIC, 0);
  struct epoll_event event = {EPOLLIN, {.u64 = 77}};
  struct itimerspec every = {{0, 1000000}, {0, 1000000}};
  sigset_t none;
  sigemptyset(&none);
  if (pipe(tube) || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) || write(tube[1], "in the pipe", 11) != 11 ||
      send(pair[0], "message", 7, 0) != 7 || epoll_ctl(loop, EPOLL_CTL_ADD, tube[0], &event) ||
      timerfd_settime(timer, 0, &every, NULL) || signalfd(-1, &none, 0) < 0)
    return 7;
  DIR *listed = opendir(".");
  if (!listed || !readdir(listed) || open("/proc/meminfo", O_RDONLY) < 0)
    return 9;
  signal(SIGUSR1, on_usr1);
  pthread_t threads[2];
  for (int i = 0; i < 2; i++)
    if (pthread_create(&threads[i], NULL, waiter, NULL))
      return 6;
  printf("ready\n");
  fflush(stdout);
  waiter(NULL);
  for (int i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
  char text[32];
  unsigned long count = 0, ticks = 0;
  if (read(tube[0], text, sizeof text) != 11 || recv(pair[1], text + 11, 16, 0) != 7 ||
      read(counter, &count, 8) != 8 || count != 5 || read(timer, &ticks, 8) != 8 || ticks == 0)
    return 8;
  printf("%.18s\n", text);
  printf("offset %ld\n", (long)lseek(twice, 0, SEEK_CUR));
  return 0;
}
