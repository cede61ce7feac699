/* Internals of the runtime: raw system calls, small freestanding helpers, the pieces' interfaces.
 *
 * The runtime is the enclave's own kernel-facing layer. It is linked into the image, runs before
 * libc, and from then on only inside two signal handlers (SIGSYS for a trapped system call, the
 * quiesce signal). So it may use neither libc nor libc's TLS, and it has no static writable data
 * (direct.c, which stands for functions of libc, is part of the program and may): whatever it
 * remembers lives in the arena (and travels) or in the control block (and stays).
 * All its text is in one section, because the kernel tells its system calls from the program's by
 * the address they come from. */
#ifndef OPTMIG_RT_H
#define OPTMIG_RT_H

#include <asm/unistd_64.h>

#include "abi.h"

#pragma clang section text = "optmig_text"

#define RT ((struct rt_state *)ARENA_BASE)
#define CTL ((volatile struct ctl *)CTL_BASE)

/* Where things stand in the arena, after rt_state. */
#define ALT_STACK_BYTES (256ul << 10)
#define ALT_STACKS_BASE (ARENA_BASE + RT_STATE_BYTES)
#define ALT_STACKS_END (ALT_STACKS_BASE + RT_MAX_THREADS * ALT_STACK_BYTES)

#define E_PERM 1
#define E_NOENT 2
#define E_INTR 4
#define E_NXIO 6
#define E_BADF 9
#define E_AGAIN 11
#define E_NOMEM 12
#define E_ACCES 13
#define E_FAULT 14
#define E_EXIST 17
#define E_NODEV 19
#define E_INVAL 22
#define E_MFILE 24
#define E_RANGE 34
#define E_NAMETOOLONG 36
#define E_NOSYS 38
#define E_NOTSUP 95

#define O_ACCMODE 3
#define O_CREAT 0100
#define O_EXCL 0200
#define O_TRUNC 01000
#define O_APPEND 02000
#define O_NONBLOCK 04000
#define O_DIRECT 040000
#define O_DIRECTORY 0200000
#define O_CLOEXEC 02000000
#define O_PATH 010000000
#define O_TMPFILE 020200000
#define F_DUPFD_CLOEXEC 1030
#define S_IFMT 0170000
#define S_IFREG 0100000

#define PAGE_UP(x) (((x) + PAGE_BYTES - 1) & ~(PAGE_BYTES - 1))
#define PAGE_DOWN(x) ((x) & ~(PAGE_BYTES - 1))
#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define IS_ERR(r) ((u64)(r) > -4096ul)

static inline i64 raw6(i64 nr, i64 a, i64 b, i64 c, i64 d, i64 e, i64 f) {
  register i64 r10 __asm__("r10") = d;
  register i64 r8 __asm__("r8") = e;
  register i64 r9 __asm__("r9") = f;
  i64 ret;
  __asm__ volatile("syscall"
                   : "=a"(ret)
                   : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return ret;
}
#define raw0(n) raw6(n, 0, 0, 0, 0, 0, 0)
#define raw1(n, a) raw6(n, (i64)(a), 0, 0, 0, 0, 0)
#define raw2(n, a, b) raw6(n, (i64)(a), (i64)(b), 0, 0, 0, 0)
#define raw3(n, a, b, c) raw6(n, (i64)(a), (i64)(b), (i64)(c), 0, 0, 0)
#define raw4(n, a, b, c, d) raw6(n, (i64)(a), (i64)(b), (i64)(c), (i64)(d), 0, 0)
#define raw5(n, a, b, c, d, e) raw6(n, (i64)(a), (i64)(b), (i64)(c), (i64)(d), (i64)(e), 0)

/* `rep` instructions, so that the compiler cannot turn the helper into a call of libc's. */
static inline void rt_copy(void *to, const void *from, u64 n) {
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}
static inline void rt_fill(void *to, int byte, u64 n) {
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(n) : "a"(byte) : "memory");
}
static inline u64 rt_strlen(const char *s) {
  u64 n = 0;
  while (s[n])
    n++;
  return n;
}
static inline int rt_streq(const char *a, const char *b) {
  while (*a && *a == *b) {
    a++;
    b++;
  }
  return *a == *b;
}

struct timespec64 {
  i64 sec, nsec;
};
#define NS_PER_S 1000000000ll

/* Two clocks, or a clock and a timer, that were read within so long belong together. */
#define ONE_INSTANT_NS 20000
#define ONE_INSTANT_TRIES 16

/* The kernel's x86-64 signal frame, as rt_sigreturn reads it. */
struct rt_ucontext {
  u64 flags;
  struct rt_ucontext *link;
  struct {
    u64 sp;
    i32 flags, pad;
    u64 size;
  } stack;
  u64 r8, r9, r10, r11, r12, r13, r14, r15;
  u64 rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp, rip, eflags;
  u16 cs, gs, fs, ss;
  u64 err, trapno, oldmask, cr2, fpstate, reserved[8];
  u64 sigmask;
};

struct rt_siginfo {
  i32 signo, err, code, pad;
  u64 call_addr;
  i32 call_nr;
  u32 arch;
  u8 rest[128 - 32];
};

/* One mediated call. */
struct call {
  u64 nr, a, b, c, d, e, f;
  struct rt_ucontext *uc;
  struct rt_thread *self;
};
typedef i64 (*call_fn)(struct call *);

/* The kernel's struct iovec. */
#define RT_MAX_VECTORS 1024
struct rt_vector {
  u64 base, bytes;
};

/* Where this image's data and the program's memory stand in an arena; the same on every host. */
struct rt_layout {
  u64 data_start, data_end, data_copy, low;
};

/* check.c */
void rt_check_state(const struct rt_layout *image); /* returns only if the state can be restored */

/* park.c */
static inline int rt_quiesce_is_wanted(void) {
  return CTL->quiesce_seq != CTL->resume_seq;
}
void rt_quiesce_handler(int sig, struct rt_siginfo *info, struct rt_ucontext *uc);
void rt_event(void);
void rt_thread_stops(void); /* this thread parks or exits: the last one saves the process */
void rt_return_to_program(struct rt_thread *t) __attribute__((noreturn)); /* after a move */
void rt_enter_program(struct rt_thread *t) __attribute__((noreturn));     /* at its frame */
static inline void __attribute__((noreturn)) rt_leave_for_frame(u64 frame) {
  __asm__ volatile("mov %0, %%rsp\n mov $15, %%eax\n syscall\n ud2" : : "r"(frame) : "memory");
  __builtin_unreachable();
}
void rt_wait_for_commands(const struct rt_layout *image) __attribute__((noreturn));
void rt_fail(int error, const char *text) __attribute__((noreturn));
static inline struct rt_thread *rt_self(void) {
  u64 here = (u64)__builtin_frame_address(0);
  return &RT->threads[(here - ALT_STACKS_BASE) / ALT_STACK_BYTES];
}

/* dispatch.c */
void rt_sigsys_handler(int sig, struct rt_siginfo *info, struct rt_ucontext *uc);
i64 rt_forward(struct call *c);
i64 rt_refuse(struct call *c); /* ENOSYS, and its number and place are logged */
/* The call blocks: let the program's signals and the quiesce signal in while it does. */
i64 rt_waiting(struct call *c, i64 nr, i64 a, i64 b, i64 d, i64 e, i64 f, i64 g);
/* Whether the kernel's answer to a call that waits is the program's to see. Only a handler of the program
 * that has run on this thread meanwhile may cut a call short. What else does so is a quiesce: one that parked
 * it, that was cancelled before it did, or that another thread took. */
struct wait_state {
  u64 handled, interrupted;
};
struct wait_state rt_wait_begin(struct call *c);
int rt_wait_again(struct call *c, const struct wait_state *w, i64 result);
int rt_wait_restarts(struct call *c, const struct wait_state *w, i64 result); /* as SA_RESTART asks */
int rt_wait_undisturbed(struct call *c, const struct wait_state *w);
void rt_note_place(const struct call *c, struct rt_place *place);

/* alone.c */
int rt_may_run_alone(const char *wish, const char *name); /* the wish: OPTMIG_ALONE, or 0 */

/* entry.c */
void rt_arm_thread(struct rt_thread *t); /* alternate stack and system-call trap of this thread */
void rt_install_handlers(void);

/* marks.c */
void rt_marks_boot(u64 data_end);
void rt_marks_first_thread(void);
void rt_marks_alone(void);
void rt_mark(u64 at, u64 bytes);            /* written on the program's behalf */
int rt_marks_outputs(const struct call *c); /* whether the call fills the program's memory */
void rt_marks_before(struct call *c);
void rt_marks_after(struct call *given);

/* threads.c */
void rt_lock(void); /* the tables in the arena; held only with all signals blocked */
void rt_unlock(void);
struct rt_thread *rt_thread_of(i64 vtid); /* 0 if there is none */
int rt_threads_restore(struct rt_thread *mine);
i64 sys_clone(struct call *), sys_exit(struct call *);

/* memory.c */
void rt_memory_init(u64 low, u64 high);
void rt_memory_add(u64 start, u64 end, u32 prot, u32 kind);
u64 rt_memory_take(u64 bytes, u32 prot, u32 kind);
void rt_memory_give(u64 start, u64 bytes);
i64 sys_mmap(struct call *), sys_munmap(struct call *), sys_mremap(struct call *),
    sys_mprotect(struct call *), sys_madvise(struct call *), sys_brk(struct call *), sys_msync(struct call *);

/* protections.c */
struct rt_protections *rt_protections_of_fresh_memory(const struct rt_layout *image);
int rt_protections_apply(struct rt_protections *); /* -E_INVAL: no table, and nothing was changed */
void rt_protections_forget(struct rt_protections *);

/* paths.c */
struct rt_path {
  u32 kind; /* OFD_OWN, OFD_SHARED, OFD_EXTERNAL or OFD_DEVICE */
  i32 dirfd;
  const char *at;           /* what to give to the kernel together with dirfd */
  char text[RT_PATH_BYTES]; /* the normalised virtual path, or relative to the own directory */
};
i64 rt_resolve(int dirfd, const char *path, struct rt_path *out);
i64 sys_chdir(struct call *), sys_fchdir(struct call *), sys_getcwd(struct call *);
i64 rt_path_call(struct call *c); /* any call whose path arguments are described in its row */
void rt_note_outside_write(const struct rt_path *p);

/* files.c */
void rt_files_init(void);
int rt_fd_ok(u64 fd);
struct rt_ofd *rt_ofd_of(u64 fd);
void rt_ofd_look_at(struct rt_ofd *o, u64 fd); /* what is known of a file on this host alone */
i64 rt_new_ofd(struct call *c, u64 fd, u32 kind, u32 flags, const char *path);
i64 rt_fd_new_blocker(struct call *c);
void rt_ofds_renamed(const struct rt_path *from, const struct rt_path *to);
void rt_ofds_check_unlinked(void);
i64 sys_open(struct call *), sys_openat(struct call *), sys_creat(struct call *), sys_close(struct call *),
    sys_dup(struct call *), sys_dup2(struct call *), sys_dup3(struct call *), sys_fcntl(struct call *),
    sys_lseek(struct call *), sys_getdents64(struct call *), sys_close_range(struct call *),
    sys_flock(struct call *);

/* direct.c */
extern int rt_direct;
void rt_begin_again(struct rt_ucontext *uc); /* an interrupted context that may go on elsewhere */

/* carry.c */
int rt_files_restore(char *why, u64 why_bytes);
void rt_files_save(void);
i64 rt_raised(i64 fd);    /* moved to a number of the runtime's */
i64 rt_first_fd(u32 ofd); /* the lowest number of a description */

/* directories.c */
void rt_listing_drop(struct rt_ofd *o);
int rt_hide_removed(const struct rt_path *p);
void rt_remove_hidden(const struct rt_ofd *closed);
void rt_remove_all_hidden(void);

/* views.c */
int rt_view_open(const char *path, u64 flags, i64 *answer);
i64 rt_view_link(const char *path, char *to, u64 bytes);
void rt_view_save(u32 fd, struct rt_ofd *o);
i64 rt_view_restore(const struct rt_ofd *o);

/* transfers.c */
u64 rt_vectors_of(const struct call *c, struct rt_vector *v); /* a copy; 0 if the kernel cannot read them */
int rt_readable(u32 fd, int wait_ms);
i64 rt_wait_in(struct call *c);    /* any call that may wait, made again after a quiesce */
i64 rt_fd_forward(struct call *c); /* first argument is a descriptor */
i64 rt_fd_write(struct call *c);
i64 sys_recvfrom(struct call *), sys_two_fds(struct call *), sys_poll(struct call *);

/* pinned.c */
int rt_pins(u64 fd, u32 flags); /* whether reads of this file go past the program's page tables */
i64 rt_read_pinned(struct call *c);
void rt_write_again(u64 at, u64 bytes);

/* written.c */
u64 rt_file_inode(u64 fd, u32 flags); /* of a file that can be written; 0 otherwise */
void rt_file_mark(u64 inode, u64 from, u64 bytes);
volatile struct rt_writing *rt_writing_begin(u64 inode, u64 from, u64 bytes); /* 0: no slot is free */
void rt_writing_end(volatile struct rt_writing *w);
void rt_writings_restore(void);
i64 rt_file_call(struct call *c, u64 fd, const struct rt_ofd *o); /* any call on a file */
i64 rt_truncate_fd(struct rt_thread *self, u64 fd, u64 bytes);

/* objects.c */
void rt_objects_save_flags(u32 fd, struct rt_ofd *o);
void rt_object_save(u32 fd, struct rt_ofd *o);
i64 rt_object_restore(const struct rt_ofd *o);
i64 rt_pair_restore(const struct rt_ofd *o, const struct rt_ofd *peer, i64 *ends);
i64 sys_pipe(struct call *), sys_socketpair(struct call *), sys_eventfd(struct call *),
    sys_signalfd(struct call *), sys_shutdown(struct call *), sys_setsockopt(struct call *),
    sys_socket_name(struct call *), sys_send(struct call *);

/* timers.c */
void rt_timerfd_save(u32 fd, struct rt_ofd *o);
void rt_timerfds_start(void);
i64 rt_timerfd_read(struct call *c, struct rt_ofd *o);
void rt_interval_timers_stop(void);
void rt_interval_timers_start(void);
i64 sys_timerfd_create(struct call *), sys_timerfd_settime(struct call *);

/* epoll.c */
void rt_watches_forget(u32 ofd);
i64 rt_watches_restore(void);
i64 sys_epoll_create(struct call *), sys_epoll_ctl(struct call *), sys_epoll_wait(struct call *);

/* clocks.c */
i64 rt_virtual_mono_ns(void);
i64 rt_clock_ns(int id);     /* this host's */
i64 rt_clock_offset(i64 id); /* what makes it the enclave's */
i64 rt_ns(const struct timespec64 *t);
void rt_put_ns(struct timespec64 *t, i64 ns);
void rt_clocks_save(void);
void rt_clocks_restore(void);
void rt_cpu_clock_resumed(void);
i64 sys_clock_gettime(struct call *), sys_nanosleep(struct call *), sys_clock_nanosleep(struct call *),
    sys_futex(struct call *), sys_getrusage(struct call *), sys_times(struct call *);

/* signals.c */
#define SIGBIT(n) (1ul << ((n) - 1))
#define SIG_SYS 31
#define RUNTIME_SIGNALS (SIGBIT(QUIESCE_SIGNAL) | SIGBIT(SIG_SYS) | SIGBIT(9) | SIGBIT(19))
void rt_restorer(void);
i64 rt_kernel_sigaction(int sig, u64 handler, u64 flags, u64 mask);
void rt_signals_save(void);
void rt_signals_restore(void);
void rt_signals_save_thread(struct rt_thread *t);
void rt_signals_restore_thread(struct rt_thread *t);
i64 sys_rt_sigaction(struct call *), sys_rt_sigprocmask(struct call *), sys_rt_sigsuspend(struct call *),
    sys_pause(struct call *), sys_sigaltstack(struct call *), sys_kill(struct call *),
    sys_tkill(struct call *), sys_tgkill(struct call *), sys_rt_sigtimedwait(struct call *),
    sys_rt_sigreturn(struct call *);

/* process.c */
i64 sys_exit_group(struct call *), sys_getpid(struct call *), sys_gettid(struct call *),
    sys_getppid(struct call *), sys_set_tid_address(struct call *), sys_set_robust_list(struct call *),
    sys_umask(struct call *), sys_prlimit64(struct call *), sys_getrlimit(struct call *),
    sys_setrlimit(struct call *), sys_prctl(struct call *), sys_arch_prctl(struct call *),
    sys_quiet_enosys(struct call *), sys_zero(struct call *), sys_tid_first(struct call *),
    sys_sched_setaffinity(struct call *), sys_sched_getaffinity(struct call *);
void rt_thread_settings_restore(const struct rt_thread *t); /* called by the thread itself */

#endif
