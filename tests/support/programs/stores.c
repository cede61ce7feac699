/* Writes memory in every way a C program can, again and again, in a memory of its own.
 * usage: stores ROUNDS SEED [PAUSE_US [WAY]]; WAY is the number of the only one to be used
 * Each round picks one way after the other and places it anew, often across the end of a page. Its
 * only purpose is to break the compiler tracker: whatever it writes must be marked. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <fcntl.h>
#include <locale.h>
#include <math.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>
#include <wchar.h>

#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { PAGE = 4096, PAGES = 512, BYTES = PAGES * PAGE };
static unsigned char *memory;
static uint64_t state;

static uint64_t next(void) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state;
}

/* A place with that much room behind it, half of the time just before the end of a page. */
static void *place(size_t bytes, size_t align) {
  size_t at = bytes + next() % (BYTES - 2 * bytes - PAGE);
  if (next() & 1)
    at = at / PAGE * PAGE + PAGE - (bytes > 1 ? next() % bytes : 1);
  return memory + at / align * align;
}

#define WAY static __attribute__((noinline)) void
#define UNALIGNED(type) typedef type __attribute__((aligned(1), may_alias)) u_##type

typedef long double long_double;
typedef __int128 int128;
UNALIGNED(uint16_t);
UNALIGNED(uint32_t);
UNALIGNED(uint64_t);
UNALIGNED(double);
UNALIGNED(float);
UNALIGNED(long_double);
UNALIGNED(int128);

WAY widths(void) {
  *(uint8_t *)place(1, 1) = next();
  *(u_uint16_t *)place(2, 1) = next();
  *(u_uint32_t *)place(4, 1) = next();
  *(u_uint64_t *)place(8, 1) = next();
  *(u_int128 *)place(16, 1) = (u_int128)next() << 64 | next();
  *(uint64_t *)place(8, 8) = next();
  *(volatile uint32_t *)place(4, 4) = next();
}

WAY floating(void) {
  *(u_float *)place(4, 1) = (float)next();
  *(u_double *)place(8, 1) = (double)next();
  *(u_long_double *)place(16, 1) = (long double)next() / 3;
  long double *row = place(10 * sizeof(long double), 16);
  for (int i = 0; i < 10; i++)
    row[i] += i;
}

struct small {
  char a;
  short b;
  int c;
};
struct bits {
  unsigned a : 3, b : 11, c : 18;
  uint64_t d : 41;
};
struct middle {
  long a[9];
};
struct large {
  char text[5000];
};
struct giant {
  long a[3000];
};
static struct giant giants[2];

static __attribute__((noinline)) struct middle make(long x) {
  struct middle m;
  for (int i = 0; i < 9; i++)
    m.a[i] = x * i;
  return m;
}
static __attribute__((noinline)) void take(struct large by_value, struct large *to) {
  by_value.text[next() % 5000]++;
  *to = by_value;
}

WAY structs(void) {
  struct small s = {1, 2, (int)next()};
  *(struct small *)place(sizeof s, 4) = s;
  struct bits *b = place(sizeof *b, 8);
  b->a++;
  b->b = next();
  b->d += 5;
  *(struct middle *)place(sizeof(struct middle), 8) = make((long)next());
  struct large *l = place(sizeof *l, 1), *m = place(sizeof *m, 1);
  *m = *l;
  take(*l, m);
  *(struct large *)place(sizeof(struct large), 1) = (struct large){"only the beginning"};
  giants[next() & 1].a[next() % 3000] = (long)next();
  if (next() % 8 == 0) {
    *(struct giant *)place(sizeof(struct giant), 8) = giants[next() & 1];
    giants[0] = *(struct giant *)place(sizeof(struct giant), 8);
  }
}

static void *(*volatile copy)(void *, const void *, size_t) = memcpy;

WAY blocks(void) {
  static const size_t sizes[] = {0,  1,  2,  3,   7,   8,    15,   16,   17,   31,   32,   33,
                                 63, 64, 65, 127, 255, 1023, 1024, 4095, 4096, 4097, 9000, 70000};
  size_t n = sizes[next() % (sizeof sizes / sizeof *sizes)];
  copy(place(n, 1), memory, n);
  memset(place(n, 1), (int)next(), n);
  unsigned char *at = place(n + 100, 1);
  memmove(at + next() % 100, at, n);
  memmove(at, at + next() % 100, n);
  memcpy(place(200, 1), memory + next() % 1000, 200);
  memset(place(96, 1), 7, 96);
  bzero(place(40, 1), 40);
  mempcpy(place(n, 1), memory, n);
}

WAY strings(void) {
  char *a = place(300, 1), *b = place(300, 1);
  memset(a, 'x', 100);
  a[100] = 0;
  strcpy(b, a);
  strncpy(place(250, 1), a, 250);
  strcat(b, "and more");
  strncat(b, a, 20);
  stpcpy(place(300, 1), a);
  strlcpy(place(120, 1), a, 120);
  snprintf(place(200, 1), 200, "%d %s %f %Lg %a", (int)next(), "text", (double)next(), 1.5L, 2.5);
  char numbers[] = "17 2.5 word";
  sscanf(numbers, "%d %lf %s", (int *)place(4, 4), (double *)place(8, 8), (char *)place(20, 1));
  strtol("77z", (char **)place(8, 8), 10);
  char *token = place(40, 1);
  strcpy(token, "a,b,c");
  char **rest = place(8, 8);
  strtok_r(token, ",", rest);
  strsep(rest, ",");
  swab("abcdefgh", place(8, 1), 8);
  wmemset(place(400, 4), L'w', 100);
  mbstowcs(place(80, 4), "wide", 20);
  wcscpy(place(80, 4), L"wide");
  memccpy(place(50, 1), a, 'q', 50);
  for (int i = 0; i < 50; i++)
    a[i] = (char)toupper(a[i]);
}

static int compare(const void *a, const void *b) {
  return memcmp(a, b, 12);
}

WAY library(void) {
  qsort(place(12 * 300, 1), 300, 12, compare);
  frexp(next(), place(4, 4));
  modf(2.75, place(8, 8));
  double *sine = place(8, 8);
  sincos(0.5, sine, place(8, 8));
  remquo(17, 5, place(4, 4));
  lgamma_r(3.5, place(4, 4));
  time_t now = (time_t)(next() % 1000000000);
  gmtime_r(&now, place(sizeof(struct tm), 8));
  strftime(place(60, 1), 60, "%c", gmtime(&now));
  char *text = malloc(100 + next() % 5000);
  strcpy(text, "in the heap");
  text = realloc(text, 20000 + next() % 300000);
  memset(text, 3, 20000);
  char *more = calloc(1, 50 + next() % 3000);
  char *dup = strdup("a copy");
  void *aligned;
  if (!posix_memalign(&aligned, 4096, 9000))
    memset(aligned, 1, 9000);
  memcpy(place(10, 1), text, 10);
  free(aligned);
  free(dup);
  free(more);
  free(text);
}

/* ---- loops that become vectors ---- */

__attribute__((noinline, target("avx2"))) static void loop_avx2(float *to, const float *from, int n) {
  for (int i = 0; i < n; i++)
    to[i] = from[i] * 3 + 1;
}
__attribute__((noinline, target("avx512f,avx512bw,avx512vl,prefer-256-bit"))) static void
loop_avx512(int *restrict to, const int *restrict from, int n) {
  for (int i = 0; i < n; i++)
    if (from[i] & 1)
      to[i] = from[i] * 5;
}
__attribute__((noinline)) static void loop_down(long *to, int n) {
  for (int i = n; i-- > 0;)
    to[i] -= i;
}
__attribute__((noinline)) static void loop_stride(unsigned char *to, int n, int stride) {
  for (int i = 0; i < n; i++)
    to[(long)i * stride] += 1;
}
__attribute__((noinline)) static void loop_fields(struct small *to, int n) {
  for (int i = 0; i < n; i++) {
    to[i].b += 1;
    if (to[i].c & 1)
      to[i].c += 3;
  }
}
__attribute__((noinline)) static void loop_sum(long *sum, const unsigned char *from, int n) {
  for (int i = 0; i < n; i++)
    *sum += from[i];
}
__attribute__((noinline)) static void loop_two(char *a, short *b, int n) {
  for (int i = 0; i < n; i++) {
    a[3 * i] = (char)i;
    b[n - i] = (short)i;
  }
}
__attribute__((noinline)) static void loop_pages(unsigned char *to, int n) {
  for (int i = 0; i < n; i++)
    to[i * 2040] ^= 1;
}
__attribute__((noinline)) static void loop_pointer(char *to, const char *from) {
  while ((*to++ = *from++))
    ;
}
__attribute__((noinline)) static void loop_matrix(double (*c)[40], double (*a)[40], double (*b)[40]) {
  for (int i = 0; i < 40; i++)
    for (int k = 0; k < 40; k++)
      for (int j = 0; j < 40; j++)
        c[i][j] += a[i][k] * b[k][j];
}

WAY loops(void) {
  int n = (int)(next() % 6000);
  loop_avx2(place(24000, 4), (float *)memory, n);
  if (__builtin_cpu_supports("avx512vl"))
    loop_avx512(place(24000, 4), (int *)(memory + BYTES - 40000), n);
  loop_down(place(48000, 8), n);
  loop_stride(place(90000, 1), n, (int)(next() % 15) + 1);
  loop_fields(place(48000, 4), n);
  loop_sum(place(8, 8), memory, n);
  loop_two(place(18000, 1), place(12100, 2), n);
  loop_pages(place(41 * 2040, 1), 40);
  memset(memory, 'y', 700);
  memory[700] = 0;
  loop_pointer(place(800, 1), (char *)memory);
  loop_matrix(place(12800, 8), place(12800, 8), place(12800, 8));
}

/* ---- vector intrinsics ---- */

__attribute__((noinline, target("avx512f,avx512vl,avx512bw"))) static void wide(void) {
  _mm512_storeu_si512(place(64, 1), _mm512_set1_epi64((long long)next()));
  _mm512_mask_storeu_epi32(place(64, 1), (__mmask16)next(), _mm512_set1_epi32((int)next()));
  _mm512_mask_compressstoreu_epi32(place(64, 1), (__mmask16)next(), _mm512_set1_epi32((int)next()));
  _mm512_mask_storeu_epi8(place(64, 1), next(), _mm512_set1_epi8((char)next()));
  int *base = place(64000, 4);
  __m512i index = _mm512_set_epi32(1, 9000, 3, 1100, 5, 6000, 7, 15000, 900, 10, 2100, 12, 13, 14000, 15, 16);
  _mm512_i32scatter_epi32(base, index, _mm512_set1_epi32((int)next()), 4);
  _mm512_mask_i32scatter_epi32(base, (__mmask16)next(), index, _mm512_set1_epi32((int)next()), 4);
  _mm512_stream_si512(place(64, 64), _mm512_set1_epi32((int)next()));
}
__attribute__((noinline, target("avx2"))) static void half(void) {
  _mm256_storeu_si256(place(32, 1), _mm256_set1_epi64x((long long)next()));
  _mm256_maskstore_epi32(place(32, 1), _mm256_set_epi32(-1, 0, -1, 0, 0, -1, -1, 0), _mm256_set1_epi32(9));
  _mm256_stream_si256(place(32, 32), _mm256_set1_epi32((int)next()));
}
WAY vectors(void) {
  _mm_storeu_si128(place(16, 1), _mm_set1_epi64x((long long)next()));
  _mm_storel_epi64(place(8, 1), _mm_set1_epi64x((long long)next()));
  _mm_maskmoveu_si128(_mm_set1_epi8(7), _mm_set1_epi64x((long long)next()), place(16, 1));
  _mm_stream_si64(place(8, 8), (long long)next());
  *(unsigned *)place(4, 4) = _mm_getcsr();
  if (__builtin_cpu_supports("avx2"))
    half();
  if (__builtin_cpu_supports("avx512bw"))
    wide();
}

/* ---- atomics ---- */

WAY atomics(void) {
  atomic_long *a = place(8, 8);
  atomic_fetch_add(a, 3);
  atomic_fetch_sub((atomic_long *)place(8, 8), 3);
  atomic_fetch_xor((atomic_uint *)place(4, 4), 9u);
  atomic_fetch_and((atomic_uchar *)place(1, 1), 9);
  atomic_fetch_or((atomic_ushort *)place(2, 2), 9);
  atomic_exchange((atomic_long *)place(8, 8), 5);
  atomic_store((atomic_long *)place(8, 8), 5);
  atomic_store_explicit((atomic_int *)place(4, 4), 5, memory_order_release);
  long old = *a;
  atomic_compare_exchange_strong(a, &old, old + 1);
  long *expected = place(8, 8);
  atomic_compare_exchange_weak((atomic_long *)place(8, 8), expected, 4);
  _Atomic double *d = place(8, 8);
  *d += 1.5;
  __sync_fetch_and_nand((int *)place(4, 4), 3);
  _Atomic int128 *pair = place(16, 16);
  atomic_store(pair, ((int128)next() << 64) | next());
  atomic_fetch_add(pair, 77);
  struct small *s = place(16, 16);
  __atomic_store(s, &(struct small){1, 2, 3}, __ATOMIC_SEQ_CST);
  atomic_flag_test_and_set((atomic_flag *)place(1, 1));
}

/* ---- the kernel writes ---- */

WAY calls(void) {
  int fd = open("stores.bin", O_RDWR | O_CREAT, 0600);
  if (fd < 0 || write(fd, memory, 30000) != 30000)
    exit(2);
  if (pread(fd, place(20000, 1), next() % 20000, 0) < 0)
    exit(3);
  lseek(fd, 0, SEEK_SET);
  struct iovec parts[3] = {{place(3000, 1), 3000}, {place(10, 1), 10}, {place(5000, 1), 5000}};
  if (readv(fd, parts, 3) != 8010)
    exit(4);
  fstat(fd, place(sizeof(struct stat), 8));
  close(fd);
  if (!getcwd(place(300, 1), 300))
    exit(5);
  clock_gettime(CLOCK_MONOTONIC, place(16, 8));
  gettimeofday(place(16, 8), NULL);
  uname(place(sizeof(struct utsname), 1));
  stat(".", place(sizeof(struct stat), 8));
  DIR *here = opendir(".");
  while (here && readdir(here))
    ;
  closedir(here);
  FILE *f = fopen("stores.bin", "r");
  if (!f || fread(place(9000, 1), 1, 9000, f) != 9000)
    exit(6);
  fgets(place(100, 1), 100, f);
  fclose(f);
  sigprocmask(SIG_SETMASK, NULL, place(128, 8));
  sigaction(SIGUSR1, NULL, place(sizeof(struct sigaction), 8));
  poll(NULL, 0, 0);
  void *map = mmap(NULL, 20000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  memset(map, 9, 20000);
  map = mremap(map, 20000, 90000, MREMAP_MAYMOVE);
  memcpy(place(20000, 1), map, 20000);
  munmap(map, 90000);
}

/* The kernel puts what comes from a pipe or a pair of sockets straight into the program's memory. */
WAY messages(void) {
  static char sent[6000];
  int tube[2], pair[2], ends[2];
  memset(sent, (int)next(), sizeof sent);
  if (pipe(tube) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || socketpair(AF_UNIX, SOCK_DGRAM, 0, ends))
    exit(7);
  struct iovec parts[3] = {{place(1500, 1), 1500}, {place(1, 1), 1}, {place(2500, 1), 2500}};
  if (write(tube[1], sent, 6000) != 6000 || read(tube[0], place(1999, 1), 1999) != 1999 ||
      readv(tube[0], parts, 3) != 4001)
    exit(8);
  if (send(pair[0], sent, 6000, 0) != 6000 || recv(pair[1], place(900, 1), 900, MSG_PEEK) != 900 ||
      recv(pair[1], place(900, 1), 900, 0) != 900 || read(pair[1], place(1099, 1), 1099) != 1099 ||
      readv(pair[1], parts, 3) != 4001)
    exit(9);
  static socklen_t name_bytes;
  name_bytes = sizeof(struct sockaddr_storage);
  if (send(ends[0], sent, 700, 0) != 700 ||
      recvfrom(ends[1], place(700, 1), 700, 0, place(sizeof(struct sockaddr_storage), 8), &name_bytes) != 700)
    exit(10);
  static struct msghdr head;
  head = (struct msghdr){.msg_iov = parts, .msg_iovlen = 3};
  if (send(ends[0], sent, 4500, 0) != 4500 || recvmsg(ends[1], &head, 0) != 4001 ||
      !(head.msg_flags & MSG_TRUNC))
    exit(11);
  for (int i = 0; i < 2; i++) {
    close(tube[i]);
    close(pair[i]);
    close(ends[i]);
  }
}

/* ---- control flow ---- */

static volatile sig_atomic_t handled;
static void handler(int sig) {
  (void)sig;
  int saved = handled;
  *(uint64_t *)place(8, 8) = (uint64_t)saved;
  memset(place(5000, 1), saved, 5000);
  loop_down(place(8000, 8), 1000);
  handled = saved + 1;
}
static jmp_buf there;
static void jumper(int sig) {
  (void)sig;
  *(uint64_t *)place(8, 8) = next();
  siglongjmp(there, 1);
}
WAY signals(void) {
  signal(SIGUSR1, handler);
  raise(SIGUSR1);
  signal(SIGUSR2, jumper);
  if (!sigsetjmp(there, 1))
    raise(SIGUSR2);
  jmp_buf *buffer = place(sizeof(jmp_buf), 8);
  if (!setjmp(*buffer))
    *(uint64_t *)place(8, 8) = next();
}

static __attribute__((noinline)) void sum(long *to, int n, ...) {
  va_list list, again;
  va_start(list, n);
  va_copy(again, list);
  for (int i = 0; i < n; i++)
    *to += va_arg(list, int) + (long)va_arg(again, double);
  va_end(again);
  va_end(list);
}
static _Thread_local long thread_local_words[1500];
static long words[40000];
static char *line;
static size_t line_bytes;

WAY others(void) {
  sum(place(8, 8), 3, 1, 2.0, 3, 4.0, 5, 6.0);
  thread_local_words[next() % 1500] += 3;
  words[next() % 40000]++;
  for (int i = 0; i < 40000; i += 700)
    words[i] = (long)next();
  FILE *stream = open_memstream(&line, &line_bytes);
  fprintf(stream, "%ld", (long)next());
  fclose(stream);
  free(line);
  setlocale(LC_ALL, "C");
  setenv("STORES", "value", 1);
  __asm__ volatile("incl %0" : "+m"(*(int *)place(4, 4)));
  __asm__ volatile("lock; addq $3, %0" : "+m"(*(long *)place(8, 8)) : : "memory", "cc");
}

int main(int argc, char **argv) {
  long rounds = argc > 1 ? strtol(argv[1], NULL, 0) : 100;
  state = argc > 2 ? strtoul(argv[2], NULL, 0) | 1 : 88172645463325252ul;
  memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED)
    return 1;
  static void (*const ways[])(void) = {widths,  floating, structs, blocks,   strings, library, loops,
                                       vectors, atomics,  calls,   messages, signals, others};
  long pause_us = argc > 3 ? strtol(argv[3], NULL, 0) : 0;
  long only = argc > 4 ? strtol(argv[4], NULL, 0) : -1;
  for (long i = 0; i < rounds; i++) {
    ways[only < 0 ? next() % (sizeof ways / sizeof *ways) : (uint64_t)only]();
    if (pause_us)
      nanosleep(&(struct timespec){0, pause_us * 1000}, NULL);
  }
  printf("answer %ld rounds, %d signals\n", rounds, (int)handled);
  return 0;
}
