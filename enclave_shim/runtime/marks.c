/* The runtime's share of the compiler tracker.
 *
 * A program built with `--tracker=compiler` marks the pages that it writes itself. What others write
 * for it is marked here: system calls that fill the program's memory. While such a call may wait, the
 * thread can be parked between the kernel's write and the mark, so what it may fill is also noted in
 * the thread's slot of the runtime's state, where the agent counts it as written; so nothing is lost
 * whatever comes first. The runtime's own state, the alternate stacks and the program's stacks count
 * as always written.
 *
 * The program's marks are reached at an address of their own, below which a page's byte is one shift
 * away (MARKS_BIAS). It aliases the same memory that the runtime sees at MARKS_BASE; a second piece,
 * LOW_MARKS, is for the addresses below 2 GiB, where the image's own data is. */
#include "rt.h"

#define PROT_RW 3
#define MAP_FIXED_NOREPLACE_SHARED 0x100001
#define ARCH_SET_FS 0x1002
#define ARCH_GET_FS 0x1003
#define MEMBARRIER_REGISTER_GLOBAL_EXPEDITED 4 /* the tracker's barrier is one of this process, too */
#define TASK_PAGES (1ul << 35) /* of the 128 TiB that a process has with four levels of page tables */

extern const i64 optmig_slots_offset __attribute__((weak));
extern const u64 optmig_slots_count __attribute__((weak));

static u64 *slots_of(u64 fs_base) {
  return (u64 *)(fs_base + (u64)CTL->slots_offset);
}

static void map_marks(u64 at, u64 bytes, u64 offset) {
  i64 r = raw6(__NR_mmap, at, bytes, PROT_RW, MAP_FIXED_NOREPLACE_SHARED, CTL->fd_ctl, offset);
  if (IS_ERR(r))
    rt_fail((int)-r, "the page marks could not be mapped (is the image's data larger than 2 GiB?)");
}

void rt_marks_boot(u64 data_end) {
  if (&optmig_slots_count == 0)
    return;
  if (data_end > MARKS_BIAS)
    rt_fail(E_NOMEM, "the image's data is too large for the compiler tracker");
  map_marks(MARKS_BIAS, LOW_MARKS_BYTES, CTL_HEADER_BYTES + CTL->marks_bytes);
  map_marks(MARKS_BIAS + ARENA_BASE / PAGE_BYTES, CTL->marks_bytes, CTL_HEADER_BYTES);
  i64 r = raw2(__NR_membarrier, MEMBARRIER_REGISTER_GLOBAL_EXPEDITED, 0);
  if (IS_ERR(r))
    rt_fail((int)-r, "this kernel has no memory barrier between processes (membarrier, Linux 4.16 or later)");
  CTL->slots_offset = optmig_slots_offset;
  CTL->slots = (u32)optmig_slots_count;
}

/* An image that runs alone (alone.c) has memory anywhere, and nobody who reads its marks. */
void rt_marks_alone(void) {
  if (&optmig_slots_count == 0)
    return;
  const i64 private_noreserve_fixed = 0x104022; /* PRIVATE, ANONYMOUS, NORESERVE, FIXED_NOREPLACE */
  u64 bytes = TASK_PAGES + PAGE_BYTES;
  i64 marks = raw6(__NR_mmap, MARKS_BIAS, bytes, PROT_RW, private_noreserve_fixed, -1, 0);
  i64 slots = raw6(__NR_mmap, 0, PAGE_BYTES, PROT_RW, 0x22 /* PRIVATE, ANONYMOUS */, -1, 0);
  if (IS_ERR(marks) || IS_ERR(slots))
    raw1(__NR_exit_group, 127);
  raw2(__NR_arch_prctl, ARCH_SET_FS, slots - optmig_slots_offset);
}

/* libc sets up thread-local storage with code that marks: until then the slots are in the state. */
void rt_marks_first_thread(void) {
  if (CTL->slots == 0)
    return;
  u64 base = (u64)RT->boot_slots - (u64)CTL->slots_offset;
  raw2(__NR_arch_prctl, ARCH_SET_FS, base);
  RT->threads[0].fs_base = base;
}

void rt_mark(u64 at, u64 bytes) {
  if (bytes == 0)
    return;
  if (at >= RT->data_start && at < RT->data_end)
    at = at - RT->data_start + RT->data_copy;
  u64 end = ARENA_BASE + RT->arena_bytes;
  if (at < ARENA_BASE || at >= end)
    return; /* the kernel refuses to write there */
  u64 last = bytes > end - at ? end - 1 : at + bytes - 1;
  for (u64 page = (at - ARENA_BASE) / PAGE_BYTES; page <= (last - ARENA_BASE) / PAGE_BYTES; page++)
    *((volatile u8 *)MARKS_BASE + page) = 1;
}

/* ---- what a call fills ---- */

/* How the size of an output is told. */
enum { NO = 0, BYTES, BY_ARG, BY_U32_AT, IOVECS, MESSAGE };
struct output {
  u8 arg;   /* 1 to 6: the argument that points to it */
  u8 kind;  /* one of the above */
  u16 size; /* BYTES: how many; BY_ARG: bytes of one, times */
  u8 by;    /* BY_ARG, IOVECS: the argument with the count; BY_U32_AT: that points to it */
};
#define ONE(call, a, n) [__NR_##call] = {{a, BYTES, n, 0}}
#define TWO(call, a, n, b, m) [__NR_##call] = {{a, BYTES, n, 0}, {b, BYTES, m, 0}}
#define TIMES(call, a, n, count) [__NR_##call] = {{a, BY_ARG, n, count}}
#define OUTPUTS RT_OUTPUTS

static const struct output outputs[][OUTPUTS] = {
    TIMES(read, 2, 1, 3),
    TIMES(pread64, 2, 1, 3),
    [__NR_readv] = {{2, IOVECS, 0, 3}},
    [__NR_preadv] = {{2, IOVECS, 0, 3}},
    [__NR_preadv2] = {{2, IOVECS, 0, 3}},
    [__NR_recvfrom] = {{2, BY_ARG, 1, 3}, {5, BYTES, 128, 0}, {6, BYTES, 4, 0}},
    [__NR_recvmsg] = {{2, MESSAGE, 56, 0}},
    TWO(getsockname, 2, 128, 3, 4),
    TWO(getpeername, 2, 128, 3, 4),
    TWO(accept, 2, 128, 3, 4),
    TWO(accept4, 2, 128, 3, 4),
    [__NR_getsockopt] = {{4, BY_U32_AT, 1, 5}, {5, BYTES, 4, 0}},
    ONE(socketpair, 4, 8),
    ONE(pipe, 1, 8),
    ONE(pipe2, 1, 8),
    ONE(fstat, 2, 144),
    ONE(stat, 2, 144),
    ONE(lstat, 2, 144),
    ONE(newfstatat, 3, 144),
    ONE(statx, 5, 256),
    ONE(statfs, 2, 120),
    ONE(fstatfs, 2, 120),
    TIMES(readlink, 2, 1, 3),
    TIMES(readlinkat, 3, 1, 4),
    TIMES(getdents64, 2, 1, 3),
    TIMES(getcwd, 1, 1, 2),
    ONE(ioctl, 3, 4096),
    ONE(fcntl, 3, 32),
    ONE(sendfile, 3, 8),
    TWO(copy_file_range, 2, 8, 4, 8),
    ONE(clock_gettime, 2, 16),
    ONE(clock_getres, 2, 16),
    ONE(nanosleep, 2, 16),
    ONE(clock_nanosleep, 4, 16),
    TWO(gettimeofday, 1, 16, 2, 8),
    ONE(time, 1, 8),
    ONE(times, 1, 32),
    ONE(getrusage, 2, 144),
    ONE(rt_sigaction, 3, 32),
    ONE(rt_sigprocmask, 3, 8),
    ONE(rt_sigtimedwait, 2, 128),
    ONE(rt_sigpending, 1, 8),
    ONE(sigaltstack, 2, 24),
    ONE(setitimer, 3, 32),
    ONE(getitimer, 2, 32),
    TWO(clone, 3, 4, 4, 4),
    ONE(futex, 5, 4),
    ONE(prlimit64, 4, 16),
    ONE(getrlimit, 2, 16),
    ONE(prctl, 2, 16),
    ONE(arch_prctl, 2, 8),
    TIMES(getgroups, 2, 4, 1),
    [__NR_getresuid] = {{1, BYTES, 4, 0}, {2, BYTES, 4, 0}, {3, BYTES, 4, 0}},
    [__NR_getresgid] = {{1, BYTES, 4, 0}, {2, BYTES, 4, 0}, {3, BYTES, 4, 0}},
    ONE(uname, 1, 390),
    ONE(sysinfo, 1, 112),
    TIMES(getrandom, 1, 1, 2),
    TWO(getcpu, 1, 4, 2, 4),
    TIMES(sched_getaffinity, 3, 1, 2),
    ONE(sched_getparam, 2, 4),
    TIMES(poll, 1, 8, 2),
    [__NR_ppoll] = {{1, BY_ARG, 8, 2}, {3, BYTES, 16, 0}},
    [__NR_select] = {{2, BYTES, 128, 0}, {3, BYTES, 128, 0}, {4, BYTES, 128, 0}, {5, BYTES, 16, 0}},
    [__NR_pselect6] = {{2, BYTES, 128, 0}, {3, BYTES, 128, 0}, {4, BYTES, 128, 0}, {5, BYTES, 16, 0}},
    TIMES(epoll_wait, 2, 12, 3),
    TIMES(epoll_pwait, 2, 12, 3),
    TIMES(epoll_pwait2, 2, 12, 3),
    ONE(timerfd_settime, 4, 32),
    ONE(timerfd_gettime, 2, 32),
};

static u64 argument(const struct call *c, u32 number) {
  const u64 all[] = {c->a, c->b, c->c, c->d, c->e, c->f};
  return all[number - 1];
}

static int readable(u64 at, u64 bytes) {
  u64 arena_end = ARENA_BASE + RT->arena_bytes;
  return (at >= ARENA_BASE && at <= arena_end && bytes <= arena_end - at) ||
         (at >= RT->data_start && at <= RT->data_end && bytes <= RT->data_end - at);
}

/* A call may be given any address: what is read here is only read where the program's memory is, and
 * there a page without access ends the program with a fault, as the kernel's EFAULT seldom does not. */
static u64 size_by_pointer(u64 at) {
  return readable(at, 4) ? *(const u32 *)at : 0;
}

static void mark_iovecs(struct rt_thread *t, u64 vector, u64 count) {
  if (count > RT_MAX_VECTORS || !readable(vector, count * sizeof(struct rt_vector)))
    return;
  const struct rt_vector *v = (const struct rt_vector *)vector;
  u64 low = ~0ul, high = 0;
  for (u64 i = 0; i < count; i++) {
    if (!v[i].bytes)
      continue;
    rt_mark(v[i].base, v[i].bytes);
    if (v[i].base < low)
      low = v[i].base;
    if (v[i].base + v[i].bytes > high)
      high = v[i].base + v[i].bytes;
  }
  if (t && high > low) { /* their hull: more than is written, never less */
    t->out_at[0] = low;
    t->out_bytes[0] = high - low;
  }
}

/* struct msghdr: name, name_len, iov, iov_len, control, control_len, flags. */
static void mark_message(struct rt_thread *t, u64 at) {
  if (!readable(at, 56))
    return;
  const u64 *m = (const u64 *)at;
  rt_mark(at, 56);
  rt_mark(m[0], m[0] ? (u32)m[1] : 0);
  rt_mark(m[4], m[4] ? m[5] : 0);
  mark_iovecs(t, m[2], m[3]);
  if (t) {
    t->out_at[1] = at;
    t->out_bytes[1] = 56;
    t->out_at[2] = m[0];
    t->out_bytes[2] = m[0] ? (u32)m[1] : 0;
    t->out_at[3] = m[4];
    t->out_bytes[3] = m[4] ? m[5] : 0;
  }
}

static void mark_outputs(struct call *c, struct rt_thread *note) {
  const struct output *row = outputs[c->nr];
  for (u32 i = 0; i < OUTPUTS && row[i].kind != NO; i++) {
    u64 at = argument(c, row[i].arg), bytes = row[i].size;
    if (!at)
      continue;
    switch (row[i].kind) {
    case BY_ARG: bytes *= argument(c, row[i].by); break;
    case BY_U32_AT: bytes = size_by_pointer(argument(c, row[i].by)); break;
    case IOVECS: mark_iovecs(note, at, argument(c, row[i].by)); continue;
    case MESSAGE: mark_message(note, at); continue;
    default: break;
    }
    rt_mark(at, bytes);
    if (note) {
      note->out_at[i] = at;
      note->out_bytes[i] = bytes;
    }
  }
}

int rt_marks_outputs(const struct call *c) {
  return CTL->slots && c->nr < ARRAY_LEN(outputs) && outputs[c->nr][0].kind != NO;
}

void rt_marks_before(struct call *c) {
  mark_outputs(c, c->self);
}

/* The call's arguments are given as they were: a call may have changed its own copy. */
void rt_marks_after(struct call *c) {
  mark_outputs(c, 0);
  for (u32 i = 0; i < OUTPUTS; i++)
    c->self->out_bytes[i] = 0;
}

/* ---- a handler of the program's, in the middle of a run of marked writes ---- */

typedef void (*handler_fn)(int, void *, void *);

/* The slots are saved for the writes that follow when the handler returns, and marked again then:
 * that is the same as if the marks had come after the signal. A handler that jumps away leaves
 * nothing to be written. */
__attribute__((used)) void rt_handler_with_slots(int sig, void *info, void *uc, handler_fn handler) {
  u32 count = CTL->slots;
  if (!count) {
    handler(sig, info, uc);
    return;
  }
  u64 base; /* asked for: this may be the program's own stack, which tells no thread from another */
  raw2(__NR_arch_prctl, ARCH_GET_FS, &base);
  u64 *slots = slots_of(base);
  u64 saved[RT_MAX_SLOTS];
  for (u32 i = 0; i < count; i++)
    saved[i] = slots[i];
  handler(sig, info, uc);
  for (u32 i = 0; i < count; i++) {
    ((volatile u64 *)slots)[i] = saved[i];
    __asm__ volatile("" : : : "memory");
    rt_mark(saved[i], 1);
  }
}
