/* Calls that need no trap: libc's names of a few hot calls, defined here.
 *
 * A trap costs some ten times the call itself. These functions stand in the runtime's text, from which
 * system calls are not trapped, and take the place of libc's when the image is linked. They are weak: a
 * program that has its own function of such a name keeps it.
 *
 * They run as part of the program: on its stack, with its signals. So a thread can be parked at any of
 * their instructions, and each must be right wherever that is. One forwarded call after a look at the
 * descriptor table is: the table is the same on the next host. A clock is not, because its reading and
 * its offset must be of one host: a thread that is interrupted between the two begins again
 * (rt_begin_again), as with the kernel's restartable sequences.
 *
 * Whatever is not simple (a pipe, a listing, a processor clock), and all of it in an image that runs
 * alone or was built for the compiler tracker, goes by an ordinary, trapped system call. */
#include "rt.h"

#define DIRECT __attribute__((weak))
#define HIDDEN __attribute__((visibility("hidden")))

/* Travels with the image's data: 1 from the program's first instruction on. It stays 0 where the image runs
 * alone, and where the program marks what it writes: then the trap marks what a call fills (marks.c). */
int rt_direct;

/* A system call from outside the runtime's text. */
i64 rt_trapped(i64 nr, i64 a, i64 b, i64 c);
__asm__(".pushsection .text.rt_trapped,\"ax\",@progbits\n"
        ".globl rt_trapped\n"
        ".type rt_trapped,@function\n"
        "rt_trapped:\n"
        "  mov %rdi, %rax\n"
        "  mov %rsi, %rdi\n"
        "  mov %rdx, %rsi\n"
        "  mov %rcx, %rdx\n"
        "  syscall\n"
        "  ret\n"
        ".size rt_trapped, . - rt_trapped\n"
        ".popsection\n");

/* libc's own: errno, and calls at which a thread can be cancelled */
extern int *__errno_location(void);
extern HIDDEN i64 __syscall_cp(i64 nr, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f);
extern HIDDEN __attribute__((weak)) void __testcancel(void);

static i64 answer(i64 r) {
  if (!IS_ERR(r))
    return r;
  *__errno_location() = (int)-r;
  return -1;
}

/* Files are never waited for. */
static int is_file(int fd) {
  if (!rt_direct || (u32)fd >= RESERVED_FD_FIRST || RT->fds[fd].state != FD_OPEN)
    return 0;
  u32 kind = RT->ofds[RT->fds[fd].ofd % RT_MAX_OFDS].kind;
  return (kind >= OFD_OWN && kind <= OFD_DEVICE) || kind == OFD_OUTPUT;
}

static i64 trapped(i64 nr, int fd, u64 buffer, u64 bytes, i64 offset) {
  return answer(__syscall_cp(nr, fd, (i64)buffer, (i64)bytes, offset, 0, 0));
}

static const struct rt_ofd *simple_file(int fd) {
  const struct rt_ofd *o = is_file(fd) ? &RT->ofds[RT->fds[fd].ofd % RT_MAX_OFDS] : 0;
  return o && !o->pins ? o : 0;
}

static i64 read_file(i64 nr, int fd, u64 buffer, u64 bytes, i64 offset) {
  if (!simple_file(fd))
    return trapped(nr, fd, buffer, bytes, offset);
  if (__testcancel)
    __testcancel();
  return answer(raw4(nr, fd, buffer, bytes, offset));
}

/* What is appended needs no mark: the file has grown. */
static i64 write_file(i64 nr, int fd, u64 buffer, u64 bytes, i64 offset) {
  const struct rt_ofd *o = simple_file(fd);
  if (!o)
    return trapped(nr, fd, buffer, bytes, offset);
  if (__testcancel)
    __testcancel();
  if (!o->inode || o->flags & O_APPEND)
    return answer(raw4(nr, fd, buffer, bytes, offset));
  int placed = nr == __NR_pwrite64;
  volatile struct rt_writing *w = rt_writing_begin(o->inode, placed ? (u64)offset : 0, placed ? bytes : ~0ul);
  int watched = CTL->files_watched != 0;
  if (!w || (watched && !placed)) {
    if (w)
      rt_writing_end(w);
    return trapped(nr, fd, buffer, bytes, offset);
  }
  if (watched)
    rt_file_mark(w->inode, (u64)offset, bytes);
  i64 r = raw4(nr, fd, buffer, bytes, offset);
  rt_writing_end(w);
  return answer(r);
}

DIRECT i64 read(int fd, void *buffer, u64 bytes) {
  return read_file(__NR_read, fd, (u64)buffer, bytes, 0);
}

DIRECT i64 write(int fd, const void *buffer, u64 bytes) {
  return write_file(__NR_write, fd, (u64)buffer, bytes, 0);
}

DIRECT i64 pread(int fd, void *buffer, u64 bytes, i64 offset) {
  return read_file(__NR_pread64, fd, (u64)buffer, bytes, offset);
}

DIRECT i64 pwrite(int fd, const void *buffer, u64 bytes, i64 offset) {
  return write_file(__NR_pwrite64, fd, (u64)buffer, bytes, offset);
}

DIRECT i64 lseek(int fd, i64 offset, int whence) {
  int simple = is_file(fd) && !RT->ofds[RT->fds[fd].ofd % RT_MAX_OFDS].object.value;
  return answer(simple ? raw3(__NR_lseek, fd, offset, whence) : rt_trapped(__NR_lseek, fd, offset, whence));
}

DIRECT int fstat(int fd, void *status) {
  return (int)answer(is_file(fd) ? raw2(__NR_fstat, fd, status) : rt_trapped(__NR_fstat, fd, (i64)status, 0));
}

DIRECT int getpid(void) {
  return rt_direct ? RT->vpid : (int)rt_trapped(__NR_getpid, 0, 0, 0);
}

DIRECT int sched_yield(void) {
  return (int)answer(raw0(__NR_sched_yield));
}

/* ---- clocks ---- */

extern char rt_clock_begin[], rt_clock_end[];

/* Between its two labels it changes none of its arguments, and only overwrites what it has written. */
__attribute__((naked, noinline)) static i64 read_clock(__attribute__((unused)) int id,
                                                       __attribute__((unused)) struct timespec64 *t) {
  __asm__("rt_clock_begin:\n"
          "  mov %[nr], %%eax\n"
          "  syscall\n"
          "  test %%rax, %%rax\n"
          "  jnz rt_clock_end\n"
          "  test %%edi, %%edi\n" /* the wall clock has no offset */
          "  jz rt_clock_end\n"
          "  cmp $5, %%edi\n" /* nor its coarse form */
          "  je rt_clock_end\n"
          "  movabs %c[offset], %%rax\n"
          "  mov %%rax, %%rcx\n"
          "  imul $1000000000, (%%rsi), %%rax\n"
          "  add 8(%%rsi), %%rax\n"
          "  add %%rcx, %%rax\n"
          "  xor %%edx, %%edx\n"
          "  mov $1000000000, %%ecx\n"
          "  div %%rcx\n"
          "  mov %%rax, (%%rsi)\n"
          "  mov %%rdx, 8(%%rsi)\n"
          "  xor %%eax, %%eax\n"
          "rt_clock_end:\n"
          "  ret\n"
          :
          : [nr] "i"(__NR_clock_gettime), [offset] "i"(ARENA_BASE +
                                                       __builtin_offsetof(struct rt_state, mono_offset_ns)));
}

void rt_begin_again(struct rt_ucontext *uc) {
  if (uc->rip > (u64)rt_clock_begin && uc->rip < (u64)rt_clock_end)
    uc->rip = (u64)rt_clock_begin;
}

DIRECT int clock_gettime(int id, struct timespec64 *t) {
  const u32 simple = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7;
  if (rt_direct && (u32)id < 8 && simple >> id & 1)
    return (int)answer(read_clock(id, t));
  return (int)answer(rt_trapped(__NR_clock_gettime, id, (i64)t, 0));
}
