/* The table of system calls, and the handler that every trapped call goes through.
 *
 * A call is carried (its effect lives in the arena and travels), emulated, forwarded (its effect is
 * over when it returns), or refused with ENOSYS, which is logged with its number and place. There is
 * no default that lets an unknown call through. */
#include "rt.h"

#define PLACE_WORDS 256

i64 rt_forward(struct call *c) {
  return raw6((i64)c->nr, (i64)c->a, (i64)c->b, (i64)c->c, (i64)c->d, (i64)c->e, (i64)c->f);
}

/* Whether a call instruction ends at the address: then the address may be where a function returns to. */
static int follows_a_call(u64 at) {
  extern char __executable_start[], etext[];
  if (at < (u64)__executable_start + 8 || at >= (u64)etext)
    return 0;
  const u8 *p = (const u8 *)at;
  return p[-5] == 0xe8 || (p[-2] == 0xff && (p[-1] & 0xf8) == 0xd0) ||
         (p[-3] == 0xff && (p[-2] & 0xf8) == 0x50) || (p[-6] == 0xff && (p[-5] & 0xf8) == 0x90);
}

void rt_note_place(const struct call *c, struct rt_place *place) {
  u64 stack[PLACE_WORDS];
  struct {
    u64 base, bytes;
  } to = {(u64)stack, sizeof stack}, from = {c->uc->rsp, sizeof stack};
  rt_fill(place, 0, sizeof *place);
  place->nr = c->nr;
  place->ip = c->uc->rip;
  /* by a system call, because the stack may end within these words */
  i64 n = raw6(__NR_process_vm_readv, raw0(__NR_getpid), (i64)&to, 1, (i64)&from, 1, 0);
  u32 found = 0;
  for (u64 i = 0; (i64)(i * 8) < n && found < RT_PLACE_CALLERS; i++)
    if (follows_a_call(stack[i]))
      place->callers[found++] = stack[i];
}

static void note_refused(const struct call *c) {
  u32 known = CTL->refused_count;
  for (u32 i = 0; i < known; i++)
    if (CTL->refused[i].nr == c->nr && CTL->refused[i].ip == c->uc->rip)
      return;
  if (known == CTL_MAX_REFUSED)
    return;
  rt_note_place(c, (struct rt_place *)&CTL->refused[known]);
  CTL->refused_count = known + 1; /* two threads at once: one of them is not noted */
}

i64 rt_refuse(struct call *c) {
  if (c->nr < sizeof(CTL->unsupported) * 8)
    __atomic_fetch_or(&CTL->unsupported[c->nr / 64], 1ul << (c->nr % 64), __ATOMIC_RELAXED);
  note_refused(c);
  return -E_NOSYS;
}

i64 sys_quiet_enosys(struct call *c) {
  (void)c;
  return -E_NOSYS; /* libc probes for it and has another way */
}

i64 sys_zero(struct call *c) {
  (void)c;
  return 0;
}

static void set_mask(u64 mask) {
  raw4(__NR_rt_sigprocmask, 2 /* SIG_SETMASK */, &mask, 0, 8);
}

i64 rt_waiting(struct call *c, i64 nr, i64 a, i64 b, i64 d, i64 e, i64 f, i64 g) {
  set_mask(c->uc->sigmask & ~RUNTIME_SIGNALS);
  i64 r = raw6(nr, a, b, d, e, f, g);
  set_mask(~0ul);
  return r;
}

struct wait_state rt_wait_begin(struct call *c) {
  return (struct wait_state){c->self->handled, c->self->interrupted};
}

int rt_wait_undisturbed(struct call *c, const struct wait_state *w) {
  return c->self->handled == w->handled;
}

int rt_wait_again(struct call *c, const struct wait_state *w, i64 result) {
  return result == -E_INTR && rt_wait_undisturbed(c, w);
}

int rt_wait_restarts(struct call *c, const struct wait_state *w, i64 result) {
  return result == -E_INTR && c->self->interrupted == w->interrupted;
}

#define FORWARD(n) [__NR_##n] = rt_forward
#define FD(n) [__NR_##n] = rt_fd_forward
#define PATH(n) [__NR_##n] = rt_path_call
#define HOLDS(n) [__NR_##n] = rt_fd_new_blocker
#define ZERO(n) [__NR_##n] = sys_zero
#define QUIET(n) [__NR_##n] = sys_quiet_enosys
#define OWN(n) [__NR_##n] = sys_##n

static const call_fn table[] = {
    /* memory: carried */
    OWN(mmap), OWN(munmap), OWN(mremap), OWN(mprotect), OWN(madvise), OWN(brk), OWN(msync), ZERO(mlock),
    ZERO(mlock2), ZERO(munlock), ZERO(mlockall), ZERO(munlockall), QUIET(mincore), QUIET(membarrier),
    /* files: carried */
    OWN(open), OWN(openat), OWN(creat), OWN(close), OWN(dup), OWN(dup2), OWN(dup3), OWN(fcntl), OWN(lseek),
    OWN(getdents64), OWN(flock), OWN(close_range), OWN(chdir), OWN(fchdir), OWN(getcwd), FD(read), FD(readv),
    FD(pread64), FD(preadv), FD(preadv2), FD(fstat), [__NR_write] = rt_fd_write, [__NR_writev] = rt_fd_write,
    FD(pwrite64), FD(pwritev), FD(pwritev2), FD(ftruncate), FD(fsync), FD(fdatasync), FD(fchmod), FD(fchown),
    FD(ioctl), FD(fadvise64), FD(fallocate), FD(fstatfs), FD(sync_file_range), FD(readahead),
    [__NR_sendfile] = sys_two_fds, [__NR_copy_file_range] = sys_two_fds, FORWARD(sync), PATH(stat),
    PATH(lstat), PATH(newfstatat), PATH(statx), PATH(access), PATH(faccessat), PATH(faccessat2), PATH(chmod),
    PATH(fchmodat), PATH(chown), PATH(lchown), PATH(fchownat), PATH(mkdir), PATH(mkdirat), PATH(rmdir),
    PATH(unlink), PATH(unlinkat), PATH(readlink), PATH(readlinkat), PATH(rename), PATH(renameat),
    PATH(renameat2), PATH(link), PATH(linkat), PATH(symlink), PATH(symlinkat), PATH(truncate),
    PATH(utimensat), PATH(statfs), OWN(umask),
    /* objects of the kernel within the enclave: carried */
    [__NR_pipe] = sys_pipe, [__NR_pipe2] = sys_pipe, OWN(socketpair), [__NR_eventfd] = sys_eventfd,
    [__NR_eventfd2] = sys_eventfd, [__NR_epoll_create] = sys_epoll_create,
    [__NR_epoll_create1] = sys_epoll_create, OWN(epoll_ctl), OWN(epoll_wait),
    [__NR_epoll_pwait] = sys_epoll_wait, [__NR_epoll_pwait2] = sys_epoll_wait, OWN(timerfd_create),
    OWN(timerfd_settime), FD(timerfd_gettime), [__NR_signalfd] = sys_signalfd,
    [__NR_signalfd4] = sys_signalfd, OWN(shutdown), OWN(setsockopt), FD(getsockopt), [__NR_sendto] = sys_send,
    [__NR_sendmsg] = sys_send, OWN(recvfrom), FD(recvmsg), [__NR_poll] = sys_poll, [__NR_ppoll] = sys_poll,
    [__NR_select] = sys_poll, [__NR_pselect6] = sys_poll,
    /* held: they work, and block a move while they are open */
    HOLDS(socket), HOLDS(inotify_init), HOLDS(inotify_init1), HOLDS(memfd_create), HOLDS(accept),
    HOLDS(accept4), HOLDS(pidfd_open), FD(inotify_add_watch), FD(inotify_rm_watch),
    [__NR_bind] = sys_socket_name, [__NR_listen] = sys_socket_name, [__NR_connect] = sys_socket_name,
    FD(getsockname), FD(getpeername),
    /* time: emulated on the virtual clock */
    OWN(clock_gettime), OWN(nanosleep), OWN(clock_nanosleep), FORWARD(gettimeofday), FORWARD(time),
    OWN(times), OWN(getrusage), FORWARD(clock_getres),
    /* signals and timers: carried */
    OWN(rt_sigaction), OWN(rt_sigprocmask), OWN(rt_sigsuspend), OWN(rt_sigtimedwait), OWN(rt_sigreturn),
    OWN(pause), OWN(sigaltstack), OWN(kill), OWN(tkill), OWN(tgkill), FORWARD(rt_sigpending),
    FORWARD(setitimer), FORWARD(getitimer), FORWARD(alarm),
    /* process and thread */
    OWN(exit_group), OWN(exit), OWN(clone), OWN(getpid), OWN(gettid), OWN(getppid), OWN(set_tid_address),
    OWN(set_robust_list), OWN(futex), OWN(prlimit64), OWN(getrlimit), OWN(setrlimit), OWN(prctl),
    OWN(arch_prctl), QUIET(rseq), QUIET(clone3), FORWARD(getuid), FORWARD(geteuid), FORWARD(getgid),
    FORWARD(getegid), FORWARD(getgroups), FORWARD(getresuid), FORWARD(getresgid), [__NR_getpgid] = sys_getpid,
    [__NR_getpgrp] = sys_getpid, [__NR_getsid] = sys_getpid, FORWARD(uname), FORWARD(sysinfo),
    FORWARD(getrandom), FORWARD(getcpu), FORWARD(sched_yield), FORWARD(sched_get_priority_max),
    FORWARD(sched_get_priority_min), OWN(sched_getaffinity), OWN(sched_setaffinity),
    [__NR_sched_getparam] = sys_tid_first, [__NR_sched_getscheduler] = sys_tid_first,
    [__NR_sched_setscheduler] = sys_tid_first};

/* Calls that change the tables of mappings or descriptors, or what these say. None of them waits. */
#define CHANGES(n) [__NR_##n] = 1
static const u8 table_calls[] = {
    CHANGES(mmap),           CHANGES(munmap),       CHANGES(mremap),         CHANGES(mprotect),
    CHANGES(madvise),        CHANGES(brk),          CHANGES(open),           CHANGES(openat),
    CHANGES(creat),          CHANGES(close),        CHANGES(close_range),    CHANGES(dup),
    CHANGES(dup2),           CHANGES(dup3),         CHANGES(socket),         CHANGES(pipe),
    CHANGES(pipe2),          CHANGES(socketpair),   CHANGES(epoll_create),   CHANGES(epoll_create1),
    CHANGES(eventfd),        CHANGES(eventfd2),     CHANGES(timerfd_create), CHANGES(signalfd),
    CHANGES(signalfd4),      CHANGES(memfd_create), CHANGES(inotify_init),   CHANGES(inotify_init1),
    CHANGES(epoll_ctl),      CHANGES(getdents64),   CHANGES(lseek),          CHANGES(pidfd_open),
    CHANGES(chdir),          CHANGES(fchdir),       CHANGES(rename),         CHANGES(renameat),
    CHANGES(renameat2),      CHANGES(unlink),       CHANGES(unlinkat),       CHANGES(rt_sigaction),
    CHANGES(timerfd_settime)};

void rt_sigsys_handler(int sig, struct rt_siginfo *info, struct rt_ucontext *uc) {
  (void)sig;
  (void)info;
  struct call c = {uc->rax, uc->rdi, uc->rsi, uc->rdx, uc->r10, uc->r8, uc->r9, uc, rt_self()};
  CTL->syscalls++;
  call_fn fn = c.nr < ARRAY_LEN(table) ? table[c.nr] : 0;
  int locked = c.nr < ARRAY_LEN(table_calls) && table_calls[c.nr];
  int fills = rt_marks_outputs(&c);
  struct call given;
  if (fills) {
    rt_marks_before(&c);
    rt_copy(&given, &c, sizeof given);
  }
  if (locked)
    rt_lock();
  uc->rax = (u64)(fn ? fn(&c) : rt_refuse(&c));
  if (fills)
    rt_marks_after(&given);
  if (locked)
    rt_unlock();
}
