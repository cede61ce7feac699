/* The table of system calls, and the handler that every trapped call goes through.
 *
 * A call is carried (its effect lives in the arena and travels), emulated, forwarded (its effect is
 * over when it returns), or refused with ENOSYS, which is logged with its number and place. There is
 * no default that lets an unknown call through. */
#include "rt.h"

i64 rt_forward(struct call *c) {
  return raw6((i64)c->nr, (i64)c->a, (i64)c->b, (i64)c->c, (i64)c->d, (i64)c->e, (i64)c->f);
}

i64 rt_refuse(struct call *c) {
  if (c->nr < sizeof(CTL->unsupported) * 8)
    __atomic_fetch_or(&CTL->unsupported[c->nr / 64], 1ul << (c->nr % 64), __ATOMIC_RELAXED);
  u32 i = __atomic_fetch_add(&CTL->unsupported_seq, 1, __ATOMIC_RELAXED) % ARRAY_LEN(CTL->unsupported_nr);
  CTL->unsupported_nr[i] = c->nr;
  CTL->unsupported_ip[i] = c->uc->rip;
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
  return (struct wait_state){c->self->quiesces, RT->handled};
}

int rt_wait_again(struct call *c, struct wait_state *w, i64 result) {
  int again = result == -E_INTR && c->self->quiesces != w->quiesces && RT->handled == w->handled;
  *w = rt_wait_begin(c);
  return again;
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
    OWN(getdents64), OWN(flock), OWN(close_range), OWN(chdir), OWN(fchdir), OWN(getcwd),
    [__NR_read] = sys_read_like, [__NR_write] = sys_read_like, [__NR_readv] = sys_read_like,
    [__NR_writev] = sys_read_like, FD(pread64), FD(pwrite64), FD(preadv), FD(pwritev), FD(fstat),
    FD(ftruncate), FD(fsync), FD(fdatasync), FD(fchmod), FD(fchown), FD(ioctl), FD(fadvise64), FD(fallocate),
    FD(fstatfs), FD(sync_file_range), FD(readahead), [__NR_sendfile] = sys_two_fds,
    [__NR_copy_file_range] = sys_two_fds, FORWARD(sync), PATH(stat), PATH(lstat), PATH(newfstatat),
    PATH(statx), PATH(access), PATH(faccessat), PATH(faccessat2), PATH(chmod), PATH(fchmodat), PATH(chown),
    PATH(lchown), PATH(fchownat), PATH(mkdir), PATH(mkdirat), PATH(rmdir), PATH(unlink), PATH(unlinkat),
    PATH(readlink), PATH(readlinkat), PATH(rename), PATH(renameat), PATH(renameat2), PATH(link), PATH(linkat),
    PATH(symlink), PATH(symlinkat), PATH(truncate), PATH(utimensat), PATH(statfs), OWN(umask),
    /* held, but not carried yet: a blocker while open */
    HOLDS(socket), HOLDS(epoll_create), HOLDS(epoll_create1), HOLDS(eventfd), HOLDS(eventfd2),
    HOLDS(timerfd_create), HOLDS(signalfd), HOLDS(signalfd4), HOLDS(inotify_init), HOLDS(inotify_init1),
    HOLDS(memfd_create), HOLDS(accept), HOLDS(accept4), HOLDS(pidfd_open), [__NR_pipe] = sys_pipe,
    [__NR_pipe2] = sys_pipe, OWN(socketpair), FD(bind), FD(listen), FD(connect), FD(getsockname),
    FD(getpeername), FD(setsockopt), FD(getsockopt), FD(shutdown), FD(sendto), FD(recvfrom), FD(sendmsg),
    FD(recvmsg), FD(epoll_ctl), FD(timerfd_settime), FD(timerfd_gettime), FD(inotify_add_watch),
    FD(inotify_rm_watch), FD(epoll_wait), FD(epoll_pwait), [__NR_poll] = sys_poll, [__NR_ppoll] = sys_poll,
    [__NR_select] = sys_poll, [__NR_pselect6] = sys_poll,
    /* time: emulated on the virtual clock */
    OWN(clock_gettime), OWN(nanosleep), OWN(clock_nanosleep), FORWARD(gettimeofday), FORWARD(time),
    FORWARD(times), FORWARD(getrusage), FORWARD(clock_getres),
    /* signals and timers: carried */
    OWN(rt_sigaction), OWN(rt_sigprocmask), OWN(rt_sigsuspend), OWN(rt_sigtimedwait), OWN(rt_sigreturn),
    OWN(pause), OWN(sigaltstack), OWN(kill), OWN(tkill), OWN(tgkill), FORWARD(rt_sigpending),
    FORWARD(setitimer), FORWARD(getitimer), FORWARD(alarm),
    /* process and thread */
    OWN(exit_group), OWN(exit), OWN(clone), OWN(getpid), OWN(gettid), OWN(getppid), OWN(set_tid_address),
    OWN(set_robust_list), OWN(futex), OWN(prlimit64), OWN(getrlimit), OWN(setrlimit), OWN(prctl),
    OWN(arch_prctl), QUIET(rseq), FORWARD(getuid), FORWARD(geteuid), FORWARD(getgid), FORWARD(getegid),
    FORWARD(getgroups), FORWARD(getresuid), FORWARD(getresgid), [__NR_getpgid] = sys_getpid,
    [__NR_getpgrp] = sys_getpid, [__NR_getsid] = sys_getpid, FORWARD(uname), FORWARD(sysinfo),
    FORWARD(getrandom), FORWARD(getcpu), FORWARD(sched_yield), FORWARD(sched_get_priority_max),
    FORWARD(sched_get_priority_min), [__NR_sched_getaffinity] = sys_tid_first,
    [__NR_sched_setaffinity] = sys_tid_first, [__NR_sched_getparam] = sys_tid_first,
    [__NR_sched_getscheduler] = sys_tid_first, [__NR_sched_setscheduler] = sys_tid_first};

/* Calls that change the tables of mappings or descriptors. None of them waits. */
#define CHANGES(n) [__NR_##n] = 1
static const u8 table_calls[] = {
    CHANGES(mmap),        CHANGES(munmap),       CHANGES(mremap),         CHANGES(mprotect),
    CHANGES(madvise),     CHANGES(brk),          CHANGES(open),           CHANGES(openat),
    CHANGES(creat),       CHANGES(close),        CHANGES(close_range),    CHANGES(dup),
    CHANGES(dup2),        CHANGES(dup3),         CHANGES(socket),         CHANGES(pipe),
    CHANGES(pipe2),       CHANGES(socketpair),   CHANGES(epoll_create),   CHANGES(epoll_create1),
    CHANGES(eventfd),     CHANGES(eventfd2),     CHANGES(timerfd_create), CHANGES(signalfd),
    CHANGES(signalfd4),   CHANGES(memfd_create), CHANGES(inotify_init),   CHANGES(inotify_init1),
    CHANGES(pidfd_open),  CHANGES(chdir),        CHANGES(fchdir),         CHANGES(rename),
    CHANGES(renameat),    CHANGES(renameat2),    CHANGES(unlink),         CHANGES(unlinkat),
    CHANGES(rt_sigaction)};

void rt_sigsys_handler(int sig, struct rt_siginfo *info, struct rt_ucontext *uc) {
  (void)sig;
  (void)info;
  struct call c = {uc->rax, uc->rdi, uc->rsi, uc->rdx, uc->r10, uc->r8, uc->r9, uc, rt_self()};
  CTL->syscalls++;
  call_fn fn = c.nr < ARRAY_LEN(table) ? table[c.nr] : 0;
  int locked = c.nr < ARRAY_LEN(table_calls) && table_calls[c.nr];
  if (locked)
    rt_lock();
  uc->rax = (u64)(fn ? fn(&c) : rt_refuse(&c));
  if (locked)
    rt_unlock();
}
